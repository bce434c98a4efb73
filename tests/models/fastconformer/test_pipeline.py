"""Parakeet and Canary from files to text: times of words, languages, live text, cascades, and refusals in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.cascade import Cascade
from sprachbund.models.fastconformer.config import EUROPEAN, CanaryConfig, ParakeetConfig
from sprachbund.models.io import load
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveText
from sprachbund.streaming.options import LiveOptions
from tests.decoding.test_cascade import Reading
from tests.decoding.test_translate import Loudness
from tests.models.fastconformer.support import KINDS, Checkpoint, make, name_languages, sound

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")

OPEN = DecodingOptions(max_tokens=20, guard=GuardOptions(enabled=False))
TIMED = DecodingOptions(max_tokens=20, word_timestamps=True, guard=GuardOptions(enabled=False))


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(scope="module")
def tdt(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"), "parakeet_tdt")


def talk() -> np.ndarray:
    """Speech from 1 s to 3 s and from 5 s to 6.5 s."""
    silence = np.zeros(SAMPLE_RATE, np.float32)
    return np.concatenate([silence, sound(2.0, 1), silence, silence, sound(1.5, 2), silence])


def run(
    model: Any, targets: list[str], source: str | None = "de", options: DecodingOptions = OPEN
) -> dict[str, Any]:
    return translate(model, talk(), targets, source, options, sample_rate=SAMPLE_RATE, activity=Loudness())


def test_words_have_times_within_their_speech(made: Checkpoint) -> None:
    plain, timed = (run(made.model, ["transcribe"], options=options) for options in (OPEN, TIMED))
    result = timed["transcribe"]
    assert result.text == plain["transcribe"].text
    words = [word for segment in result.segments for word in segment.words]
    assert words
    assert "".join(word.text for word in words) == "".join(result.text.split())
    for segment in result.segments:
        ends = [segment.start_s, *(second for word in segment.words for second in (word.start_s, word.end_s))]
        assert ends == sorted(ends)
        assert ends[-1] <= segment.end_s
    assert all(0 < word.probability <= 1 for word in words)


def test_words_of_a_transducer_begin_where_its_tokens_came(tdt: Checkpoint) -> None:
    """The first word of a span: what the search says of its first token, in seconds of the recording."""
    (segment, *_) = run(tdt.model, ["transcribe"], options=TIMED)["transcribe"].segments
    begin = int(segment.start_s * SAMPLE_RATE)
    samples = talk()[begin : int(segment.end_s * SAMPLE_RATE)]
    generated = tdt.hf_model.generate(**tdt.inputs([samples]))
    sequence, durations = generated.sequences[0].tolist(), generated.durations[0]
    blank = tdt.hf_model.config.blank_token_id
    first = next(i for i, token in enumerate(sequence) if token != blank)
    frame = int(durations[:first].sum())
    assert segment.words[0].start_s == pytest.approx(segment.start_s + 0.08 * frame, abs=1e-6)


def test_live_text_is_that_of_the_recording(made: Checkpoint) -> None:
    model, samples = made.model, talk()
    engine = LiveEngine(model, TIMED, activity=Loudness())
    session = engine.open(["transcribe"], "de", LiveOptions(policy="retranslation"))
    events: list[LiveEvent] = []
    for begin in range(0, len(samples), 4000):
        session.push(samples[begin : begin + 4000])
        while session.due:
            events += engine.step([session])[0]
    session.finish()
    while not session.finished:
        events += engine.step([session])[0]
    texts = [event for event in events if isinstance(event, LiveText)]
    assert len(texts) == len(events)
    text = "".join(event.committed for event in texts)
    assert text.split() == run(model, ["transcribe"])["transcribe"].text.split()
    assert any(event.tentative for event in texts)
    words = [word for event in texts for word in event.words]
    assert "".join(word.text for word in words) == "".join(text.split())
    seconds = [second for word in words for second in (word.start_s, word.end_s)]
    assert seconds == sorted(seconds)
    assert 0.5 <= seconds[0] < 3.5 < seconds[-1] <= 7.5


def test_a_recogniser_that_is_told_no_language_finds_it_in_its_text(
    tdt: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def german(text: str, languages: tuple[str, ...]) -> list[float]:
        texts.append(text)
        return [0.0 if tag == "de" else -9.0 for tag in languages]

    monkeypatch.setattr("sprachbund.decoding.encoding.text_log_probs", german)
    actual = run(tdt.model, ["transcribe"], None)["transcribe"]
    assert {segment.target_language for segment in actual.segments} == {"de"}
    assert actual.text == run(tdt.model, ["transcribe"], "fr")["transcribe"].text
    assert len(texts) == len(actual.segments)
    for text, segment in zip(texts, actual.segments, strict=True):
        assert text.strip().startswith(segment.text)  # which `max_tokens` has cut


def test_a_cascade_translates_what_it_writes(tdt: Checkpoint) -> None:
    model = Cascade(tdt.model, Reading(written="es", read=("de",)))
    assert ("de", "es") in model.pairs()
    actual = run(model, ["es", "transcribe"])
    assert actual["transcribe"].text == run(tdt.model, ["transcribe"])["transcribe"].text
    assert actual["es"].text
    assert all(segment.target_language == "es" for segment in actual["es"].segments)


@pytest.mark.parametrize(
    ("kind", "options", "targets", "source", "message"),
    [
        ("parakeet_tdt", {"beam_size": 4}, ["transcribe"], "de", "searched greedily; set it to 1"),
        ("parakeet_tdt", {}, ["fr"], "de", "does not know the pair de to fr"),
        ("parakeet_ctc", {"beam_size": 2, "word_timestamps": True}, ["transcribe"], "de", "set it to 1"),
        ("parakeet_ctc", {"prompt": "names"}, ["transcribe"], "de", "no room for a prompt"),
        ("parakeet_rnnt", {"draft": "a-draft"}, ["transcribe"], "de", "has no place for it"),
        ("canary", {}, ["fr"], "de", "does not know the pair de to fr"),
        ("canary", {}, ["transcribe"], None, "name the source language"),
        ("canary", {}, ["es"], "de", "es"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    kind: str,
    options: dict[str, Any],
    targets: list[str],
    source: str | None,
    message: str,
    tmp_path: Path,
) -> None:
    model = make(tmp_path, kind).model
    with pytest.raises(SprachbundError, match=message) as raised:
        run(model, targets, source, DecodingOptions(**options))
    assert len(str(raised.value).splitlines()) == 1


def edited(directory: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    values = json.loads((directory / name).read_text())
    change(values)
    (directory / name).write_text(json.dumps(values))
    return directory


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c.pop("sprachbund"), "does not name the model's languages"),
        ("config.json", lambda c: c["encoder_config"].update(hidden_act="gelu"), "hidden_act.*'silu'"),
        ("config.json", lambda c: c["encoder_config"].update(subsampling_factor=4), "subsampling_factor"),
        ("config.json", lambda c: c.update(durations=[0, 0]), "one has to be above 0"),
        ("config.json", lambda c: c.update(blank_token_id=10**6), "the blank is 1000000"),
        ("config.json", lambda c: c.update(vocab_size=64, blank_token_id=63), "has a token 64"),
        ("config.json", lambda c: c.update(decoder_hidden_size=25), "config.json asks for"),
        ("processor_config.json", lambda c: c["feature_extractor"].update(hop_length=80), "hop_length is 80"),
    ],
)
def test_a_directory_of_another_kind_is_refused(
    name: str, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    directory = edited(make(tmp_path, "parakeet_tdt").directory, name, change)
    with pytest.raises(SprachbundError, match=message) as raised:
        load(directory, offline=True)
    assert len(str(raised.value).splitlines()) == 1


def test_languages_are_those_published_where_config_json_names_none() -> None:
    from transformers import CanaryConfig as TheirCanary
    from transformers import ParakeetTDTConfig
    from transformers.models.canary.processing_canary import LANGUAGE_CODE_TO_NAME

    assert sorted(EUROPEAN) == sorted(LANGUAGE_CODE_TO_NAME)
    canary = CanaryConfig.model_validate(TheirCanary().to_dict())
    assert canary.languages("canary", "x") == tuple(EUROPEAN)
    parakeet = ParakeetConfig.model_validate(ParakeetTDTConfig().to_dict())
    assert parakeet.languages("parakeet_tdt", "x") == tuple(EUROPEAN)
    with pytest.raises(SprachbundError, match="no published parakeet_tdt has 77 tokens"):
        parakeet.model_copy(update={"vocab_size": 77}).languages("parakeet_tdt", "x")


def test_a_single_language_needs_no_name(tmp_path: Path) -> None:
    directory = make(tmp_path, "parakeet_ctc").directory
    name_languages(directory, ["en"])
    actual = run(load(directory), ["transcribe"], None)["transcribe"]
    assert {segment.source_language for segment in actual.segments} == {"en"}
