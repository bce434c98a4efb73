"""The one exception that users see: a single clear line that names the value seen and the next step.

It often quotes the first line of another.
"""


class SprachbundError(Exception):
    """Something the user can mend.

    The message is one line: what was wrong, the value seen, and what to do next. Commands print it without a
    traceback and exit with a non-zero code.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, to be quoted in another; its kind where it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
