"""Cluster numbers as text: repeats removed, cluster i the character U+4E00 + i (arXiv 2309.15826, section 2.1).

Characters let every tool for text work on speech. Shapes: T frames, S units.
"""

from collections.abc import Sequence

import numpy as np

from sprachbund.errors import SprachbundError

FIRST = 0x4E00
MOST_CLUSTERS = 0x9FFF - FIRST + 1
"""The block of characters ends there."""


def collapse(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove repeats from labels (T,): units (S,), and how many frames each lasts (S,), whose sum is T."""
    labels = np.asarray(labels)
    starts = np.flatnonzero(np.diff(labels, prepend=-1)) if len(labels) else np.zeros(0, np.int64)
    return labels[starts], np.diff(starts, append=len(labels))


def expand(units: np.ndarray, durations: np.ndarray) -> np.ndarray:
    """Undo `collapse`."""
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
        place = int(strange[0])
        raise SprachbundError(
            f"{string[place]!r} (U+{ord(string[place]):04X}) at place {place} is none of {num_clusters} units; "
            "they were made by another k-means, encode the speech again"
        )
    return units


def holds_units(text: str, num_clusters: int) -> bool:
    """Whether a text holds a character that stands for a unit."""
    return any(FIRST <= ord(c) < FIRST + num_clusters for c in text)
