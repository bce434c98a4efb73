from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sprachbund
from sprachbund.audio.load import load
from sprachbund.serving.settings import Limits, Settings, Timeouts
from tests.serving.support import Running, serving, wav

SPOKEN_S = 6.0
RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"


@pytest.fixture(scope="session")
def bundled() -> sprachbund.api.Model:
    return sprachbund.load(engine="torch")


@pytest.fixture(scope="session")
def running(bundled) -> Iterator[Running]:
    """A service with the bundled model, for tests that leave no trace in it."""
    with serving(Settings(port=0, engine="torch"), loader=lambda name: bundled) as result:
        yield result


@pytest.fixture(scope="session")
def recordings() -> dict[str, Path]:
    return {path.stem: path for path in sorted(RECORDINGS.iterdir())}


@pytest.fixture(scope="session")
def clip(recordings, tmp_path_factory) -> Path:
    """Some sentences in Spanish."""
    path = tmp_path_factory.mktemp("clips") / "es.wav"
    path.write_bytes(wav(load(recordings["es"], 0.0, 11.5)))
    return path


@pytest.fixture(scope="session")
def spoken(recordings) -> dict[str, np.ndarray]:
    """The first seconds of each."""
    return {language: load(path, 0.0, SPOKEN_S) for language, path in recordings.items()}


@pytest.fixture
def small_live(bundled):
    """Makes a service with small limits and the bundled model."""

    def make(**options):
        limits = replace(Limits(max_live=3, max_live_waiting_s=4.0), **options.pop("limits", {}))
        timeouts = replace(Timeouts(resume_s=30.0), **options.pop("timeouts", {}))
        settings = Settings(port=0, limits=limits, timeouts=timeouts, **options)
        return serving(settings, loader=lambda name: bundled)

    return make
