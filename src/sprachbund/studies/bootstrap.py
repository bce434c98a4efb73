"""How far a number could have been off: languages drawn anew, and utterances drawn anew.

Over a handful of languages the middle 95% of the draws, which is what is published, cover too little: the draws spread
by the spread of the sample, divided by L and not by L - 1, and their tails are those of a normal law. `t_interval`
mends both and is what is shown first; docs/study.md has the coverage of both, measured.
Shapes: S draws, L languages, N utterances.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.significance import bootstrap_weights, percentiles

DRAWS = 10_000
UTTERANCE_DRAWS = 1_000
LEVEL = 0.95
SEED = 12345
Values = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and what is known of its error.

    Attributes:
        value: the number.
        interval: that covers as often as it says; infinite where nothing can be said.
        percentile: the middle of the draws, as published.
    """

    value: float
    interval: Interval
    percentile: Interval


def language_draws(num_languages: int, draws: int = DRAWS, seed: int = SEED) -> Values:
    """(S, L) weights that sum to 1: the share of each language in each draw with replacement."""
    chunks = [weights for _, weights in bootstrap_weights(num_languages, draws, seed)]
    return np.concatenate(chunks) / num_languages


def t_interval(value: float, drawn: Values, num_units: int, level: float = LEVEL) -> Interval:
    """value ± t(L - 1) sd(drawn) sqrt(L / (L - 1)), for L units that were drawn with replacement."""
    from scipy.stats import t

    if num_units < 2:
        return -np.inf, np.inf
    spread = float(np.std(drawn)) * np.sqrt(num_units / (num_units - 1))
    half = float(t.ppf(0.5 + level / 2, num_units - 1)) * spread
    return value - half, value + half


def estimate(value: float, drawn: Values, num_units: int, level: float = LEVEL) -> Estimate:
    """A number with both intervals from its draws (S,)."""
    if num_units < 2:
        return Estimate(value=value, interval=(-np.inf, np.inf), percentile=(-np.inf, np.inf))
    return Estimate(
        value=value, interval=t_interval(value, drawn, num_units, level), percentile=percentiles(drawn)
    )


def mean_over_languages(values: Values, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    """The mean of one number for each language (L,)."""
    return estimate(float(values.mean()), language_draws(len(values), draws, seed) @ values, len(values))


def paired_utterances(
    errors: Values, other_errors: Values, words: Values, draws: int = UTTERANCE_DRAWS, seed: int = SEED
) -> Estimate:
    """100 (other_errors - errors) / words over all utterances of a cell: by how many points `other` is worse.

    Args:
        errors: (N,) of the first arm.
        other_errors: (N,) of the second arm, on the same utterances.
        words: (N,) in the references.
        draws: S.
        seed: of the draws.

    Raises:
        SprachbundError: for different numbers of utterances, none, or no words.
    """
    sizes = {np.shape(part) for part in (errors, other_errors, words)}
    if len(sizes) > 1 or len(words) == 0:
        raise SprachbundError(
            f"{len(errors)}, {len(other_errors)} and {len(words)} utterances; give the same ones, one or more"
        )
    if np.sum(words) <= 0:
        raise SprachbundError("the references hold no words; there is nothing to divide by")
    sums = np.stack([np.subtract(other_errors, errors), words], axis=1)
    drawn = np.concatenate([weights @ sums for _, weights in bootstrap_weights(len(words), draws, seed)])
    difference, total = sums.sum(0)
    kept = drawn[drawn[:, 1] > 0]
    return estimate(float(100 * difference / total), 100 * kept[:, 0] / kept[:, 1], len(words))
