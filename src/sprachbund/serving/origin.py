"""Whom a request is from and for, by its headers alone: pages of other sites are refused, before a body is read."""

import re
from collections.abc import Collection

from starlette.datastructures import Headers

from sprachbund.serving.refusals import RefusalError

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:\d{1,5})?")
_SHOWN = 100


def check_origin(headers: Headers, names: Collection[str] | None = None) -> None:
    """Refuse what a page of another site sends: browsers let every page try, and tell its `Origin`.

    A client that is no browser sends no `Origin` and goes on. `Host` is compared as the client sent it, so a proxy has
    to pass it on.

    Args:
        headers: of a request or of a WebSocket.
        names: of the service; None is any. A page can point a name of its own at this machine.

    Raises:
        RefusalError: 400 for a `Host` that is none; 421 for one that is not among the names; 403 for an `Origin` other
            than this host.
    """
    hosts = headers.getlist("host")
    host = hosts[0] if hosts else ""
    found = _HOST.fullmatch(host)
    if len(hosts) > 1 or (host and found is None):
        raise RefusalError(
            400, f"the Host header is {host[:_SHOWN]!a}; send one name or address", code="bad_host"
        )
    name = found["name"].strip("[]").lower() if found else ""
    if names is not None and name not in names:
        raise RefusalError(
            421,
            f"{name[:_SHOWN]!r} is no name of this service; it answers to {', '.join(names)}",
            code="wrong_host",
        )
    for origin in headers.getlist("origin"):  # of a page without a site, as in a sandbox, it is "null"
        if not host or origin.partition("://")[2].lower() != host.lower():
            raise RefusalError(
                403,
                f"the page that asks is of {origin[:_SHOWN]!a}, not of this service; open the service's own page",
                code="foreign_origin",
            )
