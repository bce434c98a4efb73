"""Products of a few rows with a weight: torch's own, with the weight packed for oneDNN, and in 8 bits.

A decoder's step is made of them. There are as many weights as do not fit into the processor's cache, and they take
turns, as in a decoder; microseconds of one thread, the ways alternating, median and range.
Run: python -m benchmarks.few_rows
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.rows import keep
from rich.progress import track
from torch import Tensor, nn

from sprachbund.engines.torch_layers import Int8Linear, PackedLinear, plain_linear

SHAPES = {
    "recipe, 160 to 640": (160, 640),
    "base, 512 to 2048": (512, 2048),
    "medium, 1024 to 4096": (1024, 4096),
}
ROWS = (1, 2, 5, 1500)
HELD_NUMBERS = 60_000_000
BUSY_S = 0.02


def ways(inputs: int, outputs: int) -> dict[str, list[nn.Module]]:
    """Products with different weights, by how they are computed; small models are left in the cache."""
    count = max(1, HELD_NUMBERS // (inputs * outputs)) if inputs > 200 else 12
    weights = [torch.randn(outputs, inputs) for _ in range(count)]
    halves = [weight.bfloat16() for weight in weights]
    return {
        "fp32": [plain_linear(weight) for weight in weights],
        "fp32, packed": [PackedLinear(weight, None) for weight in weights],
        "bf16": [plain_linear(weight) for weight in halves],
        "bf16, packed": [PackedLinear(weight, None) for weight in halves],
        "int8": [Int8Linear(weight, None) for weight in weights],
    }


def timed_us(parts: list[nn.Module], x: Tensor) -> Callable[[], float]:
    """What takes turns with all weights for a while; microseconds of one product."""
    turn = cycle(parts)

    def measure() -> float:
        began, done = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < BUSY_S:
            for _ in range(8):
                next(turn)(x)
            done += 8
        return 1e6 * took / done

    return measure


@torch.inference_mode()
def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """A row of the table for each number of rows."""
    inputs, outputs = SHAPES[name]
    made, measured = ways(inputs, outputs), []
    for rows in ROWS:
        x = torch.randn(rows, inputs)
        tries = {way: timed_us(parts, x.bfloat16() if "bf16" in way else x) for way, parts in made.items()}
        times: dict[str, list[float]] = {way: [] for way in tries}
        for repeat in range(repeats + 1):
            for way, go in tries.items():
                us = go()
                if repeat:
                    times[way].append(us)
        shown = {way: f"{median(us):.1f} ({min(us):.1f} to {max(us):.1f})" for way, us in times.items()}
        measured.append({"weight of": name, "rows": rows, **shown})
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in track(SHAPES) for row in measure(name, args.repeats)]
    keep(args.out, {"repeats": args.repeats, "rows": rows}, "microseconds of one thread")


if __name__ == "__main__":
    main()
