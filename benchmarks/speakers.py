"""What makes a small model understand speakers it never heard: one of the recorded speakers is left out of training.

    python -m benchmarks.speakers --source DEBS --work DIR

A model of 3.5 M parameters first learns numbers, dates and times from synthesised speech alone. Each arm goes on from
there with utterances composed from recordings, without one speaker, and is scored on utterances composed from the
recordings of that speaker and of the three speakers that no model here ever hears. The arms differ in one thing at a
time. What is finished is not done again. Result manifests go to docs/results/speakers, the table to speakers.json
beside this file.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sprachbund.audio.augment import CLEAN, TRAIN, Augmentation
from sprachbund.corpora.editions import edition, make_edition
from sprachbund.corpora.telephone import HELD_OUT_KINDS, Telephone, make_telephone
from sprachbund.data.synthesisers import DEFAULT_SYNTHESIZERS, SYNTHESIZERS
from sprachbund.models.conformer import ConformerShape
from sprachbund.training.options import TrainingOptions
from sprachbund.training.translator import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe, run

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
        augmentation: of the composed utterances.
        composed: how many there are; none stops at the model that heard the synthesiser alone.
        synthesizers: that speak the synthesised half of what the arm goes on with.
        length: steps of the arm, as a multiple of the others'.
    """

    left_out: str
    augmentation: Augmentation = field(default=TRAIN)
    composed: int = 6_000
    synthesizers: tuple[str, ...] = DEFAULT_SYNTHESIZERS
    length: int = 1


ARMS: Mapping[str, Arm] = {
    "synthetic-only": Arm(left_out=FRENCH, composed=0),
    "everything": Arm(left_out=FRENCH),
    "everything-other-speaker": Arm(left_out=ITALIAN),
    "no-variety": Arm(left_out=FRENCH, augmentation=CLEAN),
    "voice-and-tempo": Arm(left_out=FRENCH, augmentation=VOICES),
    "room-noise-line": Arm(left_out=FRENCH, augmentation=CHANNELS),
    "twice-the-recordings": Arm(left_out=FRENCH, composed=12_000),
    "more-synthesisers": Arm(left_out=FRENCH, synthesizers=SYNTHESIZERS),
    "three-times-as-long": Arm(left_out=FRENCH, length=3),
}


def make_synthetic(directory: Path, synthesizers: tuple[str, ...], workers: int) -> None:
    """Numbers, dates and times of the synthesisers, in every channel."""
    numbers = edition(
        "bundled",
        kinds=HELD_OUT_KINDS,
        train_utterances=12_000,
        heldout_sentences=50,
        synthesizers=synthesizers,
    )
    make_edition(directory, numbers, workers=workers)


def make_composed(arm: Arm, directory: Path, source: Path | None, workers: int) -> None:
    """Utterances composed from recordings, the left-out speaker's in `unheard` only."""
    options = Telephone(
        train_utterances=max(arm.composed, 500),
        heldout_utterances=400,
        shares=(0.0, 1.0, 0.0, 0.0),
        kinds=HELD_OUT_KINDS,
        augmentation=arm.augmentation,
        leave_out=(arm.left_out,),
    )
    make_telephone(directory, options, source=source, workers=workers)


def recipe(name: str, parts: Sequence[Path], steps: int, start: Path | None) -> TranslatorRecipe:
    """How a model of 3.5 M parameters is trained; every arm sees the same number of batches."""
    return TranslatorRecipe(
        languages=("en", "es", "fr", "it", "de", "ru"),
        train=tuple(DataPart(path=part / "train") for part in parts),
        dev=tuple(DataPart(path=part / "dev") for part in parts),
        vocabulary_size=600,
        transcript_vocabulary_size=200,
        start=start,
        bits=32,
        model=ConformerShape(width=160, num_encoder_layers=6, num_decoder_layers=2, feed_forward_width=320),
        examples=ExampleRecipe(speeds=(1.0,), time_masks=0, frequency_masks=0),
        training=TrainingOptions(
            steps=steps,
            optimizer="muon",
            learning_rate=2e-3 if start is None else 1e-3,
            warmup_steps=50,
            decay_share=0.2 if start is None else 0.6,
            batch_s=150,
            max_duration_s=6 if start is None else 10,
            evaluate_every=steps,
            save_every=50,
            keep_best=1,
        ),
        card=CardRecipe(name=f"speakers-{name}"),
    )


def score(name: str, corpus: Path, model: Path, out: Path) -> None:
    """Evaluate, and keep the result manifest."""
    from sprachbund.cli import main as command

    if code := command(["evaluate", str(corpus), "--model", str(model), "--out", str(out)]):
        raise SystemExit(code)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "scores.json", RESULTS / f"{name}.json")


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
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(1100, 350), help="of the first model, of each arm"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    synthetic, first = options.work / "phrasebook", options.work / "first"
    make_synthetic(synthetic, DEFAULT_SYNTHESIZERS, options.workers)
    say = partial(print, flush=True)
    if not (first / "model" / "model.safetensors").exists():
        run(recipe("first", [synthetic], options.steps[0], None), first, report=say)
    for name in options.arms.split(","):
        directory = options.work / name
        if (RESULTS / f"{name}.json").exists():
            continue
        say(name)
        arm, composed = ARMS[name], directory / "telephone"
        make_composed(arm, composed, options.source, options.workers)
        model = first / "model"
        if arm.composed:
            spoken = synthetic
            if arm.synthesizers != DEFAULT_SYNTHESIZERS:
                spoken = directory / "phrasebook"
                make_synthetic(spoken, arm.synthesizers, options.workers)
            steps = options.steps[1] * arm.length
            run(recipe(name, [spoken, composed], steps, model), directory / "run", report=say)
            model = directory / "run" / "model"
        score(name, composed / "unheard", model, directory / "scores")
    done = {name: arm for name, arm in ARMS.items() if (RESULTS / f"{name}.json").exists()}
    rows = [row(name, arm, RESULTS / f"{name}.json") for name, arm in done.items()]
    (ROOT / "speakers.json").write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
