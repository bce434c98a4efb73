"""Two ways of laying gap = A (h / 100)^-b through points, each for thousands of draws at once.

In logarithms, as published, every scale counts the same whatever its error, and a gap that is not positive has no
place. On the gaps themselves both problems are gone where noise is added to scores, as that of seeds is: over grids
with noise of seeds alone, errors of b are about a fourth (docs/study.md has the table).
Shapes: … draws, H scales of hours.
"""

import numpy as np

from sprachbund.studies.bootstrap import Values

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
    found: Values = np.concatenate([mean_y - slope * mean_x, -slope], axis=-1)
    return np.where(enough, found, np.nan)


def of_gaps(x: Values, gaps: Values, start: Values) -> Values:
    """ln A and b (…, 2) by least squares of the gaps (…, H) themselves, whatever their sign.

    Gauss-Newton from `start` (2,), with steps kept short; nan where that leads nowhere.
    """
    found = np.broadcast_to(start, (*gaps.shape[:-1], 2)).copy()
    for _ in range(_STEPS):
        fitted = np.exp(found[..., :1] - found[..., 1:] * x)
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
        found = found + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
    settled = np.abs(step).max(-1, keepdims=True) < 1e-6
    return np.where(settled, found, np.nan)
