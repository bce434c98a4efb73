import pytest

from tests import shared


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder that can be written: a command that may not keep packed weights there says so."""
    place = shared.folder / "home"
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(place))
