"""What fewer bits cost, and whether they cost one start more than the other (arXiv 2606.24169).

Shapes: L languages, H scales, C tiers.
"""

from dataclasses import dataclass

import numpy as np

from sprachbund.studies.bootstrap import DRAWS, SEED, Estimate, Values, mean_over_languages
from sprachbund.studies.results import Grid


@dataclass(frozen=True, kw_only=True)
class BitCost:
    """What a bit width costs against the most bits; positive is worse.

    Attributes:
        bits: the width.
        cells: (2, L, H, C) for both arms.
        mean: pooled over all cells and both arms, intervals over languages.
        median: over all cells and both arms.
        difference: mean of the second arm's cost less the first's, paired cell by cell.
    """

    bits: float
    cells: Values
    mean: Estimate
    median: float
    difference: Estimate


def bit_costs(grid: Grid, *, draws: int = DRAWS, seed: int = SEED) -> tuple[BitCost, ...]:
    """The cost of every width below the largest, most bits first."""
    means = grid.sign * grid.means
    found = []
    for place, bits in enumerate(grid.bits[1:], start=1):
        cells = means[..., place] - means[..., 0]
        found.append(
            BitCost(
                bits=bits,
                cells=cells,
                mean=mean_over_languages(cells.mean(axis=(0, 2, 3)), draws, seed),
                median=float(np.median(cells)),
                difference=mean_over_languages((cells[1] - cells[0]).mean(axis=(1, 2)), draws, seed),
            )
        )
    return tuple(found)
