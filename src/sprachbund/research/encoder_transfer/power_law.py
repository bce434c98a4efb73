"""The law by which a gap shrinks with data, gap(h) = A (h / 100)^-b, fitted to means over languages.

As published (arXiv 2606.24169): ordinary least squares of ln(mean gap) on ln(h / 100); languages drawn with replacement
and the law fitted anew, without scales whose mean is not positive. Beyond it: least squares of the gaps themselves,
intervals that cover, a test of whether the points lie on a straight line, and reasons why not to trust a fit.
Over few languages the middle 95% of the draws, the published interval, cover too little: the draws spread by the spread
of the sample divided by L, not L - 1, and have the tails of a normal law. `t_interval` corrects both. In logarithms
every scale has the same weight whatever its error, and a gap has to be positive; the fit of the gaps themselves needs
neither where noise is additive, as that of seeds. docs/study.md has the measured coverage and errors.

Shapes: S draws, L languages, H scales of hours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.significance import bootstrap_weights, percentiles, t_interval
from sprachbund.research.encoder_transfer.study_options import DRAWS, SEED, By

# Intervals over languages and utterances.

LEVEL = 0.95
Values = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and what is known of its error.

    Attributes:
        value: the number.
        interval: bounds that hold the value as often as stated; infinite where nothing can be said.
        percentile: the middle of the draws, as published.
    """

    value: float
    interval: Interval
    percentile: Interval


def language_draws(num_languages: int, draws: int = DRAWS, seed: int = SEED) -> Values:
    """(S, L) weights that sum to 1: the share of each language in each draw with replacement.

    Args:
        num_languages: L.
        draws: number of bootstrap draws, S.
        seed: seed of the draws.
    """
    chunks = [weights for _, weights in bootstrap_weights(num_languages, draws, seed)]
    return np.concatenate(chunks) / num_languages


def estimate(value: float, drawn: Values, num_units: int, level: float = LEVEL) -> Estimate:
    """A number with both intervals from its draws (S,).

    Args:
        value: estimate on all units.
        drawn: estimates of the draws (S,).
        num_units: number of units that were drawn, L.
        level: confidence level, between 0 and 1.
    """
    if num_units < 2:
        return Estimate(value=value, interval=(-np.inf, np.inf), percentile=(-np.inf, np.inf))
    return Estimate(
        value=value, interval=t_interval(value, drawn, num_units, level), percentile=percentiles(drawn)
    )


def mean_over_languages(values: Values, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    """The mean of one number for each language (L,), over the languages that have one.

    Args:
        values: one number for each language (L,); nan where there is none.
        draws: number of bootstrap draws, S.
        seed: seed of the draws.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Estimate(value=np.nan, interval=(-np.inf, np.inf), percentile=(-np.inf, np.inf))
    return estimate(float(known.mean()), language_draws(len(known), draws, seed) @ known, len(known))


def weighted_means(weights: Values, gaps: Values) -> Values:
    """The mean at each scale over the languages that have it, (S, H); nan where a draw has no such language.

    Args:
        weights: weights of the languages in each draw (S, L).
        gaps: (L, H); nan where a language lacks a scale.
    """
    known = ~np.isnan(gaps)
    total = weights @ known
    with np.errstate(invalid="ignore"):
        means: Values = weights @ np.where(known, gaps, 0.0) / np.where(total > 0, total, np.nan)
    return means


# Two ways to fit: least squares of ln(gap), and of the gaps.

_STEPS, _LONGEST_STEP = 40, 0.5


def in_logarithms(x: Values, gaps: Values) -> Values:
    """ln A and b (…, 2) by least squares of ln(gap) on x = ln(h / 100) over the gaps (…, H) that are positive.

    nan where fewer than two are.
    """
    positive = gaps > 0
    y = np.log(np.where(positive, gaps, 1.0))
    count = positive.sum(-1, keepdims=True)
    enough = count > 1
    share = positive / np.maximum(count, 1)
    mean_x, mean_y = (share * x).sum(-1, keepdims=True), (share * y).sum(-1, keepdims=True)
    variance = (share * (x - mean_x) ** 2).sum(-1, keepdims=True)
    slope = (share * (x - mean_x) * (y - mean_y)).sum(-1, keepdims=True) / np.where(enough, variance, 1.0)
    solution: Values = np.concatenate([mean_y - slope * mean_x, -slope], axis=-1)
    return np.where(enough, solution, np.nan)


def of_gaps(x: Values, gaps: Values, start: Values) -> Values:
    """ln A and b (…, 2) by least squares of the gaps (…, H) themselves, whatever their sign.

    Gauss-Newton from `start` (2,), with steps kept short; nan where that leads nowhere.

    Args:
        x: ln(h / 100) of every scale (H,).
        gaps: mean gaps in points (…, H).
        start: ln A and b to start from (2,).
    """
    solution = np.broadcast_to(start, (*gaps.shape[:-1], 2)).copy()
    for _ in range(_STEPS):
        fitted = np.exp(solution[..., :1] - solution[..., 1:] * x)
        slopes = np.stack([fitted, -fitted * x], axis=-1)  # by ln A and by b
        square = np.einsum("...hi,...hj->...ij", slopes, slopes)
        pull = np.einsum("...hi,...h->...i", slopes, gaps - fitted)
        with np.errstate(invalid="ignore", divide="ignore"):
            determinant = square[..., 0, 0] * square[..., 1, 1] - square[..., 0, 1] ** 2
            step = np.stack(
                [
                    square[..., 1, 1] * pull[..., 0] - square[..., 0, 1] * pull[..., 1],
                    square[..., 0, 0] * pull[..., 1] - square[..., 0, 1] * pull[..., 0],
                ],
                axis=-1,
            )
            step = step / determinant[..., None]
        solution = solution + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
    settled = np.abs(step).max(-1, keepdims=True) < 1e-6
    return np.where(settled, solution, np.nan)


REFERENCE_HOURS = 100.0
MIN_SCALES = 3
MIN_POSITIVE: dict[By, int] = {"log": 3, "gaps": 2}
MIN_LANGUAGES = 3
MAX_SHORT_DRAWS = 0.05
"""Share of draws that may have lost a scale: what is left of the others is chosen by luck."""
CURVATURE_LEVEL = 0.99
"""High, since a straight law must not be called bent in one study of twenty."""
BOTH_LEVEL = 1 - (1 - LEVEL) / 2
"""Level of A and of b each, so that both are inside together as often as `LEVEL` says (Bonferroni)."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        scale: A, the gap at 100 h; the intervals of A and b hold together, both at once.
        exponent: b.
        drawn: (S, 2), ln A and b of every draw.
        r_squared: share of the variance that the law explains, of ln(mean gap) or of the mean gap.
        hours: scales that it is fitted to.
        by: error that the fit minimises.
        num_languages: languages with two of the scales or more; the others say nothing of the exponent.
        doubts: reasons why it is not to be trusted; empty when it is.
    """

    scale: Estimate
    exponent: Estimate
    drawn: Values
    r_squared: float
    hours: tuple[float, ...]
    by: By
    num_languages: int
    doubts: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether there is no reason against the law."""
        return not self.doubts

    def gap(self, hours: float) -> Estimate:
        """The gap expected at so many hours."""
        x = np.log(hours / REFERENCE_HOURS)
        value = np.log(self.scale.value) - self.exponent.value * x
        return _exp(estimate(float(value), self.drawn[:, 0] - self.drawn[:, 1] * x, self.num_languages))

    def hours_at(self, gap: float) -> float:
        """The hours at which the gap has come down to this; infinite where it does not shrink."""
        if self.exponent.value <= 0:
            return float("inf")
        # A gap that hardly shrinks would take more hours than a number can hold.
        with np.errstate(over="ignore"):
            return float(REFERENCE_HOURS * np.exp(np.log(self.scale.value / gap) / self.exponent.value))


def fit_power_law(
    hours: Sequence[float], gaps: Values, *, by: By = "log", draws: int = DRAWS, seed: int = SEED
) -> PowerLaw:
    """Fit the law to the gaps of languages.

    Args:
        hours: (H,).
        gaps: (L, H), means over seeds; nan where a language lacks a scale. Means are over the languages that have it. A
            language without any counts for nothing.
        by: error that the fit minimises.
        draws: S.
        seed: seed of the draws.

    Raises:
        SprachbundError: for fewer than three scales, or too few whose mean gap is positive.
    """
    known = ~np.isnan(gaps)
    present = known.any(0)
    # A row without a gap would be drawn like a language, and make the draws of the others spread less.
    hours, gaps = tuple(np.array(hours)[present].tolist()), gaps[known.any(1)][:, present]
    means = _means(gaps)
    _check_scales(hours, means, MIN_POSITIVE[by])
    x = np.log(np.array(hours) / REFERENCE_HOURS)
    used = means > 0 if by == "log" else np.full(len(x), True)
    num_languages = _with_two_scales(gaps[:, used])
    weights = language_draws(len(gaps), draws, seed)
    drawn_means = weighted_means(weights, gaps)[:, used]
    solution, drawn = _solutions(by, x[used], means[used], drawn_means)
    kept = drawn[~np.isnan(drawn).any(-1)]
    incomplete = ~(drawn_means > 0).all(-1) if by == "log" else np.isnan(drawn).any(-1)
    intercept, slope = solution.tolist()
    exponent = estimate(slope, kept[:, 1], num_languages, BOTH_LEVEL)
    return PowerLaw(
        scale=_exp(estimate(intercept, kept[:, 0], num_languages, BOTH_LEVEL)),
        exponent=exponent,
        drawn=kept,
        r_squared=_r_squared(by, means[used], intercept - slope * x[used]),
        hours=tuple(np.array(hours)[used].tolist()),
        by=by,
        num_languages=num_languages,
        doubts=(
            *_doubts(num_languages, exponent),
            *(_left_out(hours, means) if by == "log" else ()),
            *_short_draws(by, float(incomplete.mean())),
            *_bent(hours, gaps, weights),
        ),
    )


def _with_two_scales(gaps: Values) -> int:
    """The number of languages (L, H) that say something of the exponent."""
    return int(((~np.isnan(gaps)).sum(1) > 1).sum())


def _means(gaps: Values) -> Values:
    """(H,) over the languages that have a scale."""
    return weighted_means(np.ones((1, len(gaps))), gaps)[0]


def _solutions(by: By, x: Values, means: Values, drawn_means: Values) -> tuple[Values, Values]:
    """ln A and b of the means (2,) and of every draw (S, 2)."""
    solution = in_logarithms(x, means)
    if by == "log":
        return solution, in_logarithms(x, drawn_means)
    solution = of_gaps(x, means, solution)
    if np.isnan(solution).any():
        raise SprachbundError(
            "no power law: no curve of this form comes closest to the gaps; draw the figure"
        )
    return solution, of_gaps(x, drawn_means, solution)


def _check_scales(hours: Sequence[float], means: Values, min_positive: int) -> None:
    listed = ", ".join(f"{h:g} h" for h in hours if not np.isnan(h)) or "no column 'hours'"
    if len(hours) < MIN_SCALES:
        raise SprachbundError(
            f"no power law: {len(hours)} scale{'s' * (len(hours) > 1)} of data ({listed}); it takes "
            f"{MIN_SCALES} or more"
        )
    positive = int((means > 0).sum())
    if not means.any():
        raise SprachbundError("no power law: all mean gaps are 0, so neither start is better at any scale")
    if positive < min_positive:
        raise SprachbundError(
            f"no power law: the mean gap is positive at {positive} of {len(hours)} scales, "
            f"{_not_positive(hours, means)}; it takes {min_positive}; "
            "see that the better arm is the first of --arms and that --better is right"
        )


def _not_positive(hours: Sequence[float], means: Values) -> str:
    return "not " + ", ".join(f"at {h:g} h ({m:.3g})" for h, m in zip(hours, means, strict=True) if not m > 0)


def _doubts(num_languages: int, exponent: Estimate) -> list[str]:
    """Reasons not to trust any fit, each in words with its numbers."""
    doubts = []
    if num_languages < MIN_LANGUAGES:
        plural = "s" * (num_languages != 1)
        doubts.append(
            f"{num_languages} language{plural}: an interval takes {MIN_LANGUAGES} or more, each with two scales"
        )
    low, high = exponent.interval
    if low <= 0 <= high and np.isfinite(low):
        doubts.append(f"the exponent may be 0 ({low:.2f} to {high:.2f}): the gap need not shrink with data")
    elif exponent.value < 0:
        doubts.append(f"the exponent is {exponent.value:.2f}: the gap grows with data")
    return doubts


def _left_out(hours: Sequence[float], means: Values) -> list[str]:
    if (means > 0).all():
        return []
    return [
        f"the mean gap is {_not_positive(hours, means)} positive: left out, which makes the rest look larger"
    ]


def _short_draws(by: By, share: float) -> list[str]:
    """Draws that are not of all that was measured."""
    if share <= MAX_SHORT_DRAWS:
        return []
    if by == "gaps":
        return [f"in {share:.0%} of the draws no curve of this form came closest"]
    return [f"in {share:.0%} of the draws a scale had no positive gap and was left out"]


def _bent(hours: Sequence[float], gaps: Values, weights: Values) -> list[str]:
    bent = _curvature(hours, gaps, weights)
    if bent is None:
        return []
    way = "faster" if bent < 0 else "slower"
    return [f"the points are not on a straight line: with more data the gap shrinks {way} than by a power"]


def _curvature(hours: Sequence[float], gaps: Values, weights: Values) -> float | None:
    """The quadratic term of ln(mean gap), if it is there beyond chance; None also where it cannot be seen."""
    used = _means(gaps) > 0
    if used.sum() < MIN_SCALES:  # two points are on a straight line always
        return None
    x = np.log(np.array(hours)[used] / REFERENCE_HOURS)
    drawn = weighted_means(weights, gaps)[:, used]
    drawn = drawn[(drawn > 0).all(-1)]
    num_languages = _with_two_scales(gaps[:, used])
    if num_languages < MIN_LANGUAGES or len(drawn) < len(weights) * (1 - MAX_SHORT_DRAWS):
        return None
    quadratic = np.linalg.pinv(np.vander(x, 3))[0]
    value = float(np.log(_means(gaps)[used]) @ quadratic)
    low, high = t_interval(value, np.log(drawn) @ quadratic, num_languages, CURVATURE_LEVEL)
    # Where languages do not differ at all, rounding is no bend.
    return value if not low <= 0 <= high and abs(value) > 1e-9 else None


def _r_squared(by: By, means: Values, line: Values) -> float:
    """Share of the variance explained, of ln(gap) or of the gap; `line` (H,) is what the law says of ln(gap)."""
    y, fitted = (np.log(means), line) if by == "log" else (means, np.exp(line))
    total = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - fitted) ** 2).sum()) / total if total > 0 else 1.0


def _exp(logarithm: Estimate) -> Estimate:
    def exp(interval: Interval) -> Interval:
        with np.errstate(over="ignore"):
            low, high = np.exp(interval)
        return float(low), float(high)

    return Estimate(
        value=float(np.exp(logarithm.value)),
        interval=exp(logarithm.interval),
        percentile=exp(logarithm.percentile),
    )
