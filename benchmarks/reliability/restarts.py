"""Kills a real `sprachbund serve` in the middle of its work; a loop starts it again, as systemd and compose do.

Counted are the seconds from each SIGKILL until the service is ready, and whether a recording then has the same text as
before. Run: python -m benchmarks.reliability.restarts --kills 10
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from benchmarks.rows import write

from sprachbund.util.provenance import versions

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "results" / "reliability" / "restarts.json"
RECORDING = ROOT / "examples" / "recordings" / "es.flac"
PATIENCE_S = 120.0


class Supervisor:
    """Starts a command again whenever it ends, a moment later; the least that systemd's `Restart=always` does.

    Attributes:
        process: the one that runs, or was the last to.
        starts: how often it was started.
    """

    def __init__(self, command: Sequence[str], *, pause_s: float = 0.1) -> None:
        self._command, self._pause_s, self._ending = command, pause_s, threading.Event()
        self.process = self._started()
        self.starts = 1
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _started(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _watch(self) -> None:
        while True:
            self.process.wait()
            if self._ending.wait(self._pause_s):
                return
            self.process, self.starts = self._started(), self.starts + 1

    def end(self) -> None:
        """End the command for good."""
        self._ending.set()
        self.process.terminate()
        self._thread.join(PATIENCE_S)


@contextlib.contextmanager
def supervised(*options: str) -> Iterator[tuple[Supervisor, str]]:
    """A service under a supervisor, and its address; `options` of `sprachbund serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    supervisor = Supervisor([sys.executable, "-m", "sprachbund", "serve", "--port", str(port), *options])
    try:
        yield supervisor, f"http://127.0.0.1:{port}"
    finally:
        supervisor.end()


def seconds_until_ready(url: str) -> float:
    """From now on."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE_S:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return time.monotonic() - began
        time.sleep(0.02)
    raise TimeoutError(f"{url} was not ready in {PATIENCE_S:g} s")


def text_of(url: str) -> str:
    """The transcript of the recording."""
    with RECORDING.open("rb") as file:
        form = {"model": "bundled", "language": "es", "response_format": "text"}
        answer = httpx.post(f"{url}/v1/audio/transcriptions", data=form, files={"file": file}, timeout=120)
    answer.raise_for_status()
    return answer.text


def killed_at_work(supervisor: Supervisor, url: str) -> float:
    """Kill the service while it has a recording; seconds until another one is ready."""
    at_work = threading.Thread(target=_lost, args=(url,))
    at_work.start()
    time.sleep(0.05)
    os.kill(supervisor.process.pid, signal.SIGKILL)
    took_s = seconds_until_ready(url)
    at_work.join()
    return took_s


def _lost(url: str) -> None:
    """A request that the kill breaks off."""
    with contextlib.suppress(httpx.HTTPError):
        text_of(url)


def measure(kills: int) -> dict[str, Any]:
    """So many kills, one after the other."""
    with supervised() as (supervisor, url):
        first_s = seconds_until_ready(url)
        text = text_of(url)
        seconds, other = [], 0
        for _ in range(kills):
            seconds.append(killed_at_work(supervisor, url))
            other += text_of(url) != text
        return {
            "kills": kills,
            "starts": supervisor.starts,
            "first start s": round(first_s, 2),
            "ready again p50 s": round(median(seconds), 2),
            "ready again most s": round(max(seconds), 2),
            "other texts": other,
        }


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--out", type=Path, default=OUT)
    given = options.parse_args()
    row = measure(given.kills) | {"processor": "AMD EPYC, AVX-512 VNNI and bf16"}
    print(row)
    write(given.out, {"versions": versions(), "rows": [row]})


if __name__ == "__main__":
    main()
