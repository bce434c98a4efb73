"""What takes long to make is made by the first test process that asks, for all of them."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

folder = Path()
"""Of this run of all tests; `tests/conftest.py` sets it."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, for reading only.

    Args:
        name: says all that `make` depends on.
        make: called with an empty folder, in one process.
    """
    assert folder != Path(), "set tests.shared.folder first, or it lies in the folder that this is run from"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made := folder / name).exists():
            begun = folder / f"{name}.begun"
            begun.mkdir()
            make(begun)
            begun.rename(made)
    return made


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder that can be written: a command that may not keep packed weights there says so."""
    place = folder / "home"
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
