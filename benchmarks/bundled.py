"""What the bundled model costs on this machine, by engine: start, real-time factor, time to the first text, memory.

Every measurement is a fresh process of the real command, so memory and start-up are what a user pays; engines take
turns. Recordings of two lengths are made from the example recordings. Run: python -m benchmarks.bundled --repeats 5
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
from benchmarks.rows import write
from rich.console import Console
from rich.table import Table

from sprachbund.audio.load import load

ROOT = Path(__file__).parents[1]
RATE = 16_000
TARGETS = {"one language": "en", "six languages": "en,es,fr,it,de,ru"}
LENGTHS_S = {"30 s": 30, "10 min": 600}
ENGINES = ("torch", "native")


def make_recordings(folder: Path) -> dict[str, Path]:
    """The example recordings, repeated to each length."""
    once = np.concatenate([load(path) for path in sorted((ROOT / "examples" / "recordings").iterdir())])
    paths = {}
    for name, seconds in LENGTHS_S.items():
        paths[name] = folder / f"{seconds}.wav"
        soundfile.write(paths[name], np.resize(once, seconds * RATE), RATE)
    return paths


def measure(recording: Path, targets: str, engine: str, threads: int) -> tuple[float, float, float]:
    """Seconds in all, seconds to the first text, and peak MiB of one run of the command."""
    command = [sys.executable, "-m", "sprachbund", "translate", str(recording), "--to", targets]
    options = ["--engine", engine, "--threads", str(threads)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    first_s = time.perf_counter() - began
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, first_s, usage.ru_maxrss / 1024


def row_of(
    length: str, targets: str, engine: str, runs: list[tuple[float, float, float]]
) -> dict[str, str | float]:
    """A line of the table."""
    took = [run[0] for run in runs]
    return {
        "recording": length,
        "targets": targets,
        "engine": engine,
        "seconds": median(took),
        "spread": max(took) - min(took),
        "real_time_factor": median(took) / LENGTHS_S[length],
        "first_text_s": median(run[1] for run in runs),
        "peak_mib": max(run[2] for run in runs),
    }


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "bundled.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length, recording in make_recordings(Path(folder)).items():
            for name, targets in TARGETS.items():
                measured: dict[str, list[tuple[float, float, float]]] = {engine: [] for engine in ENGINES}
                for _ in range(options.repeats):
                    for engine in ENGINES:
                        measured[engine].append(measure(recording, targets, engine, options.threads))
                rows += [row_of(length, name, engine, runs) for engine, runs in measured.items()]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    write(options.out, {"threads": options.threads, "repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
