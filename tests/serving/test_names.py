"""A service for this machine alone answers to this machine's names only."""

import contextlib
import socket

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


def test_a_name_of_somebody_elses_page_is_refused(running):
    own = httpx.get(f"{running.url}/health", headers={"host": f"localhost:{running.port}"})
    other = httpx.get(f"{running.url}/health", headers={"host": "evil.example"})
    assert (own.status_code, other.status_code) == (200, 421)
    assert "evil.example" in other.json()["error"]["message"]


def test_so_is_a_socket(running):
    own = running.live.replace("127.0.0.1", "localhost")
    for address, refused in ((own, False), (own.replace("localhost", "evil.example"), True)):
        with (
            socket.create_connection(("127.0.0.1", running.port)) as sock,
            pytest.raises(InvalidStatus, match="HTTP 403") if refused else contextlib.nullcontext(),
            connect(address, sock=sock),
        ):
            pass
