import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.units.strings import (
    ctc_places,
    downsample,
    mean_length_ratio,
    require_alignable,
    too_long_for_ctc,
    upsample,
)

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


def test_the_mean_ratio_is_that_of_the_corpus_within_one_and_six() -> None:
    assert mean_length_ratio([100, 200], [25, 60]) == pytest.approx(300 / 85, abs=0.005)
    assert mean_length_ratio([1], [5]) == 1
    assert mean_length_ratio([100], [5]) == 6
    with pytest.raises(SprachbundError, match=r"2 utterances and 1 texts"):
        mean_length_ratio([1, 2], [1])
    with pytest.raises(SprachbundError, match=r"no transcripts"):
        mean_length_ratio([1], [0])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_ctc_needs_as_many_places_as_torch_says(target: list[int]) -> None:
    def aligns(places: int) -> bool:
        log_probs = torch.zeros(places, 1, 4).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(
            log_probs,
            torch.tensor([target]),
            torch.tensor([places]),
            torch.tensor([len(target)]),
            reduction="sum",
        )
        return bool(torch.isfinite(loss))

    needed = ctc_places(target)
    assert aligns(needed)
    assert needed == 1 or not aligns(needed - 1)


def test_targets_that_do_not_fit_are_counted_and_named() -> None:
    found = too_long_for_ctc(["x", "y", "z"], [5, 6, 5], [[1, 1, 2], [1, 2, 3], [1, 1, 1]], stride=2)
    assert [(e.name, e.needed, e.available) for e in found] == [("x", 4, 3), ("z", 5, 3)]
    with pytest.raises(
        SprachbundError, match=r"2 of 3 targets .* the first is x, 4 places wanted and 3 there"
    ):
        require_alignable(found, 3)
    require_alignable([], 3)
    assert ctc_places([]) == 0
