"""Other ways to compute what the torch engine in 8 bits spends most time on, beside the one it takes.

With the shape of Whisper small: attention of one token over the memory of 30 s, attention in the encoder by how many
queries are taken at once, and a product of 8 bits with its inputs brought to one scale. All ways give the same numbers
to a hundredth. They take turns; processor time of one thread, which a busy machine disturbs little.
Run: python -m benchmarks.torch_int8
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from benchmarks.rows import keep
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sprachbund.engines import torch_layers as torch_parts
from sprachbund.engines.torch_layers import Int8Linear, _seven_bits, attend_in_bf16

HERE = Path(__file__).parent
HEADS, WIDTH, FRAMES = 12, 64, 1500
Ways = dict[str, Callable[[], Tensor]]
"""Ways to the same result by name; the first is what the engine does."""


def over_memory(num_queries: int) -> Ways:
    """Attention over the keys and values of a memory."""
    query = torch.randn(1, HEADS, num_queries, WIDTH)
    key, value = (torch.randn(1, HEADS, FRAMES, WIDTH).bfloat16() for _ in range(2))
    turned = key.transpose(-1, -2).contiguous()
    scaled = (query * WIDTH**-0.5).bfloat16()
    return {
        "plain products": lambda: attend_in_bf16(query, key, value, None),
        "keys laid out by width": lambda: (scaled @ turned).softmax(-1) @ value,
        "keys times queries": lambda: (key @ scaled.transpose(-1, -2)).transpose(-1, -2).softmax(-1) @ value,
        "torch's fused kernel": lambda: scaled_dot_product_attention(query.bfloat16(), key, value),
    }


def in_encoder() -> Ways:
    """Attention of all frames over all, so many at once."""
    query = torch.randn(1, HEADS, FRAMES, WIDTH)
    key, value = (torch.randn(1, HEADS, FRAMES, WIDTH).bfloat16() for _ in range(2))

    def at_once(count: int) -> Tensor:
        torch_parts._QUERIES = count
        return attend_in_bf16(query, key, value, None)

    counts = [torch_parts._QUERIES, *(n for n in (32, 64, 128, 256) if n != torch_parts._QUERIES)]
    return {f"{count} queries at once": lambda count=count: at_once(count) for count in counts}  # type: ignore[misc]


class OneNorm(Int8Linear):
    """The largest input found by one operation in place of two."""

    def forward(self, x: Tensor) -> Tensor:
        peak = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True)
        inputs = torch.cat([x / peak, self._ends])
        return self._times(inputs, peak)

    def _times(self, inputs: Tensor, peak: Tensor) -> Tensor:
        y = torch.ops.quantized.linear_dynamic(inputs, self._packed, _seven_bits())[:-1]
        assert self.bias is not None
        return torch.addcmul(self.bias, y, peak)


class InPlace(OneNorm):
    """Scaled inputs written to where the row of ends lies already."""

    def forward(self, x: Tensor) -> Tensor:
        peak = torch.linalg.vector_norm(x, torch.inf, 1, keepdim=True)
        inputs = x.new_empty(len(x) + 1, self.in_features)
        inputs[-1:] = self._ends
        torch.div(x, peak, out=inputs[:-1])
        return self._times(inputs, peak)


def product(num_rows: int) -> Ways:
    """A feed-forward's first product."""
    width = HEADS * WIDTH
    weight, bias, x = torch.randn(4 * width, width), torch.randn(4 * width), torch.randn(num_rows, width)
    parts = {
        "as it is": Int8Linear,
        "largest input by one operation": OneNorm,
        "and inputs scaled in place": InPlace,
    }
    made = {name: kind(weight, bias) for name, kind in parts.items()}
    return {name: lambda part=part: part(x) for name, part in made.items()}  # type: ignore[misc]


def measure(what: str, ways: Ways, rounds: int, at_once: int) -> list[dict[str, str]]:
    """A row for each way: median and range of microseconds, and of the ratio to the first within a round."""
    expected = next(iter(ways.values()))()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if not number:
                error = (way() - expected).float().norm() / expected.float().norm()
                assert error < 0.02, f"{name} gives other numbers ({error:.3f})"
                continue
            began = time.process_time()
            for _ in range(at_once):
                way()
            times[name].append((time.process_time() - began) / at_once * 1e6)
    first = next(iter(times.values()))
    return [
        {
            "what": what,
            "way": name,
            "us": spread(microseconds, 0),
            "of the first's time": spread([a / b for a, b in zip(microseconds, first, strict=True)], 2),
        }
        for name, microseconds in times.items()
    ]


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "torch_int8.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    queries = torch_parts._QUERIES
    with torch.inference_mode():
        rows = [
            *measure("a token over 1500 frames", over_memory(1), args.rounds, 20),
            *measure("8 tokens over 1500 frames", over_memory(8), args.rounds, 20),
            *measure("1500 frames over 1500", in_encoder(), args.rounds, 1),
        ]
        torch_parts._QUERIES = queries
        rows += measure("768 to 3072, one row", product(1), args.rounds, 200)
        rows += measure("768 to 3072, 1500 rows", product(1500), args.rounds, 2)
    keep(args.out, {"threads": 1, "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
