"""Discrete units and hard parameter sharing (arXiv 2309.15826) beside what they have to beat, from data to table.

1. Units are made of an encoder's features, and the corpus is written as units once.
2. Every arm is a model trained on them: a head, with more and more text; the base with one thing changed; the base with
   less and less speech, with and without text. Equal arms are trained once.
3. Each is scored on the same recordings, and compared over seeds by paired bootstrap.
4. The same kind of model on log-mel features, for what units cost and save.

What is finished is not done again, so a broken-off run goes on.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.directory import locate
from sprachbund.models.token_conformer import TokenShape
from sprachbund.recipes.discrete_units_data import bitext_parts, encoded, units_of
from sprachbund.recipes.discrete_units_needs import needs
from sprachbund.recipes.discrete_units_options import Arm, DiscreteUnitsRecipe, place
from sprachbund.recipes.discrete_units_table import COST_FILE, LOG_MEL, write_tables
from sprachbund.recipes.translator import CardRecipe, DataPart, ExampleRecipe, TranslatorRecipe
from sprachbund.recipes.translator import run as train_translator
from sprachbund.recipes.unit_translator import UnitTranslatorRecipe
from sprachbund.recipes.unit_translator import run as train_units
from sprachbund.training.options import TrainingOptions
from sprachbund.units.encoded import Encoded
from sprachbund.units.reader import ENCODER
from sprachbund.units.supply import Mixing

__all__ = ["DiscreteUnitsRecipe", "needs", "run"]

Report = Callable[[str], None]
MBART_RATE, NEW_RATE = 3e-5, 3e-4
"""Highest learning rates of what mBART-50 had, and of what is new."""


def run(recipe: DiscreteUnitsRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the main table.

    Raises:
        SprachbundError: data that are not there or do not fit, or a recipe that asks for what there is not.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for seed in recipe.seeds:
        done: dict[Arm, str] = {}
        for name, arm in recipe.all_arms().items():
            target, same = place(directory, seed, name), done.setdefault(arm, name)
            if same == name:
                _arm(recipe, seed, name, arm, directory, report)
            elif not target.exists():
                target.symlink_to(place(directory, seed, same).name)
        if recipe.log_mel is not None:
            _log_mel(recipe, seed, directory, report)
    return write_tables(recipe, directory)


def _arm(
    recipe: DiscreteUnitsRecipe, seed: int, name: str, arm: Arm, directory: Path, report: Report
) -> None:
    """Train a model and score it."""
    target = place(directory, seed, name)
    if (target / "scores" / MANIFEST_FILE).exists():
        return
    trained = target / "run" / "model"
    if not (trained / "model.safetensors").exists():
        report(f"seed {seed}: {name}")
        given = _recipe_of(recipe, seed, arm, directory, report)
        # Of the training alone: units are found once, for all arms.
        stored = sum(path.stat().st_size for path in Encoded(given.train[0]).directory.glob("*.jsonl"))
        _timed(target, stored, lambda: train_units(given, target / "run", report=report))
    _link_encoder(recipe, trained)
    _score(recipe, trained, target / "scores", arm)


def _recipe_of(
    recipe: DiscreteUnitsRecipe, seed: int, arm: Arm, directory: Path, report: Report
) -> UnitTranslatorRecipe:
    """The run of an arm."""
    external = arm.text in ("external", "start")
    shape = recipe.model.model_copy(
        update={
            "head": arm.head,
            "soft_sharing": arm.soft_sharing,
            "source_ctc_weight": recipe.model.source_ctc_weight if arm.source_ctc else 0.0,
        }
    )
    whole = UnitTranslatorRecipe(
        units=units_of(recipe, arm, directory, report),
        train=(encoded(recipe, "train", directory, report),),
        dev=(encoded(recipe, "dev", directory, report),),
        pairs=recipe.pairs,
        bitext=bitext_parts(recipe, directory) if external else (),
        hours=arm.hours,
        mixing=recipe.mixing.model_copy(update={"text": arm.text != "none"}),
        ratio=arm.ratio,
        keep_repeats=arm.keep_repeats,
        model=shape,
        training=_seeded(recipe.training, seed),
        card=CardRecipe(name="discrete-units"),
    )
    if arm.text != "start":
        return whole
    if recipe.from_mbart(arm):
        changes = {"mbart": recipe.mbart, "model": TokenShape(), "training": mbart_training(whole.training)}
        return whole.model_copy(update=changes)
    return whole.model_copy(update={"start": _text_start(recipe, seed, whole, directory, report)})


def _text_start(
    recipe: DiscreteUnitsRecipe, seed: int, arm: UnitTranslatorRecipe, directory: Path, report: Report
) -> Path:
    """A model that has learned text: the one that is named, or one trained on the text from outside."""
    if recipe.text_start is not None:
        return recipe.text_start
    out = place(directory, seed, f"text {arm.model.head}")
    if not (out / "model" / "model.safetensors").exists():
        report(f"seed {seed}: text from outside, {arm.model.head}")
        training = _seeded(recipe.text_training, seed)
        given = arm.model_copy(
            update={
                "train": (),
                "pairs": (),
                "mixing": Mixing(sampling=recipe.mixing.sampling),
                "training": training,
            }
        )
        train_units(given, out, report=report)
    return out / "model"


def mbart_training(training: TrainingOptions) -> TrainingOptions:
    """The training of a model that starts from mBART-50: what was there learns slowly, what is new faster."""
    rates = {"unit_embedding.*": NEW_RATE, "language_head.*": NEW_RATE}
    changes = {"optimizer": "adamw", "learning_rate": MBART_RATE, "final_rate": 0.0, "rates": rates}
    return training.model_copy(update=changes)


def _link_encoder(recipe: DiscreteUnitsRecipe, model: Path) -> None:
    """Where the model finds the encoder of its units, wherever its folder goes on this machine."""
    link = model / ENCODER
    if Path(recipe.units.encoder).is_dir() and not link.exists():
        link.symlink_to(locate(recipe.units.encoder).resolve(), target_is_directory=True)


def _score(recipe: DiscreteUnitsRecipe, model: Path, out: Path, arm: Arm | None = None) -> None:
    """Translate the test recordings; nothing is dropped by the guard, whose thresholds were found with other models."""
    limit = (
        None
        if arm is None or recipe.test_utterances is None
        else recipe.test_utterances * len(recipe.sources)
    )
    decoding = DecodingOptions(
        beam_size=1 if arm is None else recipe.beam_size, guard=GuardOptions(enabled=False)
    )
    options = EvaluationOptions(
        targets=(recipe.target,), limit=limit, decoding=decoding, no_speech_per_kind=0, first_segments=0
    )
    evaluate([recipe.data / "test"], model, options, out=out)


def _log_mel(recipe: DiscreteUnitsRecipe, seed: int, directory: Path, report: Report) -> None:
    """Train and score the model on log-mel features."""
    part, target = recipe.log_mel, place(directory, seed, LOG_MEL)
    assert part is not None
    if (target / "scores" / MANIFEST_FILE).exists():
        return
    report(f"seed {seed}: {LOG_MEL}")
    data = recipe.data / "train"
    absent = dict.fromkeys(set(Manifest(data).languages.tolist()) - {"", *recipe.sources}, 0.0)
    given = TranslatorRecipe(
        languages=tuple(dict.fromkeys((*recipe.sources, recipe.target))),
        train=(DataPart(path=data, shares=absent),),
        dev=(DataPart(path=recipe.data / "dev", shares=absent),),
        vocabulary_size=part.vocabulary_size,
        bits=32,
        model=part.model,
        examples=ExampleRecipe(targets=(recipe.target,), rows_per_utterance=1, speeds=(1.0,)),
        training=_seeded(part.training, seed),
        card=CardRecipe(name="log-mel"),
    )
    heard = Manifest(data, shares=absent)
    seconds = float(heard.durations_s[[i for i, tag in enumerate(heard.languages) if tag]].sum())
    stored = round(seconds * 100) * part.model.num_mel_bins * 4
    _timed(target, stored, lambda: train_translator(given, target / "run", report=report))
    _score(recipe, target / "run" / "model", target / "scores")


def _timed(target: Path, stored_bytes: int, work: Callable[[], Any]) -> None:
    """Write down what a training cost: processor time, over all the times it was taken up, and its data on disk."""
    path = target / COST_FILE
    before = json.loads(path.read_text(encoding="utf-8"))["cpu_s"] if path.exists() else 0.0
    began = time.process_time()
    try:
        work()
    finally:
        target.mkdir(parents=True, exist_ok=True)
        cost = {"cpu_s": before + time.process_time() - began, "stored_bytes": stored_bytes}
        path.write_text(json.dumps(cost) + "\n", encoding="utf-8")


def _seeded(training: TrainingOptions, seed: int) -> TrainingOptions:
    return training.model_copy(update={"seed": seed})
