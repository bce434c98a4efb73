"""Time and bytes of a token and of the encoder with linear layers in 4 bits beside 8, at a published Whisper size.

Random weights, since speed does not depend on them. Both forms are asked in turn, round by round, and ratios are taken
within a round, so that a slow moment of the machine hits both. On one thread the time of the processor is counted, and
not what it spends on other programs. Packing 4 bits takes a second for ten million weights.
Run: python -m benchmarks.four_bits --shape small --threads 2
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from benchmarks.rows import write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from sprachbund.engines.extension import choose_instruction_set, native
from sprachbund.engines.native_engine import pack, with_native_modules
from sprachbund.engines.options import NativeOptions, WeightNumbers
from sprachbund.models.base import Features
from sprachbund.models.whisper import PRESETS, Whisper

Clock = Callable[[], float]
KINDS: tuple[WeightNumbers, ...] = get_args(WeightNumbers)


def timed(work: Callable[[], Any], clock: Clock) -> float:
    """Milliseconds."""
    began = clock()
    work()
    return 1000 * (clock() - began)


def engines(args: argparse.Namespace) -> tuple[dict[str, Whisper], dict[str, float]]:
    """The model with weights of each kind, and the seconds that packing took."""
    torch.manual_seed(0)
    config = PRESETS[args.shape]
    model = Whisper(config).eval().requires_grad_(False)
    team, kernels = native().Team(args.threads), choose_instruction_set(args.kernels)
    made, packing_s = {}, {}
    for kind in KINDS:
        began = time.perf_counter()
        packed = pack(model, kind)
        packing_s[kind] = time.perf_counter() - began
        made[kind] = with_native_modules(model, packed, team, kernels, NativeOptions(weights=kind))
    return made, packing_s


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the first warms up and is not counted."""
    made, packing_s = engines(args)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    config, start = PRESETS[args.shape], torch.tensor([[50258, 50259, 50359, 50363]])
    mel = torch.randn(1, 2 * config.max_frames, config.num_mel_bins)
    speech = Features(values=mel[:, : args.encoder_frames], num_frames=torch.tensor([args.encoder_frames]))
    memory = torch.randn(1, config.max_frames, config.width)
    caches = {kind: model.decoder.start(memory, None) for kind, model in made.items()}
    ms: dict[str, dict[str, list[float]]] = {
        kind: {"token": [], "three": [], "encoder": []} for kind in KINDS
    }
    for number in track(range(args.rounds + 1), description="rounds"):
        for kind, model in made.items():
            took = one_round(model, caches[kind], start, speech, args.tokens, clock)
            for name, value in took.items():
                if number:
                    ms[kind][name].append(value)
    rows = [row(kind, made[kind], caches[kind], ms, packing_s[kind]) for kind in KINDS]
    options = {k: v for k, v in vars(args).items() if k != "out"}
    return {"options": options, "rows": rows, "ms": ms}


def one_round(
    model: Whisper, cache: Any, start: Tensor, speech: Features, num_tokens: int, clock: Clock
) -> dict[str, float]:
    """Milliseconds of a token, of three at once, and of the encoder."""
    decoder = model.decoder
    cache.rewind(torch.zeros(1, dtype=torch.long))
    decoder.step(start, cache)

    def steps(width: int) -> None:
        for _ in range(num_tokens):
            decoder.step(start[:, :width], cache)

    return {
        "token": timed(lambda: steps(1), clock) / num_tokens,
        "three": timed(lambda: steps(3), clock) / num_tokens,
        "encoder": timed(lambda: model.encoder(speech.values, speech.num_frames), clock),
    }


def row(
    kind: str, model: Whisper, cache: Any, ms: dict[str, dict[str, list[float]]], packing_s: float
) -> dict[str, Any]:
    """A line of the table; ratios are int8's time over this one's, within a round."""
    memory = sum(x.nbytes for x in (*cache.cross_keys, *cache.cross_values))
    out: dict[str, Any] = {
        "weights": kind,
        "weight_mb": model.decoder.step_bytes / 1e6,
        "mb_a_token": (model.decoder.step_bytes + memory) / 1e6,
        "packing_s": packing_s,
    }
    for name, values in ms[kind].items():
        ratios = [a / b for a, b in zip(ms[KINDS[0]][name], values, strict=True)]
        out |= {f"{name}_ms": median(values), f"{name}_ratio": median(ratios)}
        out[f"{name}_ratios"] = [min(ratios), max(ratios)]
    return out


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(*(name for name in rows[0] if not name.endswith("ratios")))
    for line in rows:
        cells = (value for name, value in line.items() if not name.endswith("ratios"))
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else cell for cell in cells))
    Console().print(table)


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", choices=sorted(PRESETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", help="instruction set; the best there is by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--encoder-frames", type=int, default=500, help="of log-mel; 3000 are 30 s")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        result = measure(args)
    show(result["rows"])
    write(args.out, result)


if __name__ == "__main__":
    main()
