"""Is the gap of a single cell more than luck? Utterances drawn anew, both starts on the same ones.

The unit is the utterance: what it cost at all tiers, by all seeds, is drawn together. Shapes: C tiers, Q bit widths,
N utterances, K counts, S draws, R runs (seeds times tiers).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Counts, ErrorRate, Metric, metric
from sprachbund.evaluation.significance import bootstrap_weights
from sprachbund.studies.bootstrap import SEED, UTTERANCE_DRAWS, Estimate, estimate, paired_utterances
from sprachbund.studies.cells import CellManifest, read_counts
from sprachbund.studies.grid import Cell, StudyGrid


@dataclass(frozen=True, kw_only=True)
class CellGap:
    """By how much the first start is better in one cell.

    Attributes:
        language: of the cell.
        hours: of the cell.
        bits: of the weights.
        values: scores of both starts, means over seeds and tiers.
        gap: with its interval over utterances.
        seeds: that both starts have.
        utterances: N.
    """

    language: str
    hours: float
    bits: int
    values: tuple[float, float]
    gap: Estimate
    seeds: tuple[int, ...]
    utterances: int


def cell_gaps(
    grid: StudyGrid, manifests: Sequence[CellManifest], out: Path, *, bits: int, draws: int = UTTERANCE_DRAWS
) -> list[CellGap]:
    """Every language and scale at which both starts are finished with the same seed.

    Args:
        grid: of the study.
        manifests: of finished cells.
        out: folder of the study.
        bits: at which.
        draws: S.

    Raises:
        SprachbundError: for counts that cannot be read, or that are of different utterances.
    """
    return [
        _gap(grid, pairs, out, bits, draws)
        for language in grid.languages
        for hours in grid.hours
        if (pairs := finished_pairs(grid, manifests, language, hours))
    ]


_Pair = tuple[CellManifest, CellManifest]


def finished_pairs(
    grid: StudyGrid, manifests: Sequence[CellManifest], language: str, hours: float
) -> list[_Pair]:
    """Cells of the first two starts with the same seed, as far as both are finished."""
    there = {one.cell: one for one in manifests}
    found = (
        [there.get(Cell(start=start, language=language, hours=hours, seed=seed)) for start in grid.starts[:2]]
        for seed in grid.seeds
    )
    return [(one, other) for one, other in found if one is not None and other is not None]


def _gap(grid: StudyGrid, pairs: Sequence[_Pair], out: Path, bits: int, draws: int) -> CellGap:
    cell, at = pairs[0][0].cell, grid.bits.index(bits)
    how = metric(pairs[0][0].metric, cell.language)
    ids: set[tuple[str, ...]] = set()
    sides: list[list[Counts]] = [[], []]
    for pair in pairs:
        for side, manifest in zip(sides, pair, strict=True):
            counts, names = read_counts(manifest.cell.folder(out))
            ids.add(tuple(names))
            side.append(counts[:, at])
    if len(ids) > 1:
        raise SprachbundError(
            f"{cell}: its starts and seeds were scored on different utterances; score the same"
        )
    first, second = (np.concatenate(side) for side in sides)
    one, other = (float(np.mean([how.score(run.sum(0)) for run in side])) for side in (first, second))
    return CellGap(
        language=cell.language,
        hours=cell.hours,
        bits=bits,
        values=(one, other),
        gap=paired_counts(how, first, second, draws=draws),
        seeds=tuple(pair[0].cell.seed for pair in pairs),
        utterances=first.shape[1],
    )


def paired_counts(
    how: Metric, first: Counts, second: Counts, *, draws: int = UTTERANCE_DRAWS, seed: int = SEED
) -> Estimate:
    """By how many points the first is better: the mean over runs of the difference of their scores.

    Args:
        how: the metric.
        first: (R, N, K) counts of the first start's runs.
        second: (R, N, K), of the second's, on the same utterances.
        draws: S, of utterances.
        seed: of the draws.
    """
    if isinstance(how, ErrorRate):
        errors, others = first[..., 0].sum(0), second[..., 0].sum(0)
        return paired_utterances(errors, others, first[..., 1].sum(0), draws=draws, seed=seed)
    sign = 1.0 if how.higher_is_better else -1.0

    def difference(weights: np.ndarray) -> float:
        scores = ([how.score(weights @ run) for run in side] for side in (first, second))
        one, other = (float(np.mean(values)) for values in scores)
        return sign * (one - other)

    count = first.shape[1]
    drawn = [difference(row) for _, rows in bootstrap_weights(count, draws, seed) for row in rows]
    return estimate(difference(np.ones(count)), np.array(drawn), count)
