"""Learning rates of the transfer study: each start is trained with each, and the best one on dev counts.

A start has a rate for each scale, that of the lowest mean over the languages. The trainings have the first seed, so the
best of a start is also its training with that seed.
"""

from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.grid import Cell, StudyGrid
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.encoder_transfer.results import LEARNING_RATE, read_cell
from sprachbund.research.tuning import TriedRates, as_json, best_rate, rates_left, read_tried

RATES = "rates"
"""Folder of these trainings."""
TRIED_FILE = "tried.json"
"""File of a folder whose training is finished: its rate and its lowest loss on dev, or score, turned so that less is
better."""


class StartAtScale(NamedTuple):
    """What has a learning rate of its own: a start and hours of data."""

    start: str
    hours: float

    def __str__(self) -> str:
        return f"{self.start} at {self.hours:g} h"


class CellTrial(NamedTuple):
    """A cell with the first seed, and a learning rate that it is trained with."""

    cell: Cell
    rate: float


def tuned(grid: StudyGrid) -> dict[StartAtScale, list[Cell]]:
    """Each start and scale of a grid to the cells that its learning rates are tried on."""
    cells: dict[StartAtScale, list[Cell]] = {}
    for cell in grid.cells():
        if cell.seed == grid.seeds[0]:
            cells.setdefault(StartAtScale(cell.start, cell.hours), []).append(cell)
    return cells


def trials_left(recipe: EncoderTransferRecipe, out: Path) -> tuple[CellTrial, ...]:
    """What is to be tried next: the given rates, then for each start and scale one beyond the end where its best lies.

    Args:
        recipe: options of the study.
        out: folder of the study.
    """
    return tuple(
        CellTrial(cell, rate)
        for at, cells in tuned(recipe.grid).items()
        for rate in rates_left(recipe.learning_rates, recipe.more_learning_rates, losses_of(recipe, out, at))
        for cell in cells
    )


def trial_folder(out: Path, trial: CellTrial) -> Path:
    """Folder of a training, which is like that of a cell.

    Args:
        out: folder of the study.
        trial: cell and learning rate.
    """
    return trial.cell.folder(out / RATES / f"{trial.rate:g}")


def losses_of(recipe: EncoderTransferRecipe, out: Path, at: StartAtScale) -> TriedRates:
    """Learning rates that were tried in all languages to the mean of the lowest losses on dev.

    Args:
        recipe: options of the study.
        out: folder of the study.
        at: start and scale.
    """
    cells, losses = tuned(recipe.grid)[at], dict[float, float]()
    while left := rates_left(recipe.learning_rates, recipe.more_learning_rates, losses):
        files = {
            rate: [trial_folder(out, CellTrial(cell, rate)) / TRIED_FILE for cell in cells] for rate in left
        }
        whole = [rate for rate in left if all(file.exists() for file in files[rate])]
        if not whole:
            break
        losses |= {rate: mean(read_tried(file)[rate] for file in files[rate]) for rate in whole}
    return losses


def rate_of(recipe: EncoderTransferRecipe, out: Path, cell: Cell) -> float:
    """Learning rate of a cell: the best of its start and scale; its start's or that of `tuning`, where none are tried.

    Args:
        recipe: options of the study.
        out: folder of the study, in which all rates are tried.
        cell: cell of the grid.
    """
    if not recipe.learning_rates:
        return recipe.start_rates.get(cell.start, recipe.tuning.learning_rate)
    return best_rate(losses_of(recipe, out, StartAtScale(cell.start, cell.hours)))


def check_rates(recipe: EncoderTransferRecipe, out: Path) -> None:
    """Check that finished cells were trained with the rates that are best by now: further languages may change them.

    Args:
        recipe: options of the study.
        out: folder of the study, in which all rates are tried.

    Raises:
        SprachbundError: naming the first cell of another rate.
    """
    for cell in recipe.grid.cells() if recipe.learning_rates else ():
        finished, rate = read_cell(cell.folder(out)), rate_of(recipe, out, cell)
        if finished is not None and (before := finished.training.get(LEARNING_RATE)) != rate:
            raise SprachbundError(
                f"{cell} was trained with a learning rate of {before}, and {rate:g} is the best of "
                f"{', '.join(recipe.grid.languages)}; delete {cell.folder(out)}, and the cell is made again"
            )


def rate_rows(recipe: EncoderTransferRecipe, out: Path, sign: float = 1.0) -> list[dict[str, Any]]:
    """Mean dev value of each start and scale with each learning rate, and the rate that counts.

    Args:
        recipe: options of the study.
        out: folder of the study, in which all rates are tried.
        sign: -1 where higher values are better.
    """
    tried = {at: losses_of(recipe, out, at) for at in tuned(recipe.grid)}
    rates = sorted({rate for losses in tried.values() for rate in losses})
    return [
        {
            "start": at.start,
            "hours": at.hours,
            **dict.fromkeys(f"{rate:g}" for rate in rates),
            **as_json({rate: round(sign * loss, 4) for rate, loss in losses.items()}),
            "best": best_rate(losses),
        }
        for at, losses in tried.items()
    ]
