"""Word times: our warping against brute force, and planted attention found again."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.words import AlignedTokens, align, median_filter, split_words, timed_words, warp
from sprachbund.models.base import Alignment, Target
from tests.decoding.tiny_family import TinyFamily, one_memory, random_memory


def cheapest(cost: np.ndarray) -> float:
    """Cost of the cheapest path by trying all of them."""

    def from_cell(i: int, j: int) -> float:
        if (i, j) == (cost.shape[0] - 1, cost.shape[1] - 1):
            return float(cost[i, j])
        steps = [(i + 1, j), (i, j + 1), (i + 1, j + 1)]
        inside = [(a, b) for a, b in steps if a < cost.shape[0] and b < cost.shape[1]]
        return float(cost[i, j]) + min(from_cell(a, b) for a, b in inside)

    return from_cell(0, 0)


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_warping_is_the_cheapest_of_all_paths(rows, columns, seed):
    cost = np.random.default_rng(seed).normal(size=(rows, columns))
    i, j = warp(cost)
    assert (i[0], j[0], i[-1], j[-1]) == (0, 0, rows - 1, columns - 1)
    steps = set(zip(np.diff(i).tolist(), np.diff(j).tolist(), strict=True))
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    assert cost[i, j].sum() == pytest.approx(cheapest(cost))


def test_the_median_filter_is_that_of_scipy():
    x = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.median_filter(x.numpy(), size=(1, 1, 7), mode="nearest")
    assert np.array_equal(median_filter(x, 7).numpy(), expected)


class PlantedFamily(TinyFamily):
    """Attends, for its nth query of text, to the frames from 10 n on, in one head; noise in the others."""

    def __init__(self, **options):
        super().__init__(**options)
        heads = Alignment(frame_s=self.frame_s, heads=((1, 0),))
        self.capabilities = replace(self.capabilities, alignment=heads)

    def step(self, tokens, cache, weights=None):
        begin = int(cache.lengths[0])
        own: list[torch.Tensor] = []
        logits = super().step(tokens, cache, own)
        if weights is not None:
            num_frames = own[0].shape[-1]
            for q in range(tokens.shape[1]):
                frame = 10 * (begin + q)
                own[1][:, 0, q] = torch.full((num_frames,), 1e-3)
                own[1][:, 0, q, frame : frame + 10] = 0.1
            weights += own
        return logits


def test_planted_attention_gives_the_planted_times():
    family, target = PlantedFamily(max_tokens=40), Target(language="de")
    memory = random_memory([200])
    row = [family.first_letter + n for n in (1, 2, 3, 5, 4)]
    aligned = align(family, memory, [[target]], [[row]], [20.0])[0][0]
    assert aligned.starts_s == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], abs=0.3)
    words = timed_words(family, aligned, "de", first=0, count=5, start_s=0.0, end_s=20.0)
    assert [w.text for w in words] == ["bc", "d", "fe"]
    assert [w.start_s for w in words] == pytest.approx([0.0, 2.0, 3.0], abs=0.3)
    assert [w.end_s for w in words] == pytest.approx([2.0, 3.0, 5.0], abs=0.3)
    assert all(0.0 < w.probability <= 1.0 for w in words)


def test_aligning_together_equals_aligning_alone():
    family, frames = TinyFamily(seed=3, max_tokens=60), [30, 42, 18]
    memory, durations_s = random_memory(frames, 3), [n / 10 for n in frames]
    targets = [[Target(language="de", context="ab" * i), Target(language="en")] for i in range(3)]
    generator = torch.Generator().manual_seed(1)
    tokens = [
        [torch.randint(5, 17, (3 + 7 * i + j,), generator=generator).tolist() for j in range(2)]
        for i in range(3)
    ]
    together = align(family, memory, targets, tokens, durations_s)
    for i in range(3):
        alone = align(family, one_memory(memory, i), [targets[i]], [tokens[i]], [durations_s[i]])[0]
        for a, b in zip(together[i], alone, strict=True):
            assert a.starts_s == pytest.approx(b.starts_s)
            assert a.log_probabilities == pytest.approx(b.log_probabilities, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    starts=st.lists(st.floats(0, 10), min_size=7, max_size=7),
    bounds=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    letters=st.lists(st.integers(5, 16), min_size=6, max_size=6),
)
def test_words_are_monotone_and_inside_their_segment(starts, bounds, letters):
    family, (start_s, end_s) = TinyFamily(), sorted(bounds)
    aligned = AlignedTokens(tokens=tuple(letters), starts_s=tuple(starts), log_probabilities=(-1.0,) * 6)
    words = timed_words(family, aligned, "de", first=0, count=6, start_s=start_s, end_s=end_s)
    seconds = [second for w in words for second in (w.start_s, w.end_s)]
    assert seconds == sorted(seconds)
    assert all(start_s <= second <= end_s for second in seconds)
    assert " ".join(w.text for w in words) == family.decode_text(letters).strip()


class PieceFamily:
    """Tokens that are the pieces of a list; bytes of unfinished characters decode to the replacement."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode_text(self, tokens):
        return b"".join(self.pieces[t] for t in tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "language", "expected"),
    [
        ([b" Gu", b"ten", b" Tag", b"."], "de", [("Guten", 2), ("Tag.", 2)]),
        (["谢".encode(), "谢".encode(), "。".encode()], "zh", [("谢", 1), ("谢。", 2)]),
        ([b" na", b"\xc3", b"\xaf", b"ve", b"!"], "en", [("naïve!", 5)]),
        ([b"a", b" ", b"b"], "en", [("a", 1), ("b", 2)]),
        ([], "en", []),
    ],
)
def test_words_are_split_without_knowing_the_tokenizer(pieces, language, expected):
    assert split_words(PieceFamily(pieces), range(len(pieces)), language) == expected
