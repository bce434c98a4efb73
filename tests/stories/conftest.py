from pathlib import Path

import pytest

from tests import shared
from tests.stories.support import speech, write_tiny_model, write_wav


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a few seconds of speech."""
    return write_wav(tmp_path_factory.mktemp("audio") / "talk.wav", speech())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder that can be written: a command that may not keep packed weights there says so."""
    place = shared.folder / "home"
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(place))
