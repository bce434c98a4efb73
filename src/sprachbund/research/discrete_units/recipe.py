"""Discrete units and hard parameter sharing (arXiv 2309.15826) beside their baselines, from data to table.

1. Units are made of an encoder's features, and the corpus is written as units once.
2. Every arm is a model trained on them: a head, with more and more text; the base with one thing changed; the base with
   less and less speech, with and without text. Equal arms are trained once.
3. Each is scored on the same recordings, and compared over seeds by paired bootstrap.
4. The same kind of model on log-mel features, for what units cost and save.

Models are trained beside each other (`workers`), each with one thread. What is finished is not done again, so a
broken-off run goes on.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.io import locate
from sprachbund.models.tokens.config import TokenShape
from sprachbund.models.tokens.io import WEIGHTS_FILE
from sprachbund.models.tokens.reader import ENCODER
from sprachbund.research.discrete_units.data import (
    bitext_parts,
    encoded_directory,
    make_data,
    planted_parts,
    scored_limit,
    shuffled_parts,
    units_directory,
)
from sprachbund.research.discrete_units.estimate import estimate_memory
from sprachbund.research.discrete_units.options import (
    OUTSIDE,
    ComparedModel,
    DiscreteUnitsRecipe,
    UnitsArm,
    run_folder,
)
from sprachbund.research.discrete_units.rates import (
    RATES,
    TRIED_FILE,
    RateTrial,
    best_trial,
    losses_of,
    trial_folder,
    trials,
    trials_left,
)
from sprachbund.research.discrete_units.report import COST_FILE, counted, write_tables
from sprachbund.research.tasks import make_files, parts_of, remember
from sprachbund.research.tuning import as_json, check_trained, loss_with, lowest_loss, report_rates
from sprachbund.training.checkpoint import LOG_FILE, RECIPE_FILE, forget_run, run_log
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, Scale, TranslatorRecipe
from sprachbund.training.translator import run as train_translator
from sprachbund.training.unit_translator import UnitTranslatorRecipe
from sprachbund.training.unit_translator import run as train_units
from sprachbund.units.dataset import Mixing
from sprachbund.units.encoded import EncodedCorpus
from sprachbund.util.distributed import refuse_several_processes
from sprachbund.util.files import read_model, write_json
from sprachbund.util.progress import Report

__all__ = ["DiscreteUnitsRecipe", "estimate_memory", "run"]


# One model of the comparison of discrete units: trained and scored, each in a folder of its own.

MBART_RATE, NEW_RATE = 3e-5, 3e-4
"""Highest learning rates of what mBART-50 had, and of what is new."""


def text_model(recipe: DiscreteUnitsRecipe, directory: Path, seed: int, head: str) -> Path:
    """The model that has learned text: the one that is named, or one trained on the text from outside.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        seed: seed of the run.
        head: head of the model.
    """
    return recipe.text_start or run_folder(directory, seed, f"text {head}") / "model"


def make_text_model(
    recipe: DiscreteUnitsRecipe, directory: Path, models: Sequence[ComparedModel], number: int
) -> None:
    """Train the model that an arm "+ text start" begins with, on the text from outside.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        models: all models of the comparison.
        number: index in `models`.
    """
    _, seed, arm = models[number]
    assert arm is not None
    folder = run_folder(directory, seed, f"text {arm.head}")
    changes = {
        "train": (),
        "pairs": (),
        "mixing": Mixing(sampling=recipe.mixing.sampling),
        "training": _trained_with(recipe.text_training, seed),
    }
    given = _whole(recipe, seed, arm, directory).model_copy(update=changes)
    with run_log(folder) as report:
        train_units(given, folder, report=report)
    forget_run(folder)


def make_model(
    recipe: DiscreteUnitsRecipe, directory: Path, models: Sequence[ComparedModel], number: int
) -> None:
    """Train a model and score it; what is trained already is scored.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        models: all models of the comparison.
        number: index in `models`.
    """
    name, seed, arm = models[number]
    folder = run_folder(directory, seed, name)
    trained = folder / "run" / "model"
    with run_log(folder) as report:
        if not (trained / WEIGHTS_FILE).exists():
            best = best_trial(recipe, directory, arm)
            if best is not None and seed == recipe.seeds[0]:
                tried = trial_folder(recipe, directory, best)
                report(f"learning rate {best.rate:g} was best on dev, and the model is of {tried}")
                _take(tried, folder)
            else:
                rate = recipe.rate_of(arm) if best is None else best.rate
                _train_model(recipe, seed, arm, rate, directory, folder, report)
        if arm is not None:
            _link_encoder(recipe, trained)
        _score(recipe, trained, folder / "scores")
    forget_run(folder / "run")


def try_rate(recipe: DiscreteUnitsRecipe, directory: Path, trials: Sequence[RateTrial], number: int) -> None:
    """Train an arm with a learning rate and the first seed.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        trials: all of them.
        number: index in `trials`.
    """
    trial = trials[number]
    folder = trial_folder(recipe, directory, trial)
    run, seed = folder / "run", recipe.seeds[0]
    with run_log(folder) as report:
        if (run / "model" / WEIGHTS_FILE).exists():  # trained by an earlier version, which wrote no loss
            loss = lowest_loss(run)
        else:
            train = partial(_train_model, recipe, seed, trial.arm, trial.rate, directory, folder, report)
            loss = loss_with(trial.rate, train, run, report)
    forget_run(run)
    write_json(folder / TRIED_FILE, as_json({trial.rate: loss}))


def _take(trial: Path, folder: Path) -> None:
    """Use the training that tried the best learning rate as that of the first seed."""
    shutil.copy(trial / COST_FILE, folder)
    (folder / "run").symlink_to(os.path.relpath(trial / "run", folder))  # all may be moved together


def _train_model(
    recipe: DiscreteUnitsRecipe,
    seed: int,
    arm: UnitsArm | None,
    rate: float | None,
    directory: Path,
    folder: Path,
    report: Report,
) -> None:
    """Train a model in the folder `run` of its own; a rate of None is that of the training options."""
    if arm is None:
        _train_log_mel(recipe, seed, rate, folder, report)
        return
    given = recipe_of(recipe, seed, arm, directory, rate)
    stored = sum(path.stat().st_size for path in EncodedCorpus(given.train[0]).directory.glob("*.jsonl"))
    with counted(folder, stored):
        train_units(given, folder / "run", report=report)


def recipe_of(
    recipe: DiscreteUnitsRecipe, seed: int, arm: UnitsArm, directory: Path, rate: float | None = None
) -> UnitTranslatorRecipe:
    """The run of an arm.

    Args:
        recipe: options of the comparison.
        seed: seed of the run.
        arm: arm of the comparison.
        directory: folder of all runs.
        rate: highest learning rate; that of the recipe's training if None.
    """
    whole = _whole(recipe, seed, arm, directory, rate)
    if arm.text != "start":
        return whole
    if recipe.from_mbart(arm):
        changes = {"mbart": recipe.mbart, "model": TokenShape(), "training": mbart_training(whole.training)}
        return whole.model_copy(update=changes)
    return whole.model_copy(update={"start": text_model(recipe, directory, seed, arm.head)})


def _whole(
    recipe: DiscreteUnitsRecipe, seed: int, arm: UnitsArm, directory: Path, rate: float | None = None
) -> UnitTranslatorRecipe:
    """The run of an arm from nothing."""
    parts = shuffled_parts if arm.text == "shuffled" else bitext_parts
    outside = parts(recipe, directory) if arm.text in OUTSIDE else ()
    planted = planted_parts(recipe, directory, arm.planted_copies) if arm.text == "planted" else ()
    return UnitTranslatorRecipe(
        units=units_directory(recipe, arm, directory),
        train=(encoded_directory("train", directory),),
        dev=(encoded_directory("dev", directory),),
        pairs=recipe.pairs,
        bitext=(*outside, *planted),
        hours=arm.hours,
        mixing=arm.mixing(recipe.mixing),
        ratio=arm.ratio,
        mark_repeats=arm.mark_repeats,
        keep_repeats=arm.keep_repeats,
        steps_of=recipe.steps_of,
        model=arm.model(recipe.model),
        training=_trained_with(arm.training(recipe.training), seed, rate),
        card=CardRecipe(name="discrete-units"),
    )


def mbart_training(training: TrainingOptions) -> TrainingOptions:
    """The training of a model that starts from mBART-50: what was there learns slowly, what is new faster."""
    rates = {"unit_embedding.*": NEW_RATE, "language_head.*": NEW_RATE}
    changes = {"optimizer": "adamw", "learning_rate": MBART_RATE, "final_rate": 0.0, "rates": rates}
    return training.model_copy(update=changes)


def _train_log_mel(
    recipe: DiscreteUnitsRecipe, seed: int, rate: float | None, folder: Path, report: Report
) -> None:
    """Train the model on log-mel features."""
    part, absent = recipe.log_mel, _absent(recipe, "train")
    assert part is not None
    given = TranslatorRecipe(
        languages=tuple(dict.fromkeys((*recipe.sources, recipe.target))),
        train=(DataPart(path=recipe.data / "train", shares=absent),),
        dev=(DataPart(path=recipe.data / "dev", shares=_absent(recipe, "dev")),),
        scale=None if recipe.base.hours is None else Scale(hours=recipe.base.hours),
        vocabulary_size=part.vocabulary_size,
        bits=32,
        model=part.model,
        examples=ExampleRecipe(targets=(recipe.target,), rows_per_utterance=1, speeds=(1.0,)),
        training=_trained_with(part.training, seed, rate),
        card=CardRecipe(name="log-mel"),
    )
    seconds = float(Manifest(recipe.data / "train", shares=absent).durations_s.sum())
    with counted(
        folder, round(seconds * 100) * part.model.num_mel_bins * 4
    ):  # 100 frames a second in 32 bits
        train_translator(given, folder / "run", report=report)


def _absent(recipe: DiscreteUnitsRecipe, name: str) -> dict[str, float]:
    """Shares of a part of the corpus that leave the source languages."""
    return dict.fromkeys(set(Manifest(recipe.data / name).languages.tolist()) - set(recipe.sources), 0.0)


def _link_encoder(recipe: DiscreteUnitsRecipe, model: Path) -> None:
    """Link the encoder of its units into a model's folder."""
    link = model / ENCODER
    if Path(recipe.units.encoder).is_dir() and not link.exists():
        link.symlink_to(locate(recipe.units.encoder).resolve(), target_is_directory=True)


def _score(recipe: DiscreteUnitsRecipe, model: Path, out: Path) -> None:
    """Translate the test recordings; nothing is dropped by the guard, whose thresholds were found with other models."""
    options = EvaluationOptions(
        targets=(recipe.target,),
        limit=scored_limit(recipe),
        decoding=DecodingOptions(beam_size=recipe.beam_size, guard=GuardOptions(enabled=False)),
        no_speech_per_kind=0,
        first_segments=0,
        engine="torch",
    )
    evaluate([recipe.data / "test"], model, options, out=out)


def _trained_with(training: TrainingOptions, seed: int, rate: float | None = None) -> TrainingOptions:
    rates = {} if rate is None else {"learning_rate": rate}
    return training.model_copy(update={"seed": seed, **rates})


MAY_CHANGE = (
    "seeds",
    "ablation_seeds",
    "heads",
    "ablations",
    "hours",
    "all_hours",
    "control_hours",
    "control_copies",
    "shuffled_hours",
    "arm_rates",
    "workers",
    "data",
)
"""Options that add models, or change no number: `data` may have moved, and `arm_rates` name further arms."""
TEXT_MODEL, SCORES = Path("model") / WEIGHTS_FILE, Path("scores") / MANIFEST_FILE
"""Files of a folder whose model is made."""


def run(recipe: DiscreteUnitsRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the main table.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.

    Raises:
        SprachbundError: data that are not there or do not fit, or a recipe that asks for what there is not; one that
            torchrun started several times.
    """
    refuse_several_processes("the recipe discrete_units")
    directory.mkdir(parents=True, exist_ok=True)
    _check_rates(recipe, directory)
    # Rates are tried with the first seed, and count for all.
    first_stays = ("seeds",) if recipe.learning_rates else ()
    remember(directory, recipe, may_change=MAY_CHANGE, data=parts_of(recipe.data), first_stays=first_stays)
    make_data(recipe, directory, report)
    report(f"what each training says is in {directory / 'seed-N' / 'ARM' / LOG_FILE}")
    _train(recipe, directory, "text models", recipe.text_models(), make_text_model, TEXT_MODEL, report)
    _try_rates(recipe, directory, report)
    _train(recipe, directory, "models", recipe.models(), make_model, SCORES, report)
    for name, seed, _ in recipe.text_models():
        forget_run(run_folder(directory, seed, name))
    for name, seed, _ in recipe.models():
        forget_run(run_folder(directory, seed, name) / "run")
    _link_equal(recipe, directory)
    return write_tables(recipe, directory)


class _TrainedAt(BaseModel):
    """Options of a training, of which the rate alone is read."""

    learning_rate: float


class _Trained(BaseModel):
    """The recipe of a training, which another version may have written."""

    training: _TrainedAt


def _check_rates(recipe: DiscreteUnitsRecipe, directory: Path) -> None:
    """See that models that were trained before have the rates that the recipe gives now."""
    if recipe.learning_rates:
        return
    for name, seed, arm in recipe.models():
        trained = run_folder(directory, seed, name) / "run"
        if not (trained / RECIPE_FILE).exists() or (arm is not None and recipe.from_mbart(arm)):
            continue
        log_mel = recipe.log_mel if arm is None else None
        rate = recipe.rate_of(arm) or (log_mel or recipe).training.learning_rate
        advice = f"copy it again, or delete {trained.parent}, and the arm is trained again"
        before = read_model(trained / RECIPE_FILE, _Trained, advice=advice).training.learning_rate
        if before != rate:
            raise SprachbundError(
                f"{trained} was trained with a learning rate of {before:g}, and {name!r} has {rate:g} now; give "
                "another --out, or the same rate"
            )


def _train(
    recipe: DiscreteUnitsRecipe,
    directory: Path,
    what: str,
    models: tuple[ComparedModel, ...],
    make: Callable[[DiscreteUnitsRecipe, Path, Sequence[ComparedModel], int], None],
    file: Path,
    report: Report,
) -> None:
    """Make models beside each other; one is made when a file of its folder is there."""
    paths = tuple(run_folder(directory, seed, name) / file for name, seed, _ in models)
    if paths:
        make_files(
            paths,
            partial(make, recipe, directory, models),
            what,
            workers=recipe.workers,
            report=report,
        )


def _try_rates(recipe: DiscreteUnitsRecipe, directory: Path, report: Report) -> None:
    """Train every arm with every learning rate, where some are to be tried."""
    wanted, what = trials(recipe), "trainings that try rates"
    if not wanted:
        return
    report(f"learning rates of every arm, on dev; progress is in {directory / RATES}")
    while wanted:
        paths = tuple(trial_folder(recipe, directory, trial) / TRIED_FILE for trial in wanted)
        make_files(
            paths,
            partial(try_rate, recipe, directory, wanted),
            what,
            workers=recipe.workers,
            report=report,
        )
        wanted, what = trials_left(recipe, directory), "trainings that try rates beyond them"
    tried = {name: losses_of(recipe, directory, arm) for arm, name in recipe.tuned().items()}
    for name, losses in tried.items():
        check_trained(repr(name), losses, "learning_rates")
    report_rates(tried, report)


def _link_equal(recipe: DiscreteUnitsRecipe, directory: Path) -> None:
    """Arms that equal one of another name are found under their own too."""
    first = {(seed, arm): name for name, seed, arm in recipe.models()}
    for seed in recipe.seeds:
        for name, arm in recipe.arms(seed).items():
            target = run_folder(directory, seed, name)
            if not target.exists():
                target.symlink_to(run_folder(directory, seed, first[seed, arm]).name)
