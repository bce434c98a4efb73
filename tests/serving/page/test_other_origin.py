"""A page of another origin in a real browser: what `--cors` lets in, and what it keeps out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from sprachbund.serving.settings import Settings
from tests.serving.page import server
from tests.serving.page.looking import until
from tests.serving.support import Running, noise, serving, tiny_model, wav

KEY = "a-key-of-some-length-0123456789"
UPLOAD = """async ([url, key, sound]) => {
    const form = new FormData();
    form.append("file", new Blob([new Uint8Array(sound)]), "a.wav");
    form.append("model", "bundled");
    form.append("language", "de");
    try {
        const headers = { Authorization: `Bearer ${key}`, "X-Request-ID": "from-a-page" };
        const answer = await fetch(`${url}/v1/audio/transcriptions`, { method: "POST", headers, body: form });
        return [answer.status, answer.headers.get("x-request-id"), await answer.json()];
    } catch (error) {
        return error.name;  // the browser's, which hides the answer from the page
    }
}"""
SIMPLE_UPLOAD = """([url, sound]) => {
    const form = new FormData();
    form.append("file", new Blob([new Uint8Array(sound)]), "a.wav");
    form.append("model", "bundled");
    return fetch(`${url}/v1/audio/transcriptions`, { method: "POST", mode: "no-cors", body: form })
        .then((answer) => answer.type, (error) => error.name);
}"""
LIVE = """([url, key]) => new Promise((resolve) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send(JSON.stringify({ type: "start", targets: ["de"], source: "de", key }));
    socket.onmessage = ({ data }) => resolve(JSON.parse(data).type);
    socket.onclose = ({ code }) => resolve(code);
})"""
NO_ANSWER, ABNORMAL = "TypeError", 1006


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The origin of another site: its page is empty."""
    app = FastAPI(docs_url=None)
    app.get("/", response_class=HTMLResponse)(lambda: "<!doctype html><title>elsewhere</title>")
    with server.serving(app) as address:
        yield address.rstrip("/")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def statuses(running: Running) -> set[int]:
    """Of the requests that the service answered."""
    metrics = running.service.meters.registry.collect()
    samples = [sample for metric in metrics for sample in metric.samples]
    return {int(s.labels["status"]) for s in samples if s.name == "sprachbund_requests_total"}


def asked(page: Any, key_file: Path, cors: tuple[str, ...]) -> tuple[Any, Any, set[int]]:
    """What a page gets from an upload and from a live session, and how the service answered requests."""
    with serving(Settings(port=0, cors=cors, key_file=key_file), loader=tiny_model) as running:
        uploaded = page.evaluate(UPLOAD, [running.url, KEY, list(wav(noise(1.0)))])
        live = page.evaluate(LIVE, [running.live, KEY])
        return uploaded, live, statuses(running)


def test_a_page_of_another_origin_is_let_in_by_its_name_only(
    only_page: Any, elsewhere: str, key_file: Path
) -> None:
    only_page.goto(elsewhere)
    (status, request_id, body), live, answered = asked(only_page, key_file, (elsewhere,))
    assert (status, request_id, live) == (200, "from-a-page", "started")
    assert answered == {200}
    assert body["usage"]["seconds"] == 1
    for cors in ((), ("https://captions.example",), (elsewhere.replace("127.0.0.1", "localhost"),)):
        uploaded, live, answered = asked(only_page, key_file, cors)
        assert (uploaded, live) == (NO_ANSWER, ABNORMAL), cors
        assert 200 not in answered


def test_a_wrong_key_is_still_refused_and_the_page_can_read_why(
    only_page: Any, elsewhere: str, key_file: Path
) -> None:
    only_page.goto(elsewhere)
    with serving(Settings(port=0, cors=(elsewhere,), key_file=key_file), loader=tiny_model) as running:
        sound = list(wav(noise(1.0)))
        status, _, body = only_page.evaluate(UPLOAD, [running.url, "wrong" * 6, sound])
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert only_page.evaluate(LIVE, [running.live, "wrong" * 6]) == "error"


def test_an_upload_that_browsers_send_without_asking_first_is_not_worked_on(
    only_page: Any, elsewhere: str
) -> None:
    only_page.goto(elsewhere)
    with serving(Settings(port=0), loader=tiny_model) as running:
        only_page.evaluate(SIMPLE_UPLOAD, [running.url, list(wav(noise(1.0)))])
        until(lambda: statuses(running), "the request")
        assert statuses(running) == {403}
