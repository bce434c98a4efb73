"""The loop of one live session: audio in as it is spoken, events out, each with its time.

`play` plays a recording in real time, or without waiting on a simulated clock; `follow` follows a microphone. A
simulated clock moves by the audio that has been spoken; whether computing takes time on it is the difference between
ideal and computation-aware latency. `emission_logs` makes the logs that latency is computed from.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.evaluation.emissions import EmissionLog, EmissionRecorder
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveEvent, LiveText
from sprachbund.streaming.session import LiveSession
from sprachbund.util.arrays import Samples

# Clocks.


class Clock(Protocol):
    """Seconds since the talk began."""

    def now_s(self) -> float:
        """Current time in seconds."""
        ...

    def wait_until(self, second: float) -> None:
        """Wait until a time; return at once if it has passed."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Context manager around computation, whose time the clock counts."""
        ...


class WallClock:
    """A clock of real time."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._began

    def wait_until(self, second: float) -> None:
        """Sleep until a time."""
        time.sleep(max(0.0, second - self.now_s()))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do nothing, since real time passes by itself."""
        yield


class SimulatedClock:
    """A clock whose time passes only where it has to.

    Attributes:
        computing: whether the seconds that computation takes are counted; without them a run is deterministic.
    """

    def __init__(self, *, computing: bool = False) -> None:
        self.computing = computing
        self._now_s = 0.0

    def now_s(self) -> float:
        """Current time in seconds."""
        return self._now_s

    def wait_until(self, second: float) -> None:
        """Advance the clock to a time."""
        self._now_s = max(self._now_s, second)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the seconds, if computation counts."""
        began = time.perf_counter()
        yield
        if self.computing:
            self._now_s += time.perf_counter() - began


# The loop.

BLOCK_S = 0.1
"""Seconds of audio that are pushed at once when a recording is played."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An event and its time on the clock, in seconds."""

    event: LiveEvent
    second: float


def in_blocks(samples: Samples, block_s: float = BLOCK_S) -> Iterator[Samples]:
    """Samples (N,) a block at a time."""
    size = round(block_s * SAMPLE_RATE)
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]


def play(
    engine: LiveEngine, session: LiveSession, blocks: Iterable[Samples], clock: Clock | None = None
) -> Iterator[Moment]:
    """Play a recording to a session as it would be spoken.

    Args:
        engine: engine that opened the session.
        session: a new session.
        blocks: 16 kHz mono, each (N,), in order.
        clock: clock of the events; if None, a `SimulatedClock` that does not count computation, which is as fast as can
            be, and deterministic.

    Raises:
        OverloadError: more audio waits than the session may hold.
    """
    clock = clock or SimulatedClock()
    # After a wait that was no work, as of a process that was stopped, there is more than may wait.
    most_s = session.options.max_waiting_s - BLOCK_S
    source, heard = iter(blocks), 0
    coming = next(source, None)
    while not session.finished:
        with clock.working():
            while coming is not None and heard + len(coming) <= clock.now_s() * SAMPLE_RATE + 0.5:
                if session.due and session.behind_s > most_s:
                    break
                session.push(coming)
                heard, coming = heard + len(coming), next(source, None)
        if coming is None:
            session.finish()
        if session.due:
            yield from stepped(engine, session, clock)
        elif coming is not None:
            clock.wait_until((heard + len(coming)) / SAMPLE_RATE)


def follow(
    engine: LiveEngine, session: LiveSession, blocks: Iterable[Samples], clock: Clock
) -> Iterator[Moment]:
    """Follow audio that comes at its own pace, until there is no more.

    While a step is computed no blocks are read; their source has to buffer them, and to give them as one block then, by
    which the session sees an overload.

    Args:
        engine: engine that opened the session.
        session: a new session.
        blocks: 16 kHz mono, each (N,), in order.
        clock: clock of the events.

    Raises:
        OverloadError: more audio waits than the session may hold.
    """
    most_s = session.options.max_waiting_s - BLOCK_S
    for block in blocks:
        for piece in in_blocks(np.asarray(block, np.float32)):
            while session.due and session.behind_s > most_s:
                yield from stepped(engine, session, clock)
            session.push(piece)
        while session.due:
            yield from stepped(engine, session, clock)
    session.finish()
    while not session.finished:
        yield from stepped(engine, session, clock)


class Listener:
    """A session with an engine of its own: samples in, events out.

    Args:
        engine: engine of the model.
        session: session that the engine has opened.
    """

    def __init__(self, engine: LiveEngine, session: LiveSession) -> None:
        self.engine, self.session = engine, session

    def hear(self, samples: Samples) -> list[LiveEvent]:
        """Take the next samples, 16 kHz mono (N,) of any length, and decode all that is due.

        Args:
            samples: an array; integers are scaled to [-1, 1].

        Raises:
            SprachbundError: for values that are not samples, or after `finish`.
        """
        options = self.session.options
        # A larger block would count as an overload, though nothing is slow.
        most_s = min(options.max_waiting_s, options.max_behind_s)
        whole = not isinstance(samples, np.ndarray) or samples.size <= most_s * SAMPLE_RATE
        events = list[LiveEvent]()
        # A part has room beside what is left of the one before.
        for block in [samples] if whole else in_blocks(samples, most_s / 2):
            self.session.push(block)
            events += self._all_due()
        return events

    def finish(self) -> list[LiveEvent]:
        """End the audio, and return the events of the rest of the text."""
        self.session.finish()
        return self._all_due()

    def _all_due(self) -> list[LiveEvent]:
        events = list[LiveEvent]()
        while self.session.due:
            events += self.engine.step([self.session])[0]
        return events


def stepped(engine: LiveEngine, session: LiveSession, clock: Clock) -> list[Moment]:
    """One step of the engine.

    Args:
        engine: engine that opened the session.
        session: session with work due.
        clock: clock of the events; one that counts computation counts the step.

    Returns:
        The events, with the time after the step.
    """
    with clock.working():
        events = engine.step([session])[0]
    now_s = clock.now_s()
    return [Moment(event=event, second=now_s) for event in events]


# Emission logs.


def emission_logs(
    moments: Iterable[Moment], targets: Iterable[str], *, talk: str, duration_s: float
) -> list[EmissionLog]:
    """The text with the times of writing, one log per target.

    Args:
        moments: moments of a whole talk, in order.
        targets: targets of the session.
        talk: name of the talk.
        duration_s: seconds of the talk.
    """
    recorders: dict[str, EmissionRecorder] = {}
    for moment in moments:
        if isinstance(event := moment.event, LiveText):
            recorder = recorders.setdefault(event.target, EmissionRecorder(talk, event.target_language))
            recorder.add(event.segment, event.committed, event.tentative, event.audio_s, moment.second)
    return [recorders.get(t, EmissionRecorder(talk, t)).log(duration_s) for t in targets]
