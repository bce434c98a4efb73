"""What a pruned transducer loss saves in training, and what it costs: seconds and exact losses on dev.

All arms start from the layers of the bundled model and see the same batches in the same order; all are evaluated by the
exact loss. Trainings run one at a time, on all cores.

Run: python -m benchmarks.pruned_training TRAIN DEV, for example the parts `train` and `dev` of
`sprachbund data make phrasebook --edition bundled --utterances 6000 --heldout 200`.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.rows import keep

from sprachbund.training.recipe import TranslatorRecipe
from sprachbund.training.translator import run
from sprachbund.util.provenance import commit, data_hash

LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
RANGES = (None, 16, 8, 4)
SHAPE: dict[str, Any] = {
    "num_encoder_layers": 8,
    "kernel_size": 8,
    "num_decoder_layers": 0,
    "decoder_width": 8,
    "decoder_heads": 1,
    "streaming": {"stem_channels": 64},
}
TRANSDUCER = {"prediction_width": 256, "prediction_layers": 1, "joint_width": 256, "fusion_width": 256}
_LOSS = re.compile(r"step (\d+) dev loss ([\d.]+)")


def trained(prune_range: int | None, train: Path, dev: Path, steps: int) -> dict[str, float]:
    """Exact losses on dev by the step, and the seconds between the steps, of one training."""
    recipe = TranslatorRecipe.model_validate(
        {
            "languages": LANGUAGES,
            "vocabulary_size": 500,
            "start": "bundled",
            "train": [{"path": train}],
            "dev": [{"path": dev}],
            "model": {**SHAPE, "transducer": {**TRANSDUCER, "prune_range": prune_range}},
            "examples": {"rows_per_utterance": 3},
            "training": {
                "steps": steps,
                "learning_rate": 1e-3,
                "warmup_steps": steps // 10,
                "decay_share": 0.5,
                "batch_s": 60,
                "max_duration_s": 6,
                "num_workers": 0,
                "evaluate_every": steps // 2,
            },
            "card": {"name": "trial"},
        }
    )
    losses: dict[str, float] = {}
    ends: list[float] = []

    def note(line: str) -> None:
        if match := _LOSS.match(line):
            losses[f"dev loss after {match[1]}"] = float(match[2])

    with tempfile.TemporaryDirectory() as folder:
        run(recipe, Path(folder), report=note, on_step=lambda made, wanted: ends.append(time.monotonic()))
    # Steps in between are evaluations, which the median leaves out; the first steps warm up.
    seconds = torch.tensor(ends).diff()[5:]
    return {**losses, "median_step_s": round(float(seconds.median()), 3)}


def main() -> None:
    """Train all arms and keep what they came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    rows = [
        {
            "tokens of a frame": prune_range or "all",
            **trained(prune_range, asked.train, asked.dev, asked.steps),
        }
        for prune_range in RANGES
    ]
    data = {path.name: data_hash(path) for path in (asked.train, asked.dev)}
    keep(asked.out, {"commit": commit(), "data": data, "steps": asked.steps, "rows": rows})


if __name__ == "__main__":
    main()
