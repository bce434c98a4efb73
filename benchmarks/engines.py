"""What engines cost in quality: scores and failures of a model on each, beside those of the model as it is.

Each engine goes through a whole `evaluate`, no-speech set included; texts that differ from those of the first are
counted, and chrF and BLEU compared by paired bootstrap. Failures are those of what the model writes, before the guard.
Run: python -m benchmarks.engines corpora/phrasebook/dev --limit 300
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rows import keep
from rich.progress import track

from sprachbund.engines.options import CHOICES
from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.failures import DEFINITIONS
from sprachbund.evaluation.lines import HYPOTHESES_FILE, read_lines
from sprachbund.evaluation.manifest import ResultManifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.util.provenance import versions

METRICS = ("chrF", "BLEU")


def texts(folder: Path) -> dict[tuple[str, str], str]:
    """What was written, by utterance and language wanted."""
    return {(line.id, line.target): line.hypothesis for line in read_lines(folder / HYPOTHESES_FILE)}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    manifests: dict[str, ResultManifest] = {}
    for engine in track(args.engines, "engines"):
        options = EvaluationOptions(limit=args.limit, engine=engine)
        manifests[engine] = evaluate(args.corpora, args.model, options, out=folder / engine).manifest
    first, *others = args.engines
    systems = [System(name=engine, runs=[RunFile(folder / engine)]) for engine in args.engines]
    means, plainly = compare(systems, METRICS).means, texts(folder / first)
    rows = []
    for engine in args.engines:
        wrote = texts(folder / engine)
        row: dict[str, Any] = {"engine": engine, "texts": len(wrote)}
        row["differ"] = sum(wrote[key] != plainly[key] for key in plainly)
        for name in METRICS:
            comparison = means[name, engine if engine != first else others[0]]
            row[name] = f"{comparison.baseline if engine == first else comparison.system:.2f}"
            low, high = comparison.interval
            row[f"{name} difference"] = (
                "" if engine == first else f"{comparison.difference:+.2f} ({low:+.2f} to {high:+.2f})"
            )
        rates = {
            rate.failure: rate
            for rate in manifests[engine].failures
            if rate.member == "all" and not rate.guard
        }
        rows.append(
            row
            | {
                name: f"{rates[name].failed} of {rates[name].evaluated}"
                for name in DEFINITIONS
                if name in rates
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--limit", type=int, default=300, help="utterances of each corpus")
    parser.add_argument(
        "--engines", nargs="+", default=["torch", *(c for c in CHOICES if c not in ("auto", "torch"))]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    options = {"model": args.model, "limit": args.limit, "corpora": [path.name for path in args.corpora]}
    keep(args.out, {"options": options, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
