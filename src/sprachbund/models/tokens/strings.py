"""Cluster numbers as text, and text as long as speech (arXiv 2309.15826, sections 2.1 and 2.2).

Repeats are removed, and cluster i is the character U+4E00 + i, so every tool for text works on speech. Source text is
up-sampled to the length of speech.
Shapes: T frames, S units or source pieces.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.unit_options import FIRST, MOST_CLUSTERS


def collapse(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove repeats from labels (T,): units (S,), and how many frames each lasts (S,), whose sum is T."""
    labels = np.asarray(labels)
    starts = np.flatnonzero(np.diff(labels, prepend=-1)) if len(labels) else np.zeros(0, np.int64)
    return labels[starts], np.diff(starts, append=len(labels))


def expand(units: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Undo `collapse`: repeat each unit for as many frames as it lasts."""
    return np.repeat(units, durations)


def to_string(units: Sequence[int] | np.ndarray) -> str:
    """Units as characters."""
    return "".join(chr(FIRST + int(unit)) for unit in units)


def to_units(string: str, num_clusters: int = MOST_CLUSTERS) -> np.ndarray:
    """Undo `to_string`, (S,).

    Raises:
        SprachbundError: a character that is no unit of a k-means with so many clusters.
    """
    units = np.array([ord(c) for c in string], np.int64) - FIRST
    strange = np.flatnonzero((units < 0) | (units >= num_clusters))
    if len(strange):
        index = int(strange[0])
        raise SprachbundError(
            f"{string[index]!r} (U+{ord(string[index]):04X}) at index {index} is none of {num_clusters} units; "
            "they were made by another k-means, encode the speech again"
        )
    return units


def holds_units(text: str, num_clusters: int) -> bool:
    """Whether a text holds a character that stands for a unit."""
    return any(FIRST <= ord(c) < FIRST + num_clusters for c in text)


# Lengths.

LEAST, MOST = 1, 6
_DENOMINATOR = 100


def check_ratio(ratio: float) -> Fraction:
    """A ratio as an exact number of hundredths. Raises SprachbundError outside 1 to 6."""
    if not LEAST <= ratio <= MOST:
        raise SprachbundError(f"text is to be made {ratio} times as long; give {LEAST} to {MOST}")
    return Fraction(round(ratio * _DENOMINATOR), _DENOMINATOR)


def upsample(
    pieces: Sequence[int], ratio: float, end: int | None = None, mark: int | None = None
) -> list[int]:
    """Every piece `ratio` times, then `end` once.

    A ratio between whole numbers repeats some pieces once more than others, evenly spread: the first n pieces
    become floor(n ratio).

    Args:
        pieces: (S,).
        ratio: 1 to 6.
        end: follows them all.
        mark: stands in the place of every repetition of a piece; None repeats the piece itself.

    Raises:
        SprachbundError: a ratio outside 1 to 6.
    """
    exact = check_ratio(ratio)
    bounds = np.arange(len(pieces) + 1) * exact.numerator // exact.denominator
    longer = np.repeat(np.asarray(pieces, np.int64), np.diff(bounds))
    if mark is not None:
        longer[np.setdiff1d(np.arange(len(longer)), bounds)] = mark
    return longer.tolist() if end is None else [*longer.tolist(), end]


def downsample(pieces: Sequence[int], ratio: float) -> list[int]:
    """Undo `upsample` without its end, whatever stands for repetitions."""
    exact = check_ratio(ratio)
    num = -(-len(pieces) * exact.denominator // exact.numerator)
    firsts = np.arange(num) * exact.numerator // exact.denominator
    shorter: list[int] = np.asarray(pieces, np.int64)[firsts].tolist()
    return shorter
