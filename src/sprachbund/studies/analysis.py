"""All that a study says of a grid of results, worked out once for text, JSON and figure.

Shapes: L languages, H scales, C tiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.studies.bootstrap import DRAWS, SEED, Estimate, Values, mean_over_languages
from sprachbund.studies.latency_sensitivity import LatencySensitivity, latency_sensitivity
from sprachbund.studies.power_law import By, PowerLaw, fit_power_law
from sprachbund.studies.quantization import BitCost, bit_costs
from sprachbund.studies.results import Grid


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law over some tiers, or why there is none.

    Attributes:
        tiers: that the gaps are means over.
        gaps: (L, H).
        means: over languages, one for each scale.
        law: None where there is none.
        doubts: why there is none, or why it is not to be trusted.
    """

    tiers: tuple[str, ...]
    gaps: Values
    means: tuple[Estimate, ...]
    law: PowerLaw | None
    doubts: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether there is a law that nothing speaks against."""
        return self.law is not None and not self.doubts


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a study says.

    Attributes:
        grid: what of.
        fitted: over all tiers, at the most bits.
        by_tier: each tier by itself; empty with one tier.
        latency: None with fewer than two streaming tiers.
        bit_costs: empty with one bit width.
    """

    grid: Grid
    fitted: Fitted
    by_tier: tuple[Fitted, ...]
    latency: LatencySensitivity | None
    bit_costs: tuple[BitCost, ...]


def analyse(grid: Grid, *, by: By = "log", draws: int = DRAWS, seed: int = SEED) -> Analysis:
    """Gaps, law, sensitivity to latency and costs of bits of a grid.

    Args:
        grid: of results.
        by: what the law makes least, see `fit_power_law`.
        draws: of languages.
        seed: of the draws.
    """
    tiers = range(len(grid.tiers))
    return Analysis(
        grid=grid,
        fitted=_fitted(grid, tiers, by, draws, seed),
        by_tier=tuple(_fitted(grid, [tier], by, draws, seed) for tier in tiers if len(tiers) > 1),
        latency=latency_sensitivity(grid, draws=draws, seed=seed),
        bit_costs=bit_costs(grid, draws=draws, seed=seed),
    )


def _fitted(grid: Grid, tiers: Sequence[int], by: By, draws: int, seed: int) -> Fitted:
    gaps = grid.gaps[:, :, list(tiers), 0].mean(-1)
    law, doubts = None, tuple[str, ...]()
    try:
        law = fit_power_law(grid.hours, gaps, by=by, draws=draws, seed=seed)
        doubts = law.doubts
    except SprachbundError as error:
        doubts = (str(error),)
    return Fitted(
        tiers=tuple(grid.tiers[tier] for tier in tiers),
        gaps=gaps,
        means=tuple(mean_over_languages(column, draws, seed) for column in np.transpose(gaps)),
        law=law,
        doubts=doubts,
    )
