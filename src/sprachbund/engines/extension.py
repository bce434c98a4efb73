"""The compiled part, if it was built and fits this processor; and if not, why not, in a sentence for users."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sprachbund.errors import SprachbundError
from sprachbund.util.options import OptionValueError

INSTRUCTION_SET = "SPRACHBUND_INSTRUCTION_SET"
"""The environment variable that names the best set of kernels to use, for a look at what slower processors do."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in Python's or torch's words."""
    in_torch = isinstance(error, RuntimeError) and (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )
    return in_torch or isinstance(error, MemoryError)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Context manager that turns a lack of memory inside it into an error for users."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise SprachbundError(
            "there is not enough memory for this; give fewer or shorter recordings at once, or a smaller beam"
        ) from error


def _not_compiled(note: Path) -> str:
    """The reason, with the compiler's answer where setup.py noted one."""
    answer = f" ({note.read_text(encoding='utf-8').strip()})" if note.exists() else ""
    return f"it was not compiled when sprachbund was installed{answer}; install again where there is a C++ compiler"


@cache
def _loaded() -> ModuleType | str:
    try:
        return import_module("sprachbund.engines._native")
    except ModuleNotFoundError:
        return _not_compiled(Path(__file__).with_name("_native_missing.txt"))
    except ImportError as error:
        return f"its compiled file does not load ({error}); install sprachbund again"


def missing_because() -> str | None:
    """Reason why there is no compiled part; None when there is one."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None


def native() -> ModuleType:
    """The compiled module. Raises SprachbundError when there is none."""
    loaded = _loaded()
    if isinstance(loaded, str):
        raise SprachbundError(f"there is no native engine: {loaded}, or use the torch engine")
    return loaded


def instruction_sets() -> tuple[str, ...]:
    """Names of the kernels that run on this processor, best first; none without the compiled part.

    With SPRACHBUND_INSTRUCTION_SET in the environment, those from the one that it names on.

    Raises:
        OptionValueError: the variable names none of them.
    """
    if missing_because():
        return ()
    known = tuple(native().instruction_sets())
    best = os.environ.get(INSTRUCTION_SET) or None  # set to nothing is not set
    if best is None:
        return known
    if best not in known:
        raise OptionValueError(
            INSTRUCTION_SET,
            best,
            f"choose from {', '.join(known)}",
            reason="and no such kernels run on this processor",
        )
    return known[known.index(best) :]


def choose_instruction_set(wanted: str | None = None) -> str:
    """The kernels wanted, or the best of `instruction_sets`.

    Raises:
        SprachbundError: no compiled part, or a processor without the instructions asked for.
    """
    native()
    known = instruction_sets()
    wanted = wanted or known[0]
    if wanted not in known:
        raise SprachbundError(
            f"no kernels named {wanted!r} run on this processor; choose from {', '.join(known)}"
        )
    return wanted
