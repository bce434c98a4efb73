"""What the service holds on this machine, measured through its sockets as a client would.

sessions: live sessions in real time, by one service that batches and by a process each. A session is held when the 95th
percentile of its delay (sound there to text sent) stays under --most-delay-s, nothing was left out, and the delay grows
by less than half of that. uploads: short recordings from many clients: nothing lost, every refusal honest.
soak: a talk of an hour: slopes of delay and memory. curve: requests a second against the time of one, at 1 to 32 clients
who each wait for an answer before they ask again; a Whisper of random weights whose texts have 61 tokens, beside
faster-whisper with the same weights (--peers, as of peers.py). Run: python benchmarks/serving.py soak
"""

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from rich.console import Console
from rich.progress import Progress
from websockets.asyncio.client import connect

from sprachbund import __version__
from sprachbund.audio.load import load
from sprachbund.util.processor import processor_name
from sprachbund.util.provenance import commit

ROOT = Path(__file__).parents[1]
RATE, BLOCK_S = 16_000, 0.1
ONE_CLIENT = ("--max-share", "1", "--max-per-address", "1000")
EXAMPLES = sorted((ROOT / "examples" / "recordings").iterdir())


@dataclass(kw_only=True)
class Heard:
    """What a client of a live session saw, in seconds of its own clock.

    Attributes:
        first_text_s: from its first sound to the first text on screen.
        delays: (second of the talk, seconds from sound to text) of every text.
        lost_s: speech that was left out.
        error: why it ended early.
    """

    first_text_s: float | None = None
    delays: list[tuple[float, float]] = field(default_factory=list)
    lost_s: float = 0.0
    overloads: int = 0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Service:
    url: str
    process: psutil.Process

    @property
    def memory_mib(self) -> float:
        return self.process.memory_info().rss / 2**20


@contextmanager
def service(*arguments: str) -> Iterator[Service]:
    """A service in a process of its own, ready."""
    command = [sys.executable, "-m", "sprachbund", "serve", "--port", "0", "--offline", *arguments]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
    process = subprocess.Popen(command, stderr=log)
    try:
        url = None
        while url is None or not _is_ready(url):
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the service ended: {log.read()}")
            time.sleep(0.1)
            log.seek(0)
            found = re.search(r"page at (http://\S+)/", log.read())
            url = found[1] if found else None
        yield Service(url=url, process=psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()
        log.close()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def talk(seconds: float, first: int = 0) -> np.ndarray:
    """The example recordings in turn, beginning with another one for each client."""
    order = [EXAMPLES[(first + i) % len(EXAMPLES)] for i in range(len(EXAMPLES))]
    once = np.concatenate([load(path) for path in order])
    return np.resize(once, round(seconds * RATE))


async def listen(url: str, samples: np.ndarray, options: argparse.Namespace, start_s: float = 0.0) -> Heard:
    """Play a talk to a session in real time."""
    heard = Heard()
    await asyncio.sleep(start_s)
    async with connect(url.replace("http", "ws") + "/v1/live", max_queue=None) as socket:
        first = {"type": "start", "targets": options.targets, "policy": options.policy}
        await socket.send(json.dumps(first))
        json.loads(await socket.recv())
        began = time.monotonic()
        playing = asyncio.ensure_future(_play(socket, samples, began))
        async for text in socket:
            _note(heard, json.loads(text), time.monotonic() - began)
        playing.cancel()
    return heard


async def _play(socket: Any, samples: np.ndarray, began: float) -> None:
    data, size = (samples * 32767).astype("<i2").tobytes(), round(BLOCK_S * RATE) * 2
    for number, start in enumerate(range(0, len(data), size), 1):
        await asyncio.sleep(max(0.0, began + number * BLOCK_S - time.monotonic()))
        await socket.send(data[start : start + size])
    await socket.send('{"type": "stop"}')


def _note(heard: Heard, message: dict[str, Any], now_s: float) -> None:
    if message["type"] == "text":
        heard.delays.append((message["audio_s"], message["delay_s"]))
        if heard.first_text_s is None and (message["committed"] or message["tentative"]):
            heard.first_text_s = now_s
    elif message["type"] == "notice":
        heard.lost_s += message["lost_s"]
        heard.overloads += message["kind"] == "overload"
    elif message["type"] == "error":
        heard.error = message["message"]


def is_held(heard: Heard, most_delay_s: float) -> bool:
    if heard.error or heard.lost_s or heard.overloads or not heard.delays:
        return False
    delays = np.array([delay for _, delay in heard.delays])
    third = max(1, len(delays) // 3)
    growth = np.median(delays[-third:]) - np.median(delays[:third])
    return bool(np.percentile(delays, 95) <= most_delay_s and growth <= most_delay_s / 2)


def trial(count: int, shared: bool, options: argparse.Namespace) -> dict[str, Any]:
    """So many sessions at once, at one service or each at its own."""
    with ExitStack() as stack:
        own = ["--threads", "1"] if not shared else []
        number = 1 if shared else count
        services = [
            stack.enter_context(
                service("--max-live", str(count), *ONE_CLIENT, "--engine", options.engine, *own)
            )
            for _ in range(number)
        ]

        async def everybody() -> list[Heard]:
            step_s = 1.0 / count  # so that not all are due at the same moment
            return await asyncio.gather(
                *(
                    listen(services[i % number].url, talk(options.seconds, i), options, i * step_s)
                    for i in range(count)
                )
            )

        found = asyncio.run(everybody())
        memory_mib = sum(one.memory_mib for one in services)
    delays = [delay for heard in found for _, delay in heard.delays]
    firsts = [heard.first_text_s for heard in found if heard.first_text_s is not None]
    return {
        "way": "one service" if shared else "a process each",
        "sessions": count,
        "held": all(is_held(heard, options.most_delay_s) for heard in found),
        "first_text_s": _quantiles(firsts),
        "delay_s": _quantiles(delays),
        "overloads": sum(heard.overloads for heard in found),
        "lost_s": sum(heard.lost_s for heard in found),
        "errors": [heard.error for heard in found if heard.error],
        "memory_mib": memory_mib,
    }


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 95, 100)}


def sessions(options: argparse.Namespace) -> dict[str, Any]:
    """Double until it is too many, then halve the distance."""
    trials: list[dict[str, Any]] = []
    most: dict[str, int] = {}
    for shared in (True, False):
        good, bad, count = 0, None, 1
        largest = options.most_sessions if shared else options.most_processes
        while count <= largest and (bad is None or bad - good > max(1, good // 8)):
            trials.append(trial(count, shared, options))
            Console(stderr=True).print(trials[-1])
            good, bad = (count, bad) if trials[-1]["held"] else (good, count)
            count = good * 2 if bad is None else (good + bad) // 2
        most[trials[-1]["way"]] = good
    return {"most_held": most, "trials": trials}


def uploads(options: argparse.Namespace) -> dict[str, Any]:
    """Many clients with short recordings, each again after a refusal; one in a hundred is too long."""
    with tempfile.TemporaryDirectory() as folder, service(*_small_limits(options)) as served:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(EXAMPLES) + 1)]
        for path, example in zip(paths, EXAMPLES, strict=False):
            soundfile.write(path, load(example, 0.0, 4.0), RATE)
        soundfile.write(paths[-1], talk(25.0), RATE)
        bodies = [path.read_bytes() for path in paths]
        return asyncio.run(_upload_all(served, bodies, options))


def _small_limits(options: argparse.Namespace) -> list[str]:
    limits = "--max-duration-s 20 --max-waiting 16 --max-per-minute 100000"
    return [*limits.split(), "--engine", options.engine]


async def _upload_all(served: Service, bodies: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    texts: dict[int, set[str]] = {}
    statuses: Counter[str] = Counter()
    dishonest: list[str] = []
    times: list[float] = []
    todo = iter(range(options.uploads))
    limits = httpx.Limits(max_connections=options.clients)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("uploads", total=options.uploads)

        async def client(http: httpx.AsyncClient) -> None:
            for number in todo:
                which = len(bodies) - 1 if number % 100 == 99 else number % (len(bodies) - 1)
                while True:
                    began = time.monotonic()
                    answer = await http.post(
                        f"{served.url}/v1/audio/translations",
                        files={"file": ("a.wav", bodies[which])},
                        data={"model": "bundled", "target_language": "de"},
                    )
                    statuses[str(answer.status_code)] += 1
                    if answer.status_code != 429:
                        break
                    if not answer.headers.get("retry-after") or not answer.json()["error"]["message"]:
                        dishonest.append(answer.text)
                    await asyncio.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))
                if answer.status_code == 200:
                    texts.setdefault(which, set()).add(answer.json()["text"])
                    times.append(time.monotonic() - began)
                elif answer.status_code != 413 or which != len(bodies) - 1:
                    dishonest.append(answer.text)
                bar.advance(task)

        async with httpx.AsyncClient(timeout=300, limits=limits) as http:
            began = time.monotonic()
            await asyncio.gather(*(client(http) for _ in range(options.clients)))
            took_s = time.monotonic() - began
    answered = statuses["200"] + statuses["413"]
    return {
        "statuses": dict(statuses),
        "lost": options.uploads - answered,
        "refusals that were not honest": dishonest,
        "different texts of a recording": max(map(len, texts.values())),
        "seconds": took_s,
        "answer_s": _quantiles(times),
        "memory_mib": served.memory_mib,
    }


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """One talk in real time; minute by minute."""
    memory: list[tuple[float, float]] = []
    with service("--engine", options.engine) as served:

        async def watch() -> None:
            began = time.monotonic()
            while True:
                memory.append(((time.monotonic() - began) / 60, served.memory_mib))
                await asyncio.sleep(options.every_s)

        async def both() -> Heard:
            watching = asyncio.ensure_future(watch())
            heard = await listen(served.url, talk(options.minutes * 60), options)
            watching.cancel()
            return heard

        heard = asyncio.run(both())
    delays = [(second / 60, delay) for second, delay in heard.delays]
    settled = [point for point in memory if point[0] >= options.minutes / 10]  # the first texts fill caches
    return {
        "minutes": options.minutes,
        "texts": len(delays),
        "delay_s": _quantiles([delay for _, delay in delays]),
        "delay_by_minute_s": _by_minute(delays),
        "delay_slope_s_per_hour": slope(delays),
        "memory_by_minute_mib": _by_minute(memory),
        "memory_slope_mib_per_hour": slope(settled),
        "overloads": heard.overloads,
        "lost_s": heard.lost_s,
        "error": heard.error,
    }


# Throughput against latency.

CURVE_TOKENS, CURVE_PROMPT = 64, 3
ONE_SPAN = 4
"""So many of the examples have no pause in the first five seconds, at which they would be cut into two texts."""
PEERS = Path(__file__).parent / "peers"


def curve(options: argparse.Namespace) -> dict[str, Any]:
    """Every system at every number of clients, one after the other."""
    folder = _checkpoint(options)
    trials = []
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / f"{i}.wav" for i in range(ONE_SPAN)]
        for path, example in zip(paths, EXAMPLES, strict=False):
            soundfile.write(path, load(example, 0.0, 5.0), RATE)
        bodies = [path.read_bytes() for path in paths]
        limits = "--max-working 64 --max-waiting 256 --max-per-minute 1000000 --max-receiving 256".split()
        threads = options.threads or len(os.sched_getaffinity(0))
        for workers in dict.fromkeys((1, options.workers)):
            own = ["--threads", str(threads // workers), "--workers", str(workers)]
            with service(
                *limits, *ONE_CLIENT, "--engine", options.engine, "--model", str(folder), *own
            ) as served:
                way = f"sprachbund, {workers} worker{'s' * (workers > 1)}"
                trials += _curve_of(way, served, folder.name, bodies, options)
        if options.peers:
            with _faster_whisper(folder.parent, threads, options.peers) as served:
                trials += _curve_of("faster-whisper int8, batches", served, folder.name, bodies, options)
    return {"trials": trials}


def _checkpoint(options: argparse.Namespace) -> Path:
    """The model's directory, made once; so is what faster-whisper reads."""
    folder = Path(tempfile.gettempdir()) / "sprachbund-serving" / options.shape
    folder.mkdir(parents=True, exist_ok=True)
    script = [sys.executable, str(PEERS / "checkpoint.py")]
    if not (made := folder / "made").exists():
        subprocess.run([*script, "make", options.shape, folder, str(CURVE_TOKENS)], check=True)
        made.touch()
    if options.peers and not (converted := folder / "converted-ctranslate2").exists():
        env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}  # torch and transformers are ours
        subprocess.run([options.peers, script[1], "ctranslate2", folder], check=True, env=env)
        converted.touch()
    return folder / "transformers"


@contextmanager
def _faster_whisper(folder: Path, threads: int, python: str) -> Iterator[Service]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    numbers = [str(port), str(threads), str(CURVE_TOKENS - CURVE_PROMPT)]
    command = [python, str(PEERS / "serve_faster_whisper.py"), str(folder), *numbers]
    process = subprocess.Popen(command, env={**env, "OMP_NUM_THREADS": str(threads)})
    try:
        url = f"http://127.0.0.1:{port}"
        while not _is_ready(url):
            if process.poll() is not None:
                raise SystemExit("the peer's service ended; its error stands above")
            time.sleep(0.1)
        yield Service(url=url, process=psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def _curve_of(
    way: str, served: Service, model: str, bodies: list[bytes], options: argparse.Namespace
) -> list[dict[str, Any]]:
    trials = []
    asyncio.run(_ask(served, model, bodies, 2, 2.0))  # buffers, and workers that load at their first request
    for clients in options.curve_clients:
        times, took_s = asyncio.run(_ask(served, model, bodies, clients, options.seconds))
        trials.append(
            {
                "way": way,
                "clients": clients,
                "requests": len(times),
                "requests_per_s": len(times) / took_s,
                "answer_s": _quantiles(times),
                "memory_mib": served.memory_mib,
            }
        )
        Console(stderr=True).print(trials[-1])
    return trials


async def _ask(
    served: Service, model: str, bodies: list[bytes], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds of every answer, and of all; each client's last request is finished and counts."""
    times: list[float] = []
    began = time.monotonic()

    async def client(http: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() - began < seconds:
            sent = time.monotonic()
            answer = await http.post(
                f"{served.url}/v1/audio/transcriptions",
                files={"file": ("a.wav", bodies[number % len(bodies)])},
                data={"model": model, "language": "en"},
            )
            if answer.status_code != 200:
                raise SystemExit(f"{served.url} answered {answer.status_code}: {answer.text}")
            times.append(time.monotonic() - sent)
            number += clients

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=clients)) as http:
        await asyncio.gather(*(client(http, number) for number in range(clients)))
    return times, time.monotonic() - began


def slope(points: list[tuple[float, float]]) -> dict[str, float] | None:
    """Of values over minutes, per hour, with its 95 % interval."""
    from scipy.stats import linregress, t

    if len(points) < 3:
        return None
    x, y = np.array(points).T
    fit = linregress(x, y)
    half = float(t.ppf(0.975, len(points) - 2) * fit.stderr)
    middle = float(fit.slope)
    return {"slope": 60 * middle, "low": 60 * (middle - half), "high": 60 * (middle + half)}


def _by_minute(points: list[tuple[float, float]]) -> list[float]:
    minutes: dict[int, list[float]] = {}
    for minute, value in points:
        minutes.setdefault(int(minute), []).append(value)
    return [round(float(np.median(minutes[minute])), 4) for minute in sorted(minutes)]


def manifest(what: str, options: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(options).items() if name not in ("out", "what")}
    return {
        "measures": what,
        "options": values,
        "version": __version__,
        "commit": commit(),
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


MEASURES = {"sessions": sessions, "uploads": uploads, "soak": soak, "curve": curve}
QUICK: dict[str, Any] = {
    "seconds": 6.0,
    **dict.fromkeys(("most_sessions", "most_processes"), 2),
    "uploads": 20,
    "clients": 5,
    "minutes": 0.15,
    "every_s": 1.0,
    "shape": "tiny",
    "curve_clients": [1, 4],
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of hours; shows only that it works"
    )
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--policy", default="local-agreement")
    parser.add_argument("--targets", nargs="+", default=["de"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a session, or of a number of clients")
    parser.add_argument("--most-sessions", type=int, default=256)
    parser.add_argument("--most-processes", type=int, default=16, help="each takes some 370 MiB")
    parser.add_argument("--most-delay-s", type=float, default=1.0)
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every-s", type=float, default=10.0, help="between two looks at the memory")
    parser.add_argument("--shape", default="small", help="of the curve's model")
    parser.add_argument("--curve-clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--workers", type=int, default=1, help="of the service, beside one")
    parser.add_argument("--threads", type=int, help="of all workers together; all cores by default")
    parser.add_argument("--peers", help="interpreter of the peers' environment, for the curve")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    out = options.out or ROOT / "benchmarks" / f"serving_{options.what}.json"
    found = {"manifest": manifest(options.what, options), **MEASURES[options.what](options)}
    sys.path.insert(0, str(Path(__file__).parent))
    from serving_rows import rows_of

    found["rows"] = rows_of(options.what, found)
    Console().print({name: value for name, value in found.items() if name != "trials"})
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
