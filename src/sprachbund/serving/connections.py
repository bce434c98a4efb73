"""Bounds on connections, below requests: their number, slow heads and slow readers, exhausted file descriptors.

uvicorn makes a protocol for each connection; those here refuse, give up or close it where it is one too many, slow or
broken.
"""

import asyncio
import errno
import json
import logging
import socket
import sys
import time
from collections import deque
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sprachbund.serving.admission import network_of
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.settings import Limits, Timeouts

log = logging.getLogger("sprachbund.serving")

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_WANTED_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 64
"""Kept for models, logs and uploads; of what is beyond, a quarter is left to uploads too."""
_FEWEST_CONNECTIONS = 8
_FEWEST_LINGERING, _LINGER_S = 4, 10.0
"""Least number of refused connections that may still be read from (else an eighth of all), and for how long."""
_MOST_FRAGMENTS = 4096
_SEND_BUFFER_BYTES = 128 * 1024


def most_connections(limits: Limits) -> int:
    """Connections that `limits` allow, or fewer where the system lets this process open too few files."""
    descriptors = _raise_descriptors()
    room = (descriptors - _OTHER_DESCRIPTORS) * 3 // 4
    most = min(limits.max_connections, max(room, _FEWEST_CONNECTIONS))
    if most < limits.max_connections:
        log.warning(
            json.dumps(
                {
                    "event": "fewer connections than max_connections; raise the limit of open files (ulimit -n)",
                    "connections": most,
                    "open_files": descriptors,
                }
            )
        )
    return most


def _raise_descriptors() -> int:
    """Descriptors that this process may have."""
    if sys.platform == "win32":  # sockets are not counted there
        return _WANTED_DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


class _Tally:
    """Writes down at most once a second what may happen a thousand times, with how often it did."""

    def __init__(self) -> None:
        self._count, self._next_s = 0, 0.0

    def add(self, event: str, **values: Any) -> None:
        """It happened once more."""
        self._count += 1
        if time.monotonic() >= self._next_s:
            log.info(json.dumps({"event": event, "times": self._count, **values}))
            self._count, self._next_s = 0, time.monotonic() + 1


class ListeningSocket(socket.socket):
    """A socket that accepts one connection in each turn of the event loop.

    asyncio calls `accept` until there is nothing more to accept. With a pause after each connection, those over the
    limit are closed before many more come. When no descriptor is left, asyncio waits a second, but its loop goes on and
    writes the error down a thousand times, and then tries a thousand times: the pause after the first error ends it.
    """

    _pause = False

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError in every other call."""
        if self._pause:
            self._pause = False
            raise BlockingIOError
        self._pause = True
        try:
            return super().accept()
        except BlockingIOError:
            self._pause = False  # this ended the turn
            raise


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line where there are no descriptors; anything else as usual."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        event = "no connection can be accepted for a second; raise the limit of open files (ulimit -n)"
        log.error(json.dumps({"event": event, "error": error.strerror}))
    else:
        loop.default_exception_handler(context)


_not_taken = _Tally()


class _AnswerWatch(asyncio.Protocol):
    """Part of a protocol: gives a connection up whose client takes nothing of what waits to be sent for `answer_s`."""

    loop: Any
    transport: Any
    answer_s: float
    _answer_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        self._stop_answer_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_answer_timer()
        super().connection_lost(exc)

    def _watch_answer(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._answer_timer = self.loop.call_later(self.answer_s, self._check_answer, left)

    def _check_answer(self, left: int) -> None:
        """Something of the answer has to have been taken since `left` bytes were left."""
        if self.transport.get_write_buffer_size() < left:
            self._watch_answer()
            return
        _not_taken.add("closed a connection that takes no answer")
        self.transport.abort()

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()


def http_protocol(limits: Limits, timeouts: Timeouts, num_connections: int) -> type[asyncio.Protocol]:
    """The protocol of a connection, which refuses, gives up or closes connections as the limits want.

    Args:
        limits: limits of connections from one address.
        timeouts: for heads and answers.
        num_connections: most connections in all.
    """
    lingering: deque[Any] = deque()  # refused, the first of them first
    refused, without_request = _Tally(), _Tally()

    class Bounded(_AnswerWatch, H11Protocol):
        answer_s = timeouts.answer_s
        _head_timer: asyncio.TimerHandle | None = None
        _idle_since = 0.0
        _refused = False

        def connection_made(self, transport: Any) -> None:
            transport.set_write_buffer_limits(high=0)  # so that all that waits to be sent is noticed
            # A system that keeps megabytes of an answer reports late that a slow client took some of it.
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES
            )
            super().connection_made(transport)
            self._idle_since = self.loop.time()
            refusal = self._make_room()
            if refusal is not None:
                self._refuse(refusal)
            else:
                self._watch_head()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()
            self._watch_head()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._stop_timers()
            self.transport.set_write_buffer_limits()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timers()
            if self._refused and self in lingering:
                lingering.remove(self)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:  # an answer has begun, and can only be broken off
                self.transport.close()
            if self.cycle is not None:  # what is at work for this connection has nobody to answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()

        def _make_room(self) -> RefusalError | None:
            """Close the connection that has been idle for longest, where there are too many; a refusal if none is."""
            others: list[Any] = [
                c for c in self.connections if c is not self and not (isinstance(c, Bounded) and c._refused)
            ]
            network = network_of(self.client[0]) if self.client else None
            same = [c for c in others if c.client and network_of(c.client[0]) == network]
            if network is not None and len(same) >= limits.max_connections_per_address:
                crowd, refusal = same, _crowded(429, f"{len(same)} connections of {network} are open")
            elif len(others) >= num_connections:
                crowd, refusal = others, _crowded(503, f"{len(others)} connections are open")
            else:
                return None
            idle = [c for c in crowd if isinstance(c, Bounded) and c._is_idle()]
            if not idle:
                return refusal
            longest = min(idle, key=lambda c: c._idle_since)
            if longest.cycle is None or longest.conn.trailing_data[0]:  # its head may be on its way
                longest._refuse(refusal)
            else:
                longest.transport.close()
            return None

        def _refuse(self, refusal: RefusalError) -> None:
            """Say why, and throw away what still comes: closed upon it, the connection would lose the answer."""
            self._refused = True
            refused.add("refused a connection", why=refusal.message)
            self._stop_timers()
            self.transport.write(_whole_answer(refusal))
            try:
                self.transport.write_eof()
            except OSError:  # the client has just broken off, which is not known here yet
                self.transport.abort()
                return
            self._head_timer = self.loop.call_later(_LINGER_S, self.transport.close)
            lingering.append(self)
            if len(lingering) > max(_FEWEST_LINGERING, num_connections // 8):
                lingering.popleft().transport.close()

        def _is_idle(self) -> bool:
            """Whether no request is at work, and no answer on its way."""
            answered = self.cycle is None or self.cycle.response_complete
            return (
                answered and not self.transport.is_closing() and self.transport.get_write_buffer_size() == 0
            )

        def _watch_head(self) -> None:
            """Let the timer run while a head is awaited: the first, or a later one of which something has come."""
            awaited = self.conn.their_state is h11.IDLE and (
                self.cycle is None or bool(self.conn.trailing_data[0])
            )
            if not awaited or self.transport.is_closing():
                self._stop_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(timeouts.header_s, self._give_up_head)

        def _give_up_head(self) -> None:
            without_request.add("closed a connection without a whole request")
            self.transport.close()

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _stop_timers(self) -> None:
            self._stop_head_timer()
            self._stop_answer_timer()

    return Bounded


def live_protocol(timeouts: Timeouts) -> type[asyncio.Protocol]:
    """The protocol of a WebSocket, which gives up connections as `timeouts` want."""

    class BoundedLive(LiveProtocol):
        answer_s = timeouts.answer_s

    return BoundedLive


class LiveProtocol(_AnswerWatch, WebSocketsSansIOProtocol):
    """A WebSocket that answers what is broken by closing, where uvicorn's waits or collects for ever, or writes a
    traceback. While the client takes nothing, nothing of it is read: its pings would be answered into memory."""

    def pause_writing(self) -> None:
        """Much waits to be sent."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Most of it was taken."""
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """The next message for the app."""
        message = await super().receive()  # which reads on
        if not self.writable.is_set():
            self.transport.pause_reading()
        return message

    def keepalive_timeout(self) -> None:
        """No pong came: a close would wait until the client takes what is left to send."""
        super().keepalive_timeout()
        self.disconnected = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """The head, which comes whole from the HTTP protocol, then frames."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))  # why the head is refused
            self.transport.close()

    def handle_cont(self, event: Any) -> None:
        """Part of a message; a size is bounded by uvicorn, the number of empty parts here."""
        if len(self.frames) >= _MOST_FRAGMENTS:
            self._fail(1009, "a message in too many parts")
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """A whole message."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(1007, "a text message that is not UTF-8")
                return
        super().send_receive_event_to_app()

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()


def _crowded(status: int, what: str) -> RefusalError:
    return RefusalError(
        status, f"{what}, which is all there is room for; try again later", code="too_many_connections"
    )


def _whole_answer(refusal: RefusalError) -> bytes:
    """A refusal before there is a request."""
    body = json.dumps(refusal.body()).encode()
    reason = "Too Many Requests" if refusal.status == 429 else "Service Unavailable"
    head = (
        f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
