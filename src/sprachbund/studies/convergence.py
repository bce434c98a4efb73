"""How soon runs were at their best, and how much sooner one start gets to where the other ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprachbund.studies.cells import CellManifest
from sprachbund.studies.grid import StudyGrid
from sprachbund.studies.per_cell import finished_pairs

CONVERGENCE = "convergence"
"""What a cell function leaves under this name of `training`: "best" and "judgements", each with epoch, step, value."""


@dataclass(frozen=True, kw_only=True)
class Sooner:
    """How soon the two starts converged at one scale; means over languages and seeds.

    Attributes:
        hours: the scale.
        runs: pairs of runs that say so.
        epochs: at which each start was judged best.
        steps: the same in steps.
        reached: pairs in which the first start was as good as the second's best.
        at_epoch: when it was, mean over those; None without any.
        sooner: epochs before the second start was at its best, mean over those.
    """

    hours: float
    runs: int
    epochs: tuple[float, float]
    steps: tuple[float, float]
    reached: int
    at_epoch: float | None
    sooner: float | None


def convergence(grid: StudyGrid, manifests: Sequence[CellManifest]) -> list[Sooner]:
    """One entry for each scale that both starts have runs of; none where cells do not say how they converged."""
    return [found for hours in grid.hours if (found := _at(grid, manifests, hours)) is not None]


def _at(grid: StudyGrid, manifests: Sequence[CellManifest], hours: float) -> Sooner | None:
    pairs = [
        (one, other)
        for language in grid.languages
        for a, b in finished_pairs(grid, manifests, language, hours)
        if (one := a.training.get(CONVERGENCE)) and (other := b.training.get(CONVERGENCE))
        if one["best"] and other["best"]
    ]
    if not pairs:
        return None
    caught = [
        (at, other["best"]["epoch"]) for one, other in pairs if (at := _reaches(one, other)) is not None
    ]
    return Sooner(
        hours=hours,
        runs=len(pairs),
        epochs=_means(pairs, "epoch"),
        steps=_means(pairs, "step"),
        reached=len(caught),
        at_epoch=_mean([at for at, _ in caught]),
        sooner=_mean([best - at for at, best in caught]),
    )


def _reaches(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """The first epoch at which a run was judged as good as the other ever was; less is better."""
    good = (j["epoch"] for j in one["judgements"] if j["value"] <= other["best"]["value"])
    return next(good, None)


def _means(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], key: str) -> tuple[float, float]:
    first, second = (sum(pair[side]["best"][key] for pair in pairs) / len(pairs) for side in (0, 1))
    return first, second


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
