"""The engine's products in 8 bits beside oneDNN's, at the shapes of Whisper small.

Both multiply the same unsigned activations, quantized before, by the same signed weights, and write float32: the
engine by its packed weights, oneDNN (inside torch) by weights that it laid out beforehand. They alternate; GOPS of one
thread by its own clock (two operations for a product and its sum), median and range. Each has as many weights as do not
fit into the processor's cache, and they take turns, as in a model. oneDNN is held to the instruction set asked for.
Without dot products of 8 bits, oneDNN adds pairs of products in 16 bits, which saturate; the engine's do not. So the
largest difference between the two stands beside them, relative to the largest result.

Run on an idle machine, half a minute each:

    python -m benchmarks.int8_products --processor "AMD EPYC (Zen 4)" --idle
    python -m benchmarks.int8_products --processor "AMD EPYC (Zen 4)" --idle --instruction-set avx512_vnni
    python -m benchmarks.int8_products --processor "AMD EPYC (Zen 4)" --idle --instruction-set avx2
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from benchmarks.bounds import Row, replace_rows

from sprachbund.engines.extension import INSTRUCTION_SET, choose_instruction_set, native
from sprachbund.engines.packing import pack_matrix
from sprachbund.util.processor import processor_name

SHAPES = {"attention": (768, 768), "feed-forward, first": (768, 3072), "feed-forward, second": (3072, 768)}
ROWS = (1, 5, 1500)
HELD_BYTES = 60_000_000
BUSY_S = 0.05
ISA_OF_ONEDNN = {
    "avx2": "AVX2",
    "avx_vnni": "AVX2_VNNI",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512": "AVX512_CORE_BF16",
    "amx": "AVX512_CORE_AMX",
}
SCALE, ZERO = 0.01, 128
"""Of the activations."""


Product = Callable[[], torch.Tensor]


def ways(inputs: int, outputs: int, rows: int) -> dict[str, list[Product]]:
    """Products of one activation with different weights, by who computes them.

    Args:
        inputs: width of the activations.
        outputs: width of the results.
        rows: number of tokens.
    """
    torch.manual_seed(0)
    values = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    scales, out = torch.full((rows,), SCALE), torch.empty(rows, outputs)
    isa, product = choose_instruction_set(), native().product
    onednn = torch.ops.onednn
    made: dict[str, list[Product]] = {"sprachbund": [], "oneDNN": []}
    for _ in range(max(1, HELD_BYTES // (inputs * outputs))):
        weight = torch.randn(outputs, inputs)
        matrix = {name: part.contiguous() for name, part in pack_matrix("matrix", weight).items()}
        scale = weight.abs().amax(1) / 127
        packed = onednn.qlinear_prepack((weight / scale[:, None]).round().to(torch.int8), [rows, inputs])
        zeros = torch.zeros(outputs, dtype=torch.int32)

        def ours(matrix: dict[str, torch.Tensor] = matrix) -> torch.Tensor:
            product(isa, values, scales, matrix, outputs, out, "keep")
            return out

        def theirs(
            packed: torch.Tensor = packed, scale: torch.Tensor = scale, zeros: torch.Tensor = zeros
        ) -> torch.Tensor:
            return onednn.qlinear_pointwise(
                values, SCALE, ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )

        made["sprachbund"].append(ours)
        made["oneDNN"].append(theirs)
    return made


def gops(turn: "cycle[Product]", operations: int) -> float:
    """Of one thread, over `BUSY_S` seconds of its own."""
    began, done = time.thread_time(), 0
    while (took := time.thread_time() - began) < BUSY_S:
        next(turn)()
        done += 1
    return operations * done / took / 1e9


def shown(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


@torch.inference_mode()
def measure(about: Row, name: str, rows: int, repeats: int) -> Row:
    """A row of the table."""
    inputs, outputs = SHAPES[name]
    made = ways(inputs, outputs, rows)
    ours, theirs = (products[0]() for products in made.values())
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    turns = {way: cycle(products) for way, products in made.items()}
    speeds: dict[str, list[float]] = {way: [] for way in turns}
    for repeat in range(repeats + 1):
        for way, turn in turns.items():
            value = gops(turn, 2 * rows * inputs * outputs)
            if repeat:  # the first time is for the caches
                speeds[way].append(value)
    ratios = [one / other for one, other in zip(*speeds.values(), strict=True)]
    return {
        **about,
        "weight": f"{name}, {inputs} to {outputs}",
        "tokens": rows,
        **{f"{way}, GOPS": shown(values) for way, values in speeds.items()},
        "ratio": f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "largest difference": f"{difference:.1g}",
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processor", default=processor_name(), help="hypervisors hide which it is")
    parser.add_argument("--instruction-set", choices=sorted(ISA_OF_ONEDNN), help="in place of the best")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--idle", action="store_true", help="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.instruction_set:
        os.environ[INSTRUCTION_SET] = args.instruction_set
        os.environ["ONEDNN_MAX_CPU_ISA"] = ISA_OF_ONEDNN[args.instruction_set]  # read at its first product
    torch.set_num_threads(1)
    about = {
        "processor": args.processor,
        "instruction set": choose_instruction_set(),
        "idle": "yes" if args.idle else "no",
        "torch": torch.__version__,
    }
    rows = [measure(about, name, count, args.repeats) for name in SHAPES for count in ROWS]
    replace_rows(args.out, rows, ("processor", "instruction set"))


if __name__ == "__main__":
    main()
