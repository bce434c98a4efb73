"""What a streaming transducer leaves out: its scores on dev with a lower bias of the blank.

Where the joint network's blank costs `penalty` nats more, the greedy search writes more tokens. The bias is part of the
weights, so that all engines and live text have it. `BLANK_PENALTY` of `scripts/bundled_streaming.py` was chosen by it.

Run: python -m benchmarks.streaming_blank MODEL corpora/telephone/dev corpora/telephone/dev_prompts \\
    corpora/phrasebook/dev
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rows import write
from rich.progress import track
from scripts.bundled_streaming import with_blank_penalty

from sprachbund.evaluation.hypotheses import corpus_name
from sprachbund.evaluation.manifest import read_manifest
from sprachbund.models.io import content_hash
from sprachbund.util.provenance import commit, data_hash

PENALTIES = (0.0, 0.5, 1.0, 1.5, 2.0)


def row(model: Path, corpus: Path, penalty: float, tier: int, limit: int, folder: Path) -> dict[str, Any]:
    """Scores of a model on a corpus.

    Args:
        model: directory of the model.
        corpus: directory of the corpus.
        penalty: what its blank costs more than in training, in nats.
        tier: frames ahead.
        limit: utterances of the corpus at most.
        folder: takes the manifest.
    """
    command = [sys.executable, "-m", "sprachbund", "evaluate", str(corpus), "--model", str(model)]
    options = ["--tier", str(tier), "--limit", str(limit), "--engine", "native", "--threads", "1"]
    subprocess.run([*command, *options, "--out", str(folder), "--overwrite"], check=True, capture_output=True)
    manifest = read_manifest(folder / "scores.json")

    def mean(metric: str, task: str) -> float | None:
        number = manifest.number(metric, "all", group="mean", task=task, text="raw", guard=True)
        return None if number is None else round(number.value, 1)

    return {
        "corpus": corpus_name(corpus),
        "penalty": penalty,
        "chrF": mean("chrF", "translation"),
        "BLEU": mean("BLEU", "translation"),
        "exact %": mean("exact", "translation"),
        "WER (transcription)": mean("WER", "transcription"),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpora", type=Path, nargs="+", metavar="CORPUS")
    parser.add_argument("--penalties", type=float, nargs="+", default=PENALTIES, metavar="NATS")
    parser.add_argument("--tier", type=int, default=13)
    parser.add_argument("--limit", type=int, default=600, help="utterances of a corpus at most")
    parser.add_argument("--out", type=Path, default=Path("docs/results/streaming_blank.json"), metavar="FILE")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        models = {penalty: Path(folder) / f"model-{penalty}" for penalty in given.penalties}
        for penalty, directory in models.items():
            with_blank_penalty(given.model, directory, penalty)
        rows = [
            row(directory, corpus, penalty, given.tier, given.limit, Path(folder) / f"{penalty}-{number}")
            for number, corpus in enumerate(track(given.corpora))
            for penalty, directory in models.items()
        ]
    write(
        given.out,
        {
            "command": f"python -m benchmarks.streaming_blank {given.model} {' '.join(map(str, given.corpora))}",
            "model": content_hash(given.model),
            "data": {corpus_name(one): data_hash(one) for one in given.corpora},
            "tier": given.tier,
            "limit": given.limit,
            "commit": commit(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
