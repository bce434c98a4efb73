"""The law by which a gap shrinks with data, gap(h) = A (h / 100)^-b, fitted to means over languages.

As published (arXiv 2606.24169): ordinary least squares of ln(mean gap) on ln(h / 100); languages drawn with replacement
and the law fitted anew, without scales whose mean is not positive. Beyond it: least squares of the gaps themselves,
intervals that cover, a test of whether the points lie on a straight line, and reasons why not to trust a fit.
Shapes: S draws, L languages, H scales of hours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.studies.bootstrap import (
    DRAWS,
    LEVEL,
    SEED,
    Estimate,
    Interval,
    Values,
    estimate,
    language_draws,
    t_interval,
)
from sprachbund.studies.least_squares import in_logarithms, of_gaps

By = Literal["log", "gaps"]
"""What is least: squares of errors of ln(gap), as published, or of the gap."""
REFERENCE_HOURS = 100.0
MIN_SCALES = 3
MIN_POSITIVE: dict[By, int] = {"log": 3, "gaps": 2}
MIN_LANGUAGES = 3
MAX_SHORT_DRAWS = 0.05
"""Share of draws that may have lost a scale: what is left of the others is chosen by luck."""
CURVATURE_LEVEL = 0.99
"""High, since a straight law must not be called bent in one study of twenty."""
BOTH_LEVEL = 1 - (1 - LEVEL) / 2
"""Of A and of b each, so that both are inside together as often as `LEVEL` says (Bonferroni)."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        scale: A, the gap at 100 h; the intervals of A and b hold together, both at once.
        exponent: b.
        drawn: (S, 2), ln A and b of every draw.
        r_squared: share of the variance that the law explains, of ln(mean gap) or of the mean gap.
        hours: scales that it is fitted to.
        by: what is least.
        num_languages: L.
        doubts: why it is not to be trusted; empty when it is.
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
        """Whether nothing speaks against it."""
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
        return float(REFERENCE_HOURS * (self.scale.value / gap) ** (1 / self.exponent.value))


def fit_power_law(
    hours: Sequence[float], gaps: Values, *, by: By = "log", draws: int = DRAWS, seed: int = SEED
) -> PowerLaw:
    """Fit the law to the gaps of languages.

    Args:
        hours: (H,).
        gaps: (L, H), means over seeds.
        by: what is least.
        draws: S.
        seed: of the draws.

    Raises:
        SprachbundError: for fewer than three scales, or too few whose mean gap is positive.
    """
    means = gaps.mean(0)
    _check_scales(hours, means, MIN_POSITIVE[by])
    x = np.log(np.array(hours) / REFERENCE_HOURS)
    used = means > 0 if by == "log" else np.full(len(x), True)
    weights = language_draws(len(gaps), draws, seed)
    drawn_means = (weights @ gaps)[:, used]
    found, drawn = _solutions(by, x[used], means[used], drawn_means)
    kept = drawn[~np.isnan(drawn).any(-1)]
    incomplete = (drawn_means <= 0).any(-1) if by == "log" else np.isnan(drawn).any(-1)
    intercept, slope = found.tolist()
    exponent = estimate(slope, kept[:, 1], len(gaps), BOTH_LEVEL)
    return PowerLaw(
        scale=_exp(estimate(intercept, kept[:, 0], len(gaps), BOTH_LEVEL)),
        exponent=exponent,
        drawn=kept,
        r_squared=_r_squared(by, means[used], intercept - slope * x[used]),
        hours=tuple(np.array(hours)[used].tolist()),
        by=by,
        num_languages=len(gaps),
        doubts=(
            *_doubts(gaps, exponent),
            *(_left_out(hours, means) if by == "log" else ()),
            *_short_draws(by, float(incomplete.mean())),
            *_bent(hours, gaps, weights),
        ),
    )


def _solutions(by: By, x: Values, means: Values, drawn_means: Values) -> tuple[Values, Values]:
    """ln A and b of the means (2,) and of every draw (S, 2)."""
    found = in_logarithms(x, means)
    if by == "log":
        return found, in_logarithms(x, drawn_means)
    found = of_gaps(x, means, found)
    if np.isnan(found).any():
        raise SprachbundError(
            "no power law: no curve of this form comes closest to the gaps; draw the figure"
        )
    return found, of_gaps(x, drawn_means, found)


def _check_scales(hours: Sequence[float], means: Values, min_positive: int) -> None:
    told = ", ".join(f"{h:g} h" for h in hours if not np.isnan(h)) or "no column 'hours'"
    if len(hours) < MIN_SCALES:
        raise SprachbundError(
            f"no power law: {len(hours)} scale{'s' * (len(hours) > 1)} of data ({told}); it takes {MIN_SCALES} or more"
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


def _doubts(gaps: Values, exponent: Estimate) -> list[str]:
    """Reasons not to trust any fit, each in words with its numbers."""
    doubts = []
    if len(gaps) < MIN_LANGUAGES:
        plural = "s" * (len(gaps) > 1)
        doubts.append(f"{len(gaps)} language{plural}: an interval takes {MIN_LANGUAGES} or more")
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
    used = gaps.mean(0) > 0
    x = np.log(np.array(hours)[used] / REFERENCE_HOURS)
    drawn = (weights @ gaps)[:, used]
    drawn = drawn[(drawn > 0).all(-1)]
    if len(gaps) < MIN_LANGUAGES or len(drawn) < len(weights) * (1 - MAX_SHORT_DRAWS):
        return None
    quadratic = np.linalg.pinv(np.vander(x, 3))[0]
    value = float(np.log(gaps.mean(0)[used]) @ quadratic)
    low, high = t_interval(value, np.log(drawn) @ quadratic, len(gaps), CURVATURE_LEVEL)
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
