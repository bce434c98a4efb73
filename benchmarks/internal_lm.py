"""What it brings to subtract what a decoder expects without sound, in greedy search and with a beam.

Each corpus is translated into every language that it has texts in, as `sprachbund evaluate` does it, and the texts are
compared with those of greedy search with nothing subtracted, on the same utterances. The weight and the beam are chosen
by the corpora whose name begins with dev; the others are scored with what was chosen and without.

Times are processor time of the whole evaluation, of one process with one thread, one way after the other.

Run: python -m benchmarks.internal_lm --dev corpora/telephone/dev_prompts corpora/telephone/dev \\
         --test corpora/telephone/unseen corpora/telephone/known --chosen 4:0.3
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.rows import keep

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.evaluation.compare import RunFile, System
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.research.arms import compare_arms
from sprachbund.util.provenance import commit

GREEDY = (1, 0.0)
"""Beam size and weight that the others are compared with."""


def measure(
    corpus: Path, ways: Sequence[tuple[int, float]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each way of searching.

    Args:
        corpus: directory of the corpus.
        ways: beam sizes and weights, `GREEDY` first.
        options: of the command.
    """
    systems, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for beam_size, weight in ways:
            name = f"{beam_size}:{weight:g}"
            given = EvaluationOptions(
                limit=options.limit,
                decoding=DecodingOptions(beam_size=beam_size, internal_lm_weight=weight),
                no_speech_per_kind=0,
                first_segments=0,
            )
            began = time.process_time()
            evaluate([corpus], options.model, given, out=Path(folder) / name)
            seconds[name] = time.process_time() - began
            systems.append(System(name=name, runs=[RunFile(Path(folder) / name)]))
        compared = compare_arms(systems, ("chrF", "BLEU"))
        dropped = {
            system.name: 100
            * sum(not line.hypothesis for line in system.runs[0])
            / sum(1 for _ in system.runs[0])
            for system in systems
        }
    rows = []
    for (beam_size, weight), name in zip(ways, seconds, strict=True):
        chrf, bleu = (compared.cells[metric, name] for metric in ("chrF", "BLEU"))
        rows.append(
            {
                "corpus": "/".join(corpus.parts[-2:]),
                "beam": beam_size,
                "weight": weight,
                "chrF": chrf.score,
                "chrF difference": chrf.difference,
                "BLEU": bleu.score,
                "nothing written %": round(dropped[name], 1),
                "times as long": round(seconds[name] / seconds["1:0"], 2),
            }
        )
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", metavar="MODEL")
    parser.add_argument("--dev", type=Path, nargs="+", required=True, metavar="CORPUS")
    parser.add_argument("--test", type=Path, nargs="*", default=[], metavar="CORPUS")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.2, 0.3, 0.4], metavar="X")
    parser.add_argument(
        "--chosen", default="4:0.3", metavar="BEAM:WEIGHT", help="what the test corpora are scored with"
    )
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="utterances of each corpus")
    parser.add_argument("--out", type=Path, default=Path("docs/results/internal_lm.json"), metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    beam, _, weight = options.chosen.partition(":")
    every = [(beam_size, w) for beam_size in options.beams for w in options.weights]
    chosen = [GREEDY, (1, float(weight)), (int(beam), 0.0), (int(beam), float(weight))]
    rows = [row for corpus in options.dev for row in measure(corpus, every, options)]
    rows += [row for corpus in options.test for row in measure(corpus, chosen, options)]
    about = {
        "limit": options.limit,
        "data": {
            "/".join(path.parts[-2:]): Manifest(path).content_hash() for path in [*options.dev, *options.test]
        },
        "commit": commit(),
        "rows": rows,
    }
    keep(options.out, about, "Texts with what was expected without sound subtracted")


if __name__ == "__main__":
    main()
