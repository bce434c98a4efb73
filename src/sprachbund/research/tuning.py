"""Learning rates that a comparison tries for each of its arms: the one of the lowest loss on dev counts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sprachbund.training.loop import Convergence
from sprachbund.util.files import read_object
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


def best_rate(tried: TriedRates) -> float:
    """The rate of the lowest loss.

    Args:
        tried: rates and losses, one at least.
    """
    return min(tried, key=lambda rate: tried[rate])


def as_json(tried: TriedRates) -> dict[str, float]:
    """The rates and losses of an arm as a JSON object, whose keys are strings.

    Args:
        tried: rates and losses.
    """
    return {f"{rate:g}": loss for rate, loss in tried.items()}


def read_tried(path: Path) -> dict[float, float]:
    """Read a file of `as_json`.

    Args:
        path: the file.

    Raises:
        SprachbundError: not JSON, or not an object.
    """
    tried = read_object(path, advice="delete it, and the rates are tried again")
    return {float(rate): loss for rate, loss in tried.items()}


def report_rates(
    best: Mapping[str, float], tried: Sequence[float], report: Report, *, what: str = "learning rate"
) -> None:
    """Report the best rate of every arm, and for one at an end of those tried that a better one may lie beyond it.

    Args:
        best: name of the arm to its best rate.
        tried: all rates.
        report: called with a line for every arm.
        what: kind of number that was tried.
    """
    for name, rate in best.items():
        end = "largest" if rate == max(tried) else "smallest" if rate == min(tried) else ""
        beyond = f", the {end} one tried; a better one may lie beyond it" if end and len(tried) > 1 else ""
        report(f"{what} of {name}: {rate:g}{beyond}")
