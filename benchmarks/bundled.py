"""What the bundled model costs on this machine: start, real-time factor, time to the first segment, memory.

Every measurement is a fresh process of the real command, so memory and start-up are what a user pays. Recordings
of two lengths are made from the example recordings. Run: python benchmarks/bundled.py --repeats 5
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from sprachbund.audio.load import load

ROOT = Path(__file__).parents[1]
RATE = 16_000
TARGETS = {"one language": "en", "six languages": "en,es,fr,it,de,ru"}
LENGTHS_S = {"30 s": 30, "10 min": 600}


def make_recordings(folder: Path) -> dict[str, Path]:
    """The example recordings, repeated to each length."""
    once = np.concatenate([load(path) for path in sorted((ROOT / "examples" / "recordings").iterdir())])
    paths = {}
    for name, seconds in LENGTHS_S.items():
        paths[name] = folder / f"{seconds}.wav"
        soundfile.write(paths[name], np.resize(once, seconds * RATE), RATE)
    return paths


def measure(recording: Path, targets: str, threads: int) -> tuple[float, float, float]:
    """Seconds in all, seconds to the first text, and peak MiB of one run of the command."""
    command = [sys.executable, "-m", "sprachbund", "translate", str(recording), "--to", targets]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--threads", str(threads)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    first_s = time.perf_counter() - began
    process.stdout.read()
    process.wait()
    took_s = time.perf_counter() - began
    # The children's maximum only grows; measurements go from light to heavy, so it is this run's.
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return took_s, first_s, peak / 1024


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "bundled.json")
    options = parser.parse_args()
    table = Table(
        "recording", "targets", "seconds", "spread", "real-time factor", "first text (s)", "peak MiB"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length, recording in make_recordings(Path(folder)).items():
            for name, targets in TARGETS.items():
                runs = [measure(recording, targets, options.threads) for _ in range(options.repeats)]
                took = [run[0] for run in runs]
                row = {
                    "recording": length,
                    "targets": name,
                    "seconds": median(took),
                    "spread": max(took) - min(took),
                    "real_time_factor": median(took) / LENGTHS_S[length],
                    "first_text_s": median(run[1] for run in runs),
                    "peak_mib": max(run[2] for run in runs),
                }
                rows.append(row)
                table.add_row(
                    length,
                    name,
                    f"{row['seconds']:.2f}",
                    f"{row['spread']:.2f}",
                    f"{row['real_time_factor']:.3f}",
                    f"{row['first_text_s']:.2f}",
                    f"{row['peak_mib']:.0f}",
                )
    Console().print(table)
    machine = {"processor": platform.processor() or platform.machine(), "threads": options.threads}
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
