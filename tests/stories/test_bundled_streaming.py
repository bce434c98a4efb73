"""The streaming model in the package: text frame by frame, the same live as of a recording."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import sprachbund
from sprachbund.audio.augment import NO_SPEECH_KINDS, no_speech
from sprachbund.audio.load import load
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.models.io import bundled_directory, content_hash
from sprachbund.streaming.events import LiveNotice, LiveText
from sprachbund.streaming.options import LiveOptions
from tests.not_understood import sounds

NAME = "bundled-streaming"
ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "examples" / "recordings"
LANGUAGES = ("de", "en", "es", "fr", "it", "ru")


@pytest.fixture(scope="module")
def model() -> sprachbund.Model:
    return sprachbund.load(NAME)


def test_it_knows_every_pair_of_its_six_languages(model: sprachbund.Model) -> None:
    assert model.pairs == tuple((source, target) for source in LANGUAGES for target in LANGUAGES)
    assert model.card.bits == 8
    assert model.card.licence == "CC-BY-SA-3.0"


def live(
    model: sprachbund.Model, sound: np.ndarray, targets: list[str], options: LiveOptions
) -> list[LiveText]:
    listener = model.listen(targets, live=options)
    events = []
    for begin in range(0, len(sound), 1600):
        events += listener.hear(sound[begin : begin + 1600])
    return [event for event in [*events, *listener.finish()] if isinstance(event, LiveText)]


@pytest.mark.parametrize("tier", [27, 13, 6])
def test_human_digits_become_german_while_they_are_spoken(model: sprachbund.Model, tier: int) -> None:
    events = live(model, load(RECORDINGS / "en.wav"), ["de", "en"], LiveOptions(right_context=tier))
    texts: dict[str, str] = defaultdict(str)
    for event in events:
        assert not event.tentative
        texts[event.target] += event.committed
    assert "sechs neun vier drei acht null neun eins" in texts["de"]
    assert "six nine four three eight zero nine one" in texts["en"]
    assert any(event.committed and not event.final for event in events)


def test_live_text_and_its_doubts_are_those_of_the_recording() -> None:
    # In fp32: with 8 bits, a sum beside a rounding falls to either side, which the text of a stretch may show.
    model = sprachbund.load(NAME, engine="torch")
    sound = load(RECORDINGS / "es.flac")[: 16_000 * 15]
    texts, doubts = defaultdict[int, str](str), dict[int, float | None]()
    for event in live(model, sound, ["de"], LiveOptions()):
        texts[event.segment] += event.committed
        doubts[event.segment] = event.out_of_domain
    options = DecodingOptions(guard=GuardOptions(enabled=False))
    whole = model.translate(sound, to="de", sample_rate=16_000, options=options).segments
    assert [text.strip() for text in texts.values()] == [segment.text for segment in whole]
    assert [*doubts.values()] == pytest.approx([segment.out_of_domain for segment in whole], abs=0.02)


def test_the_language_spoken_is_found(model: sprachbund.Model) -> None:
    for path in sorted(RECORDINGS.iterdir()):
        spoken = [segment.source_language for segment in model.translate(path, to="en").segments]
        assert spoken.count(path.stem) > len(spoken) / 2


def test_no_text_where_nobody_speaks(model: sprachbund.Model) -> None:
    rng = np.random.default_rng(11)
    for kind in NO_SPEECH_KINDS:
        sound = no_speech(kind, 4.0, rng)
        assert model.translate(sound, to="de", sample_rate=16_000).text == ""
        assert "".join(event.committed for event in live(model, sound, ["de"], LiveOptions())) == ""


def test_what_nobody_understands_has_a_warning_where_it_is_written(model: sprachbund.Model) -> None:
    """Live text stands already when its speech has ended, so a warning is all that is left."""
    speech = {path.stem: load(path) for path in sorted(RECORDINGS.iterdir())}
    warned = 0
    for kind, sound in sounds(speech["es"], [speech["it"], speech["en"]]).items():
        assert model.translate(sound, to="en", sample_rate=16_000).text == "", kind
        listener = model.listen(["en"])
        events = [*listener.hear(sound), *listener.finish()]
        written = any(isinstance(event, LiveText) and event.committed for event in events)
        warnings = [event.message for event in events if isinstance(event, LiveNotice)]
        assert not written or any("not of the kind that this model knows" in one for one in warnings), kind
        warned += written
    assert warned


def test_scores_in_the_documentation_are_of_the_model_in_the_package() -> None:
    paths = sorted((ROOT / "docs" / "results").glob("streaming_*_*.json"))
    models = [json.loads(path.read_text())["model"] for path in paths]
    assert len(models) >= 15
    assert {model["path"] for model in models} == {NAME}
    assert {model["sha256"] for model in models} == {content_hash(bundled_directory(NAME))}
