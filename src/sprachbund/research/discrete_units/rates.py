"""Learning rates of the comparison of discrete units: every arm is trained with each, and the best one on dev counts.

The trainings have the first seed, so the best of an arm is also its training with that seed.
"""

from pathlib import Path
from typing import NamedTuple

from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe, UnitsArm, run_folder
from sprachbund.research.tuning import TriedRates, best_rate, rates_left, read_tried

RATES = "rates"
"""Folder of these trainings."""
TRIED_FILE = "tried.json"
"""File of a folder whose training is finished: its rate and the lowest loss on dev, if it has one."""


class RateTrial(NamedTuple):
    """An arm, None for log-mel, and a learning rate that it is trained with."""

    arm: UnitsArm | None
    rate: float


def trials(recipe: DiscreteUnitsRecipe) -> tuple[RateTrial, ...]:
    """All arms with all learning rates that are given.

    Args:
        recipe: options of the comparison.
    """
    return tuple(RateTrial(arm, rate) for arm in recipe.tuned() for rate in recipe.learning_rates)


def trials_left(recipe: DiscreteUnitsRecipe, directory: Path) -> tuple[RateTrial, ...]:
    """What is to be tried next for each arm: a rate beyond the end at which its best one lies.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs, in which `trials` are finished.
    """
    return tuple(
        RateTrial(arm, rate)
        for arm in recipe.tuned()
        for rate in rates_left(
            recipe.learning_rates, recipe.more_learning_rates, losses_of(recipe, directory, arm)
        )
    )


def trial_folder(recipe: DiscreteUnitsRecipe, directory: Path, trial: RateTrial) -> Path:
    """Folder of a training, which is like that of a seed's arm.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        trial: arm and learning rate.
    """
    return run_folder(directory / RATES, recipe.seeds[0], recipe.tuned()[trial.arm]) / f"{trial.rate:g}"


def losses_of(recipe: DiscreteUnitsRecipe, directory: Path, arm: UnitsArm | None) -> TriedRates:
    """Learning rate to the lowest loss on dev of what is trained; empty for an arm of which none are tried.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        arm: arm of the comparison; None for log-mel.
    """
    losses: dict[float, float] = {}
    if arm not in recipe.tuned():
        return losses
    while True:
        left = rates_left(recipe.learning_rates, recipe.more_learning_rates, losses)
        folders = {rate: trial_folder(recipe, directory, RateTrial(arm, rate)) for rate in left}
        files = [file for folder in folders.values() if (file := folder / TRIED_FILE).exists()]
        if not files:
            return losses
        for file in files:
            losses |= read_tried(file)


def best_trial(recipe: DiscreteUnitsRecipe, directory: Path, arm: UnitsArm | None) -> RateTrial | None:
    """The arm with its learning rate of the lowest loss; None for an arm of which none are tried.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        arm: arm of the comparison; None for log-mel.
    """
    losses = losses_of(recipe, directory, arm)
    return RateTrial(arm, best_rate(losses)) if losses else None
