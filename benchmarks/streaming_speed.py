"""A streaming transducer on this machine: real-time factor by tier, one stream and many, an hour without end, few bits.

Three parts, a file each. `speed`: for torch, ONNX Runtime and the native engine, in single precision (the first two),
8 and 4 bits, every tier, one stream and 32 as a batch: seconds of computing for a second of one stream's sound,
ratios to torch in single precision, bytes that a stream's state takes. Forms take turns, round by round. `hour`: one
stream for an hour of sound by the stream's clock: a chunk's text is there when the chunk has arrived, the one before
is done and its own computing, as measured, is over; slope of that delay with a 95% interval (bootstrap over minutes)
and the state's bytes. `bits`: k-quant and rounding at 8 to 3 bits: bits per weight, bytes, error of weights and of
the encoder's states, speed.
Without --model the weights are random, in a published or a small shape, and write nothing: encoder and joint network
are timed all the same. Files of other shapes than small have the shape's name.
Run: GOMP_SPINCOUNT=5000 python -m benchmarks.streaming_speed --threads 1
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.rows import keep
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.compression.onnx_export import export
from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import bits_per_weight, quantize_encoder
from sprachbund.decoding.transducer import start_by_frames, transducer_greedy
from sprachbund.engines.choice import engine_for
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer, ConformerConfig, StreamingPart, TransducerPart
from sprachbund.models.io import load
from sprachbund.nn.quantized import packed_layers
from sprachbund.nn.streaming_conformer import SUBSAMPLING, Tier
from sprachbund.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "num_encoder_layers": 2, "feed_forward_width": 128, "num_heads": 4},
    "small": {"width": 256, "num_encoder_layers": 8, "feed_forward_width": 1024, "num_heads": 4},
    "published": {"width": 1024, "num_encoder_layers": 24, "feed_forward_width": 4096, "num_heads": 8},
}
"""`published` is that of arXiv 2606.24169; `small` that of the small replica."""
BITS, METHODS = (8, 6, 5, 4, 3), ("k-quant", "round")
REFERENCE = "torch, fp32"
FORMS = [REFERENCE, "ONNX Runtime, fp32"]
FORMS += [
    f"{engine}, {numbers}" for numbers in ("int8", "int4") for engine in ("torch", "ONNX Runtime", "native")
]
TableRows = list[dict[str, Any]]


def random_model(shape: str) -> Conformer:
    """Random weights that never choose a token."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["one two three four five six seven eight nine ten"], ["en"], 40)
    config = ConformerConfig(
        **SHAPES[shape],
        kernel_size=9,
        num_decoder_layers=0,
        source_languages=("en",),
        target_languages=("en",),
        streaming=StreamingPart(),
        transducer=TransducerPart(prediction_width=640 if shape != "tiny" else 64),
    )
    model = Conformer(config, tokenizer, tokenizer).eval()
    with torch.no_grad():
        model.transducer.joint.out.bias[0] = 1e3
    return model


def forms(model: Conformer, folder: Path, names: list[str]) -> dict[str, Any]:
    """The model on torch and on ONNX Runtime, in single precision and in 8 and 4 bits, and natively in these two."""
    models: dict[str, Any] = {}
    for name, bits in (("fp32", None), ("int8", 8), ("int4", 4)):
        here = copy.deepcopy(model)
        if bits is not None and not packed_layers(model):
            quantize_encoder(here, KQuantOptions(bits=bits))
        if (torch_name := f"torch, {name}") in names:
            models[torch_name] = here
        if (onnx_name := f"ONNX Runtime, {name}") in names:
            export(here, folder / name)
            models[onnx_name] = load(folder / name)
        if (native_name := f"native, {name}") in names:
            models[native_name] = engine_for(here, "native", compare=False).family
    return models


def sound(num_mel: int, num_rows: int, bins: int) -> Tensor:
    """Features in the range of speech; what they say costs nothing."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num_rows, num_mel, bins, generator=generator) * 2 - 1


def targets(model: Any, num_rows: int) -> list[Target]:
    return [Target(language=model.config.target_languages[0])] * num_rows


def chunk_steps(model: Any, tier: Tier, num_rows: int) -> Iterator[float]:
    """Seconds of computing for one chunk of all rows after another, without end."""
    encoder, size = model.encoder, tier.chunk * SUBSAMPLING
    mel, full = sound(size, num_rows, encoder.shape.num_mel_bins), torch.full((num_rows,), size)
    state, writers = encoder.start(num_rows, tier), start_by_frames(model, targets(model, num_rows))
    while True:
        began = time.perf_counter()
        with torch.inference_mode():
            states, num_frames, state = encoder.stream(mel, full, state, tier)
            _, writers = transducer_greedy(model.transducer, states, num_frames, writers)
        yield time.perf_counter() - began


def state_bytes(model: Any, tier: Tier) -> int:
    """What one stream holds between chunks."""
    tensors = (
        *model.encoder.start(1, tier).tensors().values(),
        *model.transducer.start(1).tensors().values(),
    )
    return sum(tensor.nbytes for tensor in tensors)


def chunk_s(tier: Tier) -> float:
    return tier.chunk * SUBSAMPLING * HOP / SAMPLE_RATE


def speed_rows(models: dict[str, Any], streams: list[int], rounds: int, seconds: float) -> TableRows:
    rows = []
    tiers = next(iter(models.values())).encoder.tiers
    for tier in track(tiers, "speed", console=Console(stderr=True)):
        for count in streams:
            num_chunks = max(2, round(seconds / chunk_s(tier)))
            steps = {name: chunk_steps(model, tier, count) for name, model in models.items()}
            times: dict[str, list[float]] = {name: [] for name in models}
            for number in range(rounds + 1):  # the first warms up, and fills the past
                for name, step in steps.items():
                    spent = sum(next(step) for _ in range(num_chunks))
                    if number:
                        times[name].append(spent / (num_chunks * chunk_s(tier) * count))
            for name, factors in times.items():
                rows.append(
                    {
                        "form": name,
                        "right context": tier.right,
                        "latency ms": round(1000 * chunk_s(tier)),
                        "streams": count,
                        "real-time factor": rounded(median(factors)),
                        "least": rounded(min(factors)),
                        "most": rounded(max(factors)),
                        "times faster": rounded(median(times[REFERENCE]) / median(factors)),
                        "state KB a stream": round(state_bytes(models[name], tier) / 1000),
                    }
                )
    return rows


def hour_rows(models: dict[str, Any], hours: float) -> TableRows:
    rows = []
    for name in (REFERENCE, "ONNX Runtime, int4"):
        for tier in track(models[name].encoder.tiers, f"hour, {name}", console=Console(stderr=True)):
            steps, length = chunk_steps(models[name], tier, 1), chunk_s(tier)
            ends, delays, done = [], [], 0.0
            for number in range(1, round(hours * 3600 / length) + 1):
                arrived = number * length
                done = max(arrived, done) + next(steps)
                ends.append(arrived)
                delays.append(done - arrived)
            slope, low, high = slope_with_interval(np.array(ends), np.array(delays))
            rows.append(
                {
                    "form": name,
                    "right context": tier.right,
                    "hours": hours,
                    "delay ms": rounded(1000 * float(np.mean(delays))),
                    "p99 ms": rounded(1000 * float(np.quantile(delays, 0.99))),
                    "slope ms/h": rounded(slope),
                    "from": rounded(low),
                    "to": rounded(high),
                    "state KB": round(state_bytes(models[name], tier) / 1000),
                }
            )
    return rows


def slope_with_interval(ends_s: np.ndarray, delays_s: np.ndarray) -> tuple[float, float, float]:
    """Milliseconds an hour by least squares, and 2.5 and 97.5% of 2,000 draws of whole minutes."""
    minutes = (ends_s // 60).astype(int)
    parts = [np.flatnonzero(minutes == minute) for minute in np.unique(minutes)]
    rng = np.random.default_rng(0)

    def slope(index: np.ndarray) -> float:
        return float(np.polyfit(ends_s[index] / 3600, 1000 * delays_s[index], 1)[0])

    def draw() -> np.ndarray:
        return np.concatenate([parts[n] for n in rng.integers(0, len(parts), len(parts))])

    drawn = [slope(draw()) for _ in range(2000)] if len(parts) > 1 else [float("nan")]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return slope(np.arange(len(ends_s))), float(low), float(high)


def bits_rows(model: Conformer, folder: Path, rounds: int) -> TableRows:
    tier, mel = model.encoder.tiers[0], sound(1600, 2, model.encoder.shape.num_mel_bins)
    lengths = torch.full((2,), mel.shape[1])
    with torch.inference_mode():
        plain = model.encoder(mel, lengths)[0]
    rows = []
    for bits in track(BITS, "bits", console=Console(stderr=True)):
        for method in METHODS:
            for symmetric in (False, True):
                made = copy.deepcopy(model)
                options = KQuantOptions(bits=bits, method=method, symmetric=symmetric)  # type: ignore[arg-type]
                layers = quantize_encoder(made, options)
                with torch.inference_mode():
                    states = made.encoder(mel, lengths)[0]
                num_weights = sum(layer.num_weights for layer in layers)
                error = sum(layer.weighted_error * layer.num_weights for layer in layers) / num_weights
                rows.append(
                    {
                        "bits": bits,
                        "method": method,
                        "symmetric": "yes" if symmetric else "no",
                        "bits per weight": rounded(bits_per_weight(layers)),
                        "times smaller": rounded(32 / bits_per_weight(layers)),
                        "error of weights": rounded(error),
                        "error of states": rounded(float((states - plain).norm() / plain.norm())),
                        "times faster, torch": rounded(faster(model, made, tier, rounds)),
                        "times faster, ONNX Runtime": on_onnx(model, made, tier, rounds, folder, options),
                    }
                )
    return rows


def on_onnx(model: Any, made: Any, tier: Tier, rounds: int, folder: Path, options: KQuantOptions) -> Any:
    """Beside torch in single precision; exported once for each of 8 and 4 bits, since the method changes no speed."""
    if options.bits not in (4, 8) or options.method != "k-quant" or options.symmetric:
        return None
    export(made, folder / f"bits{options.bits}")
    return rounded(faster(model, load(folder / f"bits{options.bits}"), tier, rounds))


def faster(before: Any, after: Any, tier: Tier, rounds: int) -> float:
    """How many times, by the median over rounds of some chunks in turn."""
    steps = [chunk_steps(each, tier, 1) for each in (before, after)]
    times = [[sum(next(step) for _ in range(4)) for step in steps] for _ in range(rounds + 1)][1:]
    return median(first for first, _ in times) / median(second for _, second in times)


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def report(name: str, rows: TableRows, out: Path, what: dict[str, Any]) -> None:
    """Write a file and print it."""
    keep(out / f"streaming_{name}.json", {**what, "rows": rows}, title=name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a model directory; random weights without")
    parser.add_argument("--shape", choices=list(SHAPES), default="small", help="of random weights")
    parser.add_argument(
        "--parts", nargs="+", choices=["speed", "hour", "bits"], default=["speed", "hour", "bits"]
    )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=FORMS, help="the first is in any case one"
    )
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=11.2, help="of sound in a round")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model: Any = load(args.model) if args.model else random_model(args.shape)
    what = {
        "threads": args.threads,
        "model": args.model.name if args.model else f"random weights, {args.shape}",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], TableRows]] = {
            "speed": lambda: speed_rows(models, args.streams, args.rounds, args.seconds),
            "hour": lambda: hour_rows(models, args.hours),
            "bits": lambda: bits_rows(model, folder, args.rounds),
        }
        models = forms(model, folder, [REFERENCE, *args.forms]) if {"speed", "hour"} & set(args.parts) else {}
        of_shape = "" if args.model or args.shape == "small" else f"_{args.shape}"
        for name in args.parts:
            report(f"{name}{of_shape}", parts[name](), args.out, what)


if __name__ == "__main__":
    main()
