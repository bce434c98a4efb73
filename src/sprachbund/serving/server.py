"""The process that listens: uvicorn, with an end to heads that never come, and a stop that finishes what it began."""

import asyncio
import json
import logging
import socket
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from uvicorn.protocols.http.h11_impl import H11Protocol

from sprachbund.errors import SprachbundError
from sprachbund.serving.app import create_app
from sprachbund.serving.refusals import RefusalError
from sprachbund.serving.service import Service
from sprachbund.serving.settings import LOOPBACK, Settings

log = logging.getLogger("sprachbund.serving")
LOOPBACK_NAMES = (LOOPBACK, "localhost", "::1")
_PING_S = 20.0
_PONG_S = 90.0
"""A client that was told to pause is not read from, so its pongs may come late."""
_CONNECTIONS = 1000


def make_server(settings: Settings, **parts: Any) -> "Server":
    """A server that does not listen yet; `parts` as of `create_app`."""
    app = create_app(settings, **parts)
    service: Service = app.state.service
    config = uvicorn.Config(
        _answering_to_own_names(app, settings),
        host=settings.host,
        port=settings.port,
        http=_patient_for(settings.timeouts.header_s),
        ws_max_size=4 * settings.limits.max_message_bytes,  # what is a little too big is told so in a message
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PONG_S,
        ws_per_message_deflate=False,  # sound does not deflate, and a small message could inflate
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=round(settings.timeouts.stop_s),
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return Server(config, service)


def _answering_to_own_names(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Without keys, and for this machine alone, a page that points a name of its own at this address is refused."""
    if settings.key_file is not None or settings.host not in LOOPBACK_NAMES:
        return app

    async def own_names_only(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else LOOPBACK
        name = urlsplit(f"//{host}").hostname or ""
        if name in LOOPBACK_NAMES:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            refusal = RefusalError(
                421, f"{name[:100]!r} is no name of this service; it answers to {', '.join(LOOPBACK_NAMES)}"
            )
            await JSONResponse(refusal.body(), refusal.status)(scope, receive, send)

    return own_names_only


class Server(uvicorn.Server):
    """Goes on answering while it finishes what was begun; only then stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def listen(self) -> socket.socket:
        """Take the address. Raises SprachbundError when it is taken or not this machine's."""
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((self.config.host, self.config.port))
        except OSError as error:
            sock.close()
            raise SprachbundError(
                f"cannot listen at {self.config.host} port {self.config.port} ({error.strerror or error}); "
                "choose another --port or --host"
            ) from error
        return sock

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; a second Ctrl-C does so at once."""
        at_work = {"requests": self.service.requests, "live": self.service.room.count}
        log.info(json.dumps({"event": "stopping; a second signal does not wait", **at_work}))
        draining = asyncio.ensure_future(self.service.drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        draining.cancel()
        if self.force_exit:
            self.service.store.stop()  # threads that wait for a model would keep the process
        await super().shutdown(sockets)


def _patient_for(header_s: float) -> type[asyncio.Protocol]:
    """The protocol that closes a connection whose head does not come in time."""

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(header_s, self._give_up)

        def handle_websocket_upgrade(self, event: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            if self.cycle is None:  # no request has begun; uvicorn itself closes those that idle after one
                log.info(json.dumps({"event": "closed a connection without a request"}))
                self.transport.close()

    return Patient
