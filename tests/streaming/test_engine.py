"""Live sessions against recordings, one session against many, and what holds of every policy."""

from collections import defaultdict
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.span_options import SpanOptions
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.search import SearchRequest
from sprachbund.decoding.state import Hypothesis
from sprachbund.errors import SprachbundError
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveNotice, LiveText
from sprachbund.streaming.live import Listener, SimulatedClock, follow, in_blocks, play
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.session import LiveSession, OverloadError
from tests.decoding.test_translate import LENIENT, SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily

OPTIONS = DecodingOptions(guard=LENIENT, max_tokens=8, min_tokens=1)
TARGETS = ["de", "en"]
ATTEMPTING = [policy for policy in get_args(Policy) if policy not in ("auto", "frames")]
LATE = 1e6  # a step so long that every policy waits for the end


def engine(seed: int = 3, options: DecodingOptions = OPTIONS) -> LiveEngine:
    return LiveEngine(TinyFamily(seed=seed), options, activity=Loudness())


def trying(policy: Policy, step_s: float, **options: Any) -> LiveOptions:
    """Options with a step, which the policy "span" has none of."""
    return LiveOptions(policy=policy, **({} if policy == "span" else {"step_s": step_s}), **options)


def texts(events: list[LiveEvent]) -> list[LiveText]:
    return [event for event in events if isinstance(event, LiveText)]


def written(events: list[LiveEvent]) -> dict[str, list[str]]:
    """Committed text by target, stretch by stretch."""
    result: dict[tuple[str, int], str] = defaultdict(str)
    for event in texts(events):
        result[event.target, event.segment] += event.committed
    return {
        target: [text.strip() for (t, _), text in sorted(result.items()) if t == target and text]
        for target in {t for t, _ in result}
    }


def run(engine: LiveEngine, session: LiveSession, samples: np.ndarray, block: int = 1600) -> list[LiveEvent]:
    events: list[LiveEvent] = []
    for begin in range(0, len(samples), block):
        session.push(samples[begin : begin + block])
        while session.due:
            events += engine.step([session])[0]
    return events + finish(engine, session)


def flood(
    engine: LiveEngine, session: LiveSession, samples: np.ndarray, block: int = 1600
) -> list[LiveEvent]:
    """All of the sound comes before anything is computed."""
    for begin in range(0, len(samples), block):
        session.push(samples[begin : begin + block])
    return finish(engine, session)


def finish(engine: LiveEngine, session: LiveSession) -> list[LiveEvent]:
    """The sound has ended; what is said from there on."""
    session.finish()
    events: list[LiveEvent] = []
    while not session.finished:
        events += engine.step([session])[0]
    return events


def recorded(samples: np.ndarray, targets: list[str], source: str | None = None, seed: int = 3):
    return translate(
        TinyFamily(seed=seed),
        samples,
        targets,
        source,
        OPTIONS,
        sample_rate=SAMPLE_RATE,
        activity=Loudness(),
    )


@pytest.mark.parametrize("policy", ATTEMPTING)
@pytest.mark.parametrize("source", [None, "fr"])
def test_a_policy_that_may_wait_writes_what_a_recording_gives(policy, source):
    samples = recording(*SPEECH)
    own = engine()
    session = own.open([*TARGETS, TRANSCRIBE], source, trying(policy, LATE))
    result = written(run(own, session, samples))
    for target, translation in recorded(samples, [*TARGETS, TRANSCRIBE], source).items():
        assert " ".join(result[target]) == translation.text


@pytest.mark.parametrize("policy", ["local-agreement", "wait-k", "retranslation", "span"])
def test_stretches_are_one_text_with_spaces_between_them(policy: Policy) -> None:
    own = engine()
    session = own.open(TARGETS, options=trying(policy, 0.5))
    events = run(own, session, recording(*SPEECH))
    for target, stretches in written(events).items():
        assert len(stretches) > 1
        pieces = [event.committed for event in texts(events) if event.target == target]
        assert "".join(pieces) == " ".join(stretches)
        shown = ""
        for event in texts(events):
            if event.target == target:
                shown += event.committed
                begun = " ".join(shown.split() + event.tentative.split())
                assert f"{shown}{event.tentative}" in (begun, f"{begun} ")


@pytest.mark.parametrize("policy", ["local-agreement", "wait-k", "alignatt", "retranslation"])
def test_what_is_masked_is_committed_all_the_same(policy: Policy) -> None:
    """Words that wait change nothing in the text; without any tentative text, nothing is taken back."""
    own, samples = engine(), recording(*SPEECH)
    options = LiveOptions(policy=policy, step_s=0.5)
    if options.commits:
        options = replace(options, max_open_s=4.0)
    plain = run(own, own.open(TARGETS, options=options), samples)
    assert any(event.tentative for event in texts(plain))
    for mask_words, steady in ((2, None), (2, 2), (1000, None)):
        masked = replace(options, mask_words=mask_words, steady=steady)
        events = run(own, own.open(TARGETS, options=masked), samples)
        assert written(events) == written(plain)
        if mask_words == 1000:
            assert not any(event.tentative or event.retracted for event in texts(events))


WORDS = replace(OPTIONS, word_timestamps=True)


def test_words_are_those_of_the_recording() -> None:
    own, samples = engine(), recording(*SPEECH)
    session = own.open(TARGETS, "fr", LiveOptions(policy="retranslation"), word_timestamps=True)
    events = run(own, session, samples)
    whole = translate(
        TinyFamily(seed=3), samples, TARGETS, "fr", WORDS, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    for target, translation in whole.items():
        expected = [word for segment in translation.segments for word in segment.words]
        assert expected
        result = [word for event in texts(events) if event.target == target for word in event.words]
        assert [replace(word, probability=0) for word in result] == [
            replace(w, probability=0) for w in expected
        ]
        assert [w.probability for w in result] == pytest.approx([w.probability for w in expected], rel=1e-4)


@pytest.mark.parametrize("policy", ["local-agreement", "wait-k", "alignatt"])
def test_words_of_unfinished_speech_are_the_committed_text(policy: Policy) -> None:
    own = engine(options=WORDS)
    options = LiveOptions(policy=policy, step_s=0.5, max_open_s=4.0)
    events = texts(run(own, own.open(TARGETS, options=options), recording(*SPEECH)))
    assert any(event.words and not event.final for event in events)
    for event in events:
        spelt = "".join(word.text for word in event.words)
        assert spelt == "".join(event.committed.split())
        times = [second for word in event.words for second in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert all(event.start_s - 1e-6 <= second <= event.end_s + 1e-6 for second in times)
    for stretch in {(event.target, event.segment) for event in events}:
        words = [w for event in events if (event.target, event.segment) == stretch for w in event.words]
        times = [second for word in words for second in (word.start_s, word.end_s)]
        assert times == sorted(times)
    plain = run(own, own.open(TARGETS, options=options, word_timestamps=False), recording(*SPEECH))
    assert not any(event.words for event in texts(plain))


def test_a_prompt_goes_to_the_model_or_is_refused() -> None:
    own = engine()
    samples, span = recording(*SPEECH), LiveOptions(policy="span")
    with_prompt, without = (own.open(["de"], "fr", span, prompt=text) for text in ("Ada", None))
    result = [written(run(own, session, samples)) for session in (with_prompt, without)]
    assert result[0] != result[1]
    options = replace(OPTIONS, prompt="Ada")
    whole = translate(
        TinyFamily(seed=3), samples, ["de"], "fr", options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    assert " ".join(result[0]["de"]) == whole["de"].text
    assert isinstance(own.model, TinyFamily)
    own.model.capabilities = replace(own.model.capabilities, reads_context=False)
    with pytest.raises(SprachbundError, match="has no room for a prompt; leave it out"):
        own.open(TARGETS, prompt="Ada")


def test_a_prompt_without_room_ends_its_own_session_alone() -> None:
    own, samples = engine(), recording(*SPEECH)
    span = LiveOptions(policy="span", max_behind_s=100, max_waiting_s=100)
    crowded, fine = own.open(["de"], "fr", span, prompt="a" * 40), own.open(["de"], "fr", span)
    events: list[LiveEvent] = []
    for session in (crowded, fine):
        session.push(samples)
        session.finish()
    while not (crowded.finished and fine.finished):
        events += own.step([crowded, fine])[1]
    assert crowded.error is not None
    assert "shorten the prompt" in crowded.error
    assert fine.error is None
    assert " ".join(written(events)["de"]) == recorded(samples, ["de"], "fr")["de"].text


def test_sessions_are_searched_together_by_the_key_of_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What separates recordings separates sessions: here words with times, and a prompt."""
    samples, span = recording(*SPEECH), LiveOptions(policy="span", max_behind_s=100, max_waiting_s=100)
    run, sizes = SearchRequest.run, list[int]()

    def counting(request: SearchRequest) -> list[list[Hypothesis]]:
        sizes.append(len(request.targets))
        return run(request)

    monkeypatch.setattr(SearchRequest, "run", counting)
    for own_options, num_searches in (
        (({}, {}), 1),
        (({}, {"word_timestamps": True}), 2),
        (({"prompt": "Ada"}, {"prompt": "Ada"}), 2),
    ):
        own = engine()
        sessions = [own.open(["de"], "fr", span, **one) for one in own_options]
        for session in sessions:
            session.push(samples)
            session.finish()
        sizes.clear()
        own.step(sessions)
        assert sizes == [own.decoding.batch_size // num_searches] * num_searches


def test_hot_words_are_those_of_their_session_and_write_what_a_recording_with_them_gives() -> None:
    """Three sessions in the same batches: two have other words, or another weight, than the third."""
    family = TinyFamily(seed=3)
    family.capabilities = replace(
        family.capabilities,
        encode_text=lambda text: [family.first_letter + ord(text.strip()) - ord("a")],
    )
    own, samples = LiveEngine(family, OPTIONS, activity=Loudness()), recording(*SPEECH)
    asked = [("d", 9.0), ("f", 9.0), ("f", 0.0)]
    span, sessions = LiveOptions(policy="span", max_behind_s=100, max_waiting_s=100), list[LiveSession]()
    for word, weight in asked:
        sessions.append(own.open(["de"], "fr", span, hot_words=[word], hot_words_weight=weight))
    events: list[list[LiveEvent]] = [[] for _ in sessions]
    for session in sessions:
        session.push(samples)
        session.finish()
    while not all(session.finished for session in sessions):
        for result, new in zip(events, own.step(sessions), strict=True):
            result += new
    texts_of = [" ".join(written(result)["de"]) for result in events]
    for (word, weight), text in zip(asked, texts_of, strict=True):
        options = replace(OPTIONS, hot_words=(word,), hot_words_weight=weight)
        whole = translate(
            family, samples, ["de"], "fr", options, sample_rate=SAMPLE_RATE, activity=Loudness()
        )
        assert text == whole["de"].text
    assert len(set(texts_of)) == 3, texts_of
    plain = LiveEngine(TinyFamily(seed=3), OPTIONS, activity=Loudness())
    with pytest.raises(SprachbundError, match="cannot spell words, so it takes no hot words"):
        plain.open(["de"], hot_words=["Ada"])
    with pytest.raises(SprachbundError, match="takes no glossary"):
        plain.open(["de"], glossary="hound = Hund")
    with pytest.raises(SprachbundError, match="is not of the form term = translation"):
        plain.open(["de"], glossary="hound")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"policy": "span", "mask_words": 2},
            "mask_words is 2, .* retranslation, and the policy here is span; leave",
        ),
        ({"policy": "span", "step_s": 0.5}, "step_s is 0.5, which is for the policy local-agreement or"),
        (
            {"agreement": 3, "policy": "wait-k"},
            "agreement is 3, which is for the policy local-agreement, and the",
        ),
        ({"border_s": 0.8}, "border_s is 0.8, which is for the policy alignatt, .* here is local-agreement"),
        (
            {"border_words": 2, "policy": "alignatt"},
            "border_words is 2, which is for cascades alone; leave it out",
        ),
        ({"wait_k": 5}, "wait_k is 5, which is for the policy wait-k"),
        (
            {"max_open_s": 20.0, "policy": "retranslation"},
            "max_open_s is 20.0, which is for the policy local",
        ),
        ({"right_context": 1}, "right_context is 1, which is for the policy frames"),
        (
            {"max_pause_s": 2.0},
            "max_pause_s is 2.0, .* turn_end is pause; leave it out, or set turn_end to sentence",
        ),
    ],
)
def test_options_that_change_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    own = engine()
    with pytest.raises(SprachbundError, match=message):
        own.open(TARGETS, options=LiveOptions(**options))
    at_default = {name: getattr(LiveOptions(), name) for name in options if name != "policy"}
    own.open(TARGETS, options=LiveOptions(**{**options, **at_default}))


def test_a_live_text_has_one_reading() -> None:
    with pytest.raises(SprachbundError, match="nbest is 2, and live text has one reading; leave it out"):
        engine(options=replace(OPTIONS, nbest=2, beam_size=2))


def test_a_session_without_the_hot_words_has_not_their_weight() -> None:
    family = TinyFamily(seed=3)
    family.capabilities = replace(family.capabilities, encode_text=lambda text: [family.first_letter])
    own = LiveEngine(family, replace(OPTIONS, hot_words=("a",), hot_words_weight=3.0), activity=Loudness())
    assert own.open(["de"]).decoding.hot_words_weight == 3.0
    assert own.open(["de"], hot_words=[]).decoding.hot_words_weight == DecodingOptions.hot_words_weight
    with pytest.raises(SprachbundError, match=r"hot_words_weight is 2\.0, and there are no hot_words"):
        own.open(["de"], hot_words=[], hot_words_weight=2.0)


def test_languages_without_spaces_have_none_between_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.streaming.writing.writes_spaces", lambda tag: tag != "de")
    own = engine()
    events = run(own, own.open(TARGETS, options=LiveOptions(policy="span")), recording(*SPEECH))
    stretches = written(events)
    joined = {t: "".join(e.committed for e in texts(events) if e.target == t) for t in TARGETS}
    assert joined == {"de": "".join(stretches["de"]), "en": " ".join(stretches["en"])}


@settings(max_examples=15, deadline=None)
@given(some=st.lists(st.integers(1, 40_000), max_size=7), long=st.integers(8_000, 40_000))
def test_how_the_audio_is_cut_up_does_not_matter(some, long):
    samples, blocks = (
        recording(*SPEECH),
        [*some, long],
    )  # one of half a second at least: else hours of single samples
    own = engine()
    session = own.open(TARGETS, options=LiveOptions(policy="span", max_behind_s=100, max_waiting_s=100))
    events, begin, turn = [], 0, 0
    while begin < len(samples):
        session.push(samples[begin : begin + blocks[turn % len(blocks)]])
        begin, turn = begin + blocks[turn % len(blocks)], turn + 1
        events += own.step([session])[0]
    events += finish(own, session)
    assert written(events) == {
        t: [segment.text for segment in translation.segments]
        for t, translation in recorded(samples, TARGETS).items()
    }


@pytest.mark.parametrize("policy", ATTEMPTING)
def test_sessions_together_write_what_each_writes_alone(policy):
    options = trying(policy, 0.5)
    talks = [recording(*SPEECH[n:], seed=n) for n in range(4)]
    alone = []
    for samples in talks:
        own = engine()
        alone.append(run(own, own.open(TARGETS, options=options), samples))
    shared = engine()
    sessions = [shared.open(TARGETS, options=options) for _ in talks]
    together: list[list[LiveEvent]] = [[] for _ in talks]
    for begin in range(0, len(talks[0]), 1600):
        for session, samples in zip(sessions, talks, strict=True):
            session.push(samples[begin : begin + 1600])
        while any(session.due for session in sessions):
            for events, new in zip(together, shared.step(sessions), strict=True):
                events += new
    for session in sessions:
        session.finish()
    while not all(session.finished for session in sessions):
        for events, new in zip(together, shared.step(sessions), strict=True):
            events += new
    assert together == alone


@pytest.mark.parametrize("policy", ATTEMPTING)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_listener_sees_adds_up(policy, seed):
    own = engine(seed)
    session = own.open(TARGETS, options=trying(policy, 0.4))
    tentative: dict[tuple[str, int], list[str]] = defaultdict(list)
    ended: set[tuple[str, int]] = set()
    latest_s = 0.0
    events = run(own, session, recording(*SPEECH, seed=seed))
    for event in texts(events):
        key = event.target, event.segment
        assert key not in ended
        before, now = tentative[key], f"{event.committed}{event.tentative}".split()
        assert event.retracted == len(before) - sum(a == b for a, b in zip(before, now, strict=False))
        assert latest_s <= event.audio_s
        assert event.start_s < event.end_s <= event.audio_s + 0.04
        latest_s = event.audio_s
        tentative[key] = event.tentative.split()
        if event.final:
            ended.add(key)
            assert event.tentative == ""
    assert ended == {(t, n) for t in TARGETS for n in range(len(SPEECH))}


def test_text_is_written_before_the_speech_has_ended_where_the_policy_does_so():
    early = {}
    for policy in ATTEMPTING:
        own = engine(1)
        session = own.open(
            ["de"], options=trying(policy, 0.3, **({"wait_k": 2} if policy == "wait-k" else {}))
        )
        events = texts(run(own, session, recording((1.0, 5.5), duration_s=8.0)))
        early[policy] = any(event.committed and not event.final for event in events)
    assert early["wait-k"]
    assert early["local-agreement"]
    assert not early["retranslation"]
    assert not early["span"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["local-agreement", "alignatt", "wait-k"])
def test_speech_without_a_pause_is_never_open_for_long(policy):
    spans = SpanOptions(max_span_s=28.0)
    family = TinyFamily(seed=2, max_window_s=28.0)
    own = LiveEngine(family, replace(OPTIONS, spans=spans, max_tokens=20), activity=Loudness())
    session = own.open(TARGETS, options=LiveOptions(policy=policy, step_s=0.5, max_open_s=6.0))
    samples, longest_s, events = recording((0.5, 60.0), duration_s=62.0), 0.0, []
    for begin in range(0, len(samples), 1600):
        session.push(samples[begin : begin + 1600])
        for stretch in session.take_due():
            longest_s = max(longest_s, stretch.duration_s)
            session.put_back([stretch])
        while session.due:
            events += own.step([session])[0]
    assert longest_s < 6.0 + 0.5 + 0.2
    assert {event.segment for event in texts(events)} == {0}


def test_an_overload_that_is_coarsened_says_so_and_loses_nothing():
    own = engine()
    samples = recording(*SPEECH)
    session = own.open(TARGETS, options=LiveOptions(max_behind_s=2.0, max_waiting_s=100.0))
    events = flood(own, session, samples)
    notices = [event for event in events if isinstance(event, LiveNotice)]
    assert notices
    assert "behind" in notices[0].message
    assert {t: " ".join(w) for t, w in written(events).items()} == {
        t: translation.text for t, translation in recorded(samples, TARGETS).items()
    }


def test_an_overload_that_drops_says_what_is_lost():
    own = engine()
    samples = recording(*SPEECH)
    session = own.open(TARGETS, options=LiveOptions(max_behind_s=3.0, overload="drop"))
    events = flood(own, session, samples)
    lost = [event for event in texts(events) if event.dropped and "overload" in event.dropped]
    lost_s = sum(event.end_s - event.start_s for event in lost if event.target == "de")
    notices = [event for event in events if isinstance(event, LiveNotice)]
    assert lost_s > 3.0
    assert sum(notice.lost_s for notice in notices) == pytest.approx(lost_s)
    assert {e.segment for e in texts(events) if e.final} == set(range(len(SPEECH)))


@pytest.mark.parametrize("overload", ["refuse", "coarsen"])
def test_what_may_not_wait_is_refused_and_the_rest_goes_on(overload):
    own = engine()
    options = LiveOptions(max_behind_s=3.0, max_waiting_s=4.0, overload=overload)
    session = own.open(["de"], options=options)
    speech = recording((0.0, 3.9), duration_s=4.0)
    session.push(speech)
    with pytest.raises(OverloadError, match=r"s of speech wait already.*slower|no faster"):
        session.push(speech)
    while session.due:
        own.step([session])
    session.push(speech)
    assert session.audio_s == pytest.approx(8.0)


def test_sound_of_less_than_a_step_is_no_overload():
    """It waits for the rest of the step, and nothing that is computed could make room for that."""
    own = engine()
    session = own.open(["de"], options=LiveOptions(max_behind_s=0.6, step_s=1.0, overload="refuse"))
    speech = recording((0.0, 3.9), duration_s=4.0)
    for begin in range(0, len(speech), 8000):
        session.push(speech[begin : begin + 8000])
        while session.due:
            own.step([session])
    assert session.audio_s == pytest.approx(4.0)


def test_a_block_longer_than_what_may_wait_is_refused_and_a_listener_divides_it():
    options = LiveOptions(max_behind_s=3.0, max_waiting_s=4.0)
    own = engine()
    session = own.open(["de"], options=options)
    speech = recording((0.5, 2.0), (3.5, 6.0), duration_s=7.0)
    with pytest.raises(OverloadError, match=r"7.0 s of sound came in one block; at most 4 s may wait"):
        session.push(speech)
    assert session.audio_s == 0
    listener = Listener(own, session)
    events = [*listener.hear(speech), *listener.finish()]
    assert session.audio_s == pytest.approx(7.0)
    assert {event.segment for event in texts(events) if event.final} == {0, 1}


@pytest.mark.parametrize("changes", [{"overload": "drop"}, {"overload": "coarsen"}, {"overload": "refuse"}])
def test_a_block_longer_than_an_overload_is_none_in_a_listener(changes):
    samples = recording(*SPEECH)
    options = LiveOptions(policy="span", max_behind_s=2.0, **changes)
    events = []
    for block_s in (0.1, len(samples) / SAMPLE_RATE):
        own = engine()
        listener = Listener(own, own.open(TARGETS, options=options))
        parts = [listener.hear(block) for block in in_blocks(samples, block_s)]
        events.append([event for part in [*parts, listener.finish()] for event in part])
    assert not [event for event in events[1] if isinstance(event, LiveNotice)]
    assert written(events[1]) == written(events[0])
    assert not [event for event in texts(events[1]) if event.dropped]


@pytest.mark.parametrize("policy", ["span", "local-agreement"])
@pytest.mark.parametrize("overload", ["coarsen", "drop", "refuse"])
def test_speech_without_a_pause_is_no_overload_however_long_it_is(policy, overload):
    """A stretch of 4.6 s has only just ended, and could not be written before."""
    own = engine()
    samples = recording((0.5, 13.0), (15.0, 17.0), duration_s=19.0)
    options = LiveOptions(policy=policy, overload=overload, max_behind_s=3.0)
    session = own.open(["de"], options=options)
    events = [moment.event for moment in play(own, session, in_blocks(samples))]
    assert not [event for event in events if isinstance(event, LiveNotice)]
    final = [event for event in texts(events) if event.final]
    assert max(event.end_s - event.start_s for event in final) > 3.0
    assert not [event for event in final if event.dropped and "overload" in event.dropped]


def test_a_recording_goes_on_after_its_player_was_stopped_for_a_while():
    """As by Ctrl-Z and fg: more sound is due then than may wait."""

    class Stopped(SimulatedClock):
        def wait_until(self, second):
            super().wait_until(second + (30.0 if 1.0 < second < 1.2 else 0.0))

    own = engine()
    samples = recording(*SPEECH)
    session = own.open(TARGETS, options=LiveOptions(policy="span", max_behind_s=2.0, max_waiting_s=4.0))
    events = [moment.event for moment in play(own, session, in_blocks(samples), Stopped())]
    assert len(samples) / SAMPLE_RATE > 5
    assert {t: " ".join(w) for t, w in written(events).items()} == {
        t: translation.text for t, translation in recorded(samples, TARGETS).items()
    }


def test_sound_that_came_while_text_was_computed_is_an_overload_and_is_heard_in_parts():
    own = engine()
    samples = recording(*SPEECH)
    options = LiveOptions(policy="span", max_behind_s=2.0, max_waiting_s=4.0)
    session = own.open(TARGETS, options=options)
    events = [moment.event for moment in follow(own, session, [samples], SimulatedClock())]
    assert any(isinstance(event, LiveNotice) and event.kind == "overload" for event in events)
    assert {t: " ".join(w) for t, w in written(events).items()} == {
        t: translation.text for t, translation in recorded(samples, TARGETS).items()
    }


def test_bad_audio_is_refused_by_name():
    session = engine().open(["de"])
    with pytest.raises(SprachbundError, match="mono"):
        session.push(np.zeros((10, 2), np.float32))
    with pytest.raises(SprachbundError, match="finite"):
        session.push(np.array([np.nan], np.float32))
    session.push(np.zeros(0, np.float32))
    session.finish()
    assert session.finished
    with pytest.raises(SprachbundError, match="ended"):
        session.push(np.zeros(10, np.float32))


def test_languages_are_refused_at_the_beginning():
    with pytest.raises(SprachbundError, match="Klingon"):
        engine().open(["Klingon"])


def test_a_recording_played_on_a_simulated_clock_is_deterministic():
    samples = recording(*SPEECH)

    def once() -> list[tuple[LiveEvent, float]]:
        own = engine()
        session = own.open(TARGETS, options=LiveOptions(step_s=0.5))
        return [(moment.event, moment.second) for moment in play(own, session, in_blocks(samples))]

    result = once()
    assert result == once()
    assert [second for _, second in result] == sorted(second for _, second in result)
    assert all(second == pytest.approx(event.audio_s, abs=1e-6) for event, second in result)


def test_transcription_in_a_language_that_the_model_cannot_tell_ends_the_session_as_it_refuses_a_recording():
    own = engine()
    own.model.language_log_probs = lambda memory: memory.states.new_zeros(len(memory.states), 3)
    samples = recording(*SPEECH)
    with pytest.raises(SprachbundError, match="cannot identify which language is spoken") as refused:
        translate(
            own.model, samples, [TRANSCRIBE], None, OPTIONS, sample_rate=SAMPLE_RATE, activity=Loudness()
        )
    other, session = own.open(["de"]), own.open([TRANSCRIBE])
    for one in (other, session):
        one.push(samples)
        one.finish()
    events: list[list[LiveEvent]] = [[], []]
    for _ in range(100):
        for result, new in zip(events, own.step([other, session]), strict=True):
            result += new
        if other.finished:
            break
    errors = [event for event in events[1] if isinstance(event, LiveNotice) and event.kind == "error"]
    assert [event.message for event in errors] == [str(refused.value)]
    assert session.error == str(refused.value)
    assert written(events[0])["de"]
