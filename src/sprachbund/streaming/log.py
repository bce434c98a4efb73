"""The log of a live session, that latency is computed from."""

from collections.abc import Iterable

from sprachbund.evaluation.emissions import EmissionLog, EmissionRecorder
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.live import Moment


def emission_logs(
    moments: Iterable[Moment], targets: Iterable[str], *, talk: str, duration_s: float
) -> list[EmissionLog]:
    """What was written when, one log per target.

    Args:
        moments: of a whole talk, in order.
        targets: of the session.
        talk: its name.
        duration_s: of the talk.
    """
    recorders: dict[str, EmissionRecorder] = {}
    for moment in moments:
        if isinstance(event := moment.event, LiveText):
            recorder = recorders.setdefault(event.target, EmissionRecorder(talk, event.target_language))
            recorder.add(event.segment, event.committed, event.tentative, event.audio_s, moment.second)
    return [recorders.get(t, EmissionRecorder(talk, t)).log(duration_s) for t in targets]
