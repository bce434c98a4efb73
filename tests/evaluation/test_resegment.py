"""Borders against brute force, planted truths and laws."""

import random
from functools import cache
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import latency as resegment
from sprachbund.evaluation.latency import by_likeness, by_word_errors
from tests.evaluation.made_talks import WORDS

words = st.lists(st.sampled_from("abc"), max_size=6)
segments = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=1, max_size=3)


def distance(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Edit distance, straight from its definition."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return len(first) - i + len(second) - j
        return min(rest(i + 1, j + 1) + (first[i] != second[j]), rest(i + 1, j) + 1, rest(i, j + 1) + 1)

    return rest(0, 0)


def errors(output: list[str], references: list[list[str]], borders: tuple[int, ...]) -> int:
    edges = [0, *borders, len(output)]
    parts = [tuple(output[a:b]) for a, b in pairwise(edges)]
    return sum(distance(part, tuple(r)) for part, r in zip(parts, references, strict=True))


@settings(max_examples=150, deadline=None)
@given(words, segments)
def test_no_other_borders_have_fewer_errors(output: list[str], references: list[list[str]]) -> None:
    owners = by_word_errors(output, references)
    result = tuple(int(np.searchsorted(owners, n)) for n in range(1, len(references)))
    every = combinations_with_replacement(range(len(output) + 1), len(references) - 1)
    assert errors(output, references, result) == min(errors(output, references, b) for b in every)


@settings(deadline=None)
@given(words, segments, st.sampled_from([by_word_errors, by_likeness]))
def test_every_word_has_one_segment_and_none_goes_back(output, references, find) -> None:
    owners = find(output, references)
    assert owners.shape == (len(output),)
    assert (np.diff(owners) >= 0).all()
    assert not len(owners) or 0 <= owners[0] <= owners[-1] < len(references)


@pytest.mark.parametrize("find", [by_word_errors, by_likeness])
def test_borders_of_the_references_themselves_are_found(find) -> None:
    rng = random.Random(1)
    references = [[rng.choice(WORDS) for _ in range(rng.randint(1, 9))] for _ in range(20)]
    output = [word for reference in references for word in reference]
    assert find(output, references).tolist() == [n for n, r in enumerate(references) for _ in r]


@pytest.mark.parametrize("find", [by_word_errors, by_likeness])
def test_borders_survive_errors_inside_segments(find) -> None:
    references = ["guten Tag liebe Leute", "wir beginnen mit dem Wetter", "morgen wird es regnen"]
    output = "guten Tag Freunde und liebe Leute wir beginnen dem Wetter morgen könnte es ganz regnen"
    owners = find(output.split(), [r.split() for r in references])
    assert owners.tolist() == [0] * 6 + [1] * 4 + [2] * 5


def test_case_and_punctuation_are_no_word_errors() -> None:
    owners = by_word_errors(["hallo", "welt", "guten", "tag"], [["Hallo,", "Welt!"], ["Guten", "Tag."]])
    assert owners.tolist() == [0, 0, 1, 1]


def test_words_that_answer_nothing() -> None:
    assert by_word_errors(["a", "b", "x", "y", "c", "d"], [["a", "b"], ["c", "d"]]).tolist() == [
        0,
        0,
        0,
        0,
        1,
        1,
    ]
    # "carts" is more like "cart" than like "b": it and what follows go on.
    likely = by_likeness(["a", "b", "x", "carts", "y", "cart", "d"], [["a", "b"], ["cart", "d"]])
    assert likely.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_first_and_last_words_that_answer_nothing() -> None:
    for find in (by_word_errors, by_likeness):
        assert find(["x", "x", "a", "b", "y", "y"], [["a"], ["b"]]).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("find", [by_word_errors, by_likeness])
def test_no_output(find) -> None:
    assert find([], [["a"], ["b"]]).tolist() == []


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resegment, "MAX_CELLS", 8)
    with pytest.raises(SprachbundError, match=r"3 units of output against 2 .* cut the talk"):
        by_word_errors(["a"] * 3, [["a"], ["b"]])
