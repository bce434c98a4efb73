"""What makes a small model understand speakers it never heard: one of the recorded speakers is left out of training.

    python benchmarks/speakers.py --source DEBS --work DIR

Each arm makes its data without one speaker, trains a small model on numbers, dates and times, and is scored on
utterances composed from the recordings of that speaker and of the three speakers that no model here ever hears.
The arms differ in one thing at a time. What is finished is not done again. Result manifests go to
docs/results/speakers, the table to speakers.json beside this file.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sprachbund.audio.augment import CLEAN, TRAIN, Augmentation
from sprachbund.data.editions import edition, make_edition
from sprachbund.data.telephone import HELD_OUT_KINDS, Telephone, make_telephone
from sprachbund.models.conformer import ConformerShape
from sprachbund.recipes.translator import CardRecipe, DataPart, TranslatorRecipe, run
from sprachbund.training.options import TrainingOptions

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT.parent / "docs" / "results" / "speakers"
VOICES = replace(CLEAN, voice_probability=TRAIN.voice_probability, tempo=TRAIN.tempo)
CHANNELS = replace(TRAIN, voice_probability=0.0)
FRENCH, ITALIAN = "asterisk-fr-june", "asterisk-it-carlo"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model.

    Attributes:
        left_out: the recorded speaker kept out of training.
        augmentation: of all training speech.
        composed: utterances composed from recordings.
        synthetic: utterances of the synthesiser; together the same number in every arm.
    """

    left_out: str
    augmentation: Augmentation = field(default=TRAIN)
    composed: int = 12_000
    synthetic: int = 12_000


ARMS: Mapping[str, Arm] = {
    "everything": Arm(left_out=FRENCH),
    "other-speaker": Arm(left_out=ITALIAN),
    "no-variety": Arm(left_out=FRENCH, augmentation=CLEAN),
    "more-composed": Arm(left_out=FRENCH, composed=18_000, synthetic=6_000),
    "voice-and-tempo": Arm(left_out=FRENCH, augmentation=VOICES),
    "room-noise-line": Arm(left_out=FRENCH, augmentation=CHANNELS),
    "synthetic-only": Arm(left_out=FRENCH, composed=0, synthetic=24_000),
}


def make_data(arm: Arm, directory: Path, source: Path, workers: int) -> None:
    """The arm's speech: `telephone` and `phrasebook` below the directory."""
    telephone = Telephone(
        train_utterances=max(arm.composed, 500),
        heldout_utterances=800,
        shares=(0.0, 1.0, 0.0),
        kinds=HELD_OUT_KINDS,
        augmentation=arm.augmentation,
        leave_out=(arm.left_out,),
    )
    make_telephone(directory / "telephone", telephone, source=source, workers=workers)
    numbers = edition(
        "bundled",
        kinds=HELD_OUT_KINDS,
        train_utterances=arm.synthetic,
        heldout_sentences=50,
        augmentation=arm.augmentation,
    )
    make_edition(directory / "phrasebook", numbers, workers=workers)


def recipe(name: str, arm: Arm, directory: Path, steps: int) -> TranslatorRecipe:
    """A model of 4 M parameters; every arm sees the same number of batches."""
    parts = ["phrasebook", "telephone"] if arm.composed else ["phrasebook"]
    return TranslatorRecipe(
        languages=("en", "es", "fr", "it", "de", "ru"),
        train=tuple(DataPart(path=directory / part / "train") for part in parts),
        dev=tuple(DataPart(path=directory / part / "dev") for part in ("phrasebook", "telephone")),
        vocabulary_size=600,
        transcript_vocabulary_size=200,
        model=ConformerShape(width=160, num_encoder_layers=6, num_decoder_layers=2, feed_forward_width=320),
        training=TrainingOptions(
            steps=steps,
            optimizer="muon",
            learning_rate=2e-3,
            warmup_steps=100,
            decay_share=0.4,
            batch_s=150,
            max_duration_s=10,
            evaluate_every=max(1, steps // 4),
            save_every=100,
            keep_best=1,
        ),
        card=CardRecipe(name=f"speakers-{name}"),
    )


def score(name: str, directory: Path) -> Path:
    """Evaluate on the speakers left out; the result manifest."""
    from sprachbund.cli import main

    out = directory / "scores"
    found = RESULTS / f"{name}.json"
    corpus = directory / "telephone" / "unheard"
    if code := main(
        ["evaluate", str(corpus), "--model", str(directory / "run" / "model"), "--out", str(out)]
    ):
        raise SystemExit(code)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "scores.json", found)
    return found


def row(name: str, arm: Arm, found: Path) -> dict[str, object]:
    """One line of the table: chrF over pairs for the speaker left out and for each of the others."""
    numbers = json.loads(found.read_text(encoding="utf-8"))["numbers"]
    speakers = {
        n["member"]: n["value"]
        for n in numbers
        if n["group"] == "speaker" and n["metric"] == "chrF" and n["task"] == "translation"
    }
    others = [value for speaker, value in speakers.items() if speaker != arm.left_out]
    return {
        "arm": name,
        "left_out": arm.left_out,
        "chrF_left_out": speakers[arm.left_out],
        "chrF_never_heard_mean": sum(others) / len(others),
        **{
            speaker.removeprefix("asterisk-"): speakers.get(speaker)
            for speaker in sorted(speakers)
            if speaker != arm.left_out
        },
    }


def main() -> None:
    """Run the arms that are not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps data and runs")
    parser.add_argument("--source", type=Path, help="Debian packages of the prompts; fetched if not given")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for name in options.arms.split(","):
        directory = options.work / name
        if (RESULTS / f"{name}.json").exists():
            continue
        make_data(ARMS[name], directory, options.source, options.workers)
        run(
            recipe(name, ARMS[name], directory, options.steps),
            directory / "run",
            report=partial(print, flush=True),
        )
        score(name, directory)
    rows = [
        row(name, arm, RESULTS / f"{name}.json")
        for name, arm in ARMS.items()
        if (RESULTS / f"{name}.json").exists()
    ]
    (ROOT / "speakers.json").write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
