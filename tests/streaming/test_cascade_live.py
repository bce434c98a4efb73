"""Live sessions of a cascade: what stands at the end is what a recording gives, and what comes before is only shown."""

from collections.abc import Sequence
from typing import Any

import pytest

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding import pipeline
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE
from sprachbund.models.cascade import Cascade
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent
from sprachbund.streaming.options import LiveOptions, Policy
from tests.decoding.test_cascade import Reading
from tests.decoding.test_domain import calibrated
from tests.decoding.test_translate import SPEECH, Loudness, recording
from tests.decoding.tiny_family import TinyFamily
from tests.streaming.test_engine import OPTIONS, finish, run, texts, trying, written

TARGETS = ["es", TRANSCRIBE]


def engine() -> LiveEngine:
    family = Cascade(TinyFamily(seed=3), Reading(read=["de", "en", "fr"]))
    return LiveEngine(family, OPTIONS, activity=Loudness())


@pytest.mark.parametrize("policy", ["retranslation", "span"])
@pytest.mark.parametrize("source", [None, "fr"])
def test_the_text_at_the_end_is_that_of_a_recording(policy: Policy, source: str | None) -> None:
    samples, own = recording(*SPEECH), engine()
    events = run(own, own.open(TARGETS, source, trying(policy, 0.4)), samples)
    whole = translate(
        own.model, samples, TARGETS, source, OPTIONS, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    result = written(events)
    for target, translation in whole.items():
        assert " ".join(result.get(target, [])) == translation.text
    shown = [event for event in texts(events) if event.tentative]
    assert bool(shown) == (policy == "retranslation")
    assert not any(event.committed and not event.final for event in texts(events))


def test_a_session_remembers_what_its_stretches_said_about_understanding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stretch is judged with those before it, as in a recording, and an attempt counts as one only until its end."""
    family = Cascade(calibrated(1.3, threshold=0.6), Reading(read=["de", "en", "fr"]))
    judged: list[tuple[bool, float]] = []
    judge = pipeline.out_of_domain

    def spy(*given: Any) -> list[list[float | None]]:
        doubts = judge(*given)
        ended: Sequence[bool] = given[-1]
        judged.extend((end, row[0] or 0.0) for end, row in zip(ended, doubts, strict=True))
        return doubts

    monkeypatch.setattr(pipeline, "out_of_domain", spy)
    samples = recording(*SPEECH)
    translate(family, samples, ["es"], "fr", OPTIONS, sample_rate=SAMPLE_RATE, activity=Loudness())
    recorded, judged = judged, []
    own = LiveEngine(family, OPTIONS, activity=Loudness())
    run(own, own.open(["es"], "fr", trying("retranslation", 0.4)), samples)
    assert len(recorded) > 1
    assert all(end for end, _ in recorded)
    assert [doubt for end, doubt in judged if end] == pytest.approx(
        [doubt for _, doubt in recorded], abs=1e-3
    )
    assert not all(end for end, _ in judged), "attempts at speech that goes on"


@pytest.mark.slow
def test_sessions_together_write_what_each_writes_alone() -> None:
    options = LiveOptions(step_s=0.5)
    talks = [recording(*SPEECH[n:], seed=n) for n in range(3)]
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
    for session, events in zip(sessions, together, strict=True):
        events += finish(shared, session)
    assert together == alone
