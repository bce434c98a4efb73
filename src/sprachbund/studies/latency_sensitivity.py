"""Whether the gap between two starts depends on the latency: its range over the streaming tiers.

LST(l, h) = max - min of the gap over tiers (arXiv 2606.24169). A range is never negative, so noise alone makes one;
what noise alone would make stands beside it. Shapes: L languages, H scales, C streaming tiers, S seeds.
"""

from dataclasses import dataclass

import numpy as np

from sprachbund.studies.bootstrap import DRAWS, SEED, Estimate, Values, mean_over_languages
from sprachbund.studies.results import Grid

OFFLINE = "offline"
"""The tier that is not streaming."""


@dataclass(frozen=True, kw_only=True)
class LatencySensitivity:
    """Ranges of the gap over streaming tiers.

    Attributes:
        tiers: those compared.
        cells: (L, H).
        mean: over languages and scales, with intervals over languages.
        by_noise: the mean that seed noise alone would make; None with one seed.
    """

    tiers: tuple[str, ...]
    cells: Values
    mean: Estimate
    by_noise: float | None


def latency_sensitivity(grid: Grid, *, draws: int = DRAWS, seed: int = SEED) -> LatencySensitivity | None:
    """LST at the most bits; None with fewer than two streaming tiers."""
    streaming = [place for place, tier in enumerate(grid.tiers) if tier.lower() != OFFLINE]
    if len(streaming) < 2:
        return None
    cells = np.ptp(grid.gaps[:, :, streaming, 0], axis=-1)
    return LatencySensitivity(
        tiers=tuple(grid.tiers[place] for place in streaming),
        cells=cells,
        mean=mean_over_languages(cells.mean(1), draws, seed),
        by_noise=_range_of_noise(grid, streaming, seed),
    )


def _range_of_noise(grid: Grid, streaming: list[int], seed: int) -> float | None:
    """Expected range over tiers of what differs between seeds, tier by tier.

    A seed that is good or bad at all tiers does not count: a range over tiers does not see it.
    """
    values = grid.values[:, :, :, streaming, 0]  # (2, L, H, C, S)
    whole = ~np.isnan(values).any(axis=3, keepdims=True)
    num_seeds = whole.sum(-1, keepdims=True)
    if not (num_seeds > 1).any():
        return None
    centred = np.where(whole, values - values.mean(axis=3, keepdims=True), 0.0)
    left = np.where(whole, centred - centred.sum(-1, keepdims=True) / np.maximum(num_seeds, 1), 0.0)
    freedom = (np.maximum(num_seeds - 1, 0) * (len(streaming) - 1)).sum()
    variance = (left**2).sum() / freedom
    # Of a gap: two arms, each a mean over seeds.
    spread = np.sqrt(variance * (1 / np.maximum(num_seeds, 1)).sum(0)).mean()
    normal = np.random.default_rng(seed).standard_normal((100_000, len(streaming)))
    return float(spread * np.ptp(normal, axis=1).mean())
