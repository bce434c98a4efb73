"""Gradient-driven sharing (arXiv 2603.25836) beside what it has to beat, from data to table.

1. A model is trained on all languages at once, one of them starved of data (UFT, uniform fine-tuning).
2. Its gradients, language by language, decide what to split (`sprachbund.sharing`).
3. Every arm trains on from there for the same number of steps: the last two encoder layers and whatever is new.
4. All arms are scored on the same test sentences and compared with UFT, over seeds, by paired bootstrap.

What is finished is not done again, so a broken-off run goes on.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sprachbund.data.manifest import Manifest
from sprachbund.evaluation.compare import RunFile, System, compare
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.conformer import ConformerShape
from sprachbund.models.conformer.directory import load, save
from sprachbund.models.sharing_plan import SharingPlan, Split, Start
from sprachbund.recipes.translator import CardRecipe, DataPart, LoraRecipe, Strict, TranslatorRecipe
from sprachbund.recipes.translator import run as train_translator
from sprachbund.sharing.collect import Collection
from sprachbund.sharing.collect_options import CollectOptions
from sprachbund.sharing.measuring import measure_importance
from sprachbund.sharing.planning import PlanOptions, make_plan
from sprachbund.sharing.sketches import Sketches, read_sketches, write_sketches
from sprachbund.sharing.surgery import apply_plan
from sprachbund.training.lora import rank_for
from sprachbund.training.options import TrainingOptions

Report = Callable[[str], None]
BASELINE = "uft"
ENCODER = ("encoder.layers.*",)


class Arm(Strict):
    """One way to go on from the uniformly trained model.

    Attributes:
        split: nothing; what the gradients say; a branch for every language; or adapters (LoRA) of the same size.
        choose_by: which module is split, see `sharing.capacity.ranked`.
        shared_ratio: in place of the one that the gradients give.
        start: first weights of the branches.
        whole: train every weight, not only the last two encoder layers and what is new.
    """

    split: Literal["none", "gradients", "languages", "lora"]
    choose_by: Literal["purity", "separation"] = "purity"
    shared_ratio: float | None = None
    start: Start = "neuron"
    whole: bool = False


ARMS: Mapping[str, Arm] = {
    BASELINE: Arm(split="none"),
    "sharing": Arm(split="gradients"),
    "sharing, by separation": Arm(split="gradients", choose_by="separation"),
    "one branch a language": Arm(split="languages"),
    "lora": Arm(split="lora"),
    "sharing, random start": Arm(split="gradients", start="random"),
    "sharing, svd start": Arm(split="gradients", start="svd"),
    "sharing, rho .25": Arm(split="gradients", shared_ratio=0.25),
    "sharing, rho .50": Arm(split="gradients", shared_ratio=0.5),
    "sharing, rho .75": Arm(split="gradients", shared_ratio=0.75),
    "uft, all weights": Arm(split="none", whole=True),
    "sharing, all weights": Arm(split="gradients", whole=True),
}


class Analysis(Strict):
    """What gradients are taken on; see `sharing.collect_options.CollectOptions`."""

    utterances: int = 320
    batch: int = 4
    accumulate: int = 4
    dimensions: int = 512


class GradientSharingRecipe(Strict):
    """Everything the comparison depends on.

    Attributes:
        data: folder with `train`, `dev` and `test`.
        languages: spoken and written.
        shares: language to the share of its training speech that is there; the starved ones.
        seeds: of weights, data order, utterances and branches; one run each.
        arms: names from `ARMS`; the baseline is always there.
        first: training on all languages.
        second: training of every arm, from where the first ended.
        private_rate: the private branches' rate beside that of the rest.
        num_modules: split by the arms that go by gradients.
        test_utterances: scored, evenly over the test set; all if None.
        test_targets: languages scored; all if empty.
    """

    data: Path
    languages: tuple[str, ...]
    shares: dict[str, float] = Field(default_factory=dict)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    arms: tuple[str, ...] = tuple(ARMS)
    vocabulary_size: int = 1000
    transcript_vocabulary_size: int = 300
    model: ConformerShape
    first: TrainingOptions
    second: TrainingOptions
    private_rate: float = 2.5
    analysis: Analysis = Analysis()
    num_modules: int = 1
    test_utterances: int | None = None
    test_targets: tuple[str, ...] = ()


def run(recipe: GradientSharingRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the table."""
    directory.mkdir(parents=True, exist_ok=True)
    for seed in recipe.seeds:
        first = _first(recipe, seed, directory / f"seed-{seed}" / "first", report)
        sketches = _analyse(recipe, seed, first, directory / f"seed-{seed}" / "gradients.npz", report)
        for name in dict.fromkeys((BASELINE, *recipe.arms)):
            _arm(recipe, seed, name, first, sketches, _place(directory, seed, name), report)
    return _table(recipe, directory)


def _place(directory: Path, seed: int, name: str) -> Path:
    return directory / f"seed-{seed}" / name.replace(", ", "-").replace(" ", "-").replace(".", "")


def _translator(
    recipe: GradientSharingRecipe, training: TrainingOptions, **changes: Any
) -> TranslatorRecipe:
    # Speech in languages that the comparison leaves out is left out by a share of nothing.
    present = set(Manifest(recipe.data / "dev").languages.tolist()) - {""}
    absent = dict.fromkeys(sorted(present - set(recipe.languages)), 0.0)
    return TranslatorRecipe(
        languages=recipe.languages,
        train=(DataPart(path=recipe.data / "train", shares={**absent, **recipe.shares}),),
        dev=(DataPart(path=recipe.data / "dev", shares=absent),),
        vocabulary_size=recipe.vocabulary_size,
        transcript_vocabulary_size=recipe.transcript_vocabulary_size,
        bits=32,
        model=recipe.model,
        training=training,
        card=CardRecipe(name="gradient-sharing"),
        **changes,
    )


def _first(recipe: GradientSharingRecipe, seed: int, directory: Path, report: Report) -> Path:
    """The model trained on all languages."""
    if not (directory / "model" / "model.safetensors").exists():
        report(f"seed {seed}: training on all languages")
        training = recipe.first.model_copy(update={"seed": seed})
        train_translator(_translator(recipe, training), directory, report=report)
    return directory / "model"


def _analyse(recipe: GradientSharingRecipe, seed: int, model: Path, path: Path, report: Report) -> Sketches:
    """Its gradients, on the training speech."""
    if not path.exists():
        report(f"seed {seed}: gradients of {recipe.analysis.utterances} utterances of each language")
        part = _translator(recipe, recipe.first).train[0]
        options = CollectOptions(languages=recipe.languages, seed=seed, **recipe.analysis.model_dump())
        collection = Collection(
            load(model), [Manifest(part.path, part.shares)], options, path.with_suffix(".parts")
        )
        collection.run()
        write_sketches(path, collection.sketches())
    return read_sketches(path)


def _arm(
    recipe: GradientSharingRecipe,
    seed: int,
    name: str,
    first: Path,
    sketches: Sketches,
    directory: Path,
    report: Report,
) -> None:
    """Change the model, train on, score."""
    scores, trained = directory / "scores", directory / "run" / "model"
    if (scores / MANIFEST_FILE).exists():
        return
    report(f"seed {seed}: {name}")
    if not (trained / "model.safetensors").exists():
        train_translator(
            _second(recipe, seed, ARMS[name], first, sketches, directory), directory / "run", report=report
        )
    options = EvaluationOptions(
        targets=recipe.test_targets or recipe.languages,
        limit=recipe.test_utterances,
        no_speech_per_kind=0,
        first_segments=0,
    )
    evaluate([recipe.data / "test"], trained, options, out=scores)


def _second(
    recipe: GradientSharingRecipe, seed: int, arm: Arm, first: Path, sketches: Sketches, directory: Path
) -> TranslatorRecipe:
    """How the arm is trained, from what, with everything but the data and the steps its own."""
    plan = _plan(recipe, arm, seed, sketches)
    modules = [split.module for split in plan.splits]
    moving = tuple(f"{name}.*" for name in dict.fromkeys((*_last_layers(recipe), *modules)))
    training = recipe.second.model_copy(update={"seed": seed})
    if arm.split == "lora":
        model = load(first)
        size = sum(
            p.numel()
            for name, p in model.named_parameters()
            if name.startswith(tuple(m[:-1] for m in moving))
        )
        lora = LoraRecipe(modules=ENCODER, rank=rank_for(model, ENCODER, size))
        return _translator(recipe, training, start=first, lora=lora)
    if not arm.whole:
        training = training.model_copy(update={"trainable": moving})
    if arm.split == "none":
        return _translator(recipe, training, start=first)
    rates = {f"{name}.private.*": recipe.private_rate * training.learning_rate for name in modules}
    training = training.model_copy(update={"rates": rates})
    return _translator(recipe, training, start=_split(recipe, plan, first, directory / "split"))


def _last_layers(recipe: GradientSharingRecipe) -> tuple[str, ...]:
    count = recipe.model.num_encoder_layers
    return tuple(f"encoder.layers.{n}" for n in range(max(0, count - 2), count))


def _plan(recipe: GradientSharingRecipe, arm: Arm, seed: int, sketches: Sketches) -> SharingPlan:
    """What the arm splits. Groups are not merged, however much alike: every arm has to differ from the baseline."""
    options = PlanOptions(
        num_modules=recipe.num_modules,
        choose_by=arm.choose_by,
        shared_ratio=arm.shared_ratio,
        start=arm.start,
        veto=None,
        seed=seed,
    )
    plan = make_plan(sketches, options)
    if arm.split != "languages":
        return plan
    alone = tuple((tag,) for tag in sorted(recipe.languages))
    splits = tuple(
        Split(module=s.module, groups=alone, shared_ratio=s.shared_ratio, start=s.start, seed=seed)
        for s in plan.splits
    )
    return plan.model_copy(update={"splits": splits})


def _split(recipe: GradientSharingRecipe, plan: SharingPlan, first: Path, directory: Path) -> Path:
    """The first model with the plan applied."""
    model = load(first)
    part = _translator(recipe, recipe.first).train[0]
    importance = measure_importance(
        model, plan, [Manifest(part.path, part.shares)], recipe.analysis.utterances
    )
    apply_plan(model, plan, importance=importance)
    save(model, directory, bits=32)
    return directory


@dataclass(frozen=True)
class _Spoken:
    """The lines of a run whose speech is in some languages."""

    run: RunFile
    languages: frozenset[str]

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.source in self.languages)


def _table(recipe: GradientSharingRecipe, directory: Path) -> Path:
    """Every arm beside the baseline: all languages, and the starved ones alone."""
    names = list(dict.fromkeys((BASELINE, *recipe.arms)))
    groups = {"all": frozenset(recipe.languages), "starved": frozenset(recipe.shares)}
    rows: dict[str, dict[str, object]] = {name: {"arm": name} for name in names}
    for group, languages in groups.items():
        if not languages:
            continue
        systems = [
            System(
                name=name,
                runs=[
                    _Spoken(RunFile(_place(directory, seed, name) / "scores"), languages)
                    for seed in recipe.seeds
                ],
            )
            for name in names
        ]
        for (_, name), found in compare(systems, ["chrF"]).means.items():
            low, high = found.interval
            rows[BASELINE][f"chrF {group}"] = found.baseline
            rows[name] |= {
                f"chrF {group}": found.system,
                f"difference {group}": f"{found.difference:+.2f} ({low:+.2f} to {high:+.2f})",
                f"p {group}": found.p_value,
            }
    path = directory / "table.json"
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = [{key: row.get(key, "") for key in columns} for row in rows.values()]
    path.write_text(json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": table}, indent=1) + "\n")
    return path
