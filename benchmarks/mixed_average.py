"""What training on mixed speech costs elsewhere, and what the mean with the weights before gives back.

The mean is that of arXiv 2109.01903. A model that is trained on mixed speech (`recipes/mixed.toml`,
`recipes/bundled_mixed.toml`) learns to write it down, and forgets voices. Models between it and the bundled one are
scored on both, on dev and on test; the bundled model has no target for transcripts of mixed speech. Nothing is dropped
as out of domain or as doubtful, since only the bundled model is calibrated.

Run: python -m benchmarks.mixed_average recipes/mixed.toml runs/mixed/best/best.00000800.safetensors
"""

import argparse
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from benchmarks.rows import keep
from rich.progress import track
from scripts.average_weights import average

from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.catalogue import BUNDLED
from sprachbund.text.languages import MIXED
from sprachbund.util.provenance import commit, data_hash, hash_files

SHARES = (0.0, 0.5, 0.75, 1.0)
CORPORA = {
    "mixed speech, dev": "mixed_six/dev",
    "mixed speech without German, dev": "spliced/dev",
    "new synthetic voices, dev": "dev_voices/dev",
    "unseen wording, dev": "telephone/dev_prompts",
    "mixed speech, test": "mixed_six/test",
    "spliced people, test": "spliced/spliced-test",
    "one language, test": "mixed_six/monolingual-test",
    "new speakers, test": "telephone/unheard",
    "unseen wording, test": "telephone/unseen",
}
"""Made by the commands in recipes/bundled_mixed.toml, `telephone` without `--heldout`; `dev_voices` by `sprachbund data
make phrasebook --edition bundled --synthesizers espeak-ng,festival,flite,pico --heldout 50 --seed 33`."""


def scores(model: str, corpus: Path, limit: int) -> dict[str, float | None]:
    """Means over pairs: chrF of translations, and where mixed speech is asked for as it is spoken, WER of that."""
    options = EvaluationOptions(limit=limit, no_speech_per_kind=0, first_segments=0, engine="torch")
    numbers = [
        number
        for number in evaluate([corpus], model, options).manifest.numbers
        if (number.group, number.text, number.guard) == ("pair", "raw", False)
    ]
    translated = [n.value for n in numbers if (n.metric, n.task) == ("chrF", "translation")]
    transcribed = [n.value for n in numbers if n.metric == "WER" and n.member.endswith(f"-{MIXED}")]
    return {
        "chrF": round(fmean(translated), 1),
        "WER": round(fmean(transcribed), 1) if transcribed else None,
    }


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="that the model was trained with")
    parser.add_argument("weights", type=Path, help="checkpoint or model directory of that training")
    parser.add_argument("--corpora", type=Path, default=Path("corpora"))
    parser.add_argument("--limit", type=int, default=200, help="utterances of each corpus, evenly over it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/mixed_average.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for share in track(SHARES):
            model = BUNDLED
            if share:
                model = str(Path(folder) / f"{share:g}")
                average(BUNDLED, [given.weights], share, Path(model), [MIXED])
            row: dict[str, Any] = {"share of the trained weights": share}
            for name, corpus in CORPORA.items():
                for metric, value in scores(model, given.corpora / corpus, given.limit).items():
                    row[f"{metric}, {name}"] = value
            rows.append(row)
            print(row, flush=True)
    measured = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    result = {
        "command": f"python -m benchmarks.mixed_average {given.recipe} {given.weights}",
        "recipe": given.recipe,
        "weights": hash_files(
            [given.weights / "model.safetensors" if given.weights.is_dir() else given.weights]
        ),
        "utterances": f"{given.limit} of each corpus, evenly over it",
        "data": {name: data_hash(given.corpora / name) for name in sorted(CORPORA.values())},
        "commit": commit(),
        "rows": [{name: row[name] for name in measured} for row in rows],
    }
    keep(given.out, result, "Between the bundled model and the one trained on mixed speech")


if __name__ == "__main__":
    main()
