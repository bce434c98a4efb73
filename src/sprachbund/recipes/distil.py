"""The recipe of a student: a teacher, a smaller model and speech with texts in, the smaller model taught out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sprachbund.compression.distillation import Distillation, DistillationOptions, check_pair
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.directory import family_of, load, locate
from sprachbund.models.weights import Bits
from sprachbund.recipes.smaller import bits_of, card_of
from sprachbund.recipes.students import make_student
from sprachbund.recipes.translator import (
    NO_MASKS,
    CardRecipe,
    DataPart,
    ExampleRecipe,
    Strict,
    TranslatorRecipe,
    check_corpus,
)
from sprachbund.training.loop import train
from sprachbund.training.options import TrainingOptions
from sprachbund.util.distributed import (
    first_rank_first,
    is_first_rank,
    joined_processes,
    on_first_rank,
    wait_for_all_ranks,
)
from sprachbund.util.files import read_object, write_text

RECIPE_FILE = "recipe.json"
MODEL = "model"
"""Folder of the result in that of the run."""


class DistilRecipe(Strict):
    """Everything a run depends on.

    Attributes:
        teacher: directory, "bundled", or a name on the Hugging Face hub.
        student: the same; what training starts from.
        languages: heard and written.
        train: speech with texts, the teacher's own or others.
        dev: ranks the checkpoints; without it the last weights are taken.
        objective: what is learned.
        examples: see `ExampleRecipe`.
        training: how long, how fast.
    """

    teacher: Path | str
    student: Path | str
    languages: tuple[str, ...]
    train: tuple[DataPart, ...]
    dev: tuple[DataPart, ...] = ()
    objective: DistillationOptions = DistillationOptions()
    examples: ExampleRecipe = ExampleRecipe()
    training: TrainingOptions


def run(
    recipe: DistilRecipe,
    directory: Path,
    *,
    report: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> Path:
    """Teach a student, or take up the run in `directory`; the directory of the model.

    Raises:
        SprachbundError: models that do not go together, data that neither knows, or a run of another recipe.
    """
    with joined_processes():
        return _run(recipe, directory, on_first_rank(report), stop_after)


def _run(
    recipe: DistilRecipe, directory: Path, report: Callable[[str], None], stop_after: int | None
) -> Path:
    torch.manual_seed(recipe.training.seed)
    with first_rank_first():
        _claim(recipe, directory)
    start = locate(str(recipe.student))
    teacher: Any = load(recipe.teacher)
    student = make_student(_as_translator(recipe, start), directory, [])
    check_pair(student.model, teacher, recipe.objective)
    told = sum(p.numel() for p in teacher.parameters()) / 1e6
    report(f"the teacher, {told:.1f} M parameters, is held beside what follows")
    corpus = _corpus(recipe, recipe.train, student.examples, recipe.examples.model_dump())
    dev = _corpus(recipe, recipe.dev, student.examples, {**recipe.examples.model_dump(), **NO_MASKS})
    check_corpus(corpus, recipe.training.max_duration_s, report)
    train(
        Distillation(student.model, teacher, recipe.objective),
        corpus,
        recipe.training,
        directory,
        dev=dev if recipe.dev else None,
        report=report,
        stop_after=stop_after,
    )
    student.model.cpu()
    how = {
        "by": "distil",
        "teacher": str(recipe.teacher),
        "steps": recipe.training.steps,
        **recipe.objective.model_dump(),
    }
    if is_first_rank():
        student.save(directory / MODEL, card=card_of(student.model, start, directory.name, how))
    wait_for_all_ranks()
    return directory / MODEL


def check_models(recipe: DistilRecipe, *, offline: bool = False) -> None:
    """Refuse models that do not go together, before any work. Raises SprachbundError as `run`."""
    teacher, student = (load(locate(name, offline=offline)) for name in (recipe.teacher, recipe.student))
    check_pair(student, teacher, recipe.objective)
    for name, model in ((recipe.teacher, teacher), (recipe.student, student)):
        written = {target for _, target in model.pairs()}
        if unknown := sorted(set(recipe.languages) - written):
            raise SprachbundError(
                f"{name} does not write {', '.join(unknown)}; it writes {', '.join(sorted(written))}"
            )


def _claim(recipe: DistilRecipe, directory: Path) -> None:
    """Make the folder ours, or see that it holds this run; how long and how fast may have changed."""
    path = directory / RECIPE_FILE
    wanted = recipe.model_dump(mode="json")
    if path.exists():
        known = read_object(
            path, advice="delete it if the run there is of this recipe, or choose another --out"
        )
        changed = [key for key in wanted if key != "training" and wanted[key] != known.get(key)]
        if changed:
            raise SprachbundError(
                f"{directory} holds a run with another {', '.join(changed)}; choose another --out"
            )
    if not is_first_rank():
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_text(path, recipe.model_dump_json(indent=1) + "\n")


def _as_translator(recipe: DistilRecipe, start: Path) -> TranslatorRecipe:
    """What `make_student` asks: the student as any model that is trained on, stored in the bits it has."""
    bits: Bits = bits_of(start)
    return TranslatorRecipe(
        languages=recipe.languages,
        train=recipe.train,
        dev=recipe.dev,
        start=start,
        training=recipe.training,
        bits=bits if bits != 8 or family_of(start) == "conformer" else 32,
        card=CardRecipe(name=MODEL),
    )


def _corpus(
    recipe: DistilRecipe, parts: tuple[DataPart, ...], examples: Any, options: dict[str, Any]
) -> Corpus:
    manifests = [(Manifest(part.path, part.shares), part.repeats) for part in parts]
    return Corpus(manifests, examples, ExampleOptions(**options, seed=recipe.training.seed))
