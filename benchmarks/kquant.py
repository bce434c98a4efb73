"""What few bits cost: k-quant beside rounding to nearest at 8 to 3 bits, and the native engine's 8 and 4 bits.

Of all linear layers of the bundled model's encoder and decoder: the weighted error that k-quant makes small, relative
to that of zeros; and what greedy translation of a development set becomes with them: tokens that differ from float32's
(all behind a first other one counted) and chrF. Embeddings, convolutions and norms stay as they are.
Run: python -m benchmarks.kquant --corpus corpora/phrasebook/dev --utterances 100
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import sacrebleu
import torch
from benchmarks.rows import write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from sprachbund.compression.options import KQuantOptions
from sprachbund.compression.quantization import bits_per_weight, quantize_linears
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.engines.choice import engine_for
from sprachbund.engines.options import NativeOptions, WeightNumbers
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.io import load
from sprachbund.nn.quantized import BlockBits, BlockMethod, linear_names

BATCH = 10


@dataclass(frozen=True, kw_only=True)
class Work:
    """Recordings of one batch, where they are to go, and what a person wrote."""

    features: Features
    targets: list[list[Target]]
    references: list[str]


def work_of(family: Any, corpus: Path, count: int) -> list[Work]:
    """Utterances from all over a corpus, each into one of the other languages that it has."""
    manifest = Manifest(corpus)
    indices = [i * len(manifest) // count for i in range(min(count, len(manifest)))]
    batches = []
    for begin in range(0, len(indices), BATCH):
        part = indices[begin : begin + BATCH]
        targets, references = [], []
        for index, utterance in enumerate(manifest[i] for i in part):
            languages = family.config.target_languages
            others = [tag for tag in languages if tag != utterance.language and utterance.text_in(tag)]
            tag = (others or [utterance.language])[(begin + index) % max(1, len(others))]
            targets.append([Target(language=tag)])
            references.append(utterance.text_in(tag))
        features = family.features([manifest.samples(i) for i in part])
        batches.append(Work(features=features, targets=targets, references=references))
    return batches


def decoded(family: Family, work: list[Work]) -> list[list[int]]:
    """Tokens of every utterance."""
    groups = [
        search(family, family.encode(batch.features), batch.targets, DecodingOptions()) for batch in work
    ]
    return [list(row[0].tokens) for group in groups for row in group]


def differing(rows: list[list[int]], reference: list[list[int]]) -> int:
    """Tokens that differ, position by position."""
    pairs = list(zip(rows, reference, strict=True))
    return sum(sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)) for a, b in pairs)


def systems(family: Any, bits: list[int]) -> Iterator[tuple[dict[str, Any], Family]]:
    """What to compare, with what is known of it before it decodes anything."""
    for count in bits:
        for method in get_args(BlockMethod):
            other: Any = load()
            assert isinstance(other, nn.Module)
            names = linear_names(other, "encoder") + linear_names(other, "decoder")
            layers = quantize_linears(other, names, KQuantOptions(bits=count, method=method))
            for name in names:  # unpacked once: only the numbers count here
                packed: Any = other.get_submodule(name)
                linear = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, "meta")
                linear.weight = nn.Parameter(packed.weight, requires_grad=False)
                if packed.bias is not None:
                    linear.bias = nn.Parameter(packed.bias, requires_grad=False)
                other.set_submodule(name, linear)
            error = sum(x.weighted_error * x.num_weights for x in layers) / sum(x.num_weights for x in layers)
            known = {"bits_a_weight": bits_per_weight(layers), "weighted_error": error}
            yield {"system": f"torch, {count} bits, {method}", **known}, other
    for kind in get_args(WeightNumbers):
        engine = engine_for(family, "native", threads=1, options=NativeOptions(weights=kind))
        yield {"system": f"native, {kind}", "bits_a_weight": None, "weighted_error": None}, engine.family


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    family: Any = load()
    work = work_of(family, args.corpus, args.utterances)
    references = [[text for batch in work for text in batch.references]]
    wanted = decoded(family, work)

    def row(known: dict[str, Any], rows: list[list[int]]) -> dict[str, Any]:
        texts = [family.decode_text(tokens) for tokens in rows]
        return known | {
            "rows_the_same": sum(a == b for a, b in zip(rows, wanted, strict=True)),
            "tokens_that_differ": differing(rows, wanted),
            "chrf": sacrebleu.corpus_chrf(texts, references).score,
            "utterances": len(rows),
            "tokens": sum(map(len, wanted)),
        }

    exact = {"system": "torch, float32", "bits_a_weight": 32.0, "weighted_error": 0.0}
    measured = [row(exact, wanted)]
    number = len(args.bits) * len(get_args(BlockMethod)) + len(get_args(WeightNumbers))
    for known, other in track(systems(family, args.bits), "systems", total=number):
        measured.append(row(known, decoded(other, work)))
    return measured


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus", type=Path, required=True, help="prepared data with texts in several languages"
    )
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--bits", type=int, nargs="*", default=list(reversed(get_args(BlockBits))))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = measure(args)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=140).print(table)
    options = {"corpus": args.corpus.name, "utterances": args.utterances}
    write(args.out, {"options": options, "rows": rows})


if __name__ == "__main__":
    main()
