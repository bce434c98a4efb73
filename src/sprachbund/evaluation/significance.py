"""Is one system better than another, or was it luck? Paired tests on sums over sentences.

Paired bootstrap (Koehn 2004, W04-3250) and approximate randomization (Riezler and Maxwell 2005, W05-0908),
drawing the very samples that sacrebleu draws from the same seed, so that p-values are its own; and a
hierarchical bootstrap that draws training seeds as well as sentences. Everything works on counts of
sentences (N, K), so a draw is a matrix product and ten thousand sentences take seconds.

Letters: N sentences, K counts, S draws.
"""

from collections.abc import Iterator, Sequence
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
        interval: 95% of the differences over draws.
        p_value: twice the smaller share of draws on one side of nought.
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


def compare_means(
    metrics: Sequence[Scorer],
    baseline: Sequence[Sequence[Counts]],
    system: Sequence[Sequence[Counts]],
    *,
    draws: int = DRAWS["bootstrap"],
    seed: int = TEST_SEED,
) -> MeanComparison:
    """Hierarchical bootstrap: draws sentences within each part, and training seeds, with replacement.

    All runs share a draw's sentences, so these are paired; seeds are not. With one run on each side there
    are no seeds to draw, and the answer holds for these two runs only.

    Args:
        metrics: one for each of P parts (BLEU is tokenized by language).
        baseline: for each run, P counts (N_p, K).
        system: for each run, P counts (N_p, K).
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
    scores = draw_means(metrics, runs, draws, seed)
    rng = np.random.default_rng((seed, 0x5EED))
    means = [_over_seeds(side, rng) for side in np.split(scores, [len(baseline)], axis=1)]
    differences = means[1] - means[0]
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    whole = [_mean_score(metrics, run) for run in runs]
    return MeanComparison(
        baseline=float(np.mean(whole[: len(baseline)])),
        system=float(np.mean(whole[len(baseline) :])),
        interval=percentiles(differences),
        p_value=min(1.0, 2.0 * (beyond + 1) / (draws + 1)),
        num_seeds=(len(baseline), len(system)),
    )


def mean_interval(
    metrics: Sequence[Scorer],
    runs: Sequence[Sequence[Counts]],
    *,
    draws: int = DRAWS["bootstrap"],
    seed: int = TEST_SEED,
) -> tuple[float, float]:
    """95% of the means over parts and runs, of drawn sentences and training seeds as in `compare_means`.

    Args:
        metrics: one for each of P parts.
        runs: runs of one system; for each, P counts (N_p, K).
        draws: S.
        seed: seed of the draws.
    """
    scores = draw_means(metrics, runs, draws, seed)
    return percentiles(_over_seeds(scores, np.random.default_rng((seed, 0x5EED))))


def _over_seeds(scores: Scores, rng: np.random.Generator) -> Scores:
    """Means (S,) of scores (S, R), over R runs that each draw takes with replacement."""
    chosen = rng.choice(scores.shape[1], size=scores.shape, replace=True)
    return np.asarray(np.take_along_axis(scores, chosen, axis=1).mean(1))


def draw_means(metrics: Sequence[Scorer], runs: Sequence[Sequence[Counts]], draws: int, seed: int) -> Scores:
    """Mean scores over parts, (S, number of runs), on the same drawn sentences for all runs.

    Args:
        metrics: one per part, P in all.
        runs: for each run P matrices of counts, each (N of the part, K of the metric).
        draws: S.
        seed: seed of the draws; every part adds its number.
    """
    scores = np.zeros((draws, len(runs)))
    for part, metric in enumerate(metrics):
        for start, weights in bootstrap_weights(len(runs[0][part]), draws, seed + part):
            for index, run in enumerate(runs):
                drawn = [float(metric.score(row)) for row in weights @ run[part]]
                scores[start : start + len(weights), index] += drawn
    return scores / len(metrics)


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
