"""Learning rates of the comparison: every arm is trained with each, and the best one on dev counts for all its seeds.

These trainings have the first seed, so the best one of an arm is its training with that seed, too.
"""

from pathlib import Path

from sprachbund.research.dual_scale.options import DualScaleRecipe, run_folder
from sprachbund.research.tuning import TriedRates, best_rate, read_tried
from sprachbund.training.options import TrainingOptions

RATES = "rates"
"""Folder of these trainings."""
RATES_FILE = "rates.json"
"""File of an arm whose rates are all tried: rate to the lowest loss on dev."""
TRIED_FILE = "tried.json"
"""The same of those that are finished, while others are left."""


def rates_folder(directory: Path, name: str) -> Path:
    """Folder of the trainings that try an arm's rates.

    Args:
        directory: folder of all runs.
        name: name of the arm.
    """
    return directory / RATES / run_folder(directory, name, 0).name


def tried_rates(directory: Path, name: str) -> TriedRates:
    """Rate to the lowest loss on dev of an arm whose rates are all tried.

    Args:
        directory: folder of all runs.
        name: name of the arm.
    """
    return read_tried(rates_folder(directory, name) / RATES_FILE)


def rate_of(recipe: DualScaleRecipe, directory: Path, name: str) -> float:
    """Learning rate of an arm: the best of those tried, or that of the training options where none are.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        name: name of the arm.
    """
    if not recipe.learning_rates:
        return recipe.training.learning_rate
    return best_rate(tried_rates(directory, name))


def at_rate(training: TrainingOptions, rate: float) -> TrainingOptions:
    """The same training with another learning rate; rates of single parameters keep their ratio to it.

    Args:
        training: training options.
        rate: learning rate.
    """
    factor = rate / training.learning_rate
    rates = {pattern: factor * own for pattern, own in training.rates.items()}
    return training.model_copy(update={"learning_rate": rate, "rates": rates})
