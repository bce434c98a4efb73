"""The transfer study (arXiv 2606.24169): which encoder to start from, how much data, how little delay, how few bits.

1. Models are trained first, or brought as checkpoints: one on several languages, one on English alone.
2. Starts are spliced of them: decoder, joint network and tokenizer of one, encoder layers of either.
3. Every cell of the grid learns one language from one start on so many hours, stops when it no longer gets better on
   dev, and is scored at every tier and bit width.
4. The study's report: gaps, law with interval, latency, cost of bits, convergence, a decision in words.

`study run` with a file of these options and `recipe encoder_transfer` with a size are this function. What is finished
is not done again, so a broken-off study goes on.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.recipes.encoder_transfer_cell import make_cell
from sprachbund.recipes.encoder_transfer_checkpoints import check_checkpoints
from sprachbund.recipes.encoder_transfer_needs import needs
from sprachbund.recipes.encoder_transfer_options import EncoderTransferRecipe
from sprachbund.recipes.encoder_transfer_starts import make_starts
from sprachbund.recipes.options import check_numbers
from sprachbund.studies.run import STUDY_FILE, Study, read_study, remember
from sprachbund.studies.whole import TABLES, make_report, write_report
from sprachbund.util.distributed import refuse_several_processes
from sprachbund.util.files import validate

__all__ = ["EncoderTransferRecipe", "needs", "read", "run", "run_cells"]

MAY_CHANGE = ("grid", "workers", "data")
"""What adds cells, or changes no number: `data` may have moved."""


def run(recipe: EncoderTransferRecipe, directory: Path, *, report: Callable[[str], None] = print) -> Path:
    """Run the study, or go on, and write its report; the file with the table of gaps.

    Raises:
        SprachbundError: as `run_cells` and `make_report` do.
    """
    run_cells(recipe, directory, report=report)
    write_report(make_report(recipe.grid, directory), directory)
    return directory / TABLES / "gaps.json"


def run_cells(
    recipe: EncoderTransferRecipe,
    directory: Path,
    *,
    ray_address: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Make starts and all cells that are missing; the table of results.

    Args:
        recipe: of the study.
        directory: of the study.
        ray_address: of a Ray cluster that shares both folders, "local" for one here; None for plain processes.
        report: is told how far it is.

    Raises:
        SprachbundError: a folder with another study, data or layers that there are not, a cell that failed; a study
            that torchrun started several times.
    """
    refuse_several_processes("the transfer study")
    recipe = recipe.model_copy(update={"data": recipe.data.resolve()})
    check_data(recipe)
    check_checkpoints(recipe)
    remember(directory, recipe, may_change=MAY_CHANGE)
    make_starts(recipe, directory, ray_address=ray_address, report=report)
    study = Study(grid=recipe.grid, make=partial(make_cell, recipe, directory), out=directory)
    return study.run(workers=recipe.workers, ray_address=ray_address, report=report)


def check_data(recipe: EncoderTransferRecipe) -> None:
    """See that the data hold what the study wants of them, before anything is trained.

    Raises:
        SprachbundError: naming the part, the language, and the hours that there are.
    """
    own = {tag for one in recipe.pretrained.values() if one.checkpoint is None for tag in one.languages}
    learned = set(recipe.grid.languages)
    for part, wanted in (("train", own | learned), ("dev", own | learned), ("test", learned)):
        manifest = Manifest(recipe.data / part)
        there = set(manifest.languages.tolist()) - {""}
        if lacking := sorted(wanted - there):
            raise SprachbundError(
                f"{manifest.directory} holds no speech in {', '.join(lacking)}; it holds {', '.join(sorted(there))}"
            )
        if part == "train":
            _check_hours(recipe, manifest)


def _check_hours(recipe: EncoderTransferRecipe, manifest: Manifest) -> None:
    most = max(recipe.grid.hours)
    for language in recipe.grid.languages:
        own = manifest.durations_s[manifest.languages == language]
        hours = float(own.sum(dtype=np.float64)) / 3600
        if most > hours:
            raise SprachbundError(
                f"grid.hours asks for {most:g} h of {language}; {manifest.directory} holds {hours:.4f} h"
            )


def read(directory: Path) -> EncoderTransferRecipe:
    """The recipe of a study that was begun. Raises SprachbundError when there is none."""
    values = read_study(directory)
    check_numbers(values, f"{directory / STUDY_FILE}: ")
    return validate(
        EncoderTransferRecipe,
        values,
        str(directory / STUDY_FILE),
        advice="give the recipe again, or begin the study in another folder",
    )
