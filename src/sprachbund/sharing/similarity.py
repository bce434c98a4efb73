"""How alike the gradients of languages are: cosines between their means, and between their single vectors.

Notation of arXiv 2603.25836: L languages, N_l vectors of language l as unit rows of U_l (N_l, d).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from sprachbund.errors import SprachbundError

Rows = Sequence[np.ndarray]
"""One float64 (N_l, d) of unit rows for each of L languages."""

MIN_TO_HALVE = 4
"""Vectors of a language that half samples need: a half must still hold a pair."""

_VANISHES = 1e-9


def ordered_rows(rows: np.ndarray) -> np.ndarray:
    """The rows in an order of their own, so that nothing depends on the order in the file, to the last bit."""
    return rows[np.lexsort(rows.T[::-1])].astype(np.float64)


def means(rows: Rows) -> np.ndarray:
    """Mean gradient direction m_l of each language: (L, d)."""
    return np.stack([unit.mean(0) for unit in rows])


def similarity(means: np.ndarray, languages: Sequence[str], module: str) -> np.ndarray:
    """S, cosines between the languages' mean gradients (L, d): (L, L), ones on the diagonal.

    Raises:
        SprachbundError: when the gradients of a language cancel out, so that they have no direction.
    """
    norms = np.linalg.norm(means, axis=1)
    for language, norm in zip(languages, norms, strict=True):
        if norm < _VANISHES:
            raise SprachbundError(
                f"the gradients of {language} in {module} cancel out, so their mean has no direction; "
                "collect more utterances of it, or leave the module out"
            )
    directions = means / norms[:, None]
    cosines = np.clip(directions @ directions.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    return (cosines + cosines.T) / 2


def mean_cosines(rows: Rows) -> np.ndarray:
    """s_lk, mean cosine of rows of l with rows of k, (L, L); on the diagonal a row never meets itself.

    Needs two rows of each language. With unit rows the sum over all pairs is the product of the two sums, and
    each of the N pairs of a row with itself counts 1.
    """
    counts = np.array([len(unit) for unit in rows], dtype=float)
    centres = means(rows)
    cosines = centres @ centres.T
    np.fill_diagonal(cosines, (np.diag(cosines) * counts**2 - counts) / (counts * (counts - 1)))
    return np.clip(cosines, -1, 1)


def half_samples(rows: Rows, draws: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Random halves of every language's rows, without replacement.

    The spread of a mean over such halves around the full sample's mean is the standard error of the full sample;
    drawing with replacement instead would pair rows with themselves.
    """
    random = np.random.default_rng(seed)
    for _ in range(draws):
        yield [unit[random.permutation(len(unit))[: len(unit) // 2]] for unit in rows]
