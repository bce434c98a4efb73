"""What the service holds on this machine, measured through its sockets as a client would.

sessions: live sessions in real time, by one service that batches and by a process each. A session is held when the 95th
percentile of its delay (sound there to text sent) stays under --most-delay-s, nothing was left out, and the delay grows
by less than half of that. uploads: short recordings from many clients: nothing lost, every refusal honest.
soak: a talk of an hour: slopes of delay and memory. load: live sessions for an hour beside uploads, slow clients and
clients that vanish: what was lost, and whether the machine could carry it. curve: requests a second against the time of
one, at 1 to 32 clients who each wait for an answer before they ask again; a Whisper of random weights whose texts have
61 tokens, beside faster-whisper with the same weights (--peers, as of peers.py). Run: python -m benchmarks.serving soak
"""

import argparse
import asyncio
import itertools
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from benchmarks.rows import machine
from benchmarks.serving_rows import rows_of
from rich.console import Console
from rich.progress import Progress
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from sprachbund import __version__
from sprachbund.audio.load import load
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
        delays: (second of the talk, seconds from sound to text) of every text, as the service counts them.
        seen: the same as the client counts them: from the moment when the sound was due to be sent.
        late: seconds by which the client itself sent each block late.
        lost_s: speech that was left out.
        done: whether the service said that all text was sent.
        error: why it ended early.
    """

    first_text_s: float | None = None
    delays: list[tuple[float, float]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    lost_s: float = 0.0
    overloads: int = 0
    done: bool = False
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
    with tempfile.TemporaryDirectory() as folder:
        # Read by its name: a descriptor that both hold has one position, and the service would write where we look.
        log = Path(folder) / "log"
        with log.open("w") as written:
            process = subprocess.Popen(command, stderr=written)
        try:
            url = None
            while url is None or not _is_ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"the service ended: {log.read_text()}")
                time.sleep(0.1)
                match = re.search(r"page at (http://\S+)/", log.read_text())
                url = match[1] if match else None
            yield Service(url=url, process=psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


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
        playing = asyncio.ensure_future(_play(socket, samples, began, heard))
        try:
            async for text in socket:
                _note(heard, json.loads(text), time.monotonic() - began)
        finally:
            playing.cancel()
    return heard


async def _play(socket: Any, samples: np.ndarray, began: float, heard: Heard, pace: float = 1.0) -> None:
    """Send blocks when they are due, `pace` times as slowly as they were spoken."""
    for number, block in enumerate(_blocks(samples), 1):
        due = began + number * BLOCK_S * pace
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        heard.late.append(time.monotonic() - due)
        await socket.send(block)
    await socket.send('{"type": "stop"}')


def _blocks(samples: np.ndarray) -> list[bytes]:
    data, size = (samples * 32767).astype("<i2").tobytes(), round(BLOCK_S * RATE) * 2
    return [data[start : start + size] for start in range(0, len(data), size)]


def _note(heard: Heard, message: dict[str, Any], now_s: float) -> None:
    if message["type"] == "text":
        heard.delays.append((message["audio_s"], message["delay_s"]))
        heard.seen.append(now_s - message["audio_s"])
        if heard.first_text_s is None and (message["committed"] or message["tentative"]):
            heard.first_text_s = now_s
    elif message["type"] == "notice":
        heard.lost_s += message["lost_s"]
        heard.overloads += message["kind"] == "overload"
    elif message["type"] == "error":
        heard.error = message["message"]
    elif message["type"] == "done":
        heard.done = True


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

        clients = asyncio.run(everybody())
        memory_mib = sum(one.memory_mib for one in services)
    delays = [delay for heard in clients for _, delay in heard.delays]
    firsts = [heard.first_text_s for heard in clients if heard.first_text_s is not None]
    return {
        "way": "one service" if shared else "a process each",
        "sessions": count,
        "held": all(is_held(heard, options.most_delay_s) for heard in clients),
        "first_text_s": _quantiles(firsts),
        "delay_s": _quantiles(delays),
        "overloads": sum(heard.overloads for heard in clients),
        "lost_s": sum(heard.lost_s for heard in clients),
        "errors": [heard.error for heard in clients if heard.error],
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
    """Every system at every number of clients: all services are up, and are asked in turn, round by round."""
    folder = _checkpoint(options)
    trials = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as services:
        paths = [Path(temporary) / f"{i}.wav" for i in range(ONE_SPAN)]
        for path, example in zip(paths, EXAMPLES, strict=False):
            soundfile.write(path, load(example, 0.0, 5.0), RATE)
        bodies = [path.read_bytes() for path in paths]
        limits = ["--max-working", "64", "--max-waiting", "256", "--max-receiving", "256"]
        limits += ["--max-per-minute", "1000000", "--engine", options.engine, "--model", str(folder)]
        threads = options.threads or len(os.sched_getaffinity(0))
        served: dict[str, Service] = {}
        for workers in dict.fromkeys((1, options.workers)):
            own = ["--threads", str(threads // workers), "--workers", str(workers)]
            own += ["--real-length"] * options.real_length
            way = f"sprachbund, {workers} worker{'s' * (workers > 1)}{', real length' * options.real_length}"
            served[way] = services.enter_context(service(*limits, *ONE_CLIENT, *own))
        if options.peers:
            peer = _faster_whisper(folder.parent, threads, options.peers)
            served["faster-whisper int8, batches"] = services.enter_context(peer)
        for one in served.values():  # buffers, and workers that load at their first request
            asyncio.run(_ask(one, folder.name, bodies, 2, 2.0))
        for number in range(options.rounds):
            for clients in options.curve_clients:
                for way, one in served.items():
                    trials.append(_trial(way, one, clients, number, folder.name, bodies, options))
                    Console(stderr=True).print(trials[-1])
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


def _trial(
    way: str,
    served: Service,
    clients: int,
    number: int,
    model: str,
    bodies: list[bytes],
    options: argparse.Namespace,
) -> dict[str, Any]:
    times, took_s = asyncio.run(_ask(served, model, bodies, clients, options.seconds))
    return {
        "way": way,
        "clients": clients,
        "round": number,
        "requests": len(times),
        "requests_per_s": len(times) / took_s,
        "answer_s": _quantiles(times),
        "memory_mib": served.memory_mib,
    }


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


def _by_minute(points: list[tuple[float, float]], percentile: float = 50) -> list[float]:
    minutes: dict[int, list[float]] = {}
    for minute, value in points:
        minutes.setdefault(int(minute), []).append(value)
    return [round(float(np.percentile(minutes[minute], percentile)), 4) for minute in sorted(minutes)]


def manifest(what: str, options: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(options).items() if name not in ("out", "what")}
    return {
        "measures": what,
        "options": values,
        "version": __version__,
        "commit": commit(),
        "machine": machine() | {"python": platform.python_version()},
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# An hour of everything at once.


@dataclass(kw_only=True)
class Load:
    """What all clients of the load saw.

    Attributes:
        heard: (minute in which it began, session) of every live session that was to come to its end.
        lost: why sessions and requests came to nothing, with their number.
        others: what slow and vanishing clients did and saw, with its number.
        answer_s: seconds until each upload was answered, refusals and pauses included.
        texts: of each recording that was uploaded.
        machine: minute, memory in MiB, processor seconds of service, clients and machine.
    """

    heard: list[tuple[float, Heard]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    answer_s: list[float] = field(default_factory=list)
    texts: dict[int, set[str]] = field(default_factory=dict)
    machine: list[tuple[float, float, float, float, float]] = field(default_factory=list)


_LEAST_S = 4.0
"""A session that would be shorter is not begun any more."""
_SURELY_SPEECH_S = 20.0
"""Every part of the recordings that is so long has speech."""
_MORE_LIVE = 200
"""Live sessions beyond those of the clients: sessions of clients that vanished wait for a minute for their return."""


def under_load(options: argparse.Namespace) -> dict[str, Any]:
    """Live sessions without a break for the whole time, beside uploads, slow and vanishing clients.

    Sessions that the machine does not hold by themselves are halved before, so that the load is one that it can carry.
    """
    others = psutil.cpu_percent(interval=5.0) / 100 * (psutil.cpu_count() or 1)
    carried, trials = options.live, []
    while True:
        trials.append(trial(carried, True, options))
        Console(stderr=True).print(trials[-1])
        if trials[-1]["held"] or carried == 1:
            break
        carried = max(1, carried // 2)
        Console(stderr=True).print(f"over what this machine carries now; {carried} sessions are tried")
    limits = ["--max-live", str(carried + _MORE_LIVE), *ONE_CLIENT, "--max-per-minute", "100000"]
    seen = Load()
    with service("--engine", options.engine, *limits) as served:
        asyncio.run(_everybody(served, carried, seen, options))
        ended = served.process.is_running() and _is_ready(served.url)
    heard = [one for _, one in seen.heard]
    delays = [(start + second / 60, delay) for start, one in seen.heard for second, delay in one.delays]
    delay_s = _quantiles([delay for _, delay in delays])
    minute, memory, *used_s = (list(map(float, row)) for row in np.array(seen.machine).T)
    cores = [float((used[-1] - used[0]) / (60 * (minute[-1] - minute[0]))) for used in used_s]
    overloads, left_out_s = sum(one.overloads for one in heard), sum(one.lost_s for one in heard)
    seen_s = _quantiles([delay for one in heard for delay in one.seen])
    lost = sum(seen.lost.values())
    return {
        "minutes": options.minutes,
        "live sessions asked for": options.live,
        "live sessions at once": carried,
        "trials": trials,
        "sessions": len(heard),
        "requests": dict(seen.requests),
        "lost": lost,
        "lost_reasons": dict(seen.lost),
        "speech left out, s": left_out_s,
        "overloads": overloads,
        "slow and vanishing clients": dict(sorted(seen.others.items())),
        "different texts of a recording": max(map(len, seen.texts.values()), default=0),
        "texts": len(delays),
        "delay_s": delay_s,
        "delay_seen_by_clients_s": seen_s,
        "clients_late_s": _quantiles([late for one in heard for late in one.late]),
        "answer_s": _quantiles(seen.answer_s),
        "delay_p95_by_minute_s": _by_minute(delays, 95),
        "memory_by_minute_mib": _by_minute([(m, mib) for m, mib in zip(minute, memory, strict=True)]),
        "memory_mib": {"first": memory[0], "last": memory[-1], "largest": max(memory)},
        "memory_slope_mib_per_hour": slope([p[:2] for p in seen.machine if p[0] >= options.minutes / 10]),
        "cores": {
            "there are": len(os.sched_getaffinity(0)),
            "service": cores[0],
            "clients": cores[1],
            "others": cores[2] - cores[0] - cores[1],
            "others before": others,
        },
        "idle": others < _IDLE_CORES,
        "held": bool(
            lost + overloads == 0 and not left_out_s and seen_s and seen_s["p95"] <= options.most_delay_s
        ),
        "ready at the end": ended,
    }


_IDLE_CORES = 0.1
"""A machine that is less busy before counts as idle."""


async def _everybody(served: Service, live: int, seen: Load, options: argparse.Namespace) -> None:
    """All clients until the time is over; then the last sessions come to their end."""
    began = time.monotonic()
    end_s = began + options.minutes * 60
    bodies = [_wav(load(path, 0.0, 4.0)) for path in EXAMPLES]
    watching = asyncio.ensure_future(_watch(served, seen, began, options.every_s))
    rng = np.random.default_rng(0)
    jobs = [_live_client(served.url, i, i / live, end_s, began, seen, options) for i in range(live)]
    jobs += [_uploader(served.url, bodies, end_s, seen, rng) for _ in range(options.uploaders)]
    slow = (_slow_body, _slow_sender, _slow_reader)
    gone = (_vanishing_session, _returning_session, _vanishing_upload)
    for kinds, number in ((slow, options.slow), (gone, options.vanishing)):
        jobs += [_again(kinds[i % 3], served, bodies, end_s, seen, rng, options) for i in range(number)]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("load", total=options.minutes * 60)

        async def tick() -> None:
            while True:
                await asyncio.sleep(1.0)
                bar.update(task, completed=time.monotonic() - began)

        ticking = asyncio.ensure_future(tick())
        await asyncio.gather(*jobs)
        ticking.cancel()
    watching.cancel()


async def _watch(served: Service, seen: Load, began: float, every_s: float) -> None:
    own = psutil.Process()
    while True:
        family = [served.process, *served.process.children(recursive=True)]
        memory, used = 0.0, 0.0
        for one in family:
            with suppress(psutil.NoSuchProcess):  # a decoding process that ended meanwhile
                memory += one.memory_info().rss / 2**20
                used += sum(one.cpu_times()[:2])
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        minute = (time.monotonic() - began) / 60
        seen.machine.append((minute, memory, used, sum(own.cpu_times()[:2]), busy))
        await asyncio.sleep(every_s)


async def _live_client(
    url: str, number: int, start_s: float, end_s: float, began: float, seen: Load, options: argparse.Namespace
) -> None:
    """One session after the other, each of `--seconds`, until the end."""
    await asyncio.sleep(start_s)
    for first in itertools.count(number):
        seconds = min(options.seconds, end_s - time.monotonic())
        if seconds < _LEAST_S:
            return
        minute = (time.monotonic() - began) / 60
        try:
            heard = await listen(url, talk(seconds, first), options)
        except (OSError, WebSocketException) as error:
            heard = Heard(error=f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(1.0)
        seen.heard.append((minute, heard))
        seen.lost.update(_faults(heard))
        if heard.done and not heard.delays and seconds >= _SURELY_SPEECH_S:
            seen.lost["session: without text"] += 1


def _faults(heard: Heard) -> list[str]:
    """Why a session counts as lost, if it does."""
    if heard.error is not None:
        return [f"session: {heard.error}"]
    return [] if heard.done else ["session: ended without `done`"]


async def _uploader(
    url: str, bodies: list[bytes], end_s: float, seen: Load, rng: np.random.Generator
) -> None:
    """Recordings of four seconds, two seconds apart on average; again when the service says so."""
    async with httpx.AsyncClient(timeout=300) as http:
        while time.monotonic() < end_s:
            which, began = int(rng.integers(len(bodies))), time.monotonic()
            seen.requests["requests"] += 1
            while True:
                try:
                    answer = await _upload(http, url, bodies[which])
                except httpx.HTTPError as error:
                    seen.lost[f"request: {type(error).__name__}: {error}"[:200]] += 1
                    break
                if answer.status_code in (429, 503) and "retry-after" in answer.headers:
                    seen.requests["asked to retry"] += 1
                    await asyncio.sleep(min(2.0, float(answer.headers["retry-after"])))
                    continue
                if answer.status_code == 200:
                    seen.requests["answered"] += 1
                    seen.answer_s.append(time.monotonic() - began)
                    seen.texts.setdefault(which, set()).add(answer.json()["text"])
                else:
                    seen.lost[f"request: {answer.status_code} {answer.text}"[:200]] += 1
                break
            await asyncio.sleep(float(rng.exponential(2.0)))


async def _upload(http: httpx.AsyncClient, url: str, body: bytes) -> httpx.Response:
    return await http.post(
        f"{url}/v1/audio/translations",
        files={"file": ("a.wav", body)},
        data={"model": "bundled", "target_language": "de"},
    )


def _wav(samples: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


async def _again(
    act: Callable[[Service, list[bytes], Load, np.random.Generator, argparse.Namespace], Awaitable[str]],
    served: Service,
    bodies: list[bytes],
    end_s: float,
    seen: Load,
    rng: np.random.Generator,
    options: argparse.Namespace,
) -> None:
    """A client that behaves badly, over and over; `act` returns what became of it."""
    while time.monotonic() < end_s - _LEAST_S:
        try:
            async with asyncio.timeout(max(_LEAST_S, end_s - time.monotonic())):
                came = await act(served, bodies, seen, rng, options)
        except TimeoutError:
            came = "went on to the end"
        except (OSError, WebSocketException) as error:
            came = f"{type(error).__name__}"
        seen.others[f"{act.__name__.strip('_').replace('_', ' ')}: {came}"] += 1
        await asyncio.sleep(float(rng.exponential(1.0)))


async def _slow_body(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """An upload of a byte a second."""
    reader, writer = await _raw_upload(served, b"")
    try:
        answer = asyncio.ensure_future(reader.read(4096))
        while not answer.done():
            writer.write(b"-")
            await asyncio.wait({answer}, timeout=1.0)
        return answer.result()[9:12].decode() or "closed"
    finally:
        answer.cancel()
        writer.transport.abort()


async def _vanishing_upload(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """Half of a recording, and the connection is gone."""
    _, writer = await _raw_upload(served, bodies[0][: len(bodies[0]) // 2])
    await asyncio.sleep(float(rng.uniform(0, 2)))
    writer.transport.abort()
    return "vanished"


async def _raw_upload(served: Service, start: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    head = "POST /v1/audio/translations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + part + start)
    return reader, writer


async def _slow_sender(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """A live session of sound that comes ten times as slowly as it was spoken."""
    heard = Heard()
    async with _session(served, options) as (socket, _):
        playing = asyncio.ensure_future(_play(socket, talk(2.0), time.monotonic(), heard, pace=10.0))
        try:
            async for text in socket:
                _note(heard, json.loads(text), 0.0)
        finally:
            playing.cancel()
    seen.lost.update(_faults(heard) if heard.error else [])
    return "done" if heard.done else "not done"


async def _slow_reader(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """A live session whose texts are not read until all sound was sent."""
    heard = Heard()
    async with _session(served, options) as (socket, _):
        await _play(socket, talk(20.0), time.monotonic(), heard)
        async for text in socket:
            _note(heard, json.loads(text), 0.0)
    seen.lost.update(_faults(heard))
    return "all text, read late" if heard.done else "not done"


async def _vanishing_session(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """A live session whose client is gone in the middle, without a word."""
    async with _session(served, options) as (socket, _):
        with suppress(TimeoutError):
            async with asyncio.timeout(float(rng.uniform(2, 10))):
                await _play(socket, talk(30.0), time.monotonic(), Heard())
        socket.transport.abort()
    return "vanished"


async def _returning_session(
    served: Service, bodies: list[bytes], seen: Load, rng: np.random.Generator, options: argparse.Namespace
) -> str:
    """The same, which comes back, sends what the service has not got, and is to lose nothing."""
    samples, heard, last = talk(20.0), Heard(), 0
    async with _session(served, options) as (socket, started):
        with suppress(TimeoutError):
            async with asyncio.timeout(float(rng.uniform(2, 10))):
                await _play(socket, samples, time.monotonic(), heard)
        socket.transport.abort()
        with suppress(WebSocketException):
            async for text in socket:
                message = json.loads(text)
                _note(heard, message, 0.0)
                last = message.get("seq", last)
    await asyncio.sleep(float(rng.uniform(0, 3)))
    async with connect(served.url.replace("http", "ws") + "/v1/live", max_queue=None) as socket:
        await socket.send(json.dumps({"type": "resume", "session": started["session"], "after": last}))
        answer = json.loads(await socket.recv())
        if answer["type"] == "error":
            seen.lost[f"resumed session: {answer['message']}"] += 1
            return "refused"
        rest = samples[round(answer["received_s"] * RATE) :]
        playing = asyncio.ensure_future(_play(socket, rest, time.monotonic(), heard))
        try:
            async for text in socket:
                _note(heard, json.loads(text), 0.0)
        finally:
            playing.cancel()
    seen.lost.update(f"resumed {fault}" for fault in _faults(heard))
    return "vanished, came back, lost nothing" if heard.done else "not done"


@asynccontextmanager
async def _session(served: Service, options: argparse.Namespace) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """A live session that has begun."""
    async with connect(served.url.replace("http", "ws") + "/v1/live", max_queue=None) as socket:
        await socket.send(json.dumps({"type": "start", "targets": options.targets, "policy": options.policy}))
        yield socket, json.loads(await socket.recv())


MEASURES = {"sessions": sessions, "uploads": uploads, "soak": soak, "load": under_load, "curve": curve}
QUICK: dict[str, Any] = {
    "seconds": 6.0,
    **dict.fromkeys(("most_sessions", "most_processes"), 2),
    "uploads": 20,
    "clients": 5,
    "minutes": 0.1,
    "every_s": 1.0,
    "shape": "tiny",
    "curve_clients": [1, 4],
    "rounds": 1,
    "live": 2,
    **dict.fromkeys(("slow", "vanishing"), 3),
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
    parser.add_argument("--rounds", type=int, default=3, help="of the curve")
    parser.add_argument("--workers", type=int, default=1, help="of the service, beside one")
    parser.add_argument("--threads", type=int, help="of all workers together; all cores by default")
    parser.add_argument(
        "--real-length", action="store_true", help="the curve's service does not fill speech up to 30 s"
    )
    parser.add_argument("--peers", help="interpreter of the peers' environment, for the curve")
    parser.add_argument("--live", type=int, default=32, help="sessions at once of the load")
    parser.add_argument("--uploaders", type=int, default=2, help="beside them")
    parser.add_argument("--slow", type=int, default=9, help="slow clients beside them")
    parser.add_argument("--vanishing", type=int, default=9, help="clients that vanish beside them")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    out = options.out or ROOT / "benchmarks" / f"serving_{options.what}.json"
    result = {"manifest": manifest(options.what, options), **MEASURES[options.what](options)}
    result["rows"] = rows_of(options.what, result)
    Console().print({name: value for name, value in result.items() if name != "trials"})
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
