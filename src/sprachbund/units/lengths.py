"""Lengths: text made as long as speech, and targets that speech is too short for.

Up-sampled source text looks to the encoder as speech does (arXiv 2309.15826, section 2.2). Shapes: S source pieces,
U target tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sprachbund.errors import SprachbundError

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
    """Every example whose target (U,) does not fit its source, of `source_lengths` pieces before the stride."""
    found = [
        TooLong(name=name, available=subsampled(length, stride), needed=ctc_places(target))
        for name, length, target in zip(names, source_lengths, targets, strict=True)
    ]
    return [example for example in found if example.needed > example.available]


def require_alignable(found: Sequence[TooLong], num_examples: int) -> None:
    """Raises SprachbundError that counts the examples found by `too_long_for_ctc` and names the first."""
    if found:
        first = found[0]
        raise SprachbundError(
            f"{len(found)} of {num_examples} targets are longer than CTC can align; the first is {first.name}, "
            f"{first.needed} places wanted and {first.available} there; drop them, or use a smaller stride"
        )
