"""The process that listens: uvicorn, and a stop that finishes what it began."""

import asyncio
import json
import logging
import math
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from sprachbund.errors import SprachbundError
from sprachbund.serving.app import create_app
from sprachbund.serving.connections import (
    ListeningSocket,
    http_protocol,
    live_protocol,
    log_loop_error,
    most_connections,
)
from sprachbund.serving.service import LAST_S, Service
from sprachbund.serving.settings import LOOPBACK, Settings

if TYPE_CHECKING:  # of an extra of its own
    from sprachbund.serving.wyoming import WyomingServer

log = logging.getLogger("sprachbund.serving")

LOOPBACK_NAMES = (LOOPBACK, "localhost", "::1")
_PING_S = 20.0
_PONG_S = 90.0
"""A paused client is not read from, so its pongs may come late."""


def make_server(settings: Settings, **parts: Any) -> "Server":
    """A server that does not listen yet; `parts` as of `create_app`."""
    app = create_app(settings, names=_names(settings), **parts)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="asyncio",  # whose way of accepting `ListeningSocket` knows
        http=http_protocol(settings.limits, settings.timeouts, most_connections(settings.limits)),
        ws=live_protocol(settings.timeouts),
        ws_max_size=4
        * settings.limits.max_message_bytes,  # a message a little too big gets an answer with the reason
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PONG_S,
        ws_per_message_deflate=False,  # sound does not deflate, and a small message could inflate
        timeout_keep_alive=math.ceil(settings.timeouts.idle_s),
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return Server(config, service)


def _names(settings: Settings) -> tuple[str, ...] | None:
    """Without keys, and for this machine alone, a page that points a name of its own at this address is refused."""
    return None if settings.key_file is not None or settings.host not in LOOPBACK_NAMES else LOOPBACK_NAMES


class Server(uvicorn.Server):
    """Goes on answering while it finishes what was begun; only then stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.wyoming_socket: socket.socket | None = None
        self._wyoming: WyomingServer | None = None

    def listen(self) -> socket.socket:
        """Take the address, and that of the Wyoming protocol. Raises SprachbundError when one is taken or of no use."""
        sock = _bound(ListeningSocket, self.config.host, self.config.port, "--port or --host")
        if (address := self.service.settings.wyoming_address) is not None:
            try:
                self.wyoming_socket = _bound(socket.socket, *address, "--wyoming")
            except SprachbundError:
                sock.close()
                raise
        return sock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        await super().startup(sockets)
        if self.wyoming_socket is not None:
            from sprachbund.serving.wyoming import WyomingServer

            self._wyoming = WyomingServer(self.service)
            await self._wyoming.open(self.wyoming_socket)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; a second Ctrl-C does so at once."""
        at_work = {"requests": self.service.requests, "live": self.service.sessions.count}
        log.info(json.dumps({"event": "stopping; a second signal does not wait", **at_work}))
        draining = asyncio.ensure_future(self.service.drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        draining.cancel()
        if self.force_exit:
            self.service.store.stop()  # threads that wait for a model would keep the process
        if self._wyoming is not None:
            await self._wyoming.close(0.0 if self.force_exit else LAST_S)
        self.config.timeout_graceful_shutdown = math.ceil(max(self.service.stop_left_s, LAST_S))
        await super().shutdown(sockets)


def _bound(kind: type[socket.socket], host: str, port: int, option: str) -> socket.socket:
    """A socket at an address; `option` is the one to change where that cannot be."""
    sock = kind(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SprachbundError(
            f"cannot listen at {host} port {port} ({error.strerror or error}); choose another {option}"
        ) from error
    return sock
