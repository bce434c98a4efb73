"""Services on loopback for tests: the real server in a thread, with the bundled model or a tiny one."""

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect

from sprachbund.api import Model
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.base import Features
from sprachbund.serving.server import Server, make_server
from sprachbund.serving.settings import Settings
from tests.decoding.tiny_family import TinyFamily


@dataclass(frozen=True, kw_only=True)
class Running:
    server: Server
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/live"

    @property
    def service(self) -> Any:
        return self.server.service

    def metric(self, name: str, **labels: str) -> float:
        return self.service.meters.registry.get_sample_value(f"sprachbund_{name}", labels) or 0.0

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def serving(settings: Settings, **parts: Any) -> Iterator[Running]:
    server = make_server(settings, **parts)
    sock = server.listen()
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    running = Running(server=server, port=sock.getsockname()[1], thread=thread)
    wait_for(lambda: server.started and server.service.ready)
    try:
        yield running
    finally:
        running.stop()


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def tiny_model(name: str = "tiny") -> Model:
    return Model(TinyFamily(seed=3), name=name)


def read_text(family: TinyFamily) -> None:
    """Let a family read text: noise of its own for each text."""
    text_input = SimpleNamespace(text_features=as_speech)
    family.capabilities = replace(family.capabilities, text_input=text_input)


def as_speech(texts: Sequence[str]) -> Features:
    """Noise of its own for each text."""
    seeds = [int.from_bytes(text.encode()[:4].rjust(4)) for text in texts]
    return TinyFamily(seed=3).features([noise(1.0, seed) for seed in seeds])


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(duration_s * SAMPLE_RATE)) * 0.1).astype(np.float32)


def wav(samples: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).round().astype("<i2").tobytes()


class Client:
    """One end of /v1/live."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    async def tell(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        self.seen.append(json.loads(await asyncio.wait_for(self.socket.recv(), 15)))
        return self.seen[-1]

    async def until(self, kind: str) -> dict[str, Any]:
        while (message := await self.hear())["type"] != kind:
            pass
        return message

    async def send(self, samples: np.ndarray, block_s: float = 0.5) -> None:
        data, size = pcm(samples), 2 * int(block_s * SAMPLE_RATE)
        for start in range(0, len(data), size):
            await self.socket.send(data[start : start + size])

    async def closed(self) -> int | None:
        await asyncio.wait_for(self.socket.wait_closed(), 15)
        return self.socket.close_code

    def text(self, target: str) -> str:
        return "".join(m["committed"] for m in self.seen if m["type"] == "text" and m["target"] == target)


class talking:  # noqa: N801 - used like a function
    """A connection, with its first message if one is given."""

    def __init__(self, running: Running, first: dict[str, Any] | None = None, **options: Any) -> None:
        self._connection = connect(running.live, close_timeout=0.2, **options)
        self._first = first

    async def __aenter__(self) -> Client:
        client = Client(await self._connection.__aenter__())
        if self._first is not None:
            await client.tell(**{"type": "start", **self._first})
        return client

    async def __aexit__(self, *error: Any) -> None:
        await self._connection.__aexit__(*error)
