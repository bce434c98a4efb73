"""One system in a process of its own: it is asked to transcribe over a pipe, and says how long each part took.

Run by peers.py: worker.py SYSTEM PRECISION FOLDER THREADS. A request is a line of JSON on stdin, an answer one on
stdout. The end token is forbidden everywhere, so that all systems give the same number of tokens.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
RATE = 16_000
DRAFT_LAYERS = 4  # one of so many decoder layers is a draft's or an assistant's
MOST_TOKENS = 120  # written beforehand, for those to know what is right
SYSTEMS = {
    "sprachbund": "ours",
    "transformers": "with_transformers",
    "openai-whisper": "with_openai",
    "faster-whisper": "with_faster_whisper",
    "OpenVINO GenAI": "with_openvino",
    "whisper.cpp": "with_whisper_cpp",
}


class Stopwatch:
    """Milliseconds spent in named parts of a call."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, 1000 * (time.perf_counter() - begin))

    def add(self, name: str, ms: float) -> None:
        """Time that a system has measured itself."""
        self.ms[name] = self.ms.get(name, 0.0) + ms

    def around(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """A function that is timed whenever it is called."""

        def timed(*args: Any, **more: Any) -> T:
            with self.part(name):
                return function(*args, **more)

        return timed


class System(Protocol):
    """What a module of SYSTEMS offers as `System(folder, precision, threads, stopwatch)`."""

    version: str

    def transcribe(self, windows: list[np.ndarray], num_tokens: int, beam: int) -> list[str]: ...


def answer(system: System, watch: Stopwatch, audio: np.ndarray, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks: `windows` of `seconds`, `tokens` of each, `beam`."""
    size = int(request["seconds"] * RATE)
    windows = [audio[i * size : (i + 1) * size] for i in range(request["windows"])]
    watch.ms.clear()
    with watch.part("total"):
        texts = system.transcribe(windows, request["tokens"], request["beam"])
    if len(texts) != len(windows):
        raise RuntimeError(f"{len(windows)} windows gave {len(texts)} texts")
    return {**watch.ms, "text": texts[0]}


def peak_mib() -> float:
    """The most memory this process has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has held")


def main() -> None:
    name, precision, folder, threads = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def reply(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=replies, flush=True)

    watch = Stopwatch()
    audio = np.load(Path(folder) / "audio.npy")
    system = import_module(SYSTEMS[name]).System(Path(folder), precision, int(threads), watch)
    reply({"version": system.version})
    for line in sys.stdin:
        request = json.loads(line)
        done = answer(system, watch, audio, request)
        reply({**done, "peak_mib": peak_mib()})


if __name__ == "__main__":
    main()
