"""Live captions over a WebSocket: a connection on one side, a seat that outlives it on the other."""

import asyncio
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from sprachbund.serving.meters import Meters
from sprachbund.serving.models import ModelStore
from sprachbund.serving.refusals import RefusalError, refusal_of
from sprachbund.serving.seat import Seat
from sprachbund.serving.settings import Settings
from sprachbund.serving.wire import Resume, SoundDecoder, Start, Stop, live_options, parse_message

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
