"""The one exception that users see: a single clear line that names the value seen and the next step.

It often quotes the first line of another.
"""

import re

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""What torch writes of a pickled file that asks for more than tensors; the rest of its text advises to run it."""
_PICKLED = "Weights only load failed"


class SprachbundError(Exception):
    """Something the user can mend.

    The message is one line: what was wrong, the value seen, and what to do next. Commands print it without a
    traceback and exit with a non-zero code.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, to be quoted in another; its kind where it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreadable(source: object, error: BaseException, advice: str) -> SprachbundError:
    """The error for a file that a library cannot read, or that torch refuses since loading it would run something.

    Args:
        source: the file, or the folder it is in.
        error: raised by the library.
        advice: next step for a file that is damaged.
    """
    text = str(error)
    if refused := _REFUSED.search(text):
        return SprachbundError(
            f"{source} cannot be read (it asks for {refused[1]}, and of pickled files plain tensors alone are read); "
            "take a copy that holds nothing else, such as one in safetensors"
        )
    damaged = text.startswith(_PICKLED) or isinstance(error, KeyError)
    reason = "it is not a whole file of torch.save" if damaged else first_line(error)[:200]
    return SprachbundError(f"{source} cannot be read ({reason}); {advice}")
