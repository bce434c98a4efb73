"""Discrete units and hard parameter sharing (arXiv 2309.15826) beside what they have to beat, from data to table.

1. Units are made of an encoder's features, and the corpus is written as units once.
2. Every arm is a model trained on them: a head, with more and more text; the base with one thing changed; the base with
   less and less speech, with and without text. Equal arms are trained once.
3. Each is scored on the same recordings, and compared over seeds by paired bootstrap.
4. The same kind of model on log-mel features, for what units cost and save.

Models are trained beside each other (`workers`), each with one thread. What is finished is not done again, so a
broken-off run goes on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.models.token_conformer.directory import WEIGHTS_FILE
from sprachbund.recipes.discrete_units_arm import make_model, make_text_model
from sprachbund.recipes.discrete_units_data import make_data
from sprachbund.recipes.discrete_units_needs import needs
from sprachbund.recipes.discrete_units_options import DiscreteUnitsRecipe, Model, place
from sprachbund.recipes.discrete_units_table import write_tables
from sprachbund.recipes.run_folder import LOG_FILE
from sprachbund.studies.run import Tasks, remember, run_tasks
from sprachbund.util.distributed import refuse_several_processes

__all__ = ["DiscreteUnitsRecipe", "needs", "run"]

Report = Callable[[str], None]
MAY_CHANGE = ("seeds", "ablation_seeds", "heads", "ablations", "hours", "workers", "data")
"""What adds models, or changes no number: `data` may have moved."""
TEXT_MODEL, SCORES = Path("model") / WEIGHTS_FILE, Path("scores") / MANIFEST_FILE
"""What a folder holds when its model is made."""


def run(recipe: DiscreteUnitsRecipe, directory: Path, *, report: Report = print) -> Path:
    """Run all arms over all seeds, or go on; the file with the main table.

    Raises:
        SprachbundError: data that are not there or do not fit, or a recipe that asks for what there is not; one that
            torchrun started several times.
    """
    refuse_several_processes("the recipe discrete_units")
    directory.mkdir(parents=True, exist_ok=True)
    remember(directory, recipe, may_change=MAY_CHANGE)
    make_data(recipe, directory, report)
    report(f"what each training says is in {directory / 'seed-N' / 'ARM' / LOG_FILE}")
    _train(recipe, directory, "text models", recipe.text_models(), make_text_model, TEXT_MODEL, report)
    _train(recipe, directory, "models", recipe.models(), make_model, SCORES, report)
    _link_equal(recipe, directory)
    return write_tables(recipe, directory)


def _train(
    recipe: DiscreteUnitsRecipe,
    directory: Path,
    what: str,
    models: tuple[Model, ...],
    make: Callable[[DiscreteUnitsRecipe, Path, Sequence[Model], int], None],
    file: Path,
    report: Report,
) -> None:
    """Make models beside each other; one is made when a file of its folder is there."""
    paths = tuple(place(directory, seed, name) / file for name, seed, _ in models)
    tasks = Tasks(paths=paths, make=partial(make, recipe, directory, models))
    if paths:
        run_tasks(tasks, what, workers=recipe.workers, report=report)


def _link_equal(recipe: DiscreteUnitsRecipe, directory: Path) -> None:
    """Arms that equal one of another name are found under their own too."""
    first = {(seed, arm): name for name, seed, arm in recipe.models()}
    for seed in recipe.seeds:
        for name, arm in recipe.arms(seed).items():
            target = place(directory, seed, name)
            if not target.exists():
                target.symlink_to(place(directory, seed, first[seed, arm]).name)
