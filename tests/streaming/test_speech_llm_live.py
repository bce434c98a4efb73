"""Live text of a speech LLM: the text and the spans of languages that a recording gives, through every interface."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprachbund.api import Model
from sprachbund.cli import main
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.result import Segment
from sprachbund.errors import SprachbundError
from sprachbund.models.speech_llm import SpeechLLM, save
from sprachbund.serving.settings import Settings
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.live import in_blocks, play
from sprachbund.streaming.options import LiveOptions, Policy
from tests.models.speech_llm_support import make_model
from tests.serving.live_support import whole
from tests.serving.support import serving
from tests.stories.support import speech as spoken
from tests.stories.support import write_wav
from tests.streaming.test_engine import trying

KEEP = DecodingOptions(guard=GuardOptions(enabled=False), max_tokens=6, allowed_languages=("es", "zh"))
TARGETS = ["en", "transcribe"]


@pytest.fixture(scope="module")
def model() -> SpeechLLM:
    """Its groups are es, en with de, and zh."""
    return make_model()


@pytest.fixture(scope="module")
def talk() -> np.ndarray:
    """A sentence, a pause, and the sentence backwards."""
    sentence = spoken()
    return np.concatenate([sentence, np.zeros(8_000, np.float32), sentence[::-1]])


def recorded(model: SpeechLLM, talk: np.ndarray) -> dict[str, list[Segment]]:
    actual = translate(model, talk, TARGETS, options=KEEP, sample_rate=16_000)
    return {t: sorted((*one.segments, *one.dropped), key=lambda s: s.start_s) for t, one in actual.items()}


def heard(model: SpeechLLM, talk: np.ndarray, policy: Policy = "auto", step_s: float = 0.5) -> list[LiveText]:
    engine = LiveEngine(model, KEEP)
    session = engine.open(TARGETS, options=trying(policy, step_s))
    return [m.event for m in play(engine, session, in_blocks(talk)) if isinstance(m.event, LiveText)]


def of(segment: Segment | LiveText) -> list[tuple[float, float, str]]:
    return [(round(s.start_s, 6), round(s.end_s, 6), s.language) for s in segment.spans]


@pytest.mark.parametrize("policy", ["auto", "retranslation", "span"])
def test_a_stretch_that_has_ended_has_the_text_and_spans_of_a_recording(
    model: SpeechLLM, talk: np.ndarray, policy: Policy
) -> None:
    events = heard(model, talk, policy)
    for target, segments in recorded(model, talk).items():
        last = [event for event in events if event.target == target and event.final]
        assert [event.committed.strip() for event in last] == [segment.text for segment in segments]
        assert [of(event) for event in last] == [of(segment) for segment in segments]
        assert any(len(event.spans) > 1 for event in last)
    assert any(event.tentative for event in events) == (policy != "span")


def test_spans_cover_what_has_been_heard_and_name_what_is_declared(
    model: SpeechLLM, talk: np.ndarray
) -> None:
    for event in heard(model, talk):
        covered = event.spans[0].start_s, event.spans[-1].end_s
        assert covered == pytest.approx(
            (event.start_s, event.end_s), abs=0.02
        )  # less than a frame may be left over
        assert all(a.end_s == b.start_s for a, b in zip(event.spans, event.spans[1:], strict=False))
        assert {span.language for span in event.spans} <= {"es", "zh"}


def test_sessions_together_get_the_spans_that_each_gets_alone(model: SpeechLLM, talk: np.ndarray) -> None:
    declared: list[tuple[str, ...]] = [("es", "zh"), ("en",)]

    def final(*chosen: tuple[str, ...]) -> list[list[list[tuple[float, float, str]]]]:
        engine = LiveEngine(model, replace(KEEP, allowed_languages=None))
        sessions = [engine.open(["en"], allowed_languages=tags) for tags in chosen]
        actual: list[list[list[tuple[float, float, str]]]] = [[] for _ in sessions]
        for session in sessions:
            session.push(talk)
            session.finish()
        while not all(session.finished for session in sessions):
            for row, events in zip(actual, engine.step(sessions), strict=True):
                row += [of(event) for event in events if isinstance(event, LiveText) and event.final]
        return actual

    assert final(*declared) == [final(one)[0] for one in declared]


@pytest.mark.parametrize("policy", ["local-agreement", "alignatt", "wait-k", "frames"])
def test_text_is_not_committed_where_no_attention_tells_what_it_was_said_by(
    model: SpeechLLM, policy: Policy
) -> None:
    message = f"policy {policy} is not for the model speech_llm; choose from auto, retranslation, span"
    with pytest.raises(SprachbundError, match=message):
        LiveEngine(model, KEEP).open(["en"], options=LiveOptions(policy=policy))


def test_speech_without_a_pause_does_not_end_the_session(model: SpeechLLM) -> None:
    sentence = spoken()[5_000:37_000]
    talk = np.concatenate([sentence] * 4)
    events = heard(model, talk, step_s=2.0)
    longest_s = max(event.end_s - event.start_s for event in events)
    assert longest_s > 5
    assert events[-1].final


# Interfaces.


def test_listen_prints_them(
    model: SpeechLLM, talk: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(model, tmp_path / "model")
    write_wav(tmp_path / "talk.wav", talk)
    command = ["listen", str(tmp_path / "talk.wav"), "--model", str(tmp_path / "model"), "--to", "en"]
    command += ["--fast", "--json", "--no-guard", "--policy", "span"]
    assert main([*command, "--languages", "Spanish,zh"]) == 0
    engine, *events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert engine["type"] == "engine"
    wanted = [segment.to_dict()["spans"] for segment in recorded(model, talk)["en"]]
    assert [event["spans"] for event in events] == wanted
    assert main([*command, "--languages", "es,fr"]) != 0
    assert "the language 'fr' has no group of experts" in capsys.readouterr().err


def test_the_service_sends_them(model: SpeechLLM, talk: np.ndarray) -> None:
    first: dict[str, Any] = {"targets": ["en"], "languages": ["es", "zh"], "policy": "span"}
    with serving(Settings(port=0, engine="torch"), loader=lambda name: Model(model, name=name)) as running:
        client = asyncio.run(whole(running, talk, first))
    texts = [message for message in client.seen if message["type"] == "text"]
    assert [len(message["spans"]) for message in texts] == [len(s.spans) for s in recorded(model, talk)["en"]]
    assert {span["language"] for message in texts for span in message["spans"]} == {"es", "zh"}
