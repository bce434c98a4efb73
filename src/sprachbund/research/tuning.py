"""Learning rates that a comparison tries for each of its arms: the one of the lowest loss on dev counts."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel

from sprachbund.errors import SprachbundError
from sprachbund.training.loop import Convergence, DivergedError
from sprachbund.util.files import read_model
from sprachbund.util.progress import Report

TriedRates = Mapping[float, float]
"""Learning rate, or factor of one, to the lowest loss on dev of its training."""


def lowest_loss(run: Path) -> float:
    """Lowest loss on dev of a training.

    Args:
        run: folder of a training that is finished and had evaluations.
    """
    best = Convergence.read(run).best
    assert best is not None
    return best.value


def loss_with(rate: float, train: Callable[[], object], run: Path, report: Report) -> float:
    """Train with a rate that may be too high, and return the lowest loss on dev; infinity where the training diverges.

    Args:
        rate: learning rate.
        train: trains in the folder.
        run: folder of the training.
        report: called with a line where it diverges.
    """
    try:
        train()
    except DivergedError as error:
        report(f"learning rate {rate:g} is too high: {error}")
        return math.inf
    return lowest_loss(run)


def check_trained(name: str, tried: TriedRates, option: str) -> None:
    """Check that one of the rates led to a loss.

    Args:
        name: what they were tried for.
        tried: rates and losses.
        option: name of the option with the rates.

    Raises:
        SprachbundError: no loss is finite.
    """
    if not math.isfinite(tried[best_rate(tried)]):
        rates = ", ".join(f"{rate:g}" for rate in tried)
        raise SprachbundError(
            f"no training of {name} has a finite loss, with {option} {rates}; lower `{option}`, and give another "
            "--out"
        )


def best_rate(tried: TriedRates) -> float:
    """The rate of the lowest loss; a loss that is not a number, as too high a rate may give, is above all others.

    Args:
        tried: rates and losses, one at least.
    """
    return min(tried, key=lambda rate: (math.isnan(tried[rate]), tried[rate]))


def rates_left(rates: Sequence[float], more: int, tried: TriedRates) -> list[float]:
    """The rates to try next: those of a list, and after them one beyond the end at which the best one lies.

    It is as many times as far out as that end is from its neighbour: after 2e-3 and 4e-3, 1e-3 or 8e-3.

    Args:
        rates: the list.
        more: number of rates that are tried beyond its ends at most.
        tried: rates and losses so far.

    Returns:
        Nothing where the best rate lies between others, or has no neighbour.
    """
    if left := [rate for rate in rates if rate not in tried]:
        return left
    from_best = sorted(tried, reverse=best_rate(tried) == max(tried))
    if len(tried) == len(rates) + more or len(tried) == 1 or from_best[0] != best_rate(tried):
        return []
    return [float(f"{from_best[0] ** 2 / from_best[1]:g}")]  # its name is read as the same number


def as_json(tried: TriedRates) -> dict[str, float | None]:
    """The rates and losses of an arm as a JSON object, whose keys are strings; null for a loss that is not finite.

    Args:
        tried: rates and losses.
    """
    return {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in tried.items()}


class _Tried(RootModel[Annotated[dict[float, float | None], Field(min_length=1)]]):
    """The content of such a file."""


def read_tried(path: Path) -> dict[float, float]:
    """Read a file of `as_json`.

    Args:
        path: the file.

    Raises:
        SprachbundError: not JSON, no rates with losses, or none at all.
    """
    tried = read_model(path, _Tried, advice="delete it, and the rates are tried again").root
    return {rate: math.inf if loss is None else loss for rate, loss in tried.items()}


def report_rates(tried: Mapping[str, TriedRates], report: Report, *, what: str = "learning rate") -> None:
    """Report the best rate of every arm, and for one at an end of those tried that a better one may lie beyond it.

    Args:
        tried: name of the arm to its rates and losses.
        report: called with a line for every arm.
        what: kind of number that was tried.
    """
    for name, losses in tried.items():
        rate = best_rate(losses)
        end = "largest" if rate == max(losses) else "smallest" if rate == min(losses) else ""
        beyond = f", the {end} one tried; a better one may lie beyond it" if end and len(losses) > 1 else ""
        report(f"{what} of {name}: {rate:g}{beyond}")
