"""How long a start takes: the help, the version, a completion, `import sprachbund`, the first text.

    python -m benchmarks.startup

Each is a process of its own, ten times, in turn so that a busy minute hits all alike; medians and ranges are written.
The last one translates a recording of `examples` with the bundled model and counts until its first line.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.rows import write

from sprachbund.util.provenance import versions

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "sprachbund"]
COMPLETION = {
    "_SPRACHBUND_COMPLETE": "complete_bash",
    "COMP_WORDS": "sprachbund translate --to d",
    "COMP_CWORD": "3",
}
CASES: dict[str, tuple[list[str], Mapping[str, str]]] = {
    "python": ([sys.executable, "-c", "pass"], {}),
    "import sprachbund": ([sys.executable, "-c", "import sprachbund"], {}),
    "sprachbund --version": ([*COMMAND, "--version"], {}),
    "sprachbund --help": ([*COMMAND, "--help"], {}),
    "sprachbund translate --help": ([*COMMAND, "translate", "--help"], {}),
    "completion of --to": (COMMAND, COMPLETION),
    "first text": (
        [*COMMAND, "translate", str(ROOT / "examples/recordings/en.wav"), "--to", "de", "--offline"],
        {},
    ),
}


def start(command: list[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds until a process has written its first line, or ended; and its processor time in all."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **env}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - began
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return seconds if line else time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> list[dict[str, str]]:
    """A row for each case."""
    for command, env in CASES.values():
        start(command, env)  # files come into the system's cache, and modules are compiled
    by_case: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (command, env) in CASES.items():
            by_case[name].append(start(command, env))
    return [
        {"what": name, "seconds": shown(waited), "processor time, s": shown(worked)}
        for name, times in by_case.items()
        for waited, worked in [zip(*times, strict=True)]
    ]


def shown(seconds: Sequence[float]) -> str:
    """Median and range."""
    return f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    result = {
        "versions": versions(),
        "rounds": args.rounds,
        "rows": measure(args.rounds),
    }
    write(args.out, result)


if __name__ == "__main__":
    main()
