"""The analysis of a grid of results, used by text, JSON and figure (arXiv 2606.24169).

- Latency: LST(l, h) = max - min of the gap over streaming tiers. A range is never negative, so the range that seed
  noise alone makes is estimated, too.
- Bits: the cost of fewer bits, and whether it differs between the starts.
- Means over tiers are over distinct ones: a tier with the scores of another counts once.
- Cells: the interval of a single gap, made as in other comparisons of the package. Utterances are drawn anew, the same
  ones for both starts; the results of an utterance at all tiers and seeds are drawn together. Where there are several
  seeds, the interval is over them too.
- Convergence: the epoch of the best score, and how much sooner one start reaches the best score of the other.

Shapes: L languages, H scales, C tiers, Q bit widths, S seeds or draws, N utterances, K counts, R runs (seeds times
tiers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Counts, metric
from sprachbund.evaluation.significance import compare_means
from sprachbund.research.encoder_transfer.grid import Cell, StudyGrid
from sprachbund.research.encoder_transfer.power_law import (
    Estimate,
    PowerLaw,
    Values,
    fit_power_law,
    mean_over_languages,
)
from sprachbund.research.encoder_transfer.results import CellManifest, Grid, mean_of_known, read_counts
from sprachbund.research.encoder_transfer.study_options import DRAWS, SEED, AnalysisOptions, By
from sprachbund.util.options import renamed

# Latency.

OFFLINE = "offline"
"""The tier that is not streaming."""


@dataclass(frozen=True, kw_only=True)
class LatencySensitivity:
    """Ranges of the gap over streaming tiers.

    Attributes:
        tiers: streaming tiers that are compared.
        cells: (L, H).
        mean: mean over languages and scales, with intervals over languages.
        by_noise: the mean that seed noise alone would make; None with one seed.
    """

    tiers: tuple[str, ...]
    cells: Values
    mean: Estimate
    by_noise: float | None


def latency_sensitivity(grid: Grid, *, draws: int = DRAWS, seed: int = SEED) -> LatencySensitivity | None:
    """LST at the most bits; None with fewer than two streaming tiers.

    Args:
        grid: results by start, language, hours, tier, bits and seed.
        draws: number of bootstrap draws, S.
        seed: seed of the draws.
    """
    streaming = [index for index, tier in enumerate(grid.tiers) if tier.lower() != OFFLINE]
    if len(streaming) < 2:
        return None
    cells = np.ptp(grid.gaps[:, :, streaming, 0], axis=-1)  # nan where a tier is missing
    if np.isnan(cells).all():
        return None
    return LatencySensitivity(
        tiers=tuple(grid.tiers[index] for index in streaming),
        cells=cells,
        mean=mean_over_languages(mean_of_known(cells, axis=1), draws, seed),
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
    there = (num_seeds > 0).all(0)
    spread = np.sqrt(variance * (1 / np.maximum(num_seeds, 1)).sum(0))[there].mean()
    normal = np.random.default_rng(seed).standard_normal((100_000, len(streaming)))
    return float(spread * np.ptp(normal, axis=1).mean())


# Bits.


@dataclass(frozen=True, kw_only=True)
class BitCost:
    """The cost of a bit width against the most bits; positive is worse.

    Attributes:
        bits: the width.
        cells: (2, L, H, C) for both arms, at distinct tiers.
        mean: pooled over all cells and both arms, intervals over languages.
        median: median over all cells and both arms.
        difference: mean of the second arm's cost less the first's, paired cell by cell.
    """

    bits: float
    cells: Values
    mean: Estimate
    median: float
    difference: Estimate


def bit_costs(grid: Grid, *, draws: int = DRAWS, seed: int = SEED) -> tuple[BitCost, ...]:
    """The cost of every width below the largest, most bits first.

    Args:
        grid: results by start, language, hours, tier, bits and seed.
        draws: number of bootstrap draws, S.
        seed: seed of the draws.
    """
    means = grid.sign * grid.means[:, :, :, grid.distinct_tiers]
    costs = []
    for index, bits in enumerate(grid.bits[1:], start=1):
        cells = means[..., index] - means[..., 0]
        if np.isnan(cells).all():
            continue
        costs.append(
            BitCost(
                bits=bits,
                cells=cells,
                mean=mean_over_languages(mean_of_known(cells, axis=(0, 2, 3)), draws, seed),
                median=float(np.nanmedian(cells)),
                difference=mean_over_languages(mean_of_known(cells[1] - cells[0], axis=(1, 2)), draws, seed),
            )
        )
    return tuple(costs)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law over some tiers, or why there is none.

    Attributes:
        tiers: tiers that the gaps are means over.
        gaps: (L, H); nan where a language lacks a scale.
        means: means over the languages that have the scale, one for each.
        law: None where there is none.
        doubts: reasons why there is no law, or why it is not to be trusted.
    """

    tiers: tuple[str, ...]
    gaps: Values
    means: tuple[Estimate, ...]
    law: PowerLaw | None
    doubts: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether there is a law and no reason against it."""
        return self.law is not None and not self.doubts


@dataclass(frozen=True, kw_only=True)
class StudyAnalysis:
    """The results of a study.

    Attributes:
        grid: scores that were analysed.
        fitted: law over all distinct tiers, at the most bits.
        by_tier: each tier by itself; empty with one tier.
        latency: None with fewer than two streaming tiers.
        bit_costs: empty with one bit width.
    """

    grid: Grid
    fitted: Fitted
    by_tier: tuple[Fitted, ...]
    latency: LatencySensitivity | None
    bit_costs: tuple[BitCost, ...]


def analyse(grid: Grid, options: AnalysisOptions | None = None) -> StudyAnalysis:
    """Gaps, law, sensitivity to latency and costs of bits of a grid of results."""
    options = options or AnalysisOptions()
    by, draws, seed = options.by, options.draws, options.seed
    tiers = range(len(grid.tiers))
    return StudyAnalysis(
        grid=grid,
        fitted=_fitted(grid, grid.distinct_tiers, by, draws, seed),
        by_tier=tuple(_fitted(grid, [tier], by, draws, seed) for tier in tiers if len(tiers) > 1),
        latency=latency_sensitivity(grid, draws=draws, seed=seed),
        bit_costs=bit_costs(grid, draws=draws, seed=seed),
    )


def _fitted(grid: Grid, tiers: Sequence[int], by: By, draws: int, seed: int) -> Fitted:
    gaps = grid.gaps[:, :, list(tiers), 0].mean(-1)  # nan where a tier is missing
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


# Gaps of single cells.


@dataclass(frozen=True, kw_only=True)
class CellGap:
    """Difference by which the first start is better in one cell.

    Attributes:
        language: language of the cell.
        hours: hours of the cell.
        bits: bits of the weights.
        values: scores of both starts, means over seeds and the tiers asked for.
        gap: points by which the first start is better.
        interval: 95 % of it, over utterances, and over seeds where there are several.
        seeds: seeds that both starts have.
        utterances: N.
    """

    language: str
    hours: float
    bits: int
    values: tuple[float, float]
    gap: float
    interval: tuple[float, float]
    seeds: tuple[int, ...]
    utterances: int


def cell_gaps(
    grid: StudyGrid,
    manifests: Sequence[CellManifest],
    out: Path,
    *,
    bits: int,
    tiers: Sequence[str],
) -> list[CellGap]:
    """Every language and scale at which both starts are finished with the same seed.

    Args:
        grid: grid of the study.
        manifests: manifests of finished cells.
        out: folder of the study.
        bits: bits at which the gap is taken.
        tiers: tiers over which it is a mean.

    Raises:
        SprachbundError: for counts that cannot be read, or that are of different utterances.
    """
    return [
        _gap(pairs, out, bits, tiers)
        for language in grid.languages
        for hours in grid.hours
        if (pairs := finished_pairs(grid, manifests, language, hours))
    ]


_Pair = tuple[CellManifest, CellManifest]


def finished_pairs(
    grid: StudyGrid, manifests: Sequence[CellManifest], language: str, hours: float
) -> list[_Pair]:
    """Cells of the first two starts with the same seed, as far as both are finished.

    Args:
        grid: grid of the study.
        manifests: manifests of finished cells.
        language: BCP-47 tag.
        hours: hours of data of the cells.
    """
    there = {one.cell: one for one in manifests}
    pairs = (
        [there.get(Cell(start=start, language=language, hours=hours, seed=seed)) for start in grid.starts[:2]]
        for seed in grid.seeds
    )
    return [(one, other) for one, other in pairs if one is not None and other is not None]


def _gap(pairs: Sequence[_Pair], out: Path, bits: int, tiers: Sequence[str]) -> CellGap:
    cell = pairs[0][0].cell
    how = metric(pairs[0][0].metric, cell.language)
    ids: set[tuple[str, ...]] = set()
    sides: tuple[list[list[Counts]], list[list[Counts]]] = ([], [])
    """Start to seed to tier."""
    for pair in pairs:
        for side, manifest in zip(sides, pair, strict=True):
            counts, names = read_counts(manifest.cell.folder(out))
            ids.add(tuple(names))
            # Each cell by its own order: the grid may have changed since it was scored.
            side.append([counts[manifest.index_of(tier, bits)] for tier in tiers])
    if len(ids) > 1:
        raise SprachbundError(
            f"{cell}: its starts and seeds were scored on different utterances; score the same"
        )
    # The tiers of a draw have the same utterances.
    utterances = np.arange(len(sides[0][0][0]))
    compared = compare_means([how] * len(tiers), *sides, units=[utterances] * len(tiers))
    sign = 1.0 if how.higher_is_better else -1.0
    low, high = sorted(-sign * end for end in compared.interval)
    return CellGap(
        language=cell.language,
        hours=cell.hours,
        bits=bits,
        values=(compared.baseline, compared.system),
        gap=-sign * compared.difference,
        interval=(low, high),
        seeds=tuple(pair[0].cell.seed for pair in pairs),
        utterances=len(utterances),
    )


# Convergence.

CONVERGENCE = "convergence"
"""Key of `training` for a cell function's "best" and "evaluations", each with epoch, step, value."""


@dataclass(frozen=True, kw_only=True)
class Sooner:
    """The convergence of the two starts at one scale; means over languages and seeds.

    Attributes:
        hours: the scale.
        runs: pairs of runs that say so.
        epochs: epochs at which each start scored best.
        steps: the same in steps.
        reached: pairs in which the first start was as good as the second's best.
        at_epoch: epoch at which it was, mean over those pairs; None without any.
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
    return [row for hours in grid.hours if (row := _at(grid, manifests, hours)) is not None]


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
    """The first epoch at which a run scored as well as the other ever was; less is better."""
    evaluations = renamed(one, {"judgements": "evaluations"}, "the convergence of a cell")["evaluations"]
    good = (e["epoch"] for e in evaluations if e["value"] <= other["best"]["value"])
    return next(good, None)


def _means(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], key: str) -> tuple[float, float]:
    first, second = (sum(pair[side]["best"][key] for pair in pairs) / len(pairs) for side in (0, 1))
    return first, second


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
