"""A stand-in for the service, so that the page can be driven into every state: it speaks the messages of the real one,
with events that a test writes down beforehand."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

import sprachbund

PAGE = Path(sprachbund.__file__).parent / "serving" / "page"
POLICY = "default-src 'self'"
NAMES = {"ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "ja": "Japanese"}

_BYTES_PER_S = 32_000


def text(committed: str, tentative: str = "", **fields: Any) -> dict[str, Any]:
    """A text message; what is not given is plain."""
    plain = {
        "type": "text", "target": "de", "segment": 0, "retracted": 0, "start_s": 0.0, "end_s": 1.0, "audio_s": 1.0,
        "source_language": "en", "final": False, "dropped": None, "delay_s": 0.5,
    }  # fmt: skip
    return {**plain, "committed": committed, "tentative": tentative, **fields}


@dataclass
class Script:
    """What the service will do, and what it saw.

    Attributes:
        live: (seconds of audio that must have come, message) in order; numbered when sent.
        rest: messages after "stop".
        breaks_at_s: the connection is cut once, when so much audio has come.
        key: the one that is let in; None lets everybody in.
        answers: of the file route, one after the other: a list of server-sent events, or (status, body, headers). A
            file goes up for all languages at once and either request may come first, so several languages need a
            dict of such lists, by target language.
    """

    live: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    rest: list[dict[str, Any]] = field(default_factory=list)
    breaks_at_s: float | None = None
    key: str | None = None
    answers: list[Any] | dict[str, list[Any]] = field(default_factory=list)
    firsts: list[dict[str, Any]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    goes_on: bool = False
    gone: bool = False
    forms: list[dict[str, Any]] = field(default_factory=list)
    seq: int = 0
    sent: list[dict[str, Any]] = field(default_factory=list)

    @property
    def received_s(self) -> float:
        return sum(map(len, self.frames)) / _BYTES_PER_S


def make_app(script: Script) -> FastAPI:
    """The stand-in; `script` may be changed between two page loads."""
    app = FastAPI()

    @app.middleware("http")
    async def policy(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def refused(request: Request) -> JSONResponse | None:
        if script.key is None or request.headers.get("authorization") == f"Bearer {script.key}":
            return None
        return JSONResponse({"error": {"message": "a key is needed"}}, 401)

    @app.get("/v1/models")
    def models(request: Request) -> Any:
        models = [{"id": "bundled", "object": "model"}, {"id": "other", "object": "model"}]
        return refused(request) or {"object": "list", "data": models}

    @app.get("/v1/languages")
    def languages(request: Request, model: str) -> Any:
        every = [{"tag": tag, "name": name} for tag, name in NAMES.items()]
        pairs = [[a, b] for a in NAMES for b in NAMES if (a, b) != ("es", "ja")]
        known = {"sources": every, "targets": every, "pairs": pairs}
        policies = ["local-agreement", "alignatt", "wait-k", "retranslation", "span"]
        return refused(request) or {**known, "policies": ["frames", "span"] if model == "other" else policies}

    @app.post("/v1/audio/translations")
    async def translations(request: Request) -> Any:
        if answer := refused(request):
            return answer
        async with request.form() as form:
            upload: Any = form["file"]
            script.forms.append({**form, "file": (upload.filename, await upload.read())})
            target = str(form["target_language"])
        answers = script.answers[target] if isinstance(script.answers, dict) else script.answers
        answer = answers.pop(0)
        if isinstance(answer, tuple):
            return JSONResponse(answer[1], answer[0], headers=answer[2])
        return StreamingResponse(_events(answer), media_type="text/event-stream")

    @app.websocket("/v1/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await _session(websocket, script)
        except WebSocketDisconnect:
            script.firsts.append({"type": "disconnected"})

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/static", StaticFiles(directory=PAGE))
    return app


async def _events(events: list[str]) -> Any:
    for event in events:
        yield f"data: {event}\n\n"
        await asyncio.sleep(0.05)


async def _session(websocket: WebSocket, script: Script) -> None:
    first = await websocket.receive_json()
    script.firsts.append(first)
    if script.key is not None and first.get("key") != script.key:
        await websocket.send_json({"type": "error", "status": 401, "message": "the key is not known here"})
        return await websocket.close(1008)
    if first["type"] == "resume" and script.gone:
        await websocket.send_json(
            {"type": "error", "status": 404, "message": "there is no such session any more"}
        )
        return await websocket.close(1008)
    if first["type"] == "resume":
        for message in script.sent[first["after"] :]:
            await websocket.send_json(message)
    else:
        script.sent, script.seq = [], 0
    started = {"type": "started", "session": "s1", "model": "bundled", "targets": first.get("targets", [])}
    await websocket.send_json(started | {"received_s": script.received_s})
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        if (frame := message.get("bytes")) is not None:
            script.frames.append(frame)
        else:
            assert message["text"] == '{"type":"stop"}'
            break
        await _due(websocket, script)
        if script.breaks_at_s is not None and script.received_s >= script.breaks_at_s:
            script.breaks_at_s = None
            return await websocket.close(1012)
    for one in [*[one for _, one in script.live], *script.rest]:
        await _say(websocket, script, one)
    script.live = []
    await _say(websocket, script, {"type": "done", "audio_s": script.received_s})
    await websocket.close(1000)


async def _due(websocket: WebSocket, script: Script) -> None:
    while script.live and script.live[0][0] <= script.received_s:
        message = script.live.pop(0)[1]
        await _say(websocket, script, message)
        if message["type"] == "pause":
            asyncio.get_running_loop().create_task(_go_on(websocket, script))
        elif message["type"] == "error":
            await websocket.close(1008)


async def _go_on(websocket: WebSocket, script: Script) -> None:
    while not script.goes_on:  # set by the test, in a thread of its own
        await asyncio.sleep(0.02)
    await websocket.send_json({"type": "continue"})


async def _say(websocket: WebSocket, script: Script, message: dict[str, Any]) -> None:
    if message["type"] in ("text", "notice", "done"):
        script.seq += 1
        message = {**message, "seq": script.seq}
        script.sent.append(message)
    await websocket.send_json(message)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """`app` on a free port of this machine; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(10)
