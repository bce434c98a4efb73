from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.evaluation.latency import erased_per_minute, erasure, normalized_erasure


def test_erasure_by_hand() -> None:
    assert erasure(["das", "ist", "ein", "Haus"], ["das", "ist", "kein", "Haus"]) == 2  # "ein Haus" goes
    assert erasure(["das", "ist"], ["das", "ist", "ein"]) == 0
    assert erasure(["das"], []) == 1


def test_normalized_erasure_by_hand() -> None:
    texts = ["das", "dies ist", "dies war", "dies war ein Haus"]
    # "das" goes, then "ist"; the last text has four words.
    assert normalized_erasure(text.split() for text in texts) == (1 + 1) / 4


def test_erased_words_a_minute_by_hand() -> None:
    texts = ["das", "dies ist", "dies war", "dies war ein Haus"]
    assert erased_per_minute((text.split() for text in texts), 30.0) == 4  # two in half a minute
    assert erased_per_minute([], 30.0) == 0


def test_nothing_on_the_screen_has_no_flicker() -> None:
    assert normalized_erasure([]) is None
    assert normalized_erasure([["weg"], []]) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 5))
def test_text_that_only_grows_does_not_flicker(words: list[str], step: int) -> None:
    assert normalized_erasure([*(words[:n] for n in range(0, len(words), step)), words]) == 0


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=6), min_size=1, max_size=8))
def test_all_that_was_written_stays_or_was_erased(texts: list[list[str]]) -> None:
    written = sum(len(b) - (len(a) - erasure(a, b)) for a, b in zip([[], *texts], texts, strict=False))
    erased = (normalized_erasure(texts) or 0) * len(texts[-1])
    if texts[-1]:
        assert round(written - erased) == len(texts[-1])
