import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.decoding.transducer import Beam, TransducerHypothesis, transducer_beam, transducer_greedy
from sprachbund.nn.transducer import Transducer, TransducerShape, TransducerState


def make(
    vocabulary_size: int = 6, seed: int = 0, sharpness: float = 6.0, blank_bias: float = 0.0
) -> Transducer:
    torch.manual_seed(seed)
    shape = TransducerShape(
        vocabulary_size=vocabulary_size,
        encoder_width=5,
        prediction_width=8,
        prediction_layers=2,
        joint_width=9,
    )
    transducer = Transducer(shape).double()
    with torch.no_grad():
        transducer.joint.out.weight *= sharpness
        transducer.joint.encoder.weight *= 4
        transducer.joint.prediction.weight *= 4
        transducer.joint.out.bias[0] += blank_bias
    return transducer


def frames_of(rows: int, frames: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, frames, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(transducer: Transducer, encoded: Tensor, max_symbols: int) -> TransducerHypothesis:
    """The definition: a frame (T, D) at a time, a token at a time, of one stream."""
    state = transducer.start(1)
    tokens, frames, score = [], [], 0.0
    for t, frame in enumerate(transducer.joint.encoder(encoded)):
        for _ in range(max_symbols):
            log_probs = transducer.joint(frame, state.predicted)[0].log_softmax(-1)
            token = int(log_probs.argmax())
            score += float(log_probs[token])
            if token == 0:
                break
            tokens.append(token)
            frames.append(t)
            state = transducer.advance(torch.tensor([token]), state)
    return TransducerHypothesis(tokens=tuple(tokens), frames=tuple(frames), score=score)


def same(a: TransducerHypothesis, b: TransducerHypothesis) -> None:
    assert (a.tokens, a.frames) == (b.tokens, b.frames)
    assert a.score == pytest.approx(b.score, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames_at_once", [1, 3, 16])
@pytest.mark.parametrize("max_symbols", [1, 2, 10])
def test_greedy_is_the_definition_for_every_row_of_a_batch(frames_at_once: int, max_symbols: int) -> None:
    found_any = 0
    for seed in range(4):
        transducer = make(seed=seed, blank_bias=1.0)
        encoded, lengths = frames_of(4, 12), torch.tensor([12, 7, 0, 1])
        hypotheses, state = transducer_greedy(
            transducer, encoded, lengths, max_symbols=max_symbols, frames_at_once=frames_at_once
        )
        for row, length in enumerate(lengths.tolist()):
            same(hypotheses[row], one_by_one(transducer, encoded[row, :length], max_symbols))
            found_any += len(hypotheses[row].tokens)
        assert torch.equal(state.num_frames, lengths)
    assert found_any > 10


cuts = st.lists(st.integers(0, 14), max_size=5).map(sorted)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(cuts, st.integers(0, 20))
def test_greedy_in_chunks_is_greedy_over_the_whole(places: list[int], seed: int) -> None:
    transducer, encoded = make(seed=seed, blank_bias=1.0), frames_of(2, 14, seed)
    lengths = torch.tensor([14, 9])
    whole, end = transducer_greedy(transducer, encoded, lengths)
    state, hypotheses = None, [TransducerHypothesis(), TransducerHypothesis()]
    for start, stop in itertools.pairwise([0, *places, 14]):
        left = (lengths - start).clamp(0, stop - start)
        part, state = transducer_greedy(transducer, encoded[:, start:stop], left, state)
        hypotheses = [a.then(b) for a, b in zip(hypotheses, part, strict=True)]
    for a, b in zip(hypotheses, whole, strict=True):
        same(a, b)
    for name, tensor in end.tensors().items():
        torch.testing.assert_close(state.tensors()[name], tensor)


@torch.no_grad()
def exact(
    transducer: Transducer, encoded: Tensor, most: int, max_symbols: int
) -> dict[tuple[int, ...], float]:
    """ln P of every text of up to `most` tokens over all paths with at most `max_symbols` tokens a frame."""
    frames = transducer.joint.encoder(encoded)
    scores = {}
    vocabulary = range(1, transducer.shape.vocabulary_size)
    for length in range(most + 1):
        for text in itertools.product(vocabulary, repeat=length):
            tokens = transducer.joint.prediction(
                transducer.prediction(torch.tensor([text], dtype=torch.long))
            )
            p = transducer.joint(frames[:, None], tokens).log_softmax(-1)
            paths = []
            for placed in itertools.combinations_with_replacement(range(len(frames)), length):
                if max((placed.count(t) for t in placed), default=0) > max_symbols:
                    continue
                total, u = 0.0, 0
                for t in range(len(frames)):
                    while u < length and placed[u] == t:
                        total, u = total + float(p[t, u, text[u]]), u + 1
                    total += float(p[t, u, 0])
                paths.append(total)
            if paths:
                top = max(paths)
                scores[text] = top + math.log(sum(math.exp(x - top) for x in paths))
    return scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_symbols", [1, 2])
def test_a_wide_beam_gives_every_text_its_exact_probability(seed: int, max_symbols: int) -> None:
    transducer, encoded = make(3, seed, sharpness=1.0), frames_of(1, 3, seed)
    beam = transducer_beam(transducer, encoded, torch.tensor([3]), beam_size=200, max_symbols=max_symbols)[0]
    expected = exact(transducer, encoded[0], 3 * max_symbols, max_symbols)
    scores = {h.tokens: h.score for h in beam.hypotheses}
    assert scores.keys() == expected.keys()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert beam.best.tokens == max(expected, key=lambda text: expected[text])
    assert [h.score for h in beam.hypotheses] == sorted(scores.values(), reverse=True)


def test_scores_of_a_wide_beam_are_those_of_the_loss() -> None:
    transducer, encoded = make(3, 5, sharpness=1.0), frames_of(1, 2, 5)
    beam = transducer_beam(transducer, encoded, torch.tensor([2]), beam_size=2000, max_symbols=9)[0]
    scores = {h.tokens: h.score for h in beam.hypotheses}
    for text in ((), (1,), (2, 1), (1, 1, 2)):
        targets = torch.tensor([text], dtype=torch.long).reshape(1, -1)
        loss = transducer.loss(encoded, torch.tensor([2]), targets, torch.tensor([len(text)]))
        assert scores[text] == pytest.approx(-loss.item(), abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(cuts, st.integers(0, 20), st.integers(1, 4))
def test_beam_in_chunks_is_beam_over_the_whole(places: list[int], seed: int, size: int) -> None:
    transducer, encoded = make(seed=seed, sharpness=2.0, blank_bias=1.0), frames_of(2, 14, seed)
    lengths = torch.tensor([14, 9])
    whole = transducer_beam(transducer, encoded, lengths, beam_size=size, max_symbols=3)
    beams: list[Beam] | None = None
    for start, stop in itertools.pairwise([0, *places, 14]):
        left = (lengths - start).clamp(0, stop - start)
        beams = transducer_beam(
            transducer, encoded[:, start:stop], left, beams, beam_size=size, max_symbols=3
        )
    assert beams is not None
    for a, b in zip(beams, whole, strict=True):
        for ours, theirs in zip(a.hypotheses, b.hypotheses, strict=True):
            same(ours, theirs)
        assert torch.equal(a.state.num_frames, b.state.num_frames)
        torch.testing.assert_close(a.state.predicted, b.state.predicted)


def test_a_row_of_a_batch_is_the_row_alone_and_wider_is_not_worse() -> None:
    transducer, encoded, lengths = make(9, 3, 3.0, 1.0), frames_of(3, 10, 3), torch.tensor([10, 6, 3])
    together = transducer_beam(transducer, encoded, lengths, beam_size=4, max_symbols=3)
    narrow = transducer_beam(transducer, encoded, lengths, beam_size=1, max_symbols=3)
    for row in range(3):
        alone = transducer_beam(
            transducer, encoded[[row], : int(lengths[row])], lengths[[row]], beam_size=4, max_symbols=3
        )[0]
        for ours, theirs in zip(together[row].hypotheses, alone.hypotheses, strict=True):
            same(ours, theirs)
        assert together[row].best.score >= narrow[row].best.score
        assert len(together[row].hypotheses) == 4
        assert len({h.tokens for h in together[row].hypotheses}) == 4


def test_frames_are_those_of_the_likeliest_path() -> None:
    transducer, encoded = make(3, 1, sharpness=1.0), frames_of(1, 3, 1)
    beam = transducer_beam(transducer, encoded, torch.tensor([3]), beam_size=200, max_symbols=2)[0]
    frames = transducer.joint.encoder(encoded[0])
    for hypothesis, score in zip(beam.hypotheses[:6], beam.path_scores, strict=False):
        text = torch.tensor([hypothesis.tokens], dtype=torch.long)
        with torch.no_grad():
            p = transducer.joint(
                frames[:, None], transducer.joint.prediction(transducer.prediction(text))
            ).log_softmax(-1)
        totals = {}
        for placed in itertools.combinations_with_replacement(range(3), len(hypothesis.tokens)):
            if max((placed.count(t) for t in placed), default=0) > 2:
                continue
            u, total = 0, 0.0
            for t in range(3):
                while u < len(placed) and placed[u] == t:
                    total, u = total + float(p[t, u, hypothesis.tokens[u]]), u + 1
                total += float(p[t, u, 0])
            totals[placed] = total
        assert hypothesis.frames == max(totals, key=lambda placed: totals[placed])
        assert score == pytest.approx(max(totals.values()), abs=1e-5)


def test_streams_of_different_ages_share_a_batch() -> None:
    transducer, encoded = make(seed=2, blank_bias=1.0), frames_of(2, 8, 2)
    _, old = transducer_greedy(transducer, encoded[:1, :5], torch.tensor([5]))
    later = torch.cat([encoded[:1, 5:], encoded[1:, :3]])
    mixed = TransducerState.stack([old, transducer.start(1)])
    hypotheses, state = transducer_greedy(transducer, later, torch.tensor([3, 3]), mixed)
    alone, _ = transducer_greedy(transducer, encoded[:1, 5:], torch.tensor([3]), old)
    same(hypotheses[0], alone[0])
    assert all(frame >= 5 for frame in hypotheses[0].frames)
    assert state.num_frames.tolist() == [8, 3]


def test_bad_input_is_named() -> None:
    transducer, encoded = make(), frames_of(2, 4)
    lengths = torch.tensor([4, 4])
    other = make(7)
    cases = [
        (lambda: transducer_greedy(transducer, encoded, torch.tensor([5, 4])), "num_frames holds 5"),
        (lambda: transducer_greedy(transducer, encoded, torch.tensor([4])), r"give \(B, T, D\) and \(B,\)"),
        (lambda: transducer_greedy(transducer, encoded, lengths, max_symbols=0), "max_symbols is 0"),
        (lambda: transducer_greedy(transducer, encoded, lengths, other.start(3)), "number of streams"),
        (lambda: transducer_beam(transducer, encoded, lengths, beam_size=0), "beam_size is 0"),
        (lambda: transducer_beam(transducer, encoded, lengths, []), "0 beams for 2 rows"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
