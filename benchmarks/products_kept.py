"""What a training in bf16 on a CPU holds of the products of earlier batches: 1,024 shapes of them, or 64.

Steps of a small language model (that of `attention_backward`) on batches that differ in shape, each capacity in a
process of its own with one thread. Memory is the process's, time is processor time. Each capacity is run twice, in both
orders.
Run: python -m benchmarks.products_kept
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch
from benchmarks.attention_backward import language_model
from benchmarks.rows import keep

from sprachbund.util.memory import PRODUCT_CACHES, PRODUCTS_KEPT, keep_freed_memory, remember_few_products

DEFAULT = 1024
STEPS = (100, 200, 400)


def run() -> None:
    """Steps of this process; prints a JSON object for each number of them."""
    torch.set_num_threads(1)
    keep_freed_memory()
    remember_few_products()
    shapes = random.Random(0)
    step = language_model()
    start = time.process_time()
    for number in range(1, max(STEPS) + 1):
        step(shapes.randint(30, 90), torch.bfloat16, rows=shapes.randint(10, 40))
        if number in STEPS:
            mib = psutil.Process().memory_info().rss / 2**20
            print(json.dumps({"steps": number, "mib": mib, "seconds": time.process_time() - start}))


def measured(capacity: int) -> list[dict[str, float]]:
    """What a process says that has the capacity; that of the package is what it sets itself."""
    environment = {name: value for name, value in os.environ.items() if name not in PRODUCT_CACHES}
    if capacity == DEFAULT:
        environment |= dict.fromkeys(PRODUCT_CACHES, str(capacity))
    command = [sys.executable, "-m", "benchmarks.products_kept", "--run"]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    if given.run:
        run()
        return
    runs: dict[int, list[list[dict[str, float]]]] = {DEFAULT: [], PRODUCTS_KEPT: []}
    for capacity in (DEFAULT, PRODUCTS_KEPT, PRODUCTS_KEPT, DEFAULT):
        runs[capacity].append(measured(capacity))
    rows: list[dict[str, Any]] = [
        {
            "shapes": steps,
            **{
                f"MiB, {capacity:,} kept": round(mean(r[n]["mib"] for r in own))
                for capacity, own in runs.items()
            },
            **{
                f"ms a step, {capacity:,} kept": round(1e3 * mean(r[n]["seconds"] for r in own) / steps, 1)
                for capacity, own in runs.items()
            },
        }
        for n, steps in enumerate(STEPS)
    ]
    keep(given.out, {"rows": rows, "runs": {str(capacity): own for capacity, own in runs.items()}})


if __name__ == "__main__":
    main()
