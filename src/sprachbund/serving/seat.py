"""A live session with what a connection may lose: sound that waits to be taken in, and messages that may have to be
said again. The connection's side and the model's thread meet here and nowhere else."""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.serving.meters import Meters
from sprachbund.serving.refusals import RefusalError, refusal_of
from sprachbund.serving.wire import SoundDecoder

Samples = NDArray[np.float32]
_PIECE = SAMPLE_RATE // 2
"""Samples given to a session at once, so that its limits hold whatever the size of a message."""
_ROUNDING_S = 1e-6
_KINDS = {"LiveText": "text", "LiveNotice": "notice"}


class Seat:
    """A live session, whoever is connected to it.

    Args:
        name: its id, which nobody can guess.
        owner: who opened it, and alone may take it up again.
        model: id of its model.
        session: steps in the model's thread.
        sound: decodes what the client sends.
        nudge: tells the model's thread that there is something new.
        keep_s: messages are kept for so long to be said again.
        meters: of the service.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        model: str,
        session: Any,
        sound: SoundDecoder,
        nudge: Callable[[], None],
        *,
        keep_s: float,
        meters: Meters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.owner, self.model, self.session, self.sound = name, owner, model, session, sound
        self.changed = asyncio.Event()
        self.error: RefusalError | None = None
        self._nudge, self._keep_s, self._meters, self._clock = nudge, keep_s, meters, clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._sound_waiting: deque[Samples] = deque()
        self._arrivals: deque[tuple[float, float]] = deque()  # seconds of sound there, and when they were
        self._log: deque[tuple[int, float, str]] = deque()
        self._said, self._last_seq, self._forgotten = 0, 0, 0
        self._came_s, self._waiting_s, self._behind_s = 0.0, 0.0, 0.0
        self._ending, self._finish_called, self._done, self._dropped = False, False, False, False
        options = session.options
        refuses = options.overload == "refuse"
        self._most_behind_s = options.max_behind_s if refuses else options.max_waiting_s

    # The connection's side.

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that came and were not computed yet."""
        return self._waiting_s + self._behind_s

    @property
    def most_waiting_s(self) -> float:
        """As much as the session lets wait."""
        return self._most_behind_s

    @property
    def ended(self) -> bool:
        """Whether no more sound may come."""
        return self._ending

    @property
    def done(self) -> bool:
        """Whether all text is there."""
        return self._done

    def add(self, samples: Samples) -> None:
        """Sound (N,) at 16 kHz that has come."""
        duration_s = len(samples) / SAMPLE_RATE
        with self._lock:
            self._came_s += duration_s
            self._waiting_s += duration_s
            self._sound_waiting += [samples[i : i + _PIECE] for i in range(0, len(samples), _PIECE)]
            self._arrivals.append((self._came_s, self._clock()))
        self._meters.audio_s.labels("live").inc(duration_s)
        self._nudge()

    def end(self) -> None:
        """No more sound comes; may be said twice."""
        if not self._ending:
            self.add(self.sound.finish())
            self._ending = True
            self._nudge()

    def drop(self) -> None:
        """Nobody will come back for it."""
        self._dropped = True
        self._nudge()

    def since(self, seq: int) -> list[tuple[int, str]]:
        """Messages after number `seq`. Raises RefusalError: 410, when some of them are gone."""
        with self._lock:
            if seq < self._forgotten or seq > self._last_seq:
                raise RefusalError(
                    410,
                    f"messages after {seq} were asked for; those kept are {self._forgotten + 1} to {self._last_seq}",
                    code="messages_gone",
                )
            return [(number, text) for number, _, text in self._log if number > seq]

    def was_said(self, seq: int) -> None:
        """Messages up to `seq` went out; those that are old enough are not kept."""
        with self._lock:
            self._said = max(self._said, seq)
            while self._log and self._log[0][0] <= self._said and self._is_old(self._log[0][1]):
                self._forgotten = self._log.popleft()[0]

    def _is_old(self, when: float) -> bool:
        return self._clock() - when > self._keep_s

    # The model's thread.

    @property
    def over(self) -> bool:
        """Whether the model's thread may forget it."""
        return self._done or self._dropped or self.error is not None

    def advance(self) -> bool:
        """Give the sound that came to the session; whether there is anything to compute."""
        with self._lock:
            ending = self._ending
        while self._sound_waiting and self._has_room(len(self._sound_waiting[0]) / SAMPLE_RATE):
            piece = self._sound_waiting.popleft()
            self.session.push(piece)
            with self._lock:
                self._waiting_s -= len(piece) / SAMPLE_RATE
        if ending and not self._sound_waiting and not self._finish_called:
            self._finish_called = True
            self.session.finish()
        self._behind_s = self.session.behind_s
        self._forget_arrivals(self.session.audio_s)
        if self.session.finished:
            self._finish()
            return False
        return bool(self.session.due)

    def _has_room(self, more_s: float) -> bool:
        """Whether the session takes more in; one that has nothing to do is given it in any case."""
        return not self.session.due or self.session.behind_s + more_s <= self._most_behind_s

    def emit(self, events: Sequence[Any]) -> None:
        """What a step gave."""
        for event in events:
            self._say(_KINDS[type(event).__name__], asdict(event))
        self._behind_s = self.session.behind_s
        if self.session.finished:
            self._finish()
        else:
            self._wake()

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self.error = refusal_of(error)
        self._wake()

    def _finish(self) -> None:
        if self.session.error is not None:
            self.fail(RefusalError(400, self.session.error))
        elif not self._done:
            self._say("done", {"audio_s": round(self.session.audio_s, 3)})
            self._done = True
            self._wake()

    def _say(self, kind: str, values: dict[str, Any]) -> None:
        now = self._clock()
        if kind == "text":
            values["delay_s"] = round(self._delay_s(values["audio_s"], now), 3)
            self._meters.live_delay_s.observe(values["delay_s"])
        elif values.get("kind") == "overload":
            self._meters.overloads.inc()
        with self._lock:
            self._last_seq += 1
            text = json.dumps({"type": kind, "seq": self._last_seq, **values}, ensure_ascii=False)
            self._log.append((self._last_seq, now, text))

    def _delay_s(self, audio_s: float, now: float) -> float:
        """Since the sound up to `audio_s` was there."""
        self._forget_arrivals(audio_s)
        return max(0.0, now - self._arrivals[0][1]) if self._arrivals else 0.0

    def _forget_arrivals(self, audio_s: float) -> None:
        """Those of sound before `audio_s`, after which no text was decided."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < audio_s - _ROUNDING_S:
            self._arrivals.popleft()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self.changed.set)
