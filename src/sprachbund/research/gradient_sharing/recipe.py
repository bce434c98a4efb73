"""Gradient-driven sharing (arXiv 2603.25836) beside its baselines, from data to table.

1. A model is trained on all languages at once, one of them starved of data (UFT, uniform fine-tuning).
2. Its gradients, language by language, decide what to split (`sprachbund.research.gradient_sharing`).
3. Every arm trains on from there for the same number of steps: the last two encoder layers and whatever is new.
4. All arms are scored on the same test sentences and compared with UFT, over seeds, by paired bootstrap.

What is finished is not done again, so a broken-off run goes on. Where the gradients lead two arms to the same plan, one
is trained and stands for both.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.data.manifest import INFO_FILE, Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.compare import RunFile, System
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.conformer.extension import LOSSES
from sprachbund.models.io import family_of, load, locate, save
from sprachbund.models.sharing_plan import Grouping, SharingPlan, Split
from sprachbund.research.arms import compare_arms
from sprachbund.research.gradient_sharing.analyses import corrected_with_errors, ordered_rows
from sprachbund.research.gradient_sharing.collect import Collection
from sprachbund.research.gradient_sharing.estimate import estimate_memory
from sprachbund.research.gradient_sharing.options import (
    ARMS,
    ENCODER,
    GradientSharingRecipe,
    SharingArm,
    last_layers,
    run_folder,
)
from sprachbund.research.gradient_sharing.plan_options import SharingPlanOptions
from sprachbund.research.gradient_sharing.planning import make_plan
from sprachbund.research.gradient_sharing.sketches import Sketches, read_sketches, write_sketches
from sprachbund.research.gradient_sharing.surgery import apply_plan, measure_importance
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import make_files, parts_of, remember
from sprachbund.research.texts import TEXTS_FILE, write_texts
from sprachbund.research.tuning import (
    TriedRates,
    as_json,
    best_rate,
    check_trained,
    loss_with,
    rates_left,
    read_tried,
    report_rates,
)
from sprachbund.text.numbers import cardinal
from sprachbund.training.checkpoint import LOG_FILE, run_log
from sprachbund.training.loop import Convergence
from sprachbund.training.lora import rank_for
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import (
    NO_MASKS,
    CardRecipe,
    DataPart,
    ExampleRecipe,
    FineTuning,
    LoraRecipe,
    TranslatorRecipe,
)
from sprachbund.training.translator import run as train_translator
from sprachbund.util.distributed import refuse_several_processes
from sprachbund.util.files import read_json, write_json
from sprachbund.util.progress import Report

__all__ = ["GradientSharingRecipe", "estimate_memory", "run"]


# The table of the comparison: every arm of the recipe beside its baseline, over seeds, by paired
# bootstrap.


@dataclass(frozen=True)
class _Spoken:
    """The lines of a run whose speech is in some languages."""

    run: Iterable[Line]
    languages: frozenset[str]

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.source in self.languages)


def write_table(recipe: GradientSharingRecipe, directory: Path) -> Path:
    """Every arm beside the baseline: all languages, and alone those with less speech and those that were new.

    The texts that it is made of are in `texts.jsonl.gz` beside it.
    """
    names, shares = recipe.all_arms, {tag: recipe.shares.get(tag, 1.0) for tag in recipe.languages}
    groups = {
        "all": frozenset(recipe.languages),
        "starved": frozenset(tag for tag, share in shares.items() if share < max(shares.values())),
        "new": frozenset(recipe.fine_tuning.new_languages),
    }
    runs_of = {
        name: [RunFile(run_folder(directory, seed, name) / "scores") for seed in recipe.seeds]
        for name in names
    }
    compared = rows_of(runs_of, groups)
    rows = [{"arm": name, **compared[name], **_trained(recipe, directory, name)} for name in names]
    runs = [(n, s, runs_of[n][i]) for i, s in enumerate(recipe.seeds) for n in names]
    test = write_texts(directory / TEXTS_FILE, runs)
    values = {
        "test": test,
        "gradients": [
            one
            for seed in recipe.seeds
            if recipe.plan is None  # else no gradients were taken
            for one in _measured(recipe, directory, seed)
        ],
        "rows": rows,
    }
    return keep_table(directory / "table.json", recipe, values)


def rows_of(
    runs: Mapping[str, Sequence[Iterable[Line]]], groups: Mapping[str, frozenset[str]]
) -> dict[str, dict[str, object]]:
    """Arm to its cells beside the first arm, for each group of languages.

    Args:
        runs: arm to the lines of each of its runs.
        groups: name of a group to the languages spoken; without languages it is left out.
    """
    rows: dict[str, dict[str, object]] = {name: {"seeds": len(own)} for name, own in runs.items()}
    for group, languages in groups.items():
        if not languages:
            continue
        systems = [
            System(name=name, runs=[_Spoken(run, languages) for run in own]) for name, own in runs.items()
        ]
        for (_, name), cells in compare_arms(systems, ["chrF"]).cells.items():
            rows[name] |= {
                f"chrF {group}": cells.score,
                f"difference {group}": cells.difference,
                f"p {group}": cells.p,
                f"Holm's p {group}": cells.holm,
            }
    return rows


def _trained(recipe: GradientSharingRecipe, directory: Path, name: str) -> dict[str, object]:
    """The steps of an arm's second training, and those after which it was best on dev, of all seeds."""
    folders = [run_folder(directory, seed, name) / "run" for seed in recipe.seeds]
    if not ARMS[name].goes_on:
        return {"steps": 0, "best step": 0}
    states = [Convergence.read(folder) for folder in folders]
    return {
        "steps": _listed([state.steps for state in states]),
        "best step": _listed([state.best.step for state in states if state.best is not None]),
    }


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _measured(recipe: GradientSharingRecipe, directory: Path, seed: int) -> list[dict[str, object]]:
    """What the gradients of a seed say of each module that the published arm splits, and how sure that is."""
    sketches = read_sketches(gradients_of(directory, seed))
    measured: list[dict[str, object]] = []
    for split in _plan(recipe, ARMS["sharing"], seed, sketches).splits:
        evidence = split.evidence
        assert evidence is not None  # the plan is made of gradients
        rows = [ordered_rows(sketches.vectors[split.module][tag]) for tag in sketches.languages]
        cosines, errors = corrected_with_errors(rows, seed)
        measured.append(
            {
                "seed": seed,
                "module": split.module,
                "languages": sketches.languages,
                "vectors of each language": min(evidence.num_vectors.values()),
                "groups": split.groups,
                "found again in halves": evidence.stability,
                "corrected cosines": np.round(cosines, 3).tolist(),
                "standard errors": np.round(errors, 3).tolist(),
            }
        )
    return measured


ARMS_FILE = "arms.json"
"""File in the folder of a seed whose arms are finished."""
STATES = "states"
"""Folder of states that all runs of the comparison read."""
RATES, RATES_FILE = "rates", "rates.json"
TRIED_FILE = "tried.json"
"""File in the folder of an arm with the losses at the learning rates tried so far, until all are."""
MAY_CHANGE = ("seeds", "arms", "workers", "data")
"""Options that add trainings, or change no number: `data` may have moved."""


def run(recipe: GradientSharingRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the table.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.

    Raises:
        SprachbundError: a recipe without data, or of a published shape without the checkpoint to start from; a folder
            of other options; one that torchrun started several times.
    """
    refuse_several_processes("the recipe gradient_sharing")
    if recipe.seamless is not None and recipe.start is None:
        raise SprachbundError(
            f"SeamlessM4T {recipe.seamless} is not trained from nothing: name the checkpoint, as in "
            "--set start=facebook/hf-seamless-m4t-medium"
        )
    directory.mkdir(parents=True, exist_ok=True)
    remember(directory, recipe, may_change=MAY_CHANGE, data=parts_of(recipe.data))
    used = recipe
    if recipe.changed_digits:
        changed = (recipe.languages, recipe.changed_digits)
        used = recipe.model_copy(
            update={"data": make_control(recipe.data, directory / "control", *changed, report)}
        )
    first_seed = recipe.seeds[0] if recipe.first_seed is None else recipe.first_seed
    _first(used, first_seed, directory, report)
    if recipe.learning_rates:
        report(f"learning rates of every arm, on dev; progress is in {directory / RATES / 'ARM' / LOG_FILE}")
        _started(used, recipe.seeds[0], directory, report)
        arms = [name for name in recipe.all_arms if ARMS[name].goes_on]
        paths = tuple(_rate_file(directory, name) for name in arms)
        make_files(
            paths,
            partial(_tune, used, directory, arms),
            "arms tuned",
            workers=recipe.workers,
            report=report,
        )
        report_rates({name: _tried(directory, name) for name in arms}, report)
    if recipe.workers == 1:
        for seed in recipe.seeds:
            _run_seed(used, directory, seed, report)
    else:
        report(f"progress is in {directory / 'seed-N' / LOG_FILE}")
        paths = tuple(directory / f"seed-{seed}" / ARMS_FILE for seed in recipe.seeds)
        for path in paths:
            if path.exists() and read_json(path) != list(recipe.all_arms):
                path.unlink()  # an arm was added since; those that are finished are not trained again
        make_files(
            paths, partial(_make_seed, used, directory), "seeds", workers=recipe.workers, report=report
        )
    return write_table(recipe, directory)


def _tune(recipe: GradientSharingRecipe, directory: Path, arms: Sequence[str], number: int) -> None:
    """Train an arm with every learning rate and the first seed; the losses on dev are written down one by one.

    A rate at which the training breaks down counts as one without a loss.
    """
    name, seed = arms[number], recipe.seeds[0]
    folder = _rate_file(directory, name).parent
    so_far = folder / TRIED_FILE
    tried = read_tried(so_far) if so_far.exists() else {}
    with run_log(folder) as report:
        first, sketches = _started(recipe, seed, directory, report)
        while left := rates_left(recipe.learning_rates, recipe.more_learning_rates, tried):
            rate, run_of_rate = left[0], folder / f"{left[0]:g}"
            translator = _second(recipe, seed, ARMS[name], first, sketches, run_of_rate, rate)
            run = run_of_rate / "run"
            train = partial(train_translator, translator, run, report=report, states=directory / STATES)
            tried[rate] = loss_with(rate, train, run, report)
            write_json(so_far, as_json(tried))
            shutil.rmtree(run_of_rate)
    check_trained(repr(name), tried, "learning_rates")
    write_json(_rate_file(directory, name), as_json(tried))
    so_far.unlink()


def _rate_file(directory: Path, name: str) -> Path:
    """Learning rate to loss on dev of an arm."""
    return directory / RATES / run_folder(directory, 0, name).name / RATES_FILE


def _rate(recipe: GradientSharingRecipe, directory: Path, name: str) -> float:
    """Highest learning rate of an arm."""
    if not recipe.learning_rates:
        return recipe.second.learning_rate
    return best_rate(_tried(directory, name))


def _tried(directory: Path, name: str) -> TriedRates:
    return read_tried(_rate_file(directory, name))


def _started(
    recipe: GradientSharingRecipe, seed: int, directory: Path, report: Report
) -> tuple[Path, Sketches | None]:
    """The first model of a seed, and its gradients; None where a plan is given."""
    first = _first(recipe, seed, directory, report)
    path = gradients_of(directory, seed)
    return first, None if recipe.plan else _analyse(recipe, seed, first, path, report)


def gradients_of(directory: Path, seed: int) -> Path:
    """File of a seed's gradients.

    Args:
        directory: folder of all runs.
        seed: seed of the run.
    """
    return directory / f"seed-{seed}" / "gradients.npz"


def _make_seed(recipe: GradientSharingRecipe, directory: Path, number: int) -> None:
    """All arms of a seed, in a process of their own."""
    folder = directory / f"seed-{recipe.seeds[number]}"
    with run_log(folder) as report:
        _run_seed(recipe, directory, recipe.seeds[number], report)
    write_json(folder / ARMS_FILE, list(recipe.all_arms))


def _run_seed(recipe: GradientSharingRecipe, directory: Path, seed: int, report: Report) -> None:
    """All arms of a seed; an arm that does the same as one before is not trained again."""
    first, sketches = _started(recipe, seed, directory, report)
    alike: dict[object, str] = {}
    for name in recipe.all_arms:
        target = run_folder(directory, seed, name)
        same = alike.setdefault(_change(recipe, seed, ARMS[name], sketches), name)
        if same == name or target.exists():
            _arm(recipe, seed, name, first, sketches, directory, report)
        else:
            report(f"seed {seed}: {name} is the same as {same}")
            target.symlink_to(run_folder(directory, seed, same).name)


def _translator(recipe: GradientSharingRecipe, training: TrainingOptions, **changes: Any) -> TranslatorRecipe:
    return TranslatorRecipe(
        languages=tuple(dict.fromkeys((*recipe.languages, *recipe.targets))),
        train=(DataPart(path=recipe.data / "train", shares={**_absent(recipe, "train"), **recipe.shares}),),
        dev=(DataPart(path=recipe.data / "dev", shares=_absent(recipe, "dev")),),
        bits=32,
        cache_states=recipe.cache_states and bool(training.trainable),
        examples=_examples(recipe),
        training=training,
        card=CardRecipe(name="gradient-sharing"),
        **changes,
    )


def _absent(recipe: GradientSharingRecipe, name: str) -> dict[str, float]:
    """Shares of nothing of the languages in a part of the data that the comparison leaves out."""
    there = set(Manifest(recipe.data / name).languages.tolist()) - {""}
    return dict.fromkeys(sorted(there - set(recipe.languages)), 0.0)


def _examples(recipe: GradientSharingRecipe) -> ExampleRecipe:
    examples = ExampleRecipe(targets=recipe.targets)
    return examples.model_copy(update=NO_MASKS) if recipe.cache_states else examples


def _beginning(recipe: GradientSharingRecipe) -> dict[str, Any]:
    """Keys of the first training's start: a checkpoint, or a new model."""
    if recipe.start is None:
        return {
            "model": recipe.model,
            "vocabulary_size": recipe.vocabulary_size,
            "transcript_vocabulary_size": recipe.transcript_vocabulary_size,
        }
    started = {"start": recipe.start, "fine_tuning": recipe.fine_tuning}
    return started | (_losses(recipe) if family_of(locate(recipe.start)) == "conformer" else {})


def _going_on(recipe: GradientSharingRecipe, start: Path) -> dict[str, Any]:
    """Keys of an arm's start; a checkpoint has been changed by then, and its losses are set again."""
    if recipe.start is None:
        return {"start": start}
    if family_of(start) == "conformer":
        return {"start": start, **_losses(recipe)}
    return {"start": start, "fine_tuning": FineTuning(label_smoothing=recipe.fine_tuning.label_smoothing)}


def _losses(recipe: GradientSharingRecipe) -> dict[str, Any]:
    """Weights of the losses in `model`, for a conformer to start from, whose sizes are its own."""
    given = recipe.model.model_dump(include=set(LOSSES & recipe.model.model_fields_set))
    return {"model": ConformerShape(**given)} if given else {}


def _first(recipe: GradientSharingRecipe, seed: int, directory: Path, report: Report) -> Path:
    """The model trained on all languages: every seed's own, or one for all."""
    states = directory / STATES
    if recipe.first_seed is None:
        directory = directory / f"seed-{seed}" / "first"
    else:
        seed, directory = recipe.first_seed, directory / "first"
    if not (directory / "model" / "model.safetensors").exists():
        report(f"seed {seed}: training on all languages")
        training = recipe.first.model_copy(update={"seed": seed})
        translator = _translator(recipe, training, **_beginning(recipe))
        train_translator(translator, directory, report=report, states=states)
    return directory / "model"


def _analyse(recipe: GradientSharingRecipe, seed: int, model: Path, path: Path, report: Report) -> Sketches:
    """Its gradients, on the training speech."""
    if not path.exists():
        report(f"seed {seed}: gradients of {recipe.analysis.utterances} utterances of each language")
        part = _translator(recipe, recipe.first).train[0]
        collection = Collection(
            load(model),
            [Manifest(part.path, part.shares)],
            recipe.collecting(seed),
            path.with_suffix(".parts"),
        )
        collection.run()
        write_sketches(path, collection.sketches())
    return read_sketches(path)


def _arm(
    recipe: GradientSharingRecipe,
    seed: int,
    name: str,
    first: Path,
    sketches: Sketches | None,
    directory: Path,
    report: Report,
) -> None:
    """Change the model, train on, score."""
    folder, arm = run_folder(directory, seed, name), ARMS[name]
    scores = folder / "scores"
    trained = folder / "run" / "model" if arm.goes_on else first
    if (scores / MANIFEST_FILE).exists():
        return
    report(f"seed {seed}: {name}")
    if not (trained / "model.safetensors").exists():
        rate = _rate(recipe, directory, name)
        translator = _second(recipe, seed, arm, first, sketches, folder, rate)
        train_translator(translator, folder / "run", report=report, states=directory / STATES)
    options = EvaluationOptions(
        targets=recipe.targets or recipe.languages,
        sources=recipe.languages,
        limit=recipe.test_utterances,
        no_speech_per_kind=0,
        first_segments=0,
        engine="torch",
    )
    evaluate([recipe.data / "test"], trained, options, out=scores)


def _change(recipe: GradientSharingRecipe, seed: int, arm: SharingArm, sketches: Sketches | None) -> object:
    """Identity of an arm's change to the model; arms of the same change are one."""
    if arm.split == "lora" or not arm.goes_on:
        return arm.split, arm.whole, arm.goes_on
    splits = () if arm.split == "none" else _plan(recipe, arm, seed, sketches).splits
    return arm.whole, tuple((s.module, s.groups, s.shared_ratio, s.start) for s in splits)


def _second(
    recipe: GradientSharingRecipe,
    seed: int,
    arm: SharingArm,
    first: Path,
    sketches: Sketches | None,
    directory: Path,
    learning_rate: float,
) -> TranslatorRecipe:
    """Recipe of the training of an arm; all arms share its data and steps."""
    plan = _plan(recipe, arm, seed, sketches)
    model: Any = load(first)
    modules = [split.module for split in plan.splits]
    layers = last_layers(len(model.encoder.layers))
    moving = tuple(f"{name}.*" for name in dict.fromkeys((*layers, *modules)))
    training = recipe.second.model_copy(update={"seed": seed, "learning_rate": learning_rate})
    if arm.split == "lora":
        size = sum(
            p.numel()
            for name, p in model.named_parameters()
            if name.startswith(tuple(m[:-1] for m in moving))
        )
        lora = LoraRecipe(modules=ENCODER, rank=rank_for(model, ENCODER, size))
        return _again(recipe, _translator(recipe, training, **_going_on(recipe, first), lora=lora))
    if not arm.whole:
        training = training.model_copy(update={"trainable": moving})
    if arm.split == "none":
        return _again(recipe, _translator(recipe, training, **_going_on(recipe, first)))
    rates = {f"{name}.private.*": recipe.private_rate * training.learning_rate for name in modules}
    training = training.model_copy(update={"rates": rates})
    split = _split(recipe, plan, first, directory / "split")
    return _again(recipe, _translator(recipe, training, **_going_on(recipe, split)))


def _again(recipe: GradientSharingRecipe, translator: TranslatorRecipe) -> TranslatorRecipe:
    """With the speech of some languages heard more often."""
    main = translator.train[0]
    others = dict.fromkeys(Manifest(main.path).languages.tolist(), 0.0)
    more = [
        DataPart(path=main.path, shares={**others, tag: recipe.shares.get(tag, 1.0)}, repeats=repeats - 1)
        for tag, repeats in recipe.second_repeats.items()
    ]
    return translator.model_copy(update={"train": (main, *more)})


def _plan(
    recipe: GradientSharingRecipe, arm: SharingArm, seed: int, sketches: Sketches | None
) -> SharingPlan:
    """Plan of an arm. Groups are not merged, however much alike: an arm is to differ from the baseline."""
    options = SharingPlanOptions(
        num_modules=recipe.num_modules,
        num_groups=recipe.num_groups,
        conflict=recipe.conflict,
        choose_by=arm.choose_by,
        shared_ratio=arm.shared_ratio,
        start=arm.start,
        veto=None,
        seed=seed,
    )
    plan = _given(recipe.plan, arm) if sketches is None else make_plan(sketches, options)
    if arm.split not in ("languages", "random"):
        return plan
    splits = tuple(
        Split(
            module=s.module,
            groups=tuple((tag,) for tag in sorted(recipe.languages))
            if arm.split == "languages"
            else other_groups(s.groups, seed),
            shared_ratio=s.shared_ratio,
            start=s.start,
            seed=seed,
        )
        for s in plan.splits
    )
    return plan.model_copy(update={"splits": splits})


def other_groups(groups: Grouping, seed: int) -> Grouping:
    """Groups of the same sizes with languages drawn at random, and not the same groups.

    Args:
        groups: groups of at least two languages, not each alone and not all together.
        seed: seed of the draw.

    Raises:
        SprachbundError: there are no other groups of these sizes.
    """
    tags = sorted(tag for group in groups for tag in group)
    if len(groups) == 1 or len(groups) == len(tags):
        raise SprachbundError(f"there are no other groups of the sizes of {groups}; leave the random arm out")
    random = np.random.default_rng(seed)
    while True:
        drawn = iter(random.permutation(tags).tolist())
        other = tuple(tuple(sorted(next(drawn) for _ in group)) for group in groups)
        if set(other) != {tuple(sorted(group)) for group in groups}:
            return other


def _given(plan: SharingPlan | None, arm: SharingArm) -> SharingPlan:
    """The recipe's plan, as the arm varies it."""
    assert plan is not None
    changes: dict[str, Any] = {"start": arm.start}
    if arm.shared_ratio is not None:
        changes["shared_ratio"] = arm.shared_ratio
    return plan.model_copy(update={"splits": tuple(s.model_copy(update=changes) for s in plan.splits)})


def _split(recipe: GradientSharingRecipe, plan: SharingPlan, first: Path, directory: Path) -> Path:
    """The first model with the plan applied."""
    model: Any = load(first)
    dropout = {"dropout": recipe.branch_dropout}
    plan = plan.model_copy(update={"splits": tuple(s.model_copy(update=dropout) for s in plan.splits)})
    part = _translator(recipe, recipe.first).train[0]
    importance = measure_importance(
        model,
        plan,
        [Manifest(part.path, part.shares)],
        recipe.analysis.utterances,
        targets=recipe.targets,
    )
    apply_plan(model, plan, importance=importance)
    save(model, directory, bits=32)
    return directory


# A planted conflict: speech of some languages is translated with other digits than are spoken. Languages that have the
# same digits then agree, and those of the other kind disagree with them. An experiment that could show a gain of groups
# has to show it here.

_STEP = 3
"""Added to every digit, modulo ten."""


def other_digits(text: str, language: str) -> str:
    """The text with every word for a digit replaced by that for another one.

    Args:
        text: text in words.
        language: BCP-47 tag of the text.
    """
    changed = {cardinal(digit, language): cardinal((digit + _STEP) % 10, language) for digit in range(10)}
    return " ".join(changed.get(word, word) for word in text.split())


def make_control(
    data: Path,
    out: Path,
    languages: Sequence[str],
    changed: Sequence[str],
    report: Report,
) -> Path:
    """A copy of a corpus in which translations of some languages' speech have other digits; parts there are kept.

    Args:
        data: folder with `train`, `dev` and `test`.
        out: folder of the copy.
        languages: languages whose speech is copied.
        changed: languages whose translations have other digits.
        report: is called with a line for each part.

    Raises:
        SprachbundError: no digit was changed.
    """
    for part in ("train", "dev", "test"):
        if not (out / part / INFO_FILE).exists():
            _copy(data / part, out / part, languages, changed, report)
    return out


def _copy(
    source: Path,
    target: Path,
    languages: Sequence[str],
    changed: Sequence[str],
    report: Report,
) -> None:
    manifest, count = Manifest(source), 0
    for path in target.glob("*"):  # of a copy that was broken off
        path.unlink()
    with ManifestWriter(target) as writer:
        for index in np.flatnonzero(np.isin(manifest.languages, languages)).tolist():
            utterance = manifest[index]
            translations = dict(utterance.translations)
            if utterance.language in changed:
                translations = {tag: other_digits(text, tag) for tag, text in translations.items()}
                count += translations != utterance.translations
            writer.add(
                manifest.samples(index),
                text=utterance.text,
                language=utterance.language,
                speaker=utterance.speaker,
                utterance_id=utterance.id,
                translations=translations,
                custom=utterance.custom,
            )
        if not count:  # before the copy is closed, by which the next run would take it for whole
            raise SprachbundError(
                f"no translation of speech in {', '.join(changed)} in {source} has a digit in words; the control needs "
                "some"
            )
    report(f"other digits in the translations of {count} utterances of {target}")
