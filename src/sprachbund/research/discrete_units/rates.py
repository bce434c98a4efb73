"""Learning rates of the comparison of discrete units: every arm is trained with each, and the best one on dev counts.

The trainings have the first seed, so the best of an arm is also its training with that seed.
"""

from pathlib import Path
from typing import NamedTuple

from sprachbund.models.tokens.io import WEIGHTS_FILE
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe, UnitsArm, run_folder
from sprachbund.research.tuning import TriedRates, best_rate, lowest_loss

RATES = "rates"
"""Folder of these trainings."""
TRAINED = Path("run") / "model" / WEIGHTS_FILE
"""File of a folder whose training is finished."""


class RateTrial(NamedTuple):
    """An arm, None for log-mel, and a learning rate that it is trained with."""

    arm: UnitsArm | None
    rate: float


def trials(recipe: DiscreteUnitsRecipe) -> tuple[RateTrial, ...]:
    """All arms with all learning rates.

    Args:
        recipe: options of the comparison.
    """
    return tuple(RateTrial(arm, rate) for arm in recipe.tuned() for rate in recipe.learning_rates)


def trial_folder(recipe: DiscreteUnitsRecipe, directory: Path, trial: RateTrial) -> Path:
    """Folder of a training, which is like that of a seed's arm.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        trial: arm and learning rate.
    """
    return run_folder(directory / RATES, recipe.seeds[0], recipe.tuned()[trial.arm]) / f"{trial.rate:g}"


def losses_of(recipe: DiscreteUnitsRecipe, directory: Path, arm: UnitsArm | None) -> TriedRates:
    """Learning rate to the lowest loss on dev; empty for an arm of which none are tried.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        arm: arm of the comparison; None for log-mel.
    """
    rates = recipe.learning_rates if arm in recipe.tuned() else ()
    return {
        rate: lowest_loss(trial_folder(recipe, directory, RateTrial(arm, rate)) / "run") for rate in rates
    }


def best_trial(recipe: DiscreteUnitsRecipe, directory: Path, arm: UnitsArm | None) -> RateTrial | None:
    """The arm with its learning rate of the lowest loss; None for an arm of which none are tried.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        arm: arm of the comparison; None for log-mel.
    """
    losses = losses_of(recipe, directory, arm)
    return RateTrial(arm, best_rate(losses)) if losses else None
