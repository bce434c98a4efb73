import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.errors import SprachbundError
from sprachbund.units.lengths import mean_length_ratio, min_ctc_frames, too_long_for_ctc


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
    def aligns(num_frames: int) -> bool:
        log_probs = torch.zeros(num_frames, 1, 4).log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(
            log_probs,
            torch.tensor([target]),
            torch.tensor([num_frames]),
            torch.tensor([len(target)]),
            reduction="sum",
        )
        return bool(torch.isfinite(loss))

    needed = min_ctc_frames(target)
    assert aligns(needed)
    assert needed == 1 or not aligns(needed - 1)


def test_targets_that_do_not_fit_are_counted_and_named() -> None:
    result = too_long_for_ctc(["x", "y", "z"], [5, 6, 5], [[1, 1, 2], [1, 2, 3], [1, 1, 1]], stride=2)
    assert [(e.name, e.needed, e.available) for e in result] == [("x", 4, 3), ("z", 5, 3)]
    assert min_ctc_frames([]) == 0
