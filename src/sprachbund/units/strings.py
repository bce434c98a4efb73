"""Cluster numbers as text, and lengths of text beside speech (arXiv 2309.15826, sections 2.1 and 2.2).

Repeats are removed, and cluster i is the character U+4E00 + i, so every tool for text works on speech. Source text is
up-sampled to the length of speech. Targets that are too long for CTC are counted.
Shapes: T frames, S units or source pieces, U target tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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
        index = int(strange[0])
        raise SprachbundError(
            f"{string[index]!r} (U+{ord(string[index]):04X}) at place {index} is none of {num_clusters} units; "
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


def mean_length_ratio(unit_lengths: Sequence[int], text_lengths: Sequence[int]) -> float:
    """The ratio that makes a corpus's texts as long as its speech, both in pieces, within 1 to 6.

    Raises:
        SprachbundError: no text, or not one text for each utterance.
    """
    if len(unit_lengths) != len(text_lengths):
        raise SprachbundError(
            f"{len(unit_lengths)} utterances and {len(text_lengths)} texts; give one for each"
        )
    if not sum(text_lengths):
        raise SprachbundError(
            "the corpus has no transcripts to compare lengths with; give the ratio as a number"
        )
    ratio = sum(unit_lengths) / sum(text_lengths)
    return round(min(max(ratio, LEAST), MOST), 2)


def subsampled(length: int, stride: int) -> int:
    """Places that are left after convolutions that go `stride` at a time."""
    return -(-length // stride)


def ctc_places(target: Sequence[int]) -> int:
    """Places that CTC needs for a target: one for each token, and a blank between equal neighbours."""
    tokens = np.asarray(target)
    return len(tokens) + int((tokens[1:] == tokens[:-1]).sum())


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """A target that CTC cannot align.

    Attributes:
        name: of the example.
        available: places that its source has.
        needed: places that its target needs.
    """

    name: str
    available: int
    needed: int


def too_long_for_ctc(
    names: Sequence[str], source_lengths: Sequence[int], targets: Sequence[Sequence[int]], *, stride: int = 1
) -> list[TooLong]:
    """Every example whose target (U,) does not fit its source, of `source_lengths` pieces before the stride.

    Args:
        names: names of the examples, for messages.
        source_lengths: source pieces of each example.
        targets: target ids (U,) of each example.
        stride: source pieces of a frame.
    """
    counted = [
        TooLong(name=name, available=subsampled(length, stride), needed=ctc_places(target))
        for name, length, target in zip(names, source_lengths, targets, strict=True)
    ]
    return [example for example in counted if example.needed > example.available]


def require_alignable(too_long: Sequence[TooLong], num_examples: int) -> None:
    """Raises SprachbundError that counts the examples found by `too_long_for_ctc` and names the first."""
    if too_long:
        first = too_long[0]
        raise SprachbundError(
            f"{len(too_long)} of {num_examples} targets are longer than CTC can align; the first is {first.name}, "
            f"{first.needed} places wanted and {first.available} there; drop them, or use a smaller stride"
        )
