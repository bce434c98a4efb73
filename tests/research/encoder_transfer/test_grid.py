"""A grid as a value, and the order in which its cells tell most."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sprachbund.research.encoder_transfer.grid import by_worth
from tests.research.encoder_transfer.planted import grid


def test_every_cell_is_there_once() -> None:
    wanted = grid(starts=("ml", "en", "random"))
    cells = wanted.cells()
    assert len(cells) == len(set(cells)) == 3 * 4 * 5 * 2
    assert len({cell.folder(Path("out")) for cell in cells}) == len(cells)


def test_a_law_can_be_fitted_as_early_as_can_be() -> None:
    """After three scales of one seed, both starts, all languages: before any other scale, seed or start."""
    cells = grid(starts=("ml", "en", "random")).cells()
    first = cells[: 3 * 4 * 2]
    assert {cell.hours for cell in first} == {0.5, 8, 2}
    assert {cell.seed for cell in first} == {0}
    assert {cell.start for cell in first} == {"ml", "en"}
    assert {cell.language for cell in first} == {"de", "es", "fr", "it"}
    second = cells[len(first) : 5 * 4 * 2]
    assert {cell.seed for cell in second} == {0}
    assert {cell.hours for cell in second} == {1, 4}
    assert {cell.start for cell in cells[5 * 4 * 2 * 2 :]} == {"random"}


def test_a_language_with_less_data_leaves_out_larger_scales() -> None:
    """And caps no other language."""
    cells = grid(most_hours={"it": 2.5}).cells()
    assert {cell.hours for cell in cells if cell.language == "it"} == {0.5, 1, 2}
    assert {cell.hours for cell in cells if cell.language == "de"} == {0.5, 1, 2, 4, 8}
    with pytest.raises(ValidationError, match="most_hours has pl, which is not one of de, es, fr, it"):
        grid(most_hours={"pl": 2})
    with pytest.raises(ValidationError, match=r"most_hours of it is 0.1, and the least scale 0.5 h"):
        grid(most_hours={"it": 0.1})


def test_the_two_starts_of_a_gap_follow_each_other() -> None:
    cells = grid().cells()
    for one, other in zip(cells[::2], cells[1::2], strict=True):
        assert (one.start, other.start) == ("ml", "en")
        assert one.model_copy(update={"start": "en"}) == other


def test_the_published_scales_in_their_order() -> None:
    assert by_worth((100, 250, 500, 1000, 2500)) == [100, 2500, 500, 250, 1000]
    assert by_worth((3,)) == [3]


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=9, unique=True))
def test_worth_is_an_order_of_all_that_begins_with_the_ends(hours: list[float]) -> None:
    order = by_worth(hours)
    assert sorted(order) == sorted(hours)
    assert order[0] == min(hours)
    assert max(hours) in order[:2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hours": (1, 0)}, "0 hours are no amount"),
        ({"hours": (1, 1)}, "1.0 is there twice"),
        ({"seeds": (0, 0)}, "0 is there twice"),
        ({"starts": ("ml",)}, "at least 2"),
        ({"languages": ()}, "at least 1"),
        ({"tier": ("offline",)}, "Extra inputs"),
    ],
)
def test_grids_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        grid(**changes)
