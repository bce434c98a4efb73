"""Is one system better than another, or was it luck? Paired tests on sums over sentences.

Paired bootstrap (Koehn 2004, W04-3250) and approximate randomization (Riezler and Maxwell 2005, W05-0908),
drawing the very samples that sacrebleu draws from the same seed, so that p-values are its own; and a
comparison of means over language pairs and training seeds, which draws sentences and takes Student's t for the
seeds. Everything works on counts of sentences (N, K), so a draw is a matrix product and ten thousand sentences
take seconds.

Letters: N sentences, K counts, S draws, U units, R runs (training seeds).
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Counts, Metric
from sprachbund.evaluation.options import TEST_SEED, Test

DRAWS: dict[Test, int] = {"bootstrap": 1_000, "randomization": 10_000}
_CHUNK_CELLS = 2_000_000  # draws times sentences held at a time
_ALIGN = 32  # numpy gives out random booleans 32 at a time; chunks of a multiple continue the same stream

Scores = NDArray[np.float64]
Units = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ComparedSystem:
    """One system beside the baseline on one metric.

    Attributes:
        score: score of the whole corpus.
        mean: mean over draws; None without bootstrap.
        half_width: half width of the 95% interval around the mean, as sacrebleu gives it.
        difference: score less the baseline's.
        interval: 95% of the differences over draws; (nan, nan) without bootstrap.
        p_value: None for the baseline.
    """

    score: float
    mean: float | None
    half_width: float | None
    difference: float
    interval: tuple[float, float]
    p_value: float | None


def paired_test(
    metric: Metric,
    baseline: Counts,
    systems: Sequence[Counts],
    *,
    test: Test = "bootstrap",
    draws: int | None = None,
    seed: int = TEST_SEED,
) -> list[ComparedSystem]:
    """Compare systems with a baseline on the same N sentences; the baseline comes first in the answer.

    Args:
        metric: metric that turns summed counts into a score.
        baseline: (N, K).
        systems: each (N, K).
        test: "bootstrap" or "randomization".
        draws: S; sacrebleu's 1,000 or 10,000 if not given.
        seed: seed of the draws.

    Raises:
        SprachbundError: when the systems have different numbers of sentences.
    """
    for counts in systems:
        if counts.shape != baseline.shape:
            raise SprachbundError(
                f"the baseline has {len(baseline)} sentences and another system {len(counts)}; "
                "compare on the same ones"
            )
    draws = draws or DRAWS[test]
    if test == "bootstrap":
        return _bootstrap(metric, [baseline, *systems], draws, seed)
    return _randomization(metric, [baseline, *systems], draws, seed)


def _bootstrap(metric: Metric, systems: Sequence[Counts], draws: int, seed: int) -> list[ComparedSystem]:
    drawn = [np.zeros((draws, counts.shape[1])) for counts in systems]
    for start, weights in bootstrap_weights(len(systems[0]), draws, seed):
        for sums, counts in zip(drawn, systems, strict=True):
            sums[start : start + len(weights)] = weights @ counts
    # sacrebleu resamples in float32, which decides ties: the same here. Sums below 2**24 are exact in it.
    scores = [np.array([metric.score(row) for row in sums.astype(np.float32)]) for sums in drawn]
    whole = [float(metric.score(counts.sum(0))) for counts in systems]
    results = []
    for index, (value, sample) in enumerate(zip(whole, scores, strict=True)):
        differences = sample - scores[0]
        centred = np.abs(differences) - np.abs(differences).mean()
        mean, half_width = _interval(sample)
        results.append(
            ComparedSystem(
                score=value,
                mean=mean,
                half_width=half_width,
                difference=value - whole[0],
                interval=percentiles(differences),
                p_value=None if index == 0 else p_value(centred, abs(value - whole[0])),
            )
        )
    return results


def _randomization(metric: Metric, systems: Sequence[Counts], draws: int, seed: int) -> list[ComparedSystem]:
    baseline = systems[0]
    whole = [float(metric.score(counts.sum(0))) for counts in systems]
    results = []
    for index, counts in enumerate(systems):
        p = None
        if index:
            differences = np.zeros(draws)
            total = baseline.sum(0) + counts.sum(0)
            for start, chosen in _coin_flips(len(baseline), draws, seed):
                first = chosen @ baseline + (1.0 - chosen) @ counts
                differences[start : start + len(chosen)] = [
                    abs(metric.score(a) - metric.score(b)) for a, b in zip(first, total - first, strict=True)
                ]
            p = p_value(differences, abs(whole[index] - whole[0]))
        results.append(
            ComparedSystem(
                score=whole[index],
                mean=None,
                half_width=None,
                difference=whole[index] - whole[0],
                interval=(float("nan"), float("nan")),
                p_value=p,
            )
        )
    return results


def bootstrap_weights(num_sentences: int, draws: int, seed: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the count of each sentence in each draw: the first draw's number and (chunk, N), chunk by chunk.

    Args:
        num_sentences: N.
        draws: number of samples.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK_CELLS // num_sentences)
    for start in range(0, draws, size):
        count = min(size, draws - start)
        chosen = rng.choice(num_sentences, size=(count, num_sentences), replace=True)
        flat = chosen + (np.arange(count) * num_sentences)[:, None]
        weights = np.bincount(flat.ravel(), minlength=count * num_sentences)
        yield start, weights.reshape(count, num_sentences).astype(np.float64)


def _coin_flips(num_sentences: int, draws: int, seed: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK_CELLS // (num_sentences * _ALIGN)) * _ALIGN
    for start in range(0, draws, size):
        count = min(size, draws - start)
        yield start, rng.integers(2, size=(count, num_sentences), dtype=bool).astype(np.float64)


def p_value(statistics: Scores, difference: float) -> float:
    """Share of draws (S,) whose statistic is beyond the difference seen, with one added to both counts.

    As in sacrebleu, "beyond" is strict, so that two equal outputs get a small value: look at the difference too.
    """
    return float((int((statistics > difference).sum()) + 1) / (len(statistics) + 1))


def percentiles(values: Scores, level: float = 0.95) -> tuple[float, float]:
    """The middle 95% of values (S,), by rank as sacrebleu takes it."""
    ordered = np.sort(values)
    cut = int(len(ordered) * (1 - level) / 2 + 1e-9)
    return float(ordered[cut]), float(ordered[len(ordered) - cut - 1])


def t_interval(value: float, drawn: Scores, num_units: int, level: float = 0.95) -> tuple[float, float]:
    """value ± t(L - 1) sd(drawn) sqrt(L / (L - 1)), for L units that were drawn with replacement.

    Args:
        value: estimate on all units.
        drawn: estimates of the draws (S,).
        num_units: L.
        level: confidence level, between 0 and 1.
    """
    from scipy.stats import t

    if num_units < 2:
        return -math.inf, math.inf
    spread = float(np.std(drawn)) * math.sqrt(num_units / (num_units - 1))
    half = float(t.ppf(0.5 + level / 2, num_units - 1)) * spread
    return value - half, value + half


def _interval(scores: Scores) -> tuple[float, float]:
    low, high = percentiles(scores)
    return float(np.sort(scores).mean()), 0.5 * (high - low)  # in this order, as the last digit depends on it


class Scorer(Protocol):
    """A score of summed counts: a `Metric`, or a `Share`."""

    def score(self, total: NDArray[Any]) -> float:
        """The score of summed counts (K,)."""
        ...


@dataclass(frozen=True)
class Share:
    """A share in percent: of counts (2,), the first in the second; 0 of none."""

    def score(self, total: NDArray[Any]) -> float:
        """The share of summed counts (2,)."""
        return float(100 * total[0] / total[1]) if total[1] else 0.0


@dataclass(frozen=True, kw_only=True)
class MeanComparison:
    """Two systems compared on the mean over parts (language pairs), and over training seeds where there are.

    Attributes:
        baseline: mean over parts and seeds.
        system: mean over parts and seeds.
        interval: 95% of the difference.
        p_value: of no difference, two-sided.
        num_seeds: runs of the baseline and of the system.
    """

    baseline: float
    system: float
    interval: tuple[float, float]
    p_value: float
    num_seeds: tuple[int, int]

    @property
    def difference(self) -> float:
        """System less baseline."""
        return self.system - self.baseline


def units_of(names: Iterable[Iterable[Hashable]]) -> Units:
    """The unit of each of N rows (N,), numbered from 0 in the order of the rows: what a draw takes as one.

    Rows that have a name in common are one unit, and so are those that each have one in common with a third.

    Args:
        names: for every row what it must be drawn with, such as its utterance and its reference.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_with: dict[Hashable, int] = {}
    links = [[(first_with.setdefault(name, row), row) for name in of_row] for row, of_row in enumerate(names)]
    ends = np.array([link for of_row in links for link in of_row], dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), ends), shape=(len(links), len(links)))
    components = connected_components(graph, directed=False)[1]
    firsts, numbers = np.unique(components, return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(firsts))[numbers]


def compare_means(
    metrics: Sequence[Scorer],
    baseline: Sequence[Sequence[Counts]],
    system: Sequence[Sequence[Counts]],
    *,
    units: Sequence[Units] | None = None,
    draws: int = DRAWS["bootstrap"],
    seed: int = TEST_SEED,
) -> MeanComparison:
    """Compare means over parts and training seeds: by drawn sentences, and over seeds by `over_seeds` as well.

    All runs share a draw's sentences, so these are paired; seeds are not. With one run on each side nothing is
    known of seeds: the answer is the paired bootstrap's, and holds for these two runs only.

    Args:
        metrics: one for each of P parts (BLEU is tokenized by language).
        baseline: for each run, P counts (N_p, K).
        system: for each run, P counts (N_p, K).
        units: as for `draw_means`.
        draws: S.
        seed: seed of the draws.

    Raises:
        SprachbundError: when one side has several seeds and the other one, or sentences differ.
    """
    runs = [*baseline, *system]
    if (len(baseline) == 1) != (len(system) == 1):
        raise SprachbundError(
            f"{len(baseline)} and {len(system)} runs: over seeds, both systems need two runs or more"
        )
    if len({tuple(len(counts) for counts in run) for run in runs}) > 1:
        raise SprachbundError("runs have different numbers of sentences; compare on the same ones")
    scores = draw_means(metrics, runs, draws, seed, units)
    first, second = np.split(scores, [len(baseline)], axis=1)
    differences = second.mean(1) - first.mean(1)
    sides = [[_mean_score(metrics, run) for run in side] for side in (baseline, system)]
    means = [float(np.mean(side)) for side in sides]
    if len(baseline) > 1:
        interval, p = over_seeds(means[1] - means[0], differences, sides)
    else:
        beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        interval, p = percentiles(differences), min(1.0, 2.0 * (beyond + 1) / (draws + 1))
    return MeanComparison(
        baseline=means[0],
        system=means[1],
        interval=interval,
        p_value=p,
        num_seeds=(len(baseline), len(system)),
    )


def mean_interval(
    metrics: Sequence[Scorer],
    runs: Sequence[Sequence[Counts]],
    *,
    units: Sequence[Units] | None = None,
    draws: int = DRAWS["bootstrap"],
    seed: int = TEST_SEED,
) -> tuple[float, float]:
    """95% interval of one system's mean over parts and runs, made as in `compare_means`.

    Args:
        metrics: one for each of P parts.
        runs: runs of one system; for each, P counts (N_p, K).
        units: as for `draw_means`.
        draws: S.
        seed: seed of the draws.
    """
    drawn = draw_means(metrics, runs, draws, seed, units).mean(1)
    if len(runs) == 1:
        return percentiles(drawn)
    scores = [_mean_score(metrics, run) for run in runs]
    return over_seeds(float(np.mean(scores)), drawn, [scores])[0]


SMALLEST_P = 1e-4
"""What is printed of a smaller p-value over seeds: nobody knows the tails so far out."""


def over_seeds(
    value: float, drawn: Scores, sides: Sequence[Sequence[float]]
) -> tuple[tuple[float, float], float]:
    """95% interval of a number that varies with sentences and with training seeds, and its p-value against nought.

    Student's t on the sum of two variances, that over drawn sentences and that of each side's mean over its runs,
    with the degrees of freedom of Welch (1947). To draw three seeds with replacement instead would leave a third of
    their variance out and take their tails for normal: 14 to 19 of 100 such intervals miss. What a run has of its own
    on each sentence is in both variances, so that an interval is rather too wide than too narrow.

    Args:
        value: the mean of a system over its runs, or the difference of two such means.
        drawn: the same over draws of sentences, (S,), with the same runs in each.
        sides: scores of the runs of each system, two or more of each.
    """
    from scipy.stats import t

    of_sides = [float(np.var(scores, ddof=1)) / len(scores) for scores in sides]
    variance = float(drawn.var()) + sum(of_sides)
    if variance == 0:  # nothing varies, as with the same outputs everywhere
        return (value, value), 1.0 if value == 0 else SMALLEST_P
    small = sum(part**2 / (len(scores) - 1) for part, scores in zip(of_sides, sides, strict=True))
    freedom = variance**2 / small if small else np.inf
    spread = variance**0.5
    half = float(t.ppf(0.975, freedom)) * spread
    p = float(2 * t.sf(abs(value) / spread, freedom))
    return (value - half, value + half), max(p, SMALLEST_P)


def draw_means(
    metrics: Sequence[Scorer],
    runs: Sequence[Sequence[Counts]],
    draws: int,
    seed: int,
    units: Sequence[Units] | None = None,
) -> Scores:
    """Mean scores over parts, (S, number of runs), on the same drawn units for all runs and parts.

    Args:
        metrics: one per part, P in all.
        runs: for each run P matrices of counts, each (N of the part, K of the metric).
        draws: S.
        seed: seed of the draws.
        units: for each part the unit of every row (N_p,), from 0 over all parts; each row of each part is its own if
            not given. Rows of one unit are drawn together, so equal texts and translations of one utterance into
            several languages do not count as if they were independent.
    """
    if units is None:
        ends = np.cumsum([len(counts) for counts in runs[0]])
        units = [np.arange(end - len(counts), end) for end, counts in zip(ends, runs[0], strict=True)]
    num_units = 1 + max(int(of_part.max()) for of_part in units)
    summed = [[_by_unit(c, of, num_units) for c, of in zip(run, units, strict=True)] for run in runs]
    rows_in = [np.bincount(of_part, minlength=num_units) for of_part in units]
    scores = np.empty((draws, len(runs), len(metrics)))
    for start, weights in bootstrap_weights(num_units, draws, seed):
        for part, metric in enumerate(metrics):
            # A draw may have nothing of a small part, then the mean is over the others, in all runs.
            there = weights @ rows_in[part] > 0
            for index, run in enumerate(summed):
                sums = weights @ run[part]
                scores[start : start + len(weights), index, part] = [
                    float(metric.score(row)) if some else np.nan
                    for row, some in zip(sums, there, strict=True)
                ]
    return np.asarray(np.nanmean(scores, axis=2))


def _by_unit(counts: Counts, units: Units, num_units: int) -> Counts:
    """Counts (N, K) summed over the rows of each unit: (U, K)."""
    sums = np.zeros((num_units, counts.shape[1]))
    np.add.at(sums, units, counts)
    return sums


def _mean_score(metrics: Sequence[Scorer], run: Sequence[Counts]) -> float:
    return float(np.mean([metric.score(c.sum(0)) for metric, c in zip(metrics, run, strict=True)]))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
