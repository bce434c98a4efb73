import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW, VAD_WINDOW_S
from sprachbund.audio.span_options import LONGEST_SPAN_S, SpanOptions
from sprachbund.audio.spans import Span, SpanFinder, iter_speech_spans, speech_spans
from sprachbund.errors import SprachbundError

TINY = 1e-9
PLAIN = SpanOptions(min_speech_s=0.064, min_silence_s=0.128, padding_s=0.0)


class Loudness:
    """Stands in for the detector: the probability of a window is its first sample."""

    def stream(self) -> "Loudness":
        self._rest = np.zeros(0, np.float32)
        return self

    def feed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        samples = np.concatenate([self._rest, block])
        complete = len(samples) // VAD_WINDOW * VAD_WINDOW
        self._rest = samples[complete:]
        return samples[:complete:VAD_WINDOW]

    def finish(self) -> NDArray[np.float32]:
        return self._rest[:1]


def windows(*runs: tuple[float, int]) -> NDArray[np.float32]:
    return np.concatenate([np.full(count, value, np.float32) for value, count in runs])


def assert_edges(spans: list[Span], expected: list[tuple[float, float]]) -> None:
    """Compare span edges, counted in windows."""
    edges = [(span.start_s / VAD_WINDOW_S, span.end_s / VAD_WINDOW_S) for span in spans]
    np.testing.assert_allclose(edges, expected)


def test_planted_spans_are_found() -> None:
    probabilities = windows((0.0, 10), (0.9, 20), (0.1, 30), (0.8, 5), (0.0, 10))
    spans = speech_spans(probabilities, PLAIN)
    assert_edges(spans, [(10, 30), (60, 65)])
    assert [span.speech_probability for span in spans] == pytest.approx([0.9, 0.8])


def test_padding_is_added_and_cut_at_the_ends() -> None:
    options = replace(PLAIN, padding_s=0.064)
    spans = speech_spans(windows((0.9, 20), (0.0, 10), (0.9, 20)), options, num_samples=49 * VAD_WINDOW + 100)
    assert_edges(spans, [(0, 22), (28, 49 + 100 / VAD_WINDOW)])


def test_hysteresis_keeps_a_span_open_but_does_not_start_one() -> None:
    probabilities = windows((0.4, 30), (0.9, 5), (0.4, 30), (0.0, 9))
    assert_edges(speech_spans(probabilities, PLAIN), [(30, 65)])


def test_short_pauses_join_and_short_noises_vanish() -> None:
    probabilities = windows((0.9, 5), (0.0, 3), (0.9, 5), (0.0, 4), (0.9, 1), (0.0, 9))
    assert_edges(speech_spans(probabilities, PLAIN), [(0, 13)])


def test_long_speech_splits_where_it_is_least_probable() -> None:
    probabilities = windows((0.9, 100))
    probabilities[[10, 31, 38]] = [0.36, 0.5, 0.6]  # 10 is lower but in the first half
    options = replace(PLAIN, max_span_s=40 * VAD_WINDOW_S)
    assert_edges(speech_spans(probabilities, options), [(0, 31), (31, 70), (70, 100)])


def test_what_a_split_leaves_is_no_shorter_than_speech_is() -> None:
    """The audio may end with the first sample of the last window."""
    options = SpanOptions(padding_s=0.0, min_speech_s=5 * VAD_WINDOW_S, max_span_s=40 * VAD_WINDOW_S)
    probabilities = windows((0.9, 40), (0.6, 1))
    spans = speech_spans(probabilities, options, num_samples=40 * VAD_WINDOW + 1)
    assert [round(span.start_s / VAD_WINDOW_S) for span in spans] == [0, 36]
    assert spans[-1].end_s == (40 * VAD_WINDOW + 1) / SAMPLE_RATE


def test_a_split_before_a_pause_leaves_no_empty_span() -> None:
    options = replace(PLAIN, max_span_s=10 * VAD_WINDOW_S)
    assert_edges(speech_spans(windows((0.9, 9), (0.0, 20)), options), [(0, 9)])
    assert_edges(speech_spans(windows((0.9, 9), (0.0, 2), (0.9, 5)), options), [(0, 9), (11, 16)])


PROBABILITIES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.34, 0.4, 0.5, 0.7, 0.99]), st.integers(1, 40)), max_size=20
).map(lambda runs: windows((0.0, 0), *runs))
OPTIONS = st.builds(
    lambda silence, share, speech, longest: SpanOptions(
        min_silence_s=silence,
        padding_s=silence * share / 2,
        min_speech_s=speech,
        max_span_s=silence * share + longest,
    ),
    st.floats(0.0, 0.6),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
    st.floats(0.2, 3.0),
)


@given(PROBABILITIES, OPTIONS, st.integers(0, VAD_WINDOW - 1))
@settings(deadline=None, max_examples=200)
def test_laws(probabilities: NDArray[np.float32], options: SpanOptions, missing: int) -> None:
    num_samples = max(0, len(probabilities) * VAD_WINDOW - missing)
    spans = speech_spans(probabilities, options, num_samples=num_samples)
    edges = [0.0, *(edge for span in spans for edge in (span.start_s, span.end_s)), num_samples / SAMPLE_RATE]
    assert all(left <= right + TINY for left, right in pairwise(edges))
    for span in spans:
        assert 0 < span.end_s - span.start_s <= options.max_span_s + TINY
        assert 0 < span.speech_probability <= 1.0


@given(PROBABILITIES, OPTIONS)
@settings(deadline=None, max_examples=200)
def test_clear_speech_is_covered_and_clear_silence_is_not(
    probabilities: NDArray[np.float32], options: SpanOptions
) -> None:
    covered = np.zeros(len(probabilities) * VAD_WINDOW, bool)
    for span in speech_spans(probabilities, options):
        covered[round(span.start_s * SAMPLE_RATE) : round(span.end_s * SAMPLE_RATE)] = True
    for begin, end in runs(probabilities >= options.threshold):
        if end - begin >= options.min_speech_windows:
            assert covered[begin * VAD_WINDOW : end * VAD_WINDOW].all()
    for begin, end in runs(probabilities < options.release):
        if end - begin >= options.min_silence_windows:
            inner = slice(begin * VAD_WINDOW + options.padding, end * VAD_WINDOW - options.padding)
            assert not covered[inner].any()


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    steps = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return list(zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True))


@given(
    PROBABILITIES,
    OPTIONS,
    st.integers(0, VAD_WINDOW - 1),
    st.lists(st.integers(100, 9000), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_streaming_equals_offline(
    probabilities: NDArray[np.float32], options: SpanOptions, missing: int, sizes: list[int]
) -> None:
    samples = np.repeat(probabilities, VAD_WINDOW)
    samples = samples[: max(0, len(samples) - missing)] + np.float32(0)
    offline = speech_spans(probabilities, options, num_samples=len(samples))
    blocks, position = [], 0
    while position < len(samples):
        blocks.append(samples[position : position + sizes[len(blocks) % len(sizes)]])
        position += len(blocks[-1])
    streamed = list(iter_speech_spans(blocks, options, activity=Loudness()))  # type: ignore[arg-type]
    assert [span for span, _ in streamed] == offline
    for span, held in streamed:
        start = round(span.start_s * SAMPLE_RATE)
        np.testing.assert_array_equal(held, samples[start : round(span.end_s * SAMPLE_RATE)])


def test_a_span_closed_early_holds_only_what_has_arrived() -> None:
    options = replace(PLAIN, padding_s=0.064, max_span_s=14 * VAD_WINDOW_S)
    samples = np.repeat(windows((0.9, 10), (0.0, 2), (0.9, 4), (0.0, 10)), VAD_WINDOW)
    blocks = samples.reshape(-1, VAD_WINDOW)
    spans = list(iter_speech_spans(blocks, options, activity=Loudness()))  # type: ignore[arg-type]
    assert_edges([span for span, _ in spans], [(0, 11), (11, 18)])
    assert [len(held) for _, held in spans] == [11 * VAD_WINDOW, 7 * VAD_WINDOW]


def test_spans_come_as_soon_as_they_are_closed() -> None:
    probabilities = windows((0.9, 10), (0.0, 10), (0.9, 10), (0.0, 10))
    taken = []

    def blocks():  # type: ignore[no-untyped-def]
        for index, probability in enumerate(probabilities):
            taken.append(index)
            yield np.full(VAD_WINDOW, probability, np.float32)

    spans = iter_speech_spans(blocks(), PLAIN, activity=Loudness())  # type: ignore[arg-type]
    next(spans)
    assert len(taken) == 10 + PLAIN.min_silence_windows


def test_little_is_remembered() -> None:
    finder, options = SpanFinder(PLAIN), PLAIN
    for index in range(20_000):
        finder.push(0.9 if index < 10_000 else 0.0)
        behind = (index + 1) * VAD_WINDOW - finder.earliest_sample
        assert behind <= (options.max_span_s * SAMPLE_RATE if index < 10_010 else options.padding)


CUTS = st.dictionaries(st.integers(0, 400), st.integers(0, 60))


@given(PROBABILITIES, OPTIONS, CUTS)
@settings(deadline=None, max_examples=150)
def test_a_cut_moves_the_begin_of_a_span_and_nothing_else(
    probabilities: NDArray[np.float32], options: SpanOptions, cuts: dict[int, int]
) -> None:
    options = replace(
        options, max_span_s=LONGEST_SPAN_S
    )  # as in live text frame by frame, where nothing is split
    finder, closed, begins = SpanFinder(options), list[tuple[Span, int]](), 0
    for index, probability in enumerate(probabilities.tolist()):
        if (span := finder.push(probability)) is not None:
            closed.append((span, begins))
            begins = 0
        if index in cuts and finder.open_span is not None:
            window = max(0, index - cuts[index])
            finder.cut((window - 0.5) * VAD_WINDOW_S)
            voiced = np.flatnonzero(probabilities[: index + 1] >= options.release)
            begins = max(begins, min(window, int(voiced[-1])))
    if (span := finder.finish()) is not None:
        closed.append((span, begins))
    whole = speech_spans(probabilities, options)
    assert [span.end_s for span, _ in closed] == [span.end_s for span in whole]
    for (span, begins), uncut in zip(closed, whole, strict=True):
        heard = round(uncut.start_s * SAMPLE_RATE) // VAD_WINDOW
        first = heard + int(np.argmax(probabilities[heard:] >= options.threshold))
        if begins <= first:
            assert span == uncut
        else:
            assert span.start_s == pytest.approx(begins * VAD_WINDOW_S)


def test_what_is_cut_off_is_forgotten_although_nothing_behind_it_is_surely_speech() -> None:
    finder, kept = SpanFinder(replace(PLAIN, max_span_s=LONGEST_SPAN_S)), 10
    for probability in [0.9] * 5 + [0.4] * 2000:
        assert finder.push(probability) is None
        finder.cut(finder.heard_s - (kept + 0.5) * VAD_WINDOW_S)
        assert finder.heard_s * SAMPLE_RATE - finder.earliest_sample <= kept * VAD_WINDOW + TINY
    assert finder.open_span is not None
    span = finder.finish()
    assert span is not None
    assert span.speech_probability == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ({"threshold": 0.3}, "0.3"),
        ({"release": 0.0}, "release is 0.0; give a number above 0, up to 1"),
        ({"padding_s": 0.3}, "padding_s=0.3"),
        ({"padding_s": math.nan}, "padding_s is nan; give 0 to 3600"),
        ({"min_silence_s": math.inf}, "min_silence_s is inf"),
        ({"max_span_s": math.inf}, "max_span_s is inf; give a number above 0, up to 86400"),
        ({"max_span_s": "20"}, "max_span_s is '20'"),
        ({"min_speech_s": -1.0}, "-1.0"),
        ({"max_span_s": 0.5}, "max_span_s=0.5"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, float], seen: str) -> None:
    with pytest.raises(SprachbundError, match=seen):
        SpanOptions(**wrong)


def test_nothing_in_nothing_out() -> None:
    assert speech_spans(np.zeros(0, np.float32)) == []
    assert list(iter_speech_spans([], activity=Loudness())) == []  # type: ignore[arg-type]
