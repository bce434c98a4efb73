"""Whole runs of two checkouts in turn: the command line, loading, translating, live text, requests of the service.

Both have the bundled model of the former one. Each has its native engine compiled in place
(`python setup.py build_ext --inplace`).
Run: python -m benchmarks.two_checkouts BEFORE NOW --rounds 5 --out docs/results/house_speed.json
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from benchmarks.rows import keep

RECORDINGS = Path(__file__).parents[1] / "examples" / "recordings"
TIMED = """
import sys, time, sprachbund
began = time.perf_counter()
model = sprachbund.load(sys.argv[1], engine="native")
loaded = time.perf_counter() - began
model.translate(sys.argv[2], to="de")
times = []
for _ in range(5):
    began = time.perf_counter()
    for file in sys.argv[2:]:
        model.translate(file, to="de")
    times.append(time.perf_counter() - began)
print(loaded, sorted(times)[2])
"""
ROWS = (
    "command line",
    "load the model",
    "translate, model loaded",
    "live text, as fast as it goes",
    "service, a request",
)
REQUESTS = 10  # with each recording, one after another


def seconds(checkout: Path, model: str, files: list[str]) -> list[float]:
    """Seconds of `ROWS`, in their order; those of the command line and of live text include the start of Python."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    program, chosen = [sys.executable, "-m", "sprachbund"], ["--engine", "native", "--model", model]

    def timed(*command: str) -> float:
        began = time.perf_counter()
        asked = [*program, *command, "--to", "de", *chosen]
        subprocess.run(asked, env=environment, check=True, capture_output=True)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as out:
        whole = timed("translate", *files, "--format", "txt", "--out", out)
    inside = [sys.executable, "-c", TIMED, model, *files]
    done = subprocess.run(inside, env=environment, check=True, capture_output=True, text=True)
    loaded, translated = map(float, done.stdout.split())
    live = sum(timed("listen", file, "--fast") for file in files)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served = [*program, "serve", "--port", str(port), "--no-key", *chosen]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(served, env=environment, stdout=quiet, stderr=quiet) as service:
        try:
            request = request_seconds(f"http://127.0.0.1:{port}", files)
        finally:
            service.terminate()
    return [whole, loaded, translated, live, request]


def request_seconds(url: str, files: list[str]) -> float:
    """Mean of all requests but the first one with each recording."""
    with httpx.Client(base_url=url, timeout=60) as client:
        until = time.monotonic() + 60
        while not _ready(client):
            if time.monotonic() > until:
                raise SystemExit(f"the service at {url} is not ready after 60 s")
            time.sleep(0.1)
        model = client.get("/v1/models").json()["data"][0]["id"]
        total = 0.0
        for file in files:
            for number in range(REQUESTS + 1):
                began = time.perf_counter()
                answer = client.post(
                    "/v1/audio/translations",
                    files={"file": (Path(file).name, Path(file).read_bytes())},
                    data={"model": model},
                )
                answer.raise_for_status()
                total += (time.perf_counter() - began) * (number > 0)
    return total / (REQUESTS * len(files))


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").is_success
    except httpx.TransportError:
        return False


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure both in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    files = sorted(str(path) for path in RECORDINGS.iterdir())
    checkouts = (given.before.resolve(), given.now.resolve())
    model = str(checkouts[0] / "src/sprachbund/models/assets/bundled")
    runs = [[seconds(checkout, model, files) for checkout in checkouts] for _ in range(given.rounds)]
    rows = []
    for number, what in enumerate(ROWS):
        sides = [[run[side][number] for run in runs] for side in (0, 1)]
        before, now = (f"{statistics.median(s):.3g} ({min(s):.3g} to {max(s):.3g})" for s in sides)
        ratio = statistics.median(sides[1]) / statistics.median(sides[0])
        rows.append({"what": what, "before s": before, "now s": now, "ratio": round(ratio, 2)})
    about = {"engine": "native", "rounds": given.rounds}
    commits = dict(zip(("before", "now"), map(_commit, checkouts), strict=True))
    keep(given.out, {**about, **commits, "rows": rows})


if __name__ == "__main__":
    main()
