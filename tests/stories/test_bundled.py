"""The model in the package, on human recordings that it was not trained on."""

import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

import sprachbund
from sprachbund.audio.augment import NO_SPEECH_KINDS, no_speech
from sprachbund.audio.load import load
from sprachbund.audio.tempo import change_tempo
from sprachbund.data.synthesis import Voice, speak
from sprachbund.models.io import bundled_directory, content_hash
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions, Policy
from tests.not_understood import sounds

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "examples" / "recordings"
RESULTS = ROOT / "docs" / "results"


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


def test_speech_of_another_kind_is_left_out_with_one_warning(model: sprachbund.Model) -> None:
    text = (Path(__file__).parents[2] / "LICENSE").read_text().split("Definitions.")[-1]
    said = [" ".join(sentence.split()) for sentence in text.split(".")[:4]]
    pause = np.zeros(12_000, np.float32)
    spoken = [np.concatenate([speak(sentence, Voice(language="en-US")), pause]) for sentence in said]
    result = model.translate(np.concatenate(spoken), to="de", sample_rate=16_000)
    left_out_s = sum(segment.end_s - segment.start_s for segment in result.dropped)
    assert left_out_s > 0.9 * result.duration_s - 4 * 0.75
    assert all(str(segment.dropped).startswith("out of domain") for segment in result.dropped)
    (warning,) = result.warnings
    assert "--to de --model whisper-large-v3-turbo --then m2m100-418m" in warning


@pytest.mark.parametrize("policy", ["local-agreement", "alignatt"])
def test_what_nobody_understands_is_not_written_live(model: sprachbund.Model, policy: Policy) -> None:
    """Speech backwards and babble were written as telephone prompts."""
    speech = {path.stem: load(path) for path in sorted(RECORDINGS.iterdir())}
    assert len(stretches(model, speech["es"], policy)) == 5
    for kind, sound in sounds(speech["es"], [speech["it"], speech["en"]]).items():
        assert stretches(model, sound, policy) == [], kind


def stretches(model: sprachbund.Model, sound: np.ndarray, policy: Policy) -> list[str]:
    """Texts of the stretches of speech in which something was written for good."""
    listener = model.listen(["en"], live=LiveOptions(policy=policy))
    events = [*listener.hear(sound), *listener.finish()]
    texts: dict[int, str] = defaultdict(str)
    for event in events:
        if isinstance(event, LiveText):
            texts[event.segment] += event.committed
    return [text for text in texts.values() if text.strip()]


def test_two_people_at_once_are_left_out_with_a_warning(model: sprachbund.Model) -> None:
    """Recordings of five people, two of them at a time and equally loud."""
    speech = [load(path) for path in sorted(RECORDINGS.iterdir())]
    written = 0
    for one, other in combinations(speech, 2):
        length = min(len(one), len(other))
        together = sum(x[:length] / np.sqrt(np.mean(np.square(x[:length]))) for x in (one, other))
        sound = (0.5 * together / np.abs(together).max()).astype(np.float32)
        result = model.translate(sound, to="de", sample_rate=16_000)
        assert "not of the kind that this model knows" in result.warnings[0]
        written += len(result.segments)
    assert written <= 5  # of 25 spans


def test_little_of_what_it_knows_is_left_out(model: sprachbund.Model) -> None:
    results = [model.translate(path, to="en") for path in sorted(RECORDINGS.iterdir())]
    assert sum(len(result.dropped) for result in results) <= 2
    assert sum(len(result.segments) for result in results) >= 23


def test_scores_in_the_documentation_are_of_the_model_in_the_package() -> None:
    # `ground_direct` stands beside a cascade of the weights before, and its page says so.
    paths = [path for path in sorted(RESULTS.glob("*.json")) if path.stem != "ground_direct"]
    manifests = [json.loads(path.read_text()) for path in paths]
    models = [one["model"] for one in manifests if isinstance(one, dict) and one.get("kind") == "evaluate"]
    named = [model["sha256"] for model in models if model["path"] == "bundled"]
    assert len(named) >= 7
    assert set(named) == {content_hash(bundled_directory())}


def test_a_language_that_it_does_not_know_is_left_out_with_a_warning(model: sprachbund.Model) -> None:
    sentences = ("Dit is een zin over het weer van morgen", "De regering heeft een nieuw plan voorgesteld")
    pause = np.zeros(12_000, np.float32)
    dutch = [np.concatenate([speak(one, Voice(language="nl")), pause]) for one in sentences]
    result = model.translate(np.concatenate(dutch), to="de", sample_rate=16_000)
    assert result.text == ""
    assert "not of the kind that this model knows" in result.warnings[0]


def test_a_bad_telephone_line_and_half_the_tempo_are_understood(model: sprachbund.Model) -> None:
    clean = load(RECORDINGS / "it.opus")
    narrow = resample_poly(clean, 1, 2)
    clipped = resample_poly(np.clip(16 * narrow / np.abs(narrow).max(), -1, 1), 2, 1).astype(np.float32)
    for sound in (clipped, change_tempo(clean, 0.5)):
        text = model.translate(sound, to="de", sample_rate=16_000).text
        assert "der achtundzwanzigste September zweitausendsechsunddreißig der sechzehnte Juli" in text
