"""Middleware around every request: origin checks, request ids, logs, counters, limits on size and speed of bodies."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Collection
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from sprachbund.serving.admission import network_of
from sprachbund.serving.schemas import RefusalError, refusal_of, stopping_refusal
from sprachbund.serving.service import Service
from sprachbund.serving.settings import ANY_ORIGIN

# Host and Origin: pages of other sites are refused by the headers, before a body is read.

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:\d{1,5})?")
_SHOWN = 100


def check_origin(
    headers: Headers, names: Collection[str] | None = None, origins: Collection[str] = ()
) -> None:
    """Refuse requests of pages of other sites. Browsers let every page send them, with its `Origin`.

    A client that is no browser sends no `Origin` and goes on. `Host` is compared as the client sent it, so a proxy has
    to pass it on.

    Args:
        headers: headers of a request or of a WebSocket.
        names: names of the service; None is any. A page can point a name of its own at this machine.
        origins: origins of other sites whose pages may ask; `ANY_ORIGIN` lets all.

    Raises:
        RefusalError: 400 for a `Host` that is none; 421 for one that is not among the names; 403 for an `Origin` other
            than this host and those origins.
    """
    hosts = headers.getlist("host")
    host = hosts[0] if hosts else ""
    match = _HOST.fullmatch(host)
    if len(hosts) > 1 or (host and match is None):
        raise RefusalError(
            400, f"the Host header is {host[:_SHOWN]!a}; send one name or address", code="bad_host"
        )
    name = match["name"].strip("[]").lower() if match else ""
    if names is not None and name not in names:
        raise RefusalError(
            421,
            f"{name[:_SHOWN]!r} is no name of this service; it answers to {', '.join(names)}",
            code="wrong_host",
        )
    for origin in headers.getlist("origin"):  # of a page without a site, as in a sandbox, it is "null"
        if ANY_ORIGIN in origins or origin in origins:
            continue
        if not host or origin.partition("://")[2].lower() != host.lower():
            raise RefusalError(
                403,
                f"the page that asks is of {origin[:_SHOWN]!a}, not of this service; open the service's own page, or "
                "let that origin in with --cors",
                code="cross_origin",
            )


_SECRETS = {"key", "api_key", "api-key", "apikey", "token", "access_token", "authorization"}


def check_query(query: str) -> None:
    """Refuse a key in an address, which proxies, histories and logs keep.

    Args:
        query: query of the address, without the question mark.

    Raises:
        RefusalError: 400.
    """
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name.lower() in _SECRETS:
            raise RefusalError(
                400,
                f"the address has {name}=…, and addresses are written down on their way; send the key as "
                "'Authorization: Bearer KEY', and take another one, for this one is known now",
                code="key_in_address",
            )


# The middleware.

log = logging.getLogger("sprachbund.serving")
ID_HEADER = "x-request-id"
MAX_JSON_BYTES = 2_000_000
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CHARSET = re.compile(r'charset\s*=\s*"?([^;"\s]*)', re.IGNORECASE)
_GONE, _TOO_SLOW = 499, 408
_LINGER_S = 10.0


class RequestMiddleware:
    """ASGI middleware of the service.

    Args:
        app: the application that gets the requests that are not refused.
        service: service of the app.
        names: names that requests may be sent to; None is any.
    """

    def __init__(self, app: ASGIApp, service: Service, names: Collection[str] | None = None) -> None:
        self._app, self._service, self._names = app, service, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request or a WebSocket and pass it on."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_origin(Headers(scope=scope), self._names, self._service.settings.cors)
            check_query(scope["query_string"].decode("latin-1"))
        except RefusalError as refusal:  # before it is accepted: the client gets a 403
            log.info(json.dumps({"client": _host(scope), "path": scope["path"], "refused": refusal.message}))
            await WebSocketClose()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.requests += 1
        try:
            await _LimitedRequest(self._service, scope, receive, send).run(self._app, self._names)
        finally:
            self._service.requests -= 1


class _LimitedRequest:
    """One request: its body is received in bounds of size and time, its answer gets the request id."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        headers = Headers(scope=scope)
        given = headers.get(ID_HEADER, "")
        self._id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self._began = time.monotonic()
        self._status, self._body_bytes, self._complete = 0, 0, False
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._most_bytes = service.settings.limits.max_upload_bytes if form else MAX_JSON_BYTES
        self._stated = headers.get("content-length", "")
        self._stored_bytes, self._receiving, self._receiving_begun = 0, ExitStack(), False
        scope.setdefault("state", {})["request_id"] = self._id

    async def run(self, app: ASGIApp, names: Collection[str] | None) -> None:
        try:
            headers = Headers(scope=self._scope)
            check_origin(headers, names, self._service.settings.cors)
            _check_charset(headers)
            check_query(self._scope["query_string"].decode("latin-1"))
            await app(self._scope, self._limited_receive, self._limited_send)
        except ClientDisconnect:
            self._status = _GONE
        except asyncio.CancelledError:
            if self._status or not self._service.draining:
                raise
            await self._refuse(stopping_refusal())
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status == 500:
                log.exception("request %s failed", self._id)
            if self._status:  # the answer has begun, and can only be broken off
                raise
            await self._refuse(refusal)
        finally:
            self._receiving.close()
            self._service.intake.release(self._client, self._stored_bytes)
            self._log_request()

    async def _refuse(self, refusal: RefusalError) -> None:
        response = JSONResponse(refusal.body(), refusal.status, refusal.headers())
        await response(self._scope, self._limited_receive, self._limited_send)

    async def _limited_receive(self) -> Message:
        """The `receive` that the app gets: the next part of the body, in bounds of size and time."""
        if self._complete:
            return await self._receive()
        if self._stated.isdecimal() and int(self._stated[:20]) > self._most_bytes:
            raise self._too_big(int(self._stated[:20]))
        intake = self._service.intake
        if self._has_body and not self._receiving_begun:
            self._receiving.enter_context(intake.receiving(self._client))
            self._receiving_begun = True
        timeouts = self._service.settings.timeouts
        allowed_s = timeouts.upload_grace_s + self._body_bytes / timeouts.upload_bytes_per_s
        try:
            async with asyncio.timeout(self._began + allowed_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise RefusalError(
                _TOO_SLOW,
                f"{self._body_bytes} bytes came in {allowed_s:.0f} s, which is too slow",
                code="too_slow",
            ) from None
        num_bytes = len(message.get("body", b""))
        self._body_bytes += num_bytes
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._body_bytes > self._most_bytes:
            raise self._too_big(self._body_bytes)
        intake.store(self._client, num_bytes)
        self._stored_bytes += num_bytes
        if self._complete:
            self._receiving.close()
        return message

    def _too_big(self, num_bytes: int) -> RefusalError:
        return RefusalError(
            413, f"the request has {num_bytes} bytes or more; {self._most_bytes} are the most", code="too_big"
        )

    async def _limited_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": [*message["headers"], (ID_HEADER.encode(), self._id.encode())]}
            if not self._complete and self._has_body:
                message["headers"].append((b"connection", b"close"))
        elif not message.get("more_body", False) and not self._complete and self._has_body:
            await self._send({**message, "more_body": True})
            await self._discard_body()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _discard_body(self) -> None:
        """Receive and drop the rest of a refused body. Closed before that, the connection may lose the answer."""
        if self._status == _TOO_SLOW:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                message: Message = {"type": "http.request", "more_body": True}
                while message["type"] == "http.request" and message.get("more_body", False):
                    message = await self._receive()

    @property
    def _client(self) -> str:
        """The client whose share the body counts towards."""
        owner: str | None = self._scope["state"].get("owner")
        return owner or network_of(_host(self._scope) or "unknown")

    @property
    def _has_body(self) -> bool:
        return self._stated not in ("", "0") or "transfer-encoding" in Headers(scope=self._scope)

    def _log_request(self) -> None:
        took_s = time.monotonic() - self._began
        matched = self._scope.get("route")
        route = matched.path if isinstance(matched, Route | Mount) else "none"
        self._service.meters.requests.labels(route, str(self._status)).inc()
        self._service.meters.request_s.labels(route).observe(took_s)
        line = {
            "request": self._id,
            "client": _host(self._scope),
            "key": self._scope["state"].get("owner") if self._service.keys.wanted else None,
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self._status,
            "seconds": round(took_s, 3),
            "bytes_in": self._body_bytes,
        }
        log.info(json.dumps(line))


def _check_charset(headers: Headers) -> None:
    """Refuse forms in another encoding: Python would decode by any codec named, also by those that are none of text."""
    for charset in _CHARSET.findall(headers.get("content-type", "")):
        if charset.lower() not in ("utf-8", "utf8"):
            raise RefusalError(
                415, f"the charset of the body is {charset[:100]!a}; send UTF-8", code="wrong_content_type"
            )


def _host(scope: Scope) -> str | None:
    client: Any = scope.get("client")
    return client[0] if client else None
