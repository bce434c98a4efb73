"""The model in the package, on human recordings that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest

import sprachbund
from sprachbund.audio.augment import NO_SPEECH_KINDS, no_speech

RECORDINGS = Path(__file__).parents[2] / "examples" / "recordings"


@pytest.fixture(scope="module")
def model() -> sprachbund.Model:
    return sprachbund.load()


def test_it_knows_every_pair_of_its_six_languages(model: sprachbund.Model) -> None:
    languages = ("de", "en", "es", "fr", "it", "ru")
    assert model.pairs == tuple((source, target) for source in languages for target in languages)
    assert model.card.bits == 8
    assert model.card.licence == "CC-BY-SA-3.0"


def test_human_digits_become_german(model: sprachbund.Model) -> None:
    text = model.translate(RECORDINGS / "it.opus", to="de").text
    assert "vier drei null eins null sieben sieben sieben" in text


def test_the_language_spoken_is_found(model: sprachbund.Model) -> None:
    for path in sorted(RECORDINGS.iterdir()):
        spoken = [segment.source_language for segment in model.transcribe(path).segments]
        assert spoken.count(path.stem) > len(spoken) / 2


def test_no_text_where_nobody_speaks(model: sprachbund.Model) -> None:
    rng = np.random.default_rng(11)
    for kind in NO_SPEECH_KINDS:
        assert model.translate(no_speech(kind, 4.0, rng), to="de", sample_rate=16_000).text == ""
