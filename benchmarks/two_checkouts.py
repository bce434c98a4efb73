"""Whole runs of two checkouts in turn: the command line, loading, and translating with a loaded model.

Each has its native engine compiled in place (`python setup.py build_ext --inplace`).
Run: python -m benchmarks.two_checkouts BEFORE NOW --rounds 5 --out docs/results/house_speed.json
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import keep

from sprachbund.util.provenance import machine

RECORDINGS = Path(__file__).parents[1] / "examples" / "recordings"
TIMED = """
import sys, time, sprachbund
began = time.perf_counter()
model = sprachbund.load(engine="native")
loaded = time.perf_counter() - began
model.translate(sys.argv[1], to="de")
times = []
for _ in range(5):
    began = time.perf_counter()
    for file in sys.argv[1:]:
        model.translate(file, to="de")
    times.append(time.perf_counter() - began)
print(loaded, sorted(times)[2])
"""


def seconds(checkout: Path, files: list[str]) -> tuple[float, float, float]:
    """Seconds of the command line, of loading, and of translating all files with a loaded model."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    with tempfile.TemporaryDirectory() as out:
        options = ["--to", "de", "--engine", "native", "--format", "txt", "--out", out]
        command = [sys.executable, "-m", "sprachbund", "translate", *files, *options]
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        whole = time.perf_counter() - began
    done = subprocess.run(
        [sys.executable, "-c", TIMED, *files], env=environment, check=True, capture_output=True, text=True
    )
    loaded, translated = map(float, done.stdout.split())
    return whole, loaded, translated


def main() -> None:
    """Measure both in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    files = sorted(str(path) for path in RECORDINGS.iterdir())
    runs = [(seconds(given.before, files), seconds(given.now, files)) for _ in range(given.rounds)]
    rows = []
    for number, what in enumerate(("command line", "load the model", "translate, model loaded")):
        sides = [[run[side][number] for run in runs] for side in (0, 1)]
        before, now = (f"{statistics.median(s):.3g} ({min(s):.3g} to {max(s):.3g})" for s in sides)
        ratio = statistics.median(sides[1]) / statistics.median(sides[0])
        rows.append({"what": what, "before s": before, "now s": now, "ratio": round(ratio, 2)})
    keep(given.out, {"machine": machine(), "engine": "native", "rounds": given.rounds, "rows": rows})


if __name__ == "__main__":
    main()
