"""The log of what was written when."""

from sprachbund.streaming.events import LiveNotice, LiveText
from sprachbund.streaming.live import Moment, emission_logs


def text(segment: int, committed: str, tentative: str, audio_s: float, target: str = "de") -> LiveText:
    return LiveText(
        target=target,
        segment=segment,
        committed=committed,
        tentative=tentative,
        retracted=0,
        start_s=0.0,
        end_s=1.0,
        source_language="en",
        target_language="de" if target == "transcribe" else target,
        audio_s=audio_s,
        final=False,
    )


def test_a_log_holds_every_commitment_and_every_change_of_the_screen():
    events = [
        text(0, "", "gut", 1.0),
        text(0, "guten", "", 2.0),
        LiveNotice(kind="overload", message="m", audio_s=2.0),
        text(0, "", "", 2.5),
        text(1, "Tag", " auch", 3.0),
    ]
    moments = [Moment(event=event, second=event.audio_s + 0.25) for event in events]
    (log,) = emission_logs(moments, ["de"], talk="t", duration_s=4.0)
    assert [(e.text, e.audio_s, e.wall_s) for e in log.emissions] == [
        ("guten", 2.0, 2.25),
        ("Tag", 3.0, 3.25),
    ]
    assert [(s.text, s.audio_s) for s in log.shown] == [("gut", 1.0), ("guten", 2.0), ("guten Tag auch", 3.0)]


def test_transcription_is_logged_under_its_language_and_silence_as_nothing():
    moments = [Moment(event=text(0, "hallo", "", 1.0, "transcribe"), second=1.0)]
    logs = emission_logs(moments, ["transcribe", "fr"], talk="t", duration_s=2.0)
    assert [(log.target, len(log.emissions)) for log in logs] == [("de", 1), ("fr", 0)]
