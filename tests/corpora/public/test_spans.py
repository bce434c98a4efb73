"""Places of spans: counted, or held by words that stand in both texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.data.language_spans import (
    marked_ranges,
    ranges_between,
    ranges_of_pieces,
    split_words,
    unique_range,
)

TEXTS = st.lists(st.text(st.sampled_from("abc ,."), min_size=0, max_size=8), max_size=5)


@given(TEXTS)
def test_pieces_cut_at_spaces_are_where_their_words_are(pieces: list[str]) -> None:
    whole = " ".join(pieces)
    words = split_words(whole, "es")
    ranges = ranges_of_pieces(pieces, whole, "es")
    assert len(ranges) == len(pieces)
    for piece, place in zip(pieces, ranges, strict=True):
        assert (words[slice(*place)] if place else []) == split_words(piece, "es")


def test_pieces_cut_within_a_word_have_no_ranges() -> None:
    assert ranges_of_pieces(["what", "ever you"], "whatever you", "en") == []
    assert marked_ranges([("so ", False), ("okay", True), (", bien", False)], "so okay, bien", "es") == {}


def test_scripts_without_spaces_count_characters() -> None:
    assert ranges_of_pieces(["這個", "model"], "這個 model", "zh") == [(0, 2), (2, 7)]


def test_only_place() -> None:
    assert unique_range(["a", "b"], ["c", "a", "b"]) == (1, 3)
    assert unique_range(["a"], ["a", "a"]) is None
    assert unique_range([], ["a"]) is None


@pytest.mark.parametrize(
    ("runs", "reference", "ranges"),
    [
        ([("en", "well"), ("es", "no sé"), ("en", "you know")], "Well, don't know, you know", [(0, 1), (1, 3), (3, 5)]),
        ([("es", "bueno"), ("en", "see you")], "good, see you", [(0, 1), (1, 3)]),
        ([("en", "see you"), ("es", "mañana")], "see you", [(0, 2), None]),  # nothing left to be its translation
        ([("en", "you"), ("es", "sabes"), ("en", "home")], "you know you, home", [None, None, (3, 4)]),  # twice
        ([("en", "home"), ("es", "va"), ("en", "he")], "he goes home", [None, None, None]),  # another order
        ([("es", "no sé nada")], "I know nothing", [None]),
        ([("es", "ya"), ("en", "right"), ("fr", "oui")], "now right yes", [(0, 1), (1, 2), (2, 3)]),
    ],
)  # fmt: skip
def test_ranges_in_a_translation_are_held_by_its_own_words(runs, reference, ranges) -> None:
    assert ranges_between(runs, reference, "en") == ranges
