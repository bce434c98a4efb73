from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.units.strings import MOST_CLUSTERS, collapse, expand, holds_units, to_string, to_units

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
    with pytest.raises(SprachbundError, match=r"'与' \(U\+4E0E\) at place 1 is none of 8 units"):
        to_units("一与", 8)
    with pytest.raises(SprachbundError, match=r"U\+0061"):
        to_units("a", 8)
    assert holds_units("so 与", 15)
    assert not holds_units("so 与", 14)
