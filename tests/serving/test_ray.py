"""The same app under Ray Serve: its settings always, a real replica where Ray is installed."""

import secrets

import httpx
import pytest

from sprachbund.errors import SprachbundError
from sprachbund.serving.ray_serve import build, ongoing, settings_from
from sprachbund.serving.settings import Limits
from tests.serving.support import wait_for


def test_plain_values_become_settings():
    settings = settings_from(
        {"models": ["bundled"], "limits": {"max_live": 3}, "timeouts": {"stop_s": 5}, "engine": "torch"}
    )
    assert (settings.models, settings.limits.max_live, settings.timeouts.stop_s) == (("bundled",), 3, 5.0)
    assert ongoing(Limits(max_working=1, max_waiting=2, max_live=3)) == 6 + 32


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"port": 80}, "Ray's"),
        ({"modles": ["bundled"]}, "modles is not known; there are models"),
        ({"limits": {"max_life": 1}}, "limits.max_life is not known"),
        ({"limits": {"max_live": "many"}}, "^limits.max_live is 'many'; it should be a valid integer$"),
        ({"limits": 3}, "^limits is 3; it should "),
        ({"engine": "cuda"}, "^engine is 'cuda'; it should be 'auto', 'native', "),
        ({"limits": {"max_live": 0}}, "max_live is 0"),
    ],
)
def test_settings_that_cannot_be_are_named(values, says):
    with pytest.raises(SprachbundError, match=says):
        settings_from(values)


@pytest.mark.slow
def test_a_replica_answers(clip, monkeypatch):
    # A token of the test's own: by itself Ray would write one into the home directory.
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    try:
        serve.start(http_options={"port": 18643})
        args = {"engine": "torch", "models": '["bundled"]', "actor": '{"num_cpus": 0.1}'}
        serve.run(build(args), route_prefix="/")
        url = "http://127.0.0.1:18643"
        wait_for(lambda: _ready(url), 90)
        answer = httpx.post(
            f"{url}/v1/audio/translations",
            files={"file": clip.read_bytes()},
            data={"model": "bundled", "target_language": "de"},
            timeout=30,
        )
        assert answer.status_code == 200
        assert answer.json()["text"]
    finally:
        serve.shutdown()
        ray.shutdown()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
