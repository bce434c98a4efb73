"""Lengths of texts beside those of speech, and targets that CTC cannot align (arXiv 2309.15826, section 2.2).

Shapes: U target tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.strings import LEAST, MOST


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
    """Frames that are left after convolutions that go `stride` at a time."""
    return -(-length // stride)


def min_ctc_frames(target: Sequence[int]) -> int:
    """Frames that CTC needs for a target: one for each token, and a blank between equal neighbours."""
    tokens = np.asarray(target)
    return len(tokens) + int((tokens[1:] == tokens[:-1]).sum())


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """A target that CTC cannot align.

    Attributes:
        name: name of the example.
        available: frames that its source has.
        needed: frames that its target needs.
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
        TooLong(name=name, available=subsampled(length, stride), needed=min_ctc_frames(target))
        for name, length, target in zip(names, source_lengths, targets, strict=True)
    ]
    return [example for example in counted if example.needed > example.available]
