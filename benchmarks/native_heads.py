"""What drafts gain inside the native engine: speed alone, with random weights and planted acceptance.

Decoders have the shapes of Whisper small and medium, or of medium with half of its layers, as published for the
parasite (arXiv 2508.11189), with a memory of 30 s and the whole vocabulary; or that of
recipes/research/dual_scale_memory_bound.toml, with its vocabulary and a memory of 2.5 s. Drafts are Medusa heads
of one block; a parasite of one block and of a quarter of the layers; a draft model of two layers and the same width, as
Distil-Whisper has. A draft takes all its steps, and its draft tokens are replaced: by the token that the model will
write with the probability asked for, or by another one. The model checks and refuses as always; tokens are compared.
Searches without and with drafts take turns. With one thread, times are processor times of that thread, which other
programs disturb least. Rows of other shapes stay in the file.

Run: python -m benchmarks.native_heads --shape small medium --batch 1 8
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep, machine
from rich.progress import track

from sprachbund.decoding.drafts.base import NativeRun
from sprachbund.decoding.drafts.model import NativeModelRun
from sprachbund.decoding.drafts.network import NativeMedusaRun, NativeParasiteRun
from sprachbund.decoding.logits_process import LogitsProcessor, Suppressed
from sprachbund.decoding.native_search import NativeSearch
from sprachbund.decoding.state import HypothesisBatch
from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import NativeDecoder, NativeParasite
from sprachbund.engines.packing import pack_decoder, pack_matrix
from sprachbund.models.base import Memory
from sprachbund.models.whisper import PRESETS
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import Parasite, ParasiteShape

PROMPT, DRAFT_LAYERS = 4, 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder and what it reads.

    Attributes:
        vocabulary_size: V.
        width: D.
        num_heads: H.
        num_layers: L.
        memory_width: of what it reads.
        frames: T of what it reads.
    """

    vocabulary_size: int
    width: int
    num_heads: int
    num_layers: int
    memory_width: int
    frames: int = 1500


SHAPES = {
    name: Shape(
        vocabulary_size=config.vocabulary_size,
        width=config.width,
        num_heads=config.decoder_heads,
        num_layers=config.decoder_layers,
        memory_width=config.width,
    )
    for name, config in PRESETS.items()
} | {
    "medium, halved": Shape(
        vocabulary_size=51_865, width=1024, num_heads=16, num_layers=12, memory_width=1024
    ),
    "recipe": Shape(vocabulary_size=2006, width=512, num_heads=8, num_layers=12, memory_width=256, frames=32),
}


def random_decoder(name: str, team: Any, num_layers: int | None = None) -> NativeDecoder:
    """Of a shape. Small weights keep its tokens from repeating at once."""
    shape_of = SHAPES[name]
    torch.manual_seed(0)
    decoder = TextDecoder(
        vocabulary_size=shape_of.vocabulary_size,
        max_tokens=448,
        width=shape_of.width,
        num_heads=shape_of.num_heads,
        num_layers=num_layers or shape_of.num_layers,
        memory_width=shape_of.memory_width,
    )
    shape, arrays = pack_decoder(decoder.eval())
    return NativeDecoder(shape, arrays, team, choose_instruction_set())


def random_parasite(decoder: NativeDecoder, num_blocks: int) -> NativeParasite:
    """Beside a decoder, with feed-forwards of four times its width."""
    shape = ParasiteShape(
        width=decoder.shape.width,
        num_heads=decoder.shape.heads,
        num_layers=decoder.shape.num_layers,
        num_blocks=num_blocks,
        feed_forward_width=4 * decoder.shape.width,
        memory_width=decoder.shape.memory_width,
    )
    return NativeParasite(Parasite(shape).eval(), decoder)


def random_heads(width: int, num_heads: int) -> Any:
    """Heads of one block, packed."""
    arrays = {}
    for head in range(num_heads):
        arrays |= pack_matrix(f"{head}.0", torch.randn(width, width) * width**-0.5, torch.zeros(width))
    return native().Heads(arrays, heads=num_heads, blocks=1, width=width)


def started(decoder: NativeDecoder, memory: torch.Tensor, num_tokens: int) -> HypothesisBatch:
    """Rows that have read a prompt and write so many tokens, none of which ends them."""
    rows, size = len(memory), decoder.shape.vocabulary_size
    cache = decoder.start(memory, None, capacity=PROMPT + num_tokens)
    logits = decoder.step(torch.arange(PROMPT).expand(rows, -1) + 10, cache)[:, -1]
    processor = LogitsProcessor(
        suppressed=Suppressed.of([torch.zeros(size, dtype=torch.bool)] * rows, torch.device("cpu")),
        begin_suppressed=None,
        begun=torch.zeros(rows, dtype=torch.bool),
        limits=torch.full((rows,), num_tokens),
        latest=torch.full((rows,), -1),
        times=None,
        end_token=0,
        min_tokens=num_tokens + 1,
    )
    empty = torch.zeros(rows, 0, dtype=torch.long)
    return HypothesisBatch(
        cache=cache,
        logits=logits,
        tokens=empty,
        processor=processor,
        no_speech=[None] * rows,
        num_memories=rows,
    )


def measure(name: str, size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One shape at one size of batch, with every draft and number of draft tokens."""
    team = native().Team(args.threads)
    decoder = random_decoder(name, team)
    width, layers = decoder.shape.width, decoder.shape.num_layers
    shape = SHAPES[name]
    states = torch.randn(size, shape.frames, shape.memory_width, generator=torch.Generator().manual_seed(1))
    memory = Memory(states=states, num_frames=None)
    batch, prompts = started(decoder, states, args.tokens), [list(range(10, 10 + PROMPT))] * size
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    wanted = [row.tokens for row in NativeSearch(batch, prompts).finish(decoder)]
    random = np.random.default_rng(0)
    other = (np.array(wanted) + 1) % decoder.shape.vocabulary_size
    smaller = random_decoder(name, team, DRAFT_LAYERS)
    cache = smaller.start(states, None, capacity=PROMPT + args.tokens)
    parasites = {blocks: random_parasite(decoder, blocks) for blocks in args.blocks or (1, layers // 4)}
    runs: dict[tuple[str, int], NativeRun | None] = {("none", 0): None}
    for k in args.draft_tokens:
        right = random.random(other.shape) < args.acceptance
        planted = np.where(right, wanted, other).tolist()
        runs["Medusa heads", k] = NativeMedusaRun(random_heads(width, k), decoder, planted)
        for blocks, parasite in parasites.items():
            draft = f"parasite, {blocks} block{'s' * (blocks > 1)}"
            runs[draft, k] = NativeParasiteRun(parasite, decoder, memory, planted)
        model: Any = None  # the family of the draft model is asked for nothing inside the search
        runs[f"model, {DRAFT_LAYERS} layers", k] = NativeModelRun(model, cache, smaller, decoder, planted)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    passes, accepted = {}, {}
    changed = dict.fromkeys(runs, 0)
    for _ in track(range(args.repeats), description=f"{name}, batch {size}"):
        for key, run in runs.items():
            search = NativeSearch(batch, prompts)
            began = clock()
            hypotheses = search.finish(decoder, run, key[1])
            seconds[key].append(clock() - began)
            passes[key] = search.passes
            accepted[key] = f"{search.accepted[:, 1:].sum() / max(1, search.checked.sum()):.0%}"
            changed[key] += sum(row.tokens != own for row, own in zip(hypotheses, wanted, strict=True))
    plain = seconds["none", 0]
    ratios = {key: [a / b for a, b in zip(plain, own, strict=True)] for key, own in seconds.items()}
    return [
        {
            "shape": name,
            "batch": size,
            "draft": key[0],
            "draft tokens": key[1],
            "accepted": accepted[key] if key[1] else "",
            "tokens a pass": round((args.tokens - 1) / passes[key], 2),
            "ms a token of every row": round(median(own) / (args.tokens - 1) * 1e3, 2),
            "gain": f"{median(ratios[key]):.2f} ({min(ratios[key]):.2f} to {max(ratios[key]):.2f})",
            "rows changed": changed[key],
        }
        for key, own in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", default=["small", "medium"], choices=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--blocks", type=int, nargs="+", help="of parasites; 1 and a quarter of the layers if absent"
    )
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--acceptance", type=float, default=0.85, help="of a draft token, if those before it were right"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--idle", action="store_true", help="nothing else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/native_heads.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = {
        "kernels": choose_instruction_set(),
        "threads": args.threads,
        "clock": "of the thread" if args.threads == 1 else "of the wall",
        "idle": args.idle,
        "weights": "random; draft tokens planted",
    }
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"rows": []}
    rows = [row for row in before.pop("rows") if row["shape"] not in args.shape]
    now = {"machine": machine(), **about}
    if rows and before != now:
        raise SystemExit(f"{args.out} is of {before}, this is {now}; give another --out")
    with torch.inference_mode():
        for name in args.shape:
            rows += [line for size in args.batch for line in measure(name, size, args)]
            keep(args.out, {**about, "rows": rows})


if __name__ == "__main__":
    main()
