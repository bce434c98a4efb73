"""What takes long to make is made by the first test process that asks, for all of them."""

import fcntl
from collections.abc import Callable
from pathlib import Path

folder = Path()
"""Of this run of all tests; `tests/conftest.py` sets it."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, for reading only.

    Args:
        name: says all that `make` depends on.
        make: called with an empty folder, in one process.
    """
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made := folder / name).exists():
            begun = folder / f"{name}.begun"
            begun.mkdir()
            make(begun)
            begun.rename(made)
    return made
