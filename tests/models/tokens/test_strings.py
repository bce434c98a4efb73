from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.strings import (
    collapse,
    downsample,
    expand,
    holds_units,
    to_string,
    to_units,
    upsample,
)
from sprachbund.models.tokens.unit_options import MOST_CLUSTERS

LABELS = st.lists(st.integers(0, 4), max_size=40)


@given(LABELS)
def test_repeats_go_and_come_back(labels: list[int]) -> None:
    units, durations = collapse(np.array(labels, np.int64))
    assert units.tolist() == [label for label, _ in groupby(labels)]
    assert durations.tolist() == [len(list(run)) for _, run in groupby(labels)]
    assert expand(units, durations).tolist() == labels


@given(st.lists(st.integers(0, MOST_CLUSTERS - 1)))
def test_units_are_characters(units: list[int]) -> None:
    string = to_string(units)
    assert [ord(c) - 0x4E00 for c in string] == units
    assert to_units(string).tolist() == units


def test_a_character_of_another_kmeans_is_named() -> None:
    assert to_units(to_string([7, 3]), 8).tolist() == [7, 3]
    with pytest.raises(SprachbundError, match=r"'与' \(U\+4E0E\) at index 1 is none of 8 units"):
        to_units("一与", 8)
    with pytest.raises(SprachbundError, match=r"U\+0061"):
        to_units("a", 8)
    assert holds_units("so 与", 15)
    assert not holds_units("so 与", 14)


PIECES = st.lists(st.integers(2, 50), max_size=30)


@given(PIECES, st.integers(1, 6))
def test_whole_ratios_repeat_every_piece(pieces: list[int], ratio: int) -> None:
    assert upsample(pieces, ratio) == [piece for piece in pieces for _ in range(ratio)]
    assert upsample(pieces, ratio, end=99).count(99) == 1
    assert upsample(pieces, ratio, end=99)[-1] == 99


@given(PIECES, st.integers(100, 600))
def test_any_ratio_can_be_undone_and_keeps_its_length(pieces: list[int], hundredths: int) -> None:
    ratio = hundredths / 100
    longer = upsample(pieces, ratio)
    assert len(longer) == len(pieces) * hundredths // 100
    assert downsample(longer, ratio) == pieces


@given(PIECES, st.integers(100, 600))
def test_marks_stand_for_repetitions_and_can_be_undone(pieces: list[int], hundredths: int) -> None:
    ratio = hundredths / 100
    marked, plain = upsample(pieces, ratio, mark=0), upsample(pieces, ratio)
    assert [piece for piece in marked if piece] == pieces
    assert len(marked) == len(plain)
    assert all(mark in (0, piece) for mark, piece in zip(marked, plain, strict=True))
    assert downsample(marked, ratio) == pieces


def test_marks_follow_their_piece() -> None:
    assert upsample([7, 7], 3, end=9, mark=0) == [7, 0, 0, 7, 0, 0, 9]


@pytest.mark.parametrize("ratio", [0.99, 6.01, float("nan")])
def test_ratios_that_cannot_be(ratio: float) -> None:
    with pytest.raises(SprachbundError, match=r"give 1 to 6"):
        upsample([1], ratio)
