"""Time per token and per 30 s window of our Whisper beside transformers, on the same random weights.

Both run in this process, one after the other within every repeat, so that a slow moment of the machine hits
both; the table gives medians and spreads. Run: python -m benchmarks.whisper_step --threads 2 --repeats 7
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import transformers
from benchmarks.rows import write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from sprachbund.models.base import Features
from sprachbund.models.whisper import PRESETS, Whisper, WhisperConfig
from sprachbund.models.whisper.io import from_transformers

T = TypeVar("T")
PROMPT = [50258, 50259, 50359, 50363]  # start, English, transcribe, no timestamps
SYSTEMS = ("sprachbund", "transformers")
MEASURES = ("encode a window", "prompt pass", "one token", "whole window")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Milliseconds of one system in one repeat, in the order of MEASURES, and the last logits."""

    times_ms: tuple[float, ...]
    logits: Tensor


def build(config: WhisperConfig, dtype: torch.dtype) -> tuple[Whisper, WhisperForConditionalGeneration]:
    """Both models around one copy of the weights."""
    reference = (
        WhisperForConditionalGeneration(transformers.WhisperConfig(**config.to_transformers()))
        .to(dtype)
        .eval()
    )
    ours = Whisper.shape(config)
    ours.load_state_dict(
        from_transformers(reference.state_dict(), ours, source="random weights"), assign=True
    )
    return ours.eval(), reference


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and how many milliseconds it took."""
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def run_ours(model: Whisper, mel: Tensor, tokens: Tensor) -> Run:
    features = Features(values=mel, num_frames=torch.full((len(mel),), mel.shape[1]))
    memory, encode_ms = timed(lambda: model.encode(features))
    start = time.perf_counter()
    cache = model.start(memory)
    model.step(torch.tensor([PROMPT]), cache)
    prompt_ms = 1000 * (time.perf_counter() - start)
    logits, decode_ms = timed(lambda: [model.step(token, cache) for token in tokens.split(1, dim=1)][-1])
    return summarize(logits, encode_ms, prompt_ms, decode_ms, tokens.shape[1])


def run_transformers(model: WhisperForConditionalGeneration, mel: Tensor, tokens: Tensor) -> Run:
    turned = mel.transpose(1, 2).contiguous()
    states, encode_ms = timed(lambda: model.model.encoder(turned).last_hidden_state)

    def step(token: Tensor, cache: object = None) -> transformers.modeling_outputs.Seq2SeqLMOutput:
        return model(
            encoder_outputs=(states,), decoder_input_ids=token, past_key_values=cache, use_cache=True
        )

    prompted, prompt_ms = timed(lambda: step(torch.tensor([PROMPT])))
    cache = prompted.past_key_values
    outputs, decode_ms = timed(lambda: [step(token, cache) for token in tokens.split(1, dim=1)][-1])
    return summarize(outputs.logits, encode_ms, prompt_ms, decode_ms, tokens.shape[1])


def summarize(logits: Tensor, encode_ms: float, prompt_ms: float, decode_ms: float, num_tokens: int) -> Run:
    whole_ms = encode_ms + prompt_ms + decode_ms
    return Run(times_ms=(encode_ms, prompt_ms, decode_ms / num_tokens, whole_ms), logits=logits)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run both, interleaved; the first repeat warms up and is not counted."""
    config, dtype = PRESETS[args.shape], getattr(torch, args.dtype)
    torch.manual_seed(args.seed)
    ours, reference = build(config, dtype)
    mel = torch.randn(1, 2 * config.max_frames, config.num_mel_bins, dtype=dtype)
    tokens = torch.randint(0, config.vocabulary_size, (1, args.tokens))
    times: dict[str, list[tuple[float, ...]]] = {system: [] for system in SYSTEMS}
    difference = 0.0
    for repeat in track(range(args.repeats + 1), description="repeats"):
        runs = (run_ours(ours, mel, tokens), run_transformers(reference, mel, tokens))
        difference = max(difference, (runs[0].logits - runs[1].logits).abs().max().item())
        for system, run in zip(SYSTEMS, runs, strict=True):
            if repeat:
                times[system].append(run.times_ms)
    return {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "versions": {"transformers": transformers.__version__},
        "model": asdict(config),
        "largest_logit_difference": difference,
        "ms": {
            system: {
                name: list(column) for name, column in zip(MEASURES, zip(*rows, strict=True), strict=True)
            }
            for system, rows in times.items()
        },
    }


def report(result: dict[str, object]) -> Table:
    """Medians, spreads and the ratio of the medians of each repeat's pair."""
    table = Table(title="ms, median (smallest to largest)")
    rows = table_rows(result)
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row.values())
    return table


def table_rows(result: dict[str, object]) -> list[dict[str, str]]:
    """One row for each measure: both systems and their ratio, taken repeat by repeat."""
    times: dict[str, dict[str, list[float]]] = result["ms"]  # type: ignore[assignment]
    rows = []
    for name in MEASURES:
        ours, theirs = (times[system][name] for system in SYSTEMS)
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        cells = (name, spread(ours), spread(theirs), spread(ratios))
        rows.append(dict(zip(("measure", *SYSTEMS, "transformers / sprachbund"), cells, strict=True)))
    return rows


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="small", choices=sorted(PRESETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=50, help="tokens decoded after the prompt")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/whisper_step.json"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        result = measure(args)
    result["rows"] = table_rows(result)
    write(args.out, result)
    console = Console()
    console.print(report(result))
    console.print(
        f"largest difference of logits: {result['largest_logit_difference']:.1e}; times in {args.out}"
    )


if __name__ == "__main__":
    main()
