"""Live captions over a WebSocket: messages, sessions that outlive a connection, and the manager of all sessions.

A client opens a session with `start`, sends sound, and receives text. When the connection breaks, the session waits for
`resume` and sends the messages that the client has not seen again.
"""

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sprachbund.audio.constants import LOUDEST, SAMPLE_RATE, WINDOW_S
from sprachbund.audio.span_options import SpanOptions
from sprachbund.serving.metrics import Meters
from sprachbund.serving.models import ModelStore
from sprachbund.serving.schemas import (
    HotWordList,
    RefusalError,
    field_fault,
    refusal_of,
    stopping_refusal,
    unknown_type,
)
from sprachbund.serving.settings import Settings
from sprachbund.streaming.events import LiveEvent, LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import LiveSession
from sprachbund.util.arrays import Samples

# Messages of a client over /v1/live, and sound to samples.

Encoding = Literal["pcm_s16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"]

_MOST = {
    "max_open_s": WINDOW_S,
    "pause_s": WINDOW_S,
    "max_pause_s": WINDOW_S,
    "border_s": WINDOW_S,
    "border_words": 1000,
    "max_behind_s": 600.0,
    "max_waiting_s": 600.0,
    "right_context": 1000,
    "agreement": 100,
    "wait_k": 1000,
    "mask_words": 1000,
    "steady": 100,
}
"""Largest settings accepted from a client, since computation and memory grow with them."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Start(_Message):
    """Begin a session.

    Attributes:
        model: id of a model; None is the service's first.
        targets: languages wanted.
        source: language spoken; None identifies it.
        languages: languages that may be spoken, when the language is identified.
        policy: policy of writing text; None is the default of `LiveOptions`.
        settings: other fields of `LiveOptions`.
        prompt: context or glossary, for models with room for it.
        glossary: terms and their translations, for cascades with a language model.
        hot_words: words that the search prefers.
        hot_words_weight: bonus of each of their tokens; None is the default of `DecodingOptions`.
        word_timestamps: whether texts have the words that they commit, with times.
        encoding: encoding of the sound.
        sample_rate: sample rate of the sound, in Hz.
        key: key of the client, where one is needed and cannot be sent as a header, as from a browser.
    """

    type: Literal["start"]
    model: str | None = None
    targets: Annotated[list[str], Field(min_length=1)]
    source: str | None = None
    languages: list[str] | None = None
    policy: str | None = None
    settings: dict[str, float | int | str] = {}
    prompt: Annotated[str | None, Field(max_length=10_000)] = None
    glossary: Annotated[str | None, Field(max_length=10_000)] = None
    hot_words: HotWordList | None = None
    hot_words_weight: Annotated[float | None, Field(ge=0, le=20)] = None
    word_timestamps: bool = False
    encoding: Encoding = "pcm_s16le"
    sample_rate: Annotated[int, Field(ge=8_000, le=192_000)] = SAMPLE_RATE
    key: str | None = None


class Resume(_Message):
    """Go on with a session after a break; messages up to number `after` were seen."""

    type: Literal["resume"]
    session: str
    after: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    key: str | None = None


class Stop(_Message):
    """No more sound."""

    type: Literal["stop"]


_MESSAGES: TypeAdapter[Start | Resume | Stop] = TypeAdapter(
    Annotated[Start | Resume | Stop, Field(discriminator="type")]
)

_EXAMPLES = {
    "start": '{"type": "start", "targets": ["de"]}',
    "resume": '{"type": "resume", "session": "...", "after": 0}',
    "stop": '{"type": "stop"}',
}


def parse_message(text: str) -> Start | Resume | Stop:
    """A text message. Raises RefusalError: 400, which names what is wrong with it."""
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        fault = field_fault(error.errors(), tagged=True)
        if fault.field:
            reason = f"{fault.reason}, as in {_EXAMPLES[str(error.errors()[0]['loc'][0])]}"
        else:
            reason = unknown_type(error, ("start", "resume", "stop"))
            reason = reason or f"{fault.reason}; text messages are JSON, sound is binary"
        message = f"the message cannot be read: {reason}"
        raise RefusalError(400, message[:500], code="bad_message") from error


def live_options(start: Start) -> LiveOptions:
    """The `LiveOptions` that a first message asks for.

    Raises:
        RefusalError: 400, for settings that are unknown, wrong, or would let one session work for all.
    """
    values = dict(start.settings) | ({} if start.policy is None else {"policy": start.policy})
    known = LiveOptions.__dataclass_fields__
    if unknown := sorted(values.keys() - known.keys()):
        raise RefusalError(
            400,
            f"settings: {unknown[0][:100]!r} is not known; there are {', '.join(known)}",
            code="bad_settings",
        )
    try:
        options = TypeAdapter(LiveOptions).validate_python(values)
    except ValidationError as error:
        fault = field_fault(error.errors(), inside="settings")
        raise RefusalError(400, fault.reason[:500], code="bad_settings") from error
    for name, most in _MOST.items():
        value = getattr(options, name)
        if value is not None and value > most:
            raise RefusalError(
                400, f"settings: {name} is {value:.10g}; {most:g} is the most here", code="bad_settings"
            )
    return options


class SoundDecoder:
    """Binary messages of a session to 16 kHz samples (N,); a sample may be cut between two messages.

    Args:
        encoding: encoding of the messages, mono.
        sample_rate: sample rate of the messages, in Hz.

    Attributes:
        received_s: seconds of sound received, in whole samples.
    """

    def __init__(self, encoding: Encoding, sample_rate: int) -> None:
        import soxr

        self._type = np.dtype({"pcm_s16le": "<i2", "pcm_f32le": "<f4"}.get(encoding, "u1"))
        self._table = {"pcm_mulaw": _mulaw_table, "pcm_alaw": _alaw_table}.get(encoding, _no_table)()
        self._rate, self._rest, self._num_samples = sample_rate, b"", 0
        self._resampler: Any = None
        if sample_rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    @property
    def received_s(self) -> float:
        """Seconds of sound received, in whole samples."""
        return self._num_samples / self._rate

    def forget_rest(self) -> None:
        """Drop half a sample: after a break, the client sends it again."""
        self._rest = b""

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """The samples of a message. Raises RefusalError: 415, for numbers that are no sound."""
        data = self._rest + data
        whole = len(data) // self._type.itemsize * self._type.itemsize
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type)
        if self._table is not None:
            floats = self._table[samples]
        elif samples.dtype.kind == "i":
            floats = samples.astype(np.float32) / np.float32(32768)
        else:
            floats = samples.astype(np.float32)
            if not (np.abs(floats) <= LOUDEST).all():  # also where it is not a number
                raise RefusalError(
                    415,
                    "a sample is not a number or far from -1 to 1; send pcm_f32le or say the encoding",
                    code="bad_sound",
                )
        self._num_samples += len(floats)
        return self._resampled(floats, last=False)

    def finish(self) -> NDArray[np.float32]:
        """The last samples, which the resampler still holds."""
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _resampled(self, samples: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


def _no_table() -> None:
    return None


def _mulaw_table() -> NDArray[np.float32]:
    """Samples (256,) of the bytes of ITU-T G.711, mu-law: bits inverted, then sign, exponent (3) and mantissa (4)."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = ((2 * mantissa + 33) << exponent) - 33  # of 14 bits with the sign
    return np.where(code & 128, -size, size).astype(np.float32) / np.float32(8192)


def _alaw_table() -> NDArray[np.float32]:
    """Samples (256,) of the bytes of ITU-T G.711, A-law: even bits inverted; the lowest exponent has no leading one."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return np.where(code & 128, size, -size).astype(np.float32) / np.float32(4096)  # of 13 bits with the sign


# One session: shared by the connection (event loop) and the model's thread, and by nothing else.

_PIECE = SAMPLE_RATE // 2
"""Samples pushed at once, so that a session's limits hold for messages of any size."""
_ROUNDING_S = 1e-6


class ResumableSession:
    """A live session of the service. It keeps what a broken connection may lose: sound not yet computed, and messages.

    Args:
        name: its id, random and secret.
        owner: client that opened it; nobody else may resume it.
        model: id of its model.
        session: the `LiveSession` of the engine; only the model's thread steps it.
        sound: decoder of the client's binary messages.
        notify: wakes the model's thread when there is something new.
        keep_s: seconds for which sent messages are kept, to be sent again after `resume`.
        meters: counters of the service.
        marks: whether messages of the type `speech` say where stretches of speech begin and end, as soon as that is
            known, and before their text.
        clock: seconds; another one in tests.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        model: str,
        session: LiveSession,
        sound: SoundDecoder,
        notify: Callable[[], None],
        *,
        keep_s: float,
        meters: Meters,
        marks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.owner, self.model, self.session, self.sound = name, owner, model, session, sound
        self.changed = asyncio.Event()
        self.error: RefusalError | None = None
        self._notify, self._keep_s, self._meters, self._clock = notify, keep_s, meters, clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._sound_waiting: deque[Samples] = deque()
        self._arrivals: deque[tuple[float, float]] = deque()  # seconds of sound there, and when they were
        self._messages: deque[tuple[int, float, dict[str, Any]]] = deque()
        self._sent_seq, self._last_seq, self._forgotten = 0, 0, 0
        self._came_s, self._waiting_s, self._behind_s = 0.0, 0.0, 0.0
        self._ending, self._finish_called, self._done, self._dropped = False, False, False, False
        options = session.options
        refuses = options.overload == "refuse"
        self._most_behind_s = options.max_behind_s if refuses else options.max_waiting_s
        if marks:
            session.on_speech = self._mark

    # Called by the connection, in the event loop.

    @property
    def waiting_s(self) -> float:
        """Seconds of sound received and not computed yet."""
        return self._waiting_s + self._behind_s

    @property
    def most_waiting_s(self) -> float:
        """Largest `waiting_s` that the session's options allow."""
        return self._most_behind_s

    @property
    def ended(self) -> bool:
        """Whether no more sound may come."""
        return self._ending

    @property
    def done(self) -> bool:
        """Whether all text is there."""
        return self._done

    async def messages(self, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Messages after number `after`, until the text is complete; raises the error that ended the session."""
        while True:
            self.changed.clear()
            error, done = self.error, self._done  # first: more may be said while these messages go out
            for seq, message in self.since(after):
                yield message
                after = seq
            self.mark_sent(after)
            if error is not None:
                raise error
            if done:
                return
            await self.changed.wait()

    def add(self, samples: Samples) -> None:
        """Queue samples (N,) at 16 kHz."""
        if not len(samples):  # of a message without a whole sample, of which nothing is kept
            return
        duration_s = len(samples) / SAMPLE_RATE
        size = min(_PIECE, int(self.session.options.max_waiting_s * SAMPLE_RATE))
        with self._lock:
            self._came_s += duration_s
            self._waiting_s += duration_s
            self._sound_waiting += [samples[i : i + size] for i in range(0, len(samples), size)]
            self._arrivals.append((self._came_s, self._clock()))
        self._meters.audio_s.labels("live").inc(duration_s)
        self._notify()

    def end(self) -> None:
        """Mark the end of the sound; may be called twice."""
        if not self._ending:
            self.add(self.sound.finish())
            self._ending = True
            self._notify()

    def drop(self) -> None:
        """Give the session up: nobody will resume it."""
        self._dropped = True
        self._notify()

    def since(self, seq: int) -> list[tuple[int, dict[str, Any]]]:
        """Messages after number `seq`. Raises RefusalError: 410, when some of them are gone."""
        with self._lock:
            if seq < self._forgotten or seq > self._last_seq:
                raise RefusalError(
                    410,
                    f"messages after {seq} were asked for; those kept are {self._forgotten + 1} to {self._last_seq}",
                    code="messages_gone",
                )
            return [(number, message) for number, _, message in self._messages if number > seq]

    def mark_sent(self, seq: int) -> None:
        """Record that messages up to `seq` were sent, and drop those older than `keep_s`."""
        with self._lock:
            self._sent_seq = max(self._sent_seq, seq)
            while (
                self._messages
                and self._messages[0][0] <= self._sent_seq
                and self._is_old(self._messages[0][1])
            ):
                self._forgotten = self._messages.popleft()[0]

    def _is_old(self, when: float) -> bool:
        return self._clock() - when > self._keep_s

    # Called in the model's thread.

    @property
    def over(self) -> bool:
        """Whether the model's thread may drop the session."""
        return self._done or self._dropped or self.error is not None

    def advance(self) -> bool:
        """Push queued sound into the session. Returns whether there is anything to compute."""
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
        return self.session.due

    def _has_room(self, more_s: float) -> bool:
        """Whether the session can take `more_s` seconds; an idle session takes any amount."""
        return not self.session.due or self.session.behind_s + more_s <= self._most_behind_s

    def emit(self, events: Sequence[LiveEvent]) -> None:
        """Queue the events of a step as messages."""
        for event in events:
            self._say("text" if isinstance(event, LiveText) else "notice", asdict(event))
        self._behind_s = self.session.behind_s
        if self.session.finished:
            self._finish()
        else:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End the session with an error, which the connection sends."""
        self.error = refusal_of(error)
        self._wake()

    def _finish(self) -> None:
        if self.session.error is not None:
            self.fail(RefusalError(400, self.session.error))
        elif not self._done:
            self._say("done", {"audio_s": round(self.session.audio_s, 3)})
            self._done = True
            self._wake()

    def _mark(self, segment: int, second: float, begins: bool) -> None:
        self._say("speech", {"segment": segment, "begins": begins, "second": round(second, 3)})
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
            message = {"type": kind, "seq": self._last_seq, **values}
            self._messages.append((self._last_seq, now, message))

    def _delay_s(self, audio_s: float, now: float) -> float:
        """Since the sound up to `audio_s` was there."""
        self._forget_arrivals(audio_s)
        return max(0.0, now - self._arrivals[0][1]) if self._arrivals else 0.0

    def _forget_arrivals(self, audio_s: float) -> None:
        """Drop the arrivals of sound before `audio_s`, after which no text was decided."""
        while len(self._arrivals) > 1 and self._arrivals[0][0] < audio_s - _ROUNDING_S:
            self._arrivals.popleft()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self.changed.set)


# All sessions of a service, and the connections to them.

log = logging.getLogger("sprachbund.serving")
PATH = "/v1/live"

NORMAL, WRONG_DATA, REFUSED, TOO_BIG, BROKEN, TRY_LATER = 1000, 1003, 1008, 1009, 1011, 1013
CLOSE_CODES = {413: TOO_BIG, 415: WRONG_DATA, 429: TRY_LATER, 503: TRY_LATER}
_STILL_READ = 4
"""Factor between the waiting sound at which a client is asked to pause and that at which nothing more is read."""
_CHECK_S = 0.05
"""Interval in which a paused session is polled."""
SILENCE_S = 1.0
"""Least seconds of sound in `live_silent_s`; less counts as silence."""

Check = Callable[[str | None], str]
"""Authenticates the key in a message (or None) and returns the client; raises RefusalError."""


class SessionManager:
    """Opens, resumes, serves and ends all live sessions of a service.

    Args:
        settings: settings of the service.
        store: store of its models.
        meters: meters of the service.
    """

    def __init__(self, settings: Settings, store: ModelStore, meters: Meters) -> None:
        self._settings, self._store, self._meters = settings, store, meters
        self._sessions: dict[str, ResumableSession] = {}
        self._connections: dict[str, asyncio.Task[Any]] = {}
        self._left_s: dict[str, float] = {}
        self._leases: dict[str, AsyncExitStack] = {}
        self._opening: Counter[str] = Counter()
        self._silent: set[asyncio.Task[Any]] = set()  # connections of which no message came yet
        self._closing = asyncio.Event()

    @property
    def closing(self) -> bool:
        """Whether the service is being stopped, and opens no more sessions."""
        return self._closing.is_set()

    async def wait_closing(self) -> None:
        """Wait until the service is being stopped."""
        await self._closing.wait()

    @property
    def count(self) -> int:
        """Sessions at work, with or without a connection."""
        return sum(not live.over for live in self._sessions.values())

    async def serve(self, socket: WebSocket, check: Check) -> None:
        """All of a connection, from its first message to its close."""
        live: ResumableSession | None = None
        began, status = time.monotonic(), NORMAL
        task = asyncio.current_task()
        assert task is not None
        self._silent.add(task)
        try:
            message = await self._first_message(socket)
            self._silent.discard(task)
            live, after = await self._begin(message, check)
            await self._serve_session(live, after, socket)
            if socket.application_state == WebSocketState.CONNECTED:
                raise RefusalError(409, "the session was taken up by another connection")
        except WebSocketDisconnect as end:
            status = end.code
        except Exception as error:
            refusal = refusal_of(error)
            status = refusal.status
            if status >= 500 and not isinstance(error, RefusalError):
                log.exception("a connection failed")
            await _refuse(socket, refusal)
        finally:
            self._silent.discard(task)
            self.log_connection(socket, PATH, live, status, time.monotonic() - began)

    async def sweep(self, *, now_s: float | None = None) -> None:
        """Give up sessions to which nobody came back."""
        now_s = time.monotonic() if now_s is None else now_s
        for name, left_s in list(self._left_s.items()):
            if now_s - left_s >= self._settings.timeouts.resume_s:
                await self.give_up(name)

    async def close(self, timeout_s: float) -> None:
        """End all sessions; clients still get the text that is left, and the reason where they have not begun."""
        self._closing.set()
        for name in list(self._left_s):
            await self.give_up(name)
        for live in self._sessions.values():
            live.end()
        waiting: list[asyncio.Task[Any]] = [*self._connections.values(), *self._silent]
        if self._opening:
            waiting.append(asyncio.ensure_future(self._wait_opened()))
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
        for task in waiting:
            task.cancel()

    async def _wait_opened(self) -> None:
        """Wait until no session is being opened; while closing, those are refused."""
        while self._opening:
            await asyncio.sleep(_CHECK_S)

    def log_connection(
        self, socket: WebSocket, path: str, live: ResumableSession | None, status: int, took_s: float
    ) -> None:
        """Write a line for a connection.

        Args:
            socket: socket of the connection.
            path: path of the route.
            live: its session, the last one where it had several.
            status: status of a refusal, or the code that the socket was closed with.
            took_s: seconds that it was open.
        """
        self._meters.requests.labels(path, str(status)).inc()
        line = {
            "session": live and live.name[:6],  # whoever knows all of it could take the session up
            "client": socket.client and socket.client.host,
            "path": path,
            "status": status,
            "seconds": round(took_s, 3),
            "audio_s": live and round(live.sound.received_s, 3),
        }
        log.info(json.dumps(line))

    async def _begin(self, message: str | bytes, check: Check) -> tuple[ResumableSession, int]:
        """The session that the first message asks for, and the number of the last message that the client saw."""
        first = parse_message(message) if isinstance(message, str) else None
        if not isinstance(first, Start | Resume):
            raise RefusalError(400, "the first message has to be start or resume", code="bad_message")
        owner = check(first.key)
        if isinstance(first, Resume):
            return self._resume(first, owner), first.after
        return await self.open(first, owner), 0

    async def _first_message(self, socket: WebSocket) -> str | bytes:
        """The first message; raises RefusalError where none comes, or the service is being stopped before."""
        receiving = asyncio.ensure_future(receive(socket))
        stopping = asyncio.ensure_future(self.wait_closing())
        try:
            patience_s = self._settings.timeouts.header_s
            await asyncio.wait({receiving, stopping}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            if stopping.done():
                raise stopping_refusal()
            raise RefusalError(408, f"no message came in {patience_s:g} s; send start or resume")
        finally:
            receiving.cancel()
            stopping.cancel()
            await asyncio.gather(receiving, stopping, return_exceptions=True)

    def _resume(self, resume: Resume, owner: str) -> ResumableSession:
        live = self._sessions.get(resume.session)
        # As bytes: an address in a proxy's header may hold non-ASCII letters, which compare_digest refuses as text.
        if live is None or not secrets.compare_digest(live.owner.encode(), owner.encode()):
            raise RefusalError(
                404, "there is no such session any more; start a new one", code="session_not_found"
            )
        live.since(resume.after)
        connection = self._connections.get(live.name)
        if connection is not None:  # the broken connection has not noticed yet
            connection.cancel()
        live.sound.forget_rest()
        return live

    async def open(
        self, start: Start, owner: str, *, spans: SpanOptions | None = None, marks: bool = False
    ) -> ResumableSession:
        """A new session, which counts towards the limits until `give_up` or the end of its text.

        Args:
            start: options that the client asks for.
            owner: the client.
            spans: thresholds and lengths of stretches of speech; the engine's options by default.
            marks: see `ResumableSession`.

        Raises:
            RefusalError: no room, or options, languages or a model that the service does not have.
        """
        self.check_limits(owner, len(start.targets))
        options = live_options(start)
        self._opening[owner] += 1
        try:
            lease = AsyncExitStack()
            worker = await lease.enter_async_context(self._store.lease(start.model or self._store.default))
            try:
                call = worker.call(
                    lambda: worker.engine().open(
                        start.targets,
                        start.source,
                        options,
                        allowed_languages=start.languages,
                        spans=spans,
                        prompt=start.prompt,
                        word_timestamps=start.word_timestamps,
                        glossary=start.glossary,
                        hot_words=start.hot_words,
                        hot_words_weight=start.hot_words_weight,
                    )
                )
                session = await asyncio.wrap_future(call)
                if self.closing:  # meanwhile; nobody would end it
                    raise stopping_refusal()
                live = ResumableSession(
                    secrets.token_urlsafe(24),
                    owner,
                    worker.name,
                    session,
                    SoundDecoder(start.encoding, start.sample_rate),
                    worker.notify,
                    keep_s=2 * self._settings.timeouts.resume_s,
                    meters=self._meters,
                    marks=marks,
                )
                worker.join_live(live)
            except BaseException:
                await lease.aclose()
                raise
        finally:
            self._opening[owner] -= 1
            self._opening += Counter()  # drops those at 0
        self._sessions[live.name], self._leases[live.name] = live, lease
        self._meters.live_sessions.set(self.count)
        return live

    def disconnect(self, name: str) -> None:
        """The connection of that name, or the session's, has ended."""
        self._connections.pop(name, None)

    def check_model(self, model: str) -> None:
        """Raises RefusalError: 404 for a model that is not served."""
        self._store.check(model)

    def check_limits(self, owner: str, num_targets: int = 1) -> None:
        """Raises RefusalError where a further session of this client would have to be refused now."""
        limits = self._settings.limits
        if self.closing:
            raise stopping_refusal()
        own = sum(live.owner == owner and not live.over for live in self._sessions.values())
        if own + self._opening[owner] >= (share := limits.share(limits.max_live)):
            raise RefusalError(
                429,
                f"you have {own} live sessions open, and {share} are one client's share; stop one",
                code="share_used_up",
            )
        if self.count + self._opening.total() >= limits.max_live:
            raise RefusalError(
                429, f"{self.count} live sessions are open, which is all there is room for; try again later"
            )
        if num_targets > limits.max_targets:
            raise RefusalError(400, f"{num_targets} targets asked for; {limits.max_targets} are the most")

    async def _serve_session(self, live: ResumableSession, after: int, socket: WebSocket) -> None:
        """Serve a session over a connection, until all text is sent or the connection breaks."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[live.name] = task
        self._left_s.pop(live.name, None)
        started = {
            "type": "started",
            "session": live.name,
            "model": live.model,
            "targets": list(live.session.targets),
            "received_s": live.sound.received_s,
        }
        try:
            await socket.send_text(json.dumps(started))
            await self._exchange_messages(live, after, socket)
        except WebSocketDisconnect:
            raise
        except asyncio.CancelledError:
            if self._connections.get(live.name) is task:
                raise
        except Exception:
            await self.give_up(live.name)
            raise
        finally:
            if self._connections.get(live.name) is task:
                del self._connections[live.name]
                if live.name in self._sessions:
                    self._left_s[live.name] = time.monotonic()
                if live.over:  # only its messages may still be wanted
                    await self._release(live.name)

    async def _exchange_messages(self, live: ResumableSession, after: int, socket: WebSocket) -> None:
        """Receive and send at the same time; the first of the two that ends, ends both."""
        sending = asyncio.ensure_future(self._send_messages(live, after, socket))
        receiving = asyncio.ensure_future(self._receive_sound(live, socket))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if (
                receiving.done() and receiving.exception() is None
            ):  # after `stop` there is only text left to send
                await sending
            for ended in (receiving, sending):
                if ended.done():
                    ended.result()
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send_messages(self, live: ResumableSession, after: int, socket: WebSocket) -> None:
        async for message in live.messages(after):
            await socket.send_text(json.dumps(message, ensure_ascii=False))
        await socket.close(NORMAL)

    async def _receive_sound(self, live: ResumableSession, socket: WebSocket) -> None:
        most = self._settings.limits.max_message_bytes
        pausing: asyncio.Task[None] | None = None
        try:
            async for message in self._arriving(live, socket):
                if isinstance(message, str):
                    if not isinstance(parse_message(message), Stop):
                        raise RefusalError(
                            400, "the session has begun; send sound as binary messages, or stop"
                        )
                    live.end()
                elif len(message) > most:
                    raise RefusalError(413, f"a message of {len(message)} bytes; {most} are the most")
                else:
                    live.add(live.sound.decode(message))
                    if live.waiting_s > self._most_waiting_s(live) and (pausing is None or pausing.done()):
                        await socket.send_text('{"type": "pause"}')
                        pausing = asyncio.ensure_future(self._go_on(live, socket))
                    await self.wait_for_room(live)
            if pausing is not None:  # the client stopped in the middle of a pause
                await pausing
        finally:
            if pausing is not None:
                pausing.cancel()

    async def _arriving(self, live: ResumableSession, socket: WebSocket) -> AsyncIterator[str | bytes]:
        """Messages of the client, until the session ends. Raises RefusalError where hardly any sound comes."""
        silent_s = self._settings.timeouts.live_silent_s
        since_s, heard_s = time.monotonic(), live.sound.received_s
        while not live.ended:
            left_s = since_s + silent_s - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    message = await receive(socket)
            except TimeoutError:
                if live.sound.received_s - heard_s < SILENCE_S:
                    raise RefusalError(
                        408,
                        f"less than {SILENCE_S:g} s of sound came in {silent_s:g} s",
                        code="silent",
                    ) from None
                since_s, heard_s = time.monotonic(), live.sound.received_s
                continue
            if live.ended:  # meanwhile, by a stop of the service
                return
            yield message

    async def _go_on(self, live: ResumableSession, socket: WebSocket) -> None:
        """Notify a client that was asked to pause that it may send again."""
        while live.waiting_s > self._most_waiting_s(live) / 2 and not live.over:
            await asyncio.sleep(_CHECK_S)
        with suppress(RuntimeError, WebSocketDisconnect):  # it may have gone
            await socket.send_text('{"type": "continue"}')

    async def wait_for_room(self, live: ResumableSession) -> None:
        """Wait while so much sound waits that nothing more may be read.

        That is more than a client is asked to pause at. Most clients send on in real time all the same, and one that is
        not read from gets no answer to its pings, for which many close the connection after 20 s.
        """
        while live.waiting_s > _STILL_READ * self._most_waiting_s(live) and not live.over:
            await asyncio.sleep(_CHECK_S)

    def _most_waiting_s(self, live: ResumableSession) -> float:
        return min(self._settings.limits.max_live_waiting_s, live.most_waiting_s)

    def connect(self, name: str) -> None:
        """The current task serves a connection, of that name or the session's; `close` waits for it until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[name] = task

    async def give_up(self, name: str) -> None:
        """Drop a session, with all that is left of it, and release its model."""
        self._left_s.pop(name, None)
        live = self._sessions.pop(name, None)
        if live is not None:
            live.drop()
        await self._release(name)

    async def _release(self, name: str) -> None:
        """Release the lease of the session's model."""
        if lease := self._leases.pop(name, None):
            await lease.aclose()
        self._meters.live_sessions.set(self.count)


async def receive(socket: WebSocket) -> str | bytes:
    """The next message. Raises WebSocketDisconnect at the end."""
    message: Any = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    text = message.get("text")
    return text if text is not None else message["bytes"]


async def _refuse(socket: WebSocket, refusal: RefusalError) -> None:
    """Send the reason, and close."""
    default = BROKEN if refusal.status >= 500 else REFUSED
    with suppress(RuntimeError, WebSocketDisconnect):
        if socket.application_state == WebSocketState.CONNECTED:
            message = {"type": "error", "status": refusal.status, "message": refusal.message}
            await socket.send_text(json.dumps(message, ensure_ascii=False))
            await socket.close(CLOSE_CODES.get(refusal.status, default))
