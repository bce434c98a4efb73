"""Live captions over a WebSocket: a connection on one side, a seat that outlives it on the other."""

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sprachbund.audio.constants import SAMPLE_RATE, WINDOW_S
from sprachbund.serving.metrics import Meters
from sprachbund.serving.models import ModelStore
from sprachbund.serving.schemas import RefusalError, refusal_of
from sprachbund.serving.settings import Settings

# What a client may send over /v1/live, parsed before anything acts on it; sound to samples.

Encoding = Literal["pcm_s16le", "pcm_f32le"]
_LOUDEST = 100.0
"""Of a sample; floating-point sound beyond this is something else than sound."""

_MOST = {
    "max_open_s": WINDOW_S,
    "border_s": WINDOW_S,
    "max_behind_s": 600.0,
    "max_waiting_s": 600.0,
    "right_context": 1000,
    "agreement": 100,
    "wait_k": 1000,
    "mask_words": 1000,
}
"""Of the settings of a session in a service: what an attempt costs, and what a session may keep, grows with them."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Start(_Message):
    """Begin a session.

    Attributes:
        model: id of a model; None is the service's first.
        targets: languages wanted.
        source: language spoken; None identifies it.
        languages: those that may be spoken, when it is identified.
        policy: when text is written; None is the default of `LiveOptions`.
        settings: other fields of `LiveOptions`.
        encoding: of the sound.
        sample_rate: of the sound, in Hz.
        key: where one is needed and cannot be sent as a header, as from a browser.
    """

    type: Literal["start"]
    model: str | None = None
    targets: Annotated[list[str], Field(min_length=1)]
    source: str | None = None
    languages: list[str] | None = None
    policy: str | None = None
    settings: dict[str, float | int | str] = {}
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


def parse_message(text: str) -> Start | Resume | Stop:
    """A text message. Raises RefusalError: 400, which names what is wrong with it."""
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = (
            f"{place}: {first['msg']}"
            if place
            else f"{first['msg']}; text messages are JSON, sound is binary"
        )
        message = f"the message cannot be read: {said}"
        raise RefusalError(400, message[:500], code="bad_message") from error


def live_options(start: Start) -> Any:
    """The `LiveOptions` that a first message asks for.

    Raises:
        RefusalError: 400, for settings that are unknown, wrong, or would let one session work for all.
    """
    from sprachbund.streaming.options import LiveOptions

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
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RefusalError(400, f"settings: {place}: {first['msg']}"[:500], code="bad_settings") from error
    for name, most in _MOST.items():
        value = getattr(options, name)
        if value is not None and value > most:
            raise RefusalError(
                400, f"settings: {name} is {value:.10g}; {most:g} is the most here", code="bad_settings"
            )
    return options


class SoundDecoder:
    """Binary messages of a session to 16 kHz samples (N,); a sample may be cut between two messages.

    Attributes:
        received_s: seconds of sound that came, in whole samples.
    """

    def __init__(self, encoding: Encoding, sample_rate: int) -> None:
        import soxr

        self._type = np.dtype("<i2" if encoding == "pcm_s16le" else "<f4")
        self._rate, self._rest, self._num_samples = sample_rate, b"", 0
        self._resampler: Any = None
        if sample_rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    @property
    def received_s(self) -> float:
        """Seconds of sound that came, in whole samples."""
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
        if samples.dtype.kind == "i":
            floats = samples.astype(np.float32) / np.float32(32768)
        else:
            floats = samples.astype(np.float32)
            if not (np.abs(floats) <= _LOUDEST).all():  # also where it is not a number
                raise RefusalError(
                    415,
                    "a sample is not a number or far from -1 to 1; send pcm_f32le or say the encoding",
                    code="bad_sound",
                )
        self._num_samples += len(floats)
        return self._resampled(floats, last=False)

    def finish(self) -> NDArray[np.float32]:
        """What the resampler still holds."""
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _resampled(self, samples: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)


# A live session with what a connection may lose: sound that waits to be taken in, and messages that may
# have to be said again. The connection's side and the model's thread meet here and nowhere else.

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


log = logging.getLogger("sprachbund.serving")
PATH = "/v1/live"

NORMAL, WRONG_DATA, REFUSED, TOO_BIG, BROKEN, TRY_LATER = 1000, 1003, 1008, 1009, 1011, 1013
_CODES = {413: TOO_BIG, 415: WRONG_DATA, 429: TRY_LATER, 503: TRY_LATER}
_CHECK_S = 0.05
"""How often it is looked whether a session that was told to pause may go on."""
_SILENCE_S = 1.0
"""Seconds of sound that have to come in the time that a session may be silent."""

Check = Callable[[str | None], str]
"""From the key in a message, if any, to who it is; raises RefusalError."""


class LiveRoom:
    """All live sessions of a service.

    Args:
        settings: of the service.
        store: of its models.
        meters: of the service.
    """

    def __init__(self, settings: Settings, store: ModelStore, meters: Meters) -> None:
        self._settings, self._store, self._meters = settings, store, meters
        self._seats: dict[str, Seat] = {}
        self._holders: dict[str, asyncio.Task[None]] = {}
        self._left_s: dict[str, float] = {}
        self._leases: dict[str, AsyncExitStack] = {}
        self._opening: Counter[str] = Counter()
        self.closing = False

    @property
    def count(self) -> int:
        """Sessions at work, with or without a connection."""
        return sum(not seat.over for seat in self._seats.values())

    async def serve(self, socket: WebSocket, check: Check) -> None:
        """All of a connection, from its first message to its close."""
        seat: Seat | None = None
        began, status = time.monotonic(), NORMAL
        try:
            seat, after = await self._seated(socket, check)
            await self._attend(seat, after, socket)
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
            self._write_down(socket, seat, status, time.monotonic() - began)

    async def sweep(self, *, now_s: float | None = None) -> None:
        """Give up sessions to which nobody came back."""
        now_s = time.monotonic() if now_s is None else now_s
        for name, left_s in list(self._left_s.items()):
            if now_s - left_s >= self._settings.timeouts.resume_s:
                await self._give_up(name)

    async def close(self, timeout_s: float) -> None:
        """End all sessions: who is connected gets what is left."""
        self.closing = True
        for name in list(self._left_s):
            await self._give_up(name)
        for seat in self._seats.values():
            seat.end()
        holders = list(self._holders.values())
        if holders:
            await asyncio.wait(holders, timeout=timeout_s)
        for holder in holders:
            holder.cancel()

    def _write_down(self, socket: WebSocket, seat: Seat | None, status: int, took_s: float) -> None:
        """A line for a connection; `status` is that of a refusal, or the code that the socket was closed with."""
        self._meters.requests.labels(PATH, str(status)).inc()
        line = {
            "session": seat and seat.name[:6],  # whoever knows all of it could take the session up
            "client": socket.client and socket.client.host,
            "path": PATH,
            "status": status,
            "seconds": round(took_s, 3),
            "audio_s": seat and round(seat.sound.received_s, 3),
        }
        log.info(json.dumps(line))

    async def _seated(self, socket: WebSocket, check: Check) -> tuple[Seat, int]:
        """The seat that the first message asks for, and the number of the last message seen."""
        try:
            async with asyncio.timeout(self._settings.timeouts.header_s):
                message = await _receive(socket)
        except TimeoutError:
            raise RefusalError(
                408, f"no message came in {self._settings.timeouts.header_s:g} s; send start or resume"
            ) from None
        first = parse_message(message) if isinstance(message, str) else None
        if not isinstance(first, Start | Resume):
            raise RefusalError(400, "the first message has to be start or resume", code="bad_message")
        owner = check(first.key)
        if isinstance(first, Resume):
            return self._taken_up(first, owner), first.after
        return await self._open(first, owner), 0

    def _taken_up(self, resume: Resume, owner: str) -> Seat:
        seat = self._seats.get(resume.session)
        # As bytes: an address that a proxy tells may hold any letters, which are not compared as text.
        if seat is None or not secrets.compare_digest(seat.owner.encode(), owner.encode()):
            raise RefusalError(
                404, "there is no such session any more; start a new one", code="session_not_found"
            )
        seat.since(resume.after)
        holder = self._holders.get(seat.name)
        if holder is not None:  # the connection that broke has not noticed yet
            holder.cancel()
        seat.sound.forget_rest()
        return seat

    async def _open(self, start: Start, owner: str) -> Seat:
        self._check_room(start, owner)
        options = live_options(start)
        self._opening[owner] += 1
        try:
            lease = AsyncExitStack()
            worker = await lease.enter_async_context(self._store.lease(start.model or self._store.default))
            try:
                call = worker.call(
                    lambda: worker.engine().open(
                        start.targets, start.source, options, allowed_languages=start.languages
                    )
                )
                session = await asyncio.wrap_future(call)
            except BaseException:
                await lease.aclose()
                raise
        finally:
            self._opening[owner] -= 1
            self._opening += Counter()  # drops those at 0
        seat = Seat(
            secrets.token_urlsafe(24),
            owner,
            worker.name,
            session,
            SoundDecoder(start.encoding, start.sample_rate),
            worker.nudge,
            keep_s=2 * self._settings.timeouts.resume_s,
            meters=self._meters,
        )
        self._seats[seat.name], self._leases[seat.name] = seat, lease
        self._meters.live_sessions.set(self.count)
        worker.join_live(seat)
        return seat

    def _check_room(self, start: Start, owner: str) -> None:
        limits = self._settings.limits
        if self.closing:
            raise RefusalError(503, "the service is being stopped; come again later", retry_after_s=30)
        own = sum(seat.owner == owner and not seat.over for seat in self._seats.values())
        if own + self._opening[owner] >= (share := limits.share(limits.max_live)):
            raise RefusalError(
                429,
                f"you have {own} live sessions open, and {share} are one client's share; stop one",
                code="share_used_up",
            )
        if self.count + self._opening.total() >= limits.max_live:
            raise RefusalError(
                429, f"{self.count} live sessions are open, which is all there is room for; come again later"
            )
        if len(start.targets) > limits.max_targets:
            raise RefusalError(
                400, f"{len(start.targets)} targets asked for; {limits.max_targets} are the most"
            )

    async def _attend(self, seat: Seat, after: int, socket: WebSocket) -> None:
        """Serve a seat over a connection, until all is said or it breaks."""
        task = asyncio.current_task()
        assert task is not None
        self._holders[seat.name] = task
        self._left_s.pop(seat.name, None)
        started = {
            "type": "started",
            "session": seat.name,
            "model": seat.model,
            "targets": list(seat.session.targets),
            "received_s": seat.sound.received_s,
        }
        try:
            await socket.send_text(json.dumps(started))
            await self._converse(seat, after, socket)
        except WebSocketDisconnect:
            raise
        except asyncio.CancelledError:
            if self._holders.get(seat.name) is task:
                raise
        except Exception:
            await self._give_up(seat.name)
            raise
        finally:
            if self._holders.get(seat.name) is task:
                del self._holders[seat.name]
                if seat.name in self._seats:
                    self._left_s[seat.name] = time.monotonic()
                if seat.over:  # only its messages may still be wanted
                    await self._release(seat.name)

    async def _converse(self, seat: Seat, after: int, socket: WebSocket) -> None:
        """Listen and talk at once; the first of the two that ends ends both."""
        talking = asyncio.ensure_future(self._talk(seat, after, socket))
        listening = asyncio.ensure_future(self._listen(seat, socket))
        try:
            await asyncio.wait({talking, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and listening.exception() is None:  # stop was said: only talking is left
                await talking
            for ended in (listening, talking):
                if ended.done():
                    ended.result()
        finally:
            for task in (talking, listening):
                task.cancel()
            await asyncio.gather(talking, listening, return_exceptions=True)

    async def _talk(self, seat: Seat, after: int, socket: WebSocket) -> None:
        while True:
            seat.changed.clear()
            error, done = seat.error, seat.done  # first: more may be said while these messages go out
            for seq, text in seat.since(after):
                await socket.send_text(text)
                after = seq
            seat.was_said(after)
            if error is not None:
                raise error
            if done:
                await socket.close(NORMAL)
                return
            await seat.changed.wait()

    async def _listen(self, seat: Seat, socket: WebSocket) -> None:
        limits, timeouts = self._settings.limits, self._settings.timeouts
        since_s, heard_s = time.monotonic(), seat.sound.received_s
        while not seat.ended:
            left_s = since_s + timeouts.live_silent_s - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    message = await _receive(socket)
            except TimeoutError:
                if seat.sound.received_s - heard_s < _SILENCE_S:
                    raise RefusalError(
                        408,
                        f"less than {_SILENCE_S:g} s of sound came in {timeouts.live_silent_s:g} s",
                        code="silent",
                    ) from None
                since_s, heard_s = time.monotonic(), seat.sound.received_s
                continue
            if seat.ended:  # meanwhile, by a stop of the service
                return
            if isinstance(message, str):
                if not isinstance(parse_message(message), Stop):
                    raise RefusalError(400, "the session has begun; send sound as binary messages, or stop")
                seat.end()
            elif len(message) > limits.max_message_bytes:
                raise RefusalError(
                    413, f"a message of {len(message)} bytes; {limits.max_message_bytes} are the most"
                )
            else:
                seat.add(seat.sound.decode(message))
                await self._hold_back(seat, socket)

    async def _hold_back(self, seat: Seat, socket: WebSocket) -> None:
        """While too much waits, read nothing more, and say so."""
        most_s = min(self._settings.limits.max_live_waiting_s, seat.most_waiting_s)
        if seat.waiting_s <= most_s:
            return
        await socket.send_text('{"type": "pause"}')
        while seat.waiting_s > most_s / 2 and not seat.over:
            await asyncio.sleep(_CHECK_S)
        await socket.send_text('{"type": "continue"}')

    async def _give_up(self, name: str) -> None:
        self._left_s.pop(name, None)
        seat = self._seats.pop(name, None)
        if seat is not None:
            seat.drop()
        await self._release(name)

    async def _release(self, name: str) -> None:
        """Let go of the model."""
        if lease := self._leases.pop(name, None):
            await lease.aclose()
        self._meters.live_sessions.set(self.count)


async def _receive(socket: WebSocket) -> str | bytes:
    """The next message. Raises WebSocketDisconnect at the end."""
    message: Any = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    text = message.get("text")
    return text if text is not None else message["bytes"]


async def _refuse(socket: WebSocket, refusal: RefusalError) -> None:
    """Say why, and close."""
    default = BROKEN if refusal.status >= 500 else REFUSED
    with suppress(RuntimeError, WebSocketDisconnect):
        if socket.application_state == WebSocketState.CONNECTED:
            told = {"type": "error", "status": refusal.status, "message": refusal.message}
            await socket.send_text(json.dumps(told, ensure_ascii=False))
            await socket.close(_CODES.get(refusal.status, default))
