"""A service for this machine alone answers to this machine's names only."""

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
    with pytest.raises(InvalidStatus), connect(running.live, additional_headers={"Host": "evil.example"}):
        pass
