"""Latency scores by hand, and the laws they keep."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.evaluation.latency import SCORES, Passage, latency


def passage(*delays_s: float, source_s=3.0, num_reference=4, recording_s=None, audio_s=None) -> Passage:
    return Passage(
        delays_s=delays_s,
        audio_s=audio_s or delays_s,
        source_s=source_s,
        num_reference=num_reference,
        recording_s=source_s if recording_s is None else recording_s,
    )


# Three seconds of speech, four words written after 1, 2, 3 and 3 seconds.
# A reference of four words: a word each 3/4 = 0.75 s. The third word is the first that has heard all.
EXAMPLE = passage(1.0, 2.0, 3.0, 3.0)
BY_HAND = {
    "AL": ((1 - 0) + (2 - 0.75) + (3 - 1.5)) / 3,  # 1.25
    "LAAL": ((1 - 0) + (2 - 0.75) + (3 - 1.5)) / 3,
    "DAL": ((1 - 0) + (2 - 0.75) + (3 - 1.5) + (3.75 - 2.25)) / 4,  # the fourth costs 0.75 s after the third
    "AP": (1 + 2 + 3 + 3) / (3 * 4),  # 0.75
    "YAAL": ((1 - 0) + (2 - 0.75)) / 2,  # the words before the end alone
    # Spoken words of 0.3 s end at 0.3 0.6 0.9 1.0 | 1.3 1.6 1.9 2.0 | ...; words 1 to 4 answer 0.3 0.6 0.9 1.0.
    "ATD": ((1 - 0.3) + (2 - 0.6) + (3 - 0.9) + (3 - 1.0)) / 4,
}


@pytest.mark.parametrize("name", SCORES)
def test_example_by_hand(name: str) -> None:
    assert latency(name, EXAMPLE) == pytest.approx(BY_HAND[name])


def test_output_longer_than_the_reference_gains_nothing_by_it() -> None:
    long = passage(1.0, 2.0, 3.0, 3.0, num_reference=2)
    assert latency("AL", long) == pytest.approx(((1 - 0) + (2 - 1.5) + (3 - 3)) / 3)  # 0.5
    assert latency("LAAL", long) == pytest.approx(BY_HAND["LAAL"])
    assert latency("AP", long) == pytest.approx(9 / (3 * 2))


def test_first_word_after_the_end_of_the_speech() -> None:
    late = passage(5.0, 6.0)
    assert latency("AL", late) == latency("LAAL", late) == 5.0
    assert latency("YAAL", late) is None
    assert latency("DAL", late) == pytest.approx((5 + (6.5 - 1.5)) / 2)  # the second not before 5 + 1.5


def test_all_words_at_the_end_of_the_speech() -> None:
    assert latency("AL", passage(3.0, 3.0, 3.0, 3.0)) == 3.0
    assert latency("AP", passage(3.0, 3.0, 3.0, 3.0)) == 1.0


def test_long_yaal_ends_with_the_recording_not_with_the_segment() -> None:
    inside = passage(1.0, 2.0, 3.0, 3.0, recording_s=10.0)
    assert latency("YAAL", inside) == pytest.approx((1 + (2 - 0.75) + (3 - 1.5) + (3 - 2.25)) / 4)
    at_its_end = passage(1.0, 2.0, 3.0, 3.5, recording_s=3.5)
    assert latency("YAAL", at_its_end) == pytest.approx((1 + (2 - 0.75) + (3 - 1.5)) / 3)


def test_token_delay_moves_back_by_what_was_written_too_much() -> None:
    # 0.3 s of speech, one spoken word, and three units; 0.3 s more, and a fourth: it answers the second word.
    assert latency("ATD", passage(0.3, 0.3, 0.3, 0.6)) == pytest.approx(0.0)
    # Without the surplus of two it would answer the fourth, which was not yet spoken.
    assert latency("ATD", passage(0.3, 0.3, 0.3, 0.9)) == pytest.approx((0.9 - 0.6) / 4)


def test_token_delay_with_computation_uses_the_time_of_writing() -> None:
    computed = passage(1.5, 2.1, audio_s=(1.0, 2.0))
    assert latency("ATD", computed) == pytest.approx(((1.5 - 0.3) + (2.1 - 0.6)) / 2)


@pytest.mark.parametrize("name", SCORES)
def test_no_output_has_no_latency(name: str) -> None:
    assert latency(name, passage()) is None


times = st.lists(st.integers(0, 80_000), min_size=1, max_size=20).map(lambda t: sorted(n / 16_000 for n in t))


@settings(deadline=None)
@given(times, st.integers(1, 25), st.sampled_from(["AL", "LAAL", "DAL", "YAAL", "AP"]))
def test_twice_as_slow_is_twice_the_latency(delays: list[float], num_reference: int, name: str) -> None:
    once = latency(name, passage(*delays, source_s=4.0, num_reference=num_reference))
    twice = latency(name, passage(*[2 * d for d in delays], source_s=8.0, num_reference=num_reference))
    assert (once is None) == (twice is None)
    if once is not None:
        assert twice == pytest.approx(once * (1 if name == "AP" else 2), abs=1e-9)


@settings(deadline=None)
@given(times, st.integers(1, 25))
def test_order_of_scores(delays: list[float], num_reference: int) -> None:
    made = passage(*delays, source_s=4.0, num_reference=num_reference)
    assert latency("LAAL", made) >= latency("AL", made) - 1e-9
    assert latency("DAL", made) >= -1e-9
