"""A minute of good clients beside hostile ones, at a real `sprachbund serve` on loopback with the bundled model.

Good clients send short recordings with a key of their own and retry when they are asked to. Hostile ones, from the
same address, send half heads, second heads, bodies byte by byte, whole recordings without end, other origins, broken
hosts and bytes at random. Counted are the requests of the good clients: answered, refused with their reasons, lost (no
answer, or one that is neither). Run: python -m benchmarks.reliability.service
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from benchmarks.rows import write

from sprachbund.audio.load import load
from sprachbund.util.provenance import commit, versions

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "results" / "reliability" / "service.json"
RATE = 16_000
EXAMPLES = sorted((ROOT / "examples" / "recordings").iterdir())
HEADER_S = 3.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
SERVICE_LIBRARIES = ("uvicorn", "h11", "starlette", "fastapi", "websockets", "python-multipart")

Seen = Counter[str]


class Target:
    """The service under load, with the two keys that it knows."""

    def __init__(self, port: int, good: str, hostile: str) -> None:
        self.port, self.good, self.hostile = port, good, hostile
        self.url = f"http://127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A raw connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(self, **headers: str) -> bytes:
        """Of an upload by the hostile client."""
        known = {
            "Host": "localhost",
            "Authorization": f"Bearer {self.hostile}",
            "Content-Type": "multipart/form-data; boundary=x",
            "Content-Length": "1000000",
        } | headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in known.items())
        return f"POST /v1/audio/translations HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


async def half_heads(target: Target, seen: Seen) -> None:
    """The first head, never whole."""
    async with target.connected() as (reader, writer):
        writer.write(b"GET /health HTT")
        seen[(await reader.read(4096))[9:12].decode() or "closed"] += 1
    await asyncio.sleep(0.1)


async def second_heads(target: Target, seen: Seen) -> None:
    """A whole request, then half of another."""
    async with target.connected() as (reader, writer):
        writer.write(HEALTH)
        seen[(await reader.read(4096))[9:12].decode() or "closed"] += 1
        writer.write(b"GET /health HTT")
        seen[f"then {(await reader.read(4096))[9:12].decode() or 'closed'}"] += 1
    await asyncio.sleep(0.1)


async def slow_bodies(target: Target, seen: Seen) -> None:
    """An upload of a byte a second."""
    async with target.connected() as (reader, writer):
        writer.write(target.head() + PART)
        answer = asyncio.ensure_future(reader.read(4096))
        try:
            while not answer.done():
                writer.write(b"-")
                await asyncio.wait({answer}, timeout=1.0)
            seen[answer.result()[9:12].decode() or "closed"] += 1
        finally:
            answer.cancel()
    await asyncio.sleep(0.5)


async def cross_origin_pages(target: Target, seen: Seen) -> None:
    """An upload by a page of another site, with a good key."""
    headers = random.choice([{"Origin": "https://evil.example"}, {"Origin": "http://["}, {"Host": "[::1"}])
    async with target.connected() as (reader, writer):
        writer.write(target.head(**headers))
        seen[(await reader.read(4096))[9:12].decode() or "closed"] += 1
    await asyncio.sleep(0.05)


async def junk(target: Target, seen: Seen) -> None:
    """Bytes at random, or a request with some of its bytes changed."""
    data = bytearray(target.head() if random.random() < 0.5 else random.randbytes(2000))
    for _ in range(5):
        data[random.randrange(len(data))] = random.randrange(256)
    async with target.connected() as (reader, writer):
        writer.write(bytes(data))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                seen[(await reader.read(4096))[9:12].decode("latin-1") or "closed"] += 1
    await asyncio.sleep(0.05)


def greedy(bodies: list[bytes]) -> Callable[[Target, Seen], Awaitable[None]]:
    """Whole recordings, without a pause and without regard for what the service answers."""

    async def send(target: Target, seen: Seen) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            answer = await _upload(http, target.url, target.hostile, random.choice(bodies))
            seen[_reason(answer)] += 1
            await asyncio.sleep(0.1 if answer.status_code == 200 else 0.5)

    return send


async def _upload(http: httpx.AsyncClient, url: str, key: str, body: bytes) -> httpx.Response:
    return await http.post(
        f"{url}/v1/audio/translations",
        files={"file": ("a.wav", body)},
        data={"model": "bundled", "target_language": "de"},
        headers={"authorization": f"Bearer {key}"},
    )


def _reason(answer: httpx.Response) -> str:
    if answer.status_code == 200:
        return "200"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.json()['error']['code']}"
    return f"{answer.status_code} without a reason"


async def good(target: Target, bodies: list[bytes], end_s: float, result: dict[str, Any]) -> None:
    """Send one recording after the other, each again when asked to, each over a connection of its own."""
    number = 0
    while time.monotonic() < end_s:
        which, number = number % len(bodies), number + 1
        began = time.monotonic()
        while True:
            result["requests"] += 1
            try:
                async with httpx.AsyncClient(timeout=120) as http:
                    answer = await _upload(http, target.url, target.good, bodies[which])
            except httpx.HTTPError as error:
                result["lost"].append(f"{type(error).__name__}: {error}"[:200])
                break
            if answer.status_code == 200:
                result["answered"] += 1
                result["seconds"].append(time.monotonic() - began)
                result["texts"].setdefault(which, set()).add(answer.json()["text"])
                break
            if answer.status_code not in (429, 503):
                result["lost"].append(_reason(answer))
                break
            result["refused"][_reason(answer)] += 1
            await asyncio.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))


async def repeat(
    attack: Callable[[Target, Seen], Awaitable[None]], target: Target, seen: Seen, end_s: float
) -> None:
    """An attack, again and again; what the service does to the connection is its right."""
    while time.monotonic() < end_s:
        try:
            async with asyncio.timeout(max(0.1, end_s - time.monotonic())):
                await attack(target, seen)
        except TimeoutError:
            return
        except (OSError, httpx.HTTPError):
            seen["broken off"] += 1
            await asyncio.sleep(0.2)


async def load_for(seconds: float, target: Target, process: psutil.Process) -> dict[str, Any]:
    """All clients at once."""
    bodies = [_wav(load(path, 0.0, 4.0)) for path in EXAMPLES]
    attacks: dict[str, tuple[int, Callable[[Target, Seen], Awaitable[None]]]] = {
        "half heads": (100, half_heads),
        "second heads": (100, second_heads),
        "slow bodies": (30, slow_bodies),
        "cross-origin pages": (3, cross_origin_pages),
        "junk": (3, junk),
        "greedy": (15, greedy(bodies)),
    }
    seen: dict[str, Seen] = {name: Counter() for name in attacks}
    result: dict[str, Any] = {
        "requests": 0, "answered": 0, "refused": Counter(), "lost": [], "seconds": [], "texts": {},
    }  # fmt: skip
    memory = [process.memory_info().rss]
    used_s = sum(process.cpu_times()[:2])
    end_s = time.monotonic() + seconds

    async def watch() -> None:
        while True:
            children = [child.memory_info().rss for child in process.children(recursive=True)]
            memory.append(process.memory_info().rss + sum(children))
            await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.gather(
            *(good(target, bodies, end_s, result) for _ in range(4)),
            *(
                repeat(attack, target, seen[name], end_s)
                for name, (number, attack) in attacks.items()
                for _ in range(number)
            ),
        )
    finally:
        watching.cancel()
    times = result["seconds"]
    return {
        "good": {
            "requests": result["requests"],
            "answered": result["answered"],
            "refused": dict(result["refused"]),
            "lost": len(result["lost"]),
            "lost_reasons": dict(Counter(result["lost"])),
            "different texts of a recording": max(map(len, result["texts"].values()), default=0),
            "answer_s": {f"p{q}": round(float(np.percentile(times, q)), 3) for q in (50, 95, 100)}
            if times
            else None,
        },
        "hostile": {
            name: {"clients": attacks[name][0], "saw": dict(counts.most_common())}
            for name, counts in seen.items()
        },
        "memory_mib": {"first": round(memory[0] / 2**20), "largest": round(max(memory) / 2**20)},
        "cpu_s": round(sum(process.cpu_times()[:2]) - used_s, 1),
    }


def _wav(samples: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


@contextmanager
def service(log: Path) -> Iterator[tuple[Target, psutil.Process]]:
    """`sprachbund serve` in a process of its own, ready."""
    good_key, hostile_key = secrets.token_hex(16), secrets.token_hex(16)
    keys = log.with_name("keys")
    keys.write_text(f"{good_key}\n{hostile_key}\n")
    options = ["--port", "0", "--offline", "--key-file", str(keys), "--header-s", str(HEADER_S)]
    options += ["--max-per-minute", "100000"]
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "sprachbund", "serve", *options], stderr=stderr)
    try:
        for _ in range(1200):
            match = re.search(r"page at http://127\.0\.0\.1:(\d+)/", log.read_text())
            if match and _is_ready(f"http://127.0.0.1:{match[1]}"):
                break
            if process.poll() is not None:
                raise SystemExit(f"the service ended: {log.read_text()}")
            time.sleep(0.1)
        else:
            raise SystemExit("the service did not begin within two minutes")
        yield Target(int(match[1]), good_key, hostile_key), psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--log", type=Path, help="keep the service's log there")
    parser.add_argument("--note", default="", help="of the machine at the time, for the file")
    options = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began_load = os.getloadavg()[0]
        with service(log) as (target, process):
            measured = asyncio.run(load_for(options.seconds, target, process))
        lines = log.read_text(errors="replace").splitlines()
    if options.log is not None:
        options.log.write_text("\n".join(lines))
    measured["log"] = {"lines": len(lines), "tracebacks": sum("Traceback" in line for line in lines)}
    values = {
        "measures": "good clients beside hostile ones",
        "seconds": options.seconds,
        "load average before": round(began_load, 2),
        "note": options.note,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions() | {name: version(name) for name in SERVICE_LIBRARIES},
        **measured,
    }
    write(options.out, values)
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
