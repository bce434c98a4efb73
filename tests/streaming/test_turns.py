"""Ends of turns by what the model hears: a pause ends a stretch the sooner, the likelier the speaker has finished."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW_S
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import SpanFinder, SpanStream
from sprachbund.decoding.encoding import encode_spans
from sprachbund.decoding.languages import LanguageTracker, read_request
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.pipeline import decode_spans
from sprachbund.decoding.recordings import RecordedSpan, RecordingState
from sprachbund.decoding.result import joined_text
from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import Calibration, TurnEnds, turn_states
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveNotice
from sprachbund.streaming.options import LiveOptions, Policy
from tests.decoding.families import FAMILIES
from tests.decoding.test_translate import Loudness, recording
from tests.decoding.tiny_family import TinyFamily
from tests.streaming.test_engine import ATTEMPTING, OPTIONS, finish, flood, run, texts, written

GAPS = [(1.0, 2.5), (3.5, 5.0), (5.6, 8.0), (11.0, 13.0)]
"""Speech with pauses of 1.0, 0.6 and 3.0 s between."""
SENTENCES = LiveOptions(
    policy="span", turn_end="sentence", max_pause_s=2.0, max_behind_s=100, max_waiting_s=100
)


def after_turns(policy: Policy) -> LiveOptions:
    """`SENTENCES` by another policy, whose attempts wait for the end."""
    return replace(SENTENCES, policy=policy, **({} if policy == "span" else {"step_s": 1e6}))


class Answers(TurnEnds):
    """Gives probabilities in turn, whatever it is shown."""

    given: list[float]
    asked: list[int]

    def probabilities(self, states):
        self.asked.append(len(states))
        return [self.given.pop(0) for _ in range(len(states))]


def engine(*probabilities: float) -> LiveEngine:
    family = TinyFamily(seed=3, max_window_s=28.0)
    family.calibration = Calibration(
        turns=Answers(bias=0, whole=[], last=[], given=list(probabilities), asked=[])
    )
    return LiveEngine(family, OPTIONS, activity=Loudness())


def stretches(events) -> list[tuple[float, float]]:
    ends = [e for e in texts(events) if e.final and e.target == "de"]
    return [(round(e.start_s, 1), round(e.end_s, 1)) for e in ends]


@pytest.mark.parametrize(
    ("probabilities", "actual"),
    [
        ((1.0, 1.0, 1.0, 1.0), [(0.8, 2.7), (3.3, 5.2), (5.4, 8.2), (10.8, 13.2)]),
        ((0.0, 0.0, 0.0, 0.0), [(0.8, 8.2), (10.8, 13.2)]),
        ((0.0, 1.0, 1.0, 1.0), [(0.8, 5.2), (5.4, 8.2), (10.8, 13.2)]),
        # 0.4 * 5 ** 0.5 = 0.89 s: less than the first pause, more than the second.
        ((0.5, 0.5, 0.5, 0.5), [(0.8, 2.7), (3.3, 8.2), (10.8, 13.2)]),
    ],
)
def test_an_unfinished_sentence_goes_on_behind_its_pause(probabilities, actual) -> None:
    own = engine(*probabilities)
    events = run(own, own.open(["de"], "fr", SENTENCES), recording(*GAPS, duration_s=15))
    assert stretches(events) == actual
    assert {event.segment for event in texts(events)} == set(range(len(actual)))


def test_a_finished_sentence_ends_as_soon_as_the_pause_is_one() -> None:
    own = engine(1.0, 0.0, 0.5, 1.0)
    events = run(own, own.open(["de"], "fr", SENTENCES), recording(*GAPS, duration_s=15), block=512)
    ends = [(round(e.end_s - 0.2, 1), e.audio_s) for e in texts(events) if e.final]
    late = [audio_s - end_s for end_s, audio_s in ends]
    assert late == pytest.approx([0.4, 0.4 * 5**0.5, 0.4], abs=0.1)


@pytest.mark.parametrize("policy", ATTEMPTING)
def test_neither_the_blocks_nor_slow_answers_change_the_text(policy: Policy) -> None:
    samples, options = recording(*GAPS, duration_s=15), after_turns(policy)
    actual = []
    for block, go in ((1600, run), (7000, run), (40_000, flood), (240_000, flood)):
        own = engine(0.2, 0.7, 0.1, 0.9)
        actual.append(stretches(events := go(own, own.open(["de"], "fr", options), samples, block)))
        actual.append(written(events))
    assert actual[0] == actual[2] == actual[4] == actual[6]
    assert actual[1] == actual[3] == actual[5] == actual[7]


@pytest.mark.parametrize("policy", ATTEMPTING)
def test_the_text_of_a_stretch_is_that_of_a_recording_of_it(policy: Policy) -> None:
    """Spans as the session cut them, pauses inside, decoded the way of recordings."""
    own, samples = engine(0.0, 1.0, 0.0, 1.0), recording(*GAPS, duration_s=15)
    options = after_turns(policy)
    events = run(own, own.open(["de"], "fr", options), samples)
    stream = SpanStream(SpanOptions(), activity=Loudness(), longest_pause_s=2.0)
    spans, answers = stream.push(samples), [0.0, 1.0, 0.0, 1.0]
    while stream.paused:
        spans += stream.end_after(0.4 * 5 ** (1 - answers.pop(0)))
    spans += stream.finish()
    family = own.model
    request = read_request(family, source="fr", targets=["de"], allowed=None)
    recordings = [
        RecordedSpan(
            recording=RecordingState(
                request=request, options=OPTIONS, tracker=LanguageTracker(family.source_languages, None, 3)
            ),
            span=span,
            samples=heard,
        )
        for span, heard in spans
    ]
    decoded = decode_spans(family, recordings, encode_spans(family, recordings))
    expected = [joined_text([s for s in one.segments if s.dropped is None]) for (one,) in decoded]
    assert written(events)["de"] == [text for text in expected if text]
    assert len(spans) == 3


@pytest.mark.parametrize("policy", ["local-agreement", "alignatt", "wait-k", "retranslation"])
def test_committed_text_is_only_added_to_across_pauses(policy: Policy) -> None:
    own = engine(0.0, 0.0, 1.0, 1.0)
    options = replace(SENTENCES, policy=policy, step_s=0.5)
    events = texts(run(own, own.open(["de", "en"], "fr", options), recording(*GAPS, duration_s=15)))
    for target in ("de", "en"):
        mine = [event for event in events if event.target == target]
        assert [event.segment for event in mine] == sorted(event.segment for event in mine)
        assert sum(event.final for event in mine) == 2
        for before, after in pairwise(mine):
            assert not (before.final and after.segment == before.segment)


def test_sessions_are_asked_about_together_and_answered_each_for_itself() -> None:
    samples = [recording(*GAPS, duration_s=15, seed=n) for n in range(3)]
    own = engine(*[1.0, 0.0, 1.0], *[1.0, 1.0, 1.0] * 4)
    sessions = [own.open(["de"], "fr", SENTENCES) for _ in range(3)]
    actual: list[list] = [[] for _ in sessions]
    for begin in range(0, len(samples[0]), 1600):
        for session, talk in zip(sessions, samples, strict=True):
            session.push(talk[begin : begin + 1600])
        while any(session.due for session in sessions):
            for events, new in zip(actual, own.step(sessions), strict=True):
                events += new
    for session, events in zip(sessions, actual, strict=True):
        events += finish(own, session)
    assert [len(stretches(events)) for events in actual] == [4, 3, 4]
    assert isinstance(own.model.calibration.turns, Answers)
    assert own.model.calibration.turns.asked[0] == 3


@pytest.mark.parametrize("policy", ["frames", "span"])
def test_a_model_that_writes_by_frames_goes_on_behind_a_pause(policy: Policy, tmp_path) -> None:
    family = FAMILIES["streaming transducer"](tmp_path)
    family.calibration = Calibration(
        turns=Answers(bias=0, whole=[], last=[], given=[0.0, 1.0, 0.0, 1.0], asked=[])
    )
    own = LiveEngine(family, DecodingOptions(guard=GuardOptions(enabled=False)), activity=Loudness())
    events = run(
        own,
        own.open(["en"], "en", replace(SENTENCES, policy=policy)),
        recording(*GAPS, duration_s=15),
    )
    ends = [(round(e.start_s, 1), round(e.end_s, 1)) for e in texts(events) if e.final]
    assert ends == [(0.8, 5.2), (5.4, 8.2), (10.8, 13.2)]


def test_in_an_overload_a_pause_ends_a_stretch() -> None:
    own = engine()  # nothing is asked: no answers are there
    options = LiveOptions(turn_end="sentence", max_pause_s=3, max_behind_s=2.0, max_waiting_s=100)
    session = own.open(["de"], "fr", options)
    session.push(recording(*GAPS, duration_s=15))
    own.model.calibration = Calibration(turns=Answers(bias=0, whole=[], last=[], given=[1.0] * 4, asked=[]))
    events = finish(own, session)
    assert stretches(events) == [(0.8, 2.7), (3.3, 5.2), (5.4, 8.2), (10.8, 13.2)]
    assert any(isinstance(event, LiveNotice) for event in events)


def test_without_the_option_nothing_is_asked() -> None:
    own = engine()
    plain = run(own, own.open(["de"], "fr", LiveOptions(policy="span")), recording(*GAPS, duration_s=15))
    assert len(stretches(plain)) == 4
    assert isinstance(own.model.calibration.turns, Answers)
    assert not own.model.calibration.turns.asked


def test_a_model_that_cannot_tell_is_refused_or_goes_by_pauses() -> None:
    own = LiveEngine(TinyFamily(), OPTIONS, activity=Loudness())
    with pytest.raises(SprachbundError, match=r"not calibrated for the ends of sentences.*--turns"):
        own.open(["de"], options=SENTENCES)
    assert own.open(["de"], options=replace(SENTENCES, turn_end="auto")).options.turn_end == "pause"
    able = engine()
    assert able.open(["de"], options=LiveOptions(turn_end="auto")).options.turn_end == "sentence"
    with pytest.raises(SprachbundError, match=r"max_pause_s is 0.3, and a pause begins to count at 0.4 s"):
        able.open(["de"], options=LiveOptions(turn_end="sentence", max_pause_s=0.3))


def test_pauses_inside_a_stretch_do_not_lower_its_speech_probability() -> None:
    def probability(finder: SpanFinder, pause: int) -> float:
        closed = []
        for value in [0.9] * 20 + [0.1] * pause + [0.8] * 20 + [0.0] * 13:
            closed.append(finder.push(value))
            if finder.paused:
                closed.append(finder.end_after(3.0 if len(closed) < 60 else 0.4))
        (span,) = [span for span in closed if span is not None]
        return span.speech_probability

    asking = SpanFinder(SpanOptions(), 3.0)
    assert probability(asking, 60) == pytest.approx(0.85)
    short = 8  # windows, too few for a question: they count as they always did
    expected = float(np.mean([0.9] * 20 + [0.1] * short + [0.8] * 20))
    assert probability(SpanFinder(SpanOptions(), 3.0), short) == pytest.approx(expected)


def test_noise_is_asked_nothing() -> None:
    finder = SpanFinder(SpanOptions(min_speech_s=0.5), 3.0)
    for value in [0.9] * 3 + [0.0] * 40:
        assert finder.push(value) is None
        assert not finder.paused
    assert finder.finish() is None


def test_states_are_means_over_all_frames_and_over_the_last() -> None:
    import torch

    states = torch.arange(2 * 10 * 1, dtype=torch.float32).view(2, 10, 1)
    actual = turn_states(states, torch.tensor([10, 4]), [0.0, 0.0], 0.16)  # four frames are 0.64 s
    assert actual.tolist() == [[4.5, 7.5], [11.5, 11.5]]
    by_duration = turn_states(states, None, [1.6, 0.64], 0.16)
    assert by_duration.tolist() == actual.tolist()
    ends = TurnEnds(bias=0.5, whole=[1.0], last=[-1.0])
    assert ends.probabilities(actual) == pytest.approx([1 / (1 + np.exp(2.5)), 1 / (1 + np.exp(-0.5))])
    with pytest.raises(SprachbundError, match="calibrate the model again"):
        TurnEnds(bias=0, whole=[1.0] * 3, last=[1.0] * 3).probabilities(actual)


def test_windows_of_a_long_pause_are_as_long_as_the_answer_says() -> None:
    for pause_s in (0.4, 0.9, 2.5, 9.0):
        finder = SpanFinder(SpanOptions(), 3.0)
        for _ in range(20):
            finder.push(0.9)
        windows = 0
        while True:
            span, windows = finder.push(0.0), windows + 1
            if finder.paused:
                span = finder.end_after(pause_s)
            if span is not None:
                break
        assert windows == int(np.ceil(min(pause_s, 3.0) / VAD_WINDOW_S))
        assert span.end_s * SAMPLE_RATE == 20 * 512 + 3200
