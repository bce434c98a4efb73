"""Time of a prefix and of a token in a causal language model on the native kernels: linear layers one by one, or whole.

The weights are random. Both ways share them, packed, and take turns in this process, so that a slow moment of the
machine hits both; the table has medians and ranges of milliseconds. Shapes are those of published decoders.
Torch's threads wait as in the command (`sprachbund.cli.startup`).
Run: GOMP_SPINCOUNT=5000 python -m benchmarks.causal_lm --threads 2 --repeats 7
"""

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.rows import keep
from rich.progress import track
from torch import nn

from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_causal import NativeCausalLM
from sprachbund.engines.native_linear import matrix_of, pack_linears, with_native_linears
from sprachbund.nn.causal_lm import CausalLM, CausalShape

SHAPES = {
    "Qwen3-ASR 0.6B": CausalShape(
        vocabulary_size=151_936,
        width=1024,
        inner_width=3072,
        num_layers=28,
        num_heads=16,
        num_key_heads=8,
        head_width=128,
        context=65_536,
        tied=True,
        head_norms=True,
    ),
    "a sixteenth of it": CausalShape(
        vocabulary_size=9496,
        width=512,
        inner_width=1536,
        num_layers=7,
        num_heads=8,
        num_key_heads=4,
        head_width=128,
        context=65_536,
        tied=True,
        head_norms=True,
    ),
}


def random_model(shape: CausalShape, seed: int) -> CausalLM:
    """Weights of about the size that training gives, in 16 bits as published ones are stored."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = CausalLM(shape)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.ones_(parameter) if parameter.ndim == 1 else parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


@torch.inference_mode()
def run(llm: Any, prefixes: list[torch.Tensor], tokens: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of reading the prefixes, and of one token of every row."""
    start = time.perf_counter()
    cache = llm.start(prefixes, capacity=tokens.shape[1], num_memories=len(prefixes))
    read = time.perf_counter()
    for token in tokens.split(1, 1):
        llm.step(token, cache)
    end = time.perf_counter()
    return 1000 * (read - start), 1000 * (end - read) / tokens.shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="Qwen3-ASR 0.6B")
    parser.add_argument("--weights", choices=["int8", "int4"], default="int8")
    parser.add_argument("--isa", help="kernels; the best that run here by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prefix", type=int, default=390)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    isa = choose_instruction_set(args.isa)
    model = random_model(SHAPES[args.shape], args.seed)
    arrays, team = pack_linears(model, args.weights), native().Team(args.threads)
    ways: dict[str, Any] = {
        "linear layers one by one": with_native_linears(model, partial(matrix_of, arrays), team, isa),
        "whole": NativeCausalLM(model, arrays, team, isa),
    }
    torch.set_num_threads(args.threads)
    prefixes = [torch.randn(args.prefix, model.width, dtype=model.dtype) for _ in range(args.rows)]
    tokens = torch.randint(0, model.vocabulary_size, (args.rows, args.tokens))
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for repeat in track(range(args.repeats + 1)):
        for way, llm in ways.items():
            taken = run(llm, prefixes, tokens)
            if repeat:  # the first warms up
                times[way].append(taken)
    rows = []
    for way, taken in times.items():
        columns = dict(zip((f"prefix of {args.prefix}", "a token"), zip(*taken, strict=True), strict=True))
        shown = {name: f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})" for name, ms in columns.items()}
        rows.append({"computed": way, **shown})
    about = {"kernels": isa, "threads": args.threads, "shape": args.shape}
    print(about)
    keep(args.out, {**about, "weights": args.weights, "rows": rows}, f"milliseconds, {args.rows} rows")


if __name__ == "__main__":
    main()
