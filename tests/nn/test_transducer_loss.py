import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.nn.transducer_loss import joint_transducer_loss, lattice_loss, transducer_loss


def made(seed: int, frames: tuple[int, ...], lengths: tuple[int, ...], vocabulary: int = 5, blank: int = 0):
    """Logits in double precision, targets, lengths; padding of targets holds what no vocabulary has."""
    draw = torch.Generator().manual_seed(seed)
    rows, longest, most = len(frames), max(frames), max(lengths)
    logits = torch.randn(rows, longest, most + 1, vocabulary, generator=draw, dtype=torch.float64) * 2
    targets = torch.randint(0, vocabulary - 1, (rows, most), generator=draw)
    targets = targets + (targets >= blank)
    for row, length in enumerate(lengths):
        targets[row, length:] = -7
    return logits.requires_grad_(), targets, torch.tensor(frames), torch.tensor(lengths)


def brute_force(logits: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor, blank: int = 0) -> Tensor:
    """Every order of T blanks and U targets that ends in a blank, one by one."""
    losses = []
    for row, (num_frames, length) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        paths = []
        for labels in itertools.combinations(range(num_frames + length - 1), length):
            t = u = 0
            total = 0.0
            for step in range(num_frames + length):
                p = logits[row, t, u].log_softmax(-1)
                if step in labels:
                    total, u = total + p[targets[row, u]], u + 1
                else:
                    total, t = total + p[blank], t + 1
            paths.append(total)
        assert len(paths) == math.comb(num_frames + length - 1, length)
        losses.append(-torch.stack(paths).logsumexp(0))
    return torch.stack(losses)


def recursion(logits: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor, blank: int = 0) -> Tensor:
    """The textbook's recursion, cell by cell, differentiated by torch."""
    losses = []
    for row, (num_frames, length) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        p = logits[row].log_softmax(-1)
        cells: dict[tuple[int, int], Tensor] = {(0, 0): torch.zeros((), dtype=p.dtype)}
        for t, u in itertools.product(range(num_frames), range(length + 1)):
            ways = []
            if t:
                ways.append(cells[t - 1, u] + p[t - 1, u, blank])
            if u:
                ways.append(cells[t, u - 1] + p[t, u - 1, targets[row, u - 1]])
            if ways:
                cells[t, u] = torch.stack(ways).logsumexp(0)
        losses.append(-cells[num_frames - 1, length] - p[num_frames - 1, length, blank])
    return torch.stack(losses)


@pytest.mark.parametrize("blank", [0, 2, 4])
@pytest.mark.parametrize("shape", [((1,), (0,)), ((1,), (3,)), ((4,), (0,)), ((4, 2, 3), (3, 2, 0))])
def test_it_is_the_sum_over_all_alignments(
    shape: tuple[tuple[int, ...], tuple[int, ...]], blank: int
) -> None:
    values = made(0, *shape, blank=blank)
    torch.testing.assert_close(transducer_loss(*values, blank), brute_force(*values, blank))


def test_probabilities_of_all_texts_of_one_frame_sum_to_less_than_one() -> None:
    logits = torch.zeros(1, 1, 4, 3, dtype=torch.float64)
    total = 0.0
    for length in range(4):
        for text in itertools.product((1, 2), repeat=length):
            targets = torch.tensor([text], dtype=torch.long).reshape(1, length)
            loss = transducer_loss(
                logits[:, :, : length + 1], targets, torch.tensor([1]), torch.tensor([length])
            )
            total += math.exp(-float(loss))
    assert total == pytest.approx(1 - (2 / 3) ** 4)  # all but those of more than three tokens


@pytest.mark.parametrize("fast_emit", [0.0, 0.005])
@pytest.mark.parametrize("in_place", [False, True])
def test_gradient_is_that_of_the_recursion(in_place: bool, fast_emit: float) -> None:
    logits, *rest = made(1, (5, 3, 1), (3, 1, 2))
    weights = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    (transducer_loss(logits * 1.0, *rest, fast_emit=fast_emit, in_place=in_place) * weights).sum().backward()
    gradients = logits.grad
    logits.grad = None
    expected = recursion(logits, *rest)
    if fast_emit:
        expected = expected + fast_emit * emitting_part(logits, *rest)
    (expected * weights).sum().backward()
    torch.testing.assert_close(gradients, logits.grad)


def emitting_part(logits: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """The recursion's loss as a function of the log-probabilities of targets alone."""
    p = logits.log_softmax(-1)
    is_blank = torch.zeros(logits.shape[-1], dtype=torch.bool)
    is_blank[0] = True
    held = torch.where(is_blank, p.detach(), p)
    losses = []
    for row, (num_frames, length) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        paths = []
        for labels in itertools.combinations(range(num_frames + length - 1), length):
            t, u, total = 0, 0, torch.zeros((), dtype=p.dtype)
            for step in range(num_frames + length):
                if step in labels:
                    total, u = total + held[row, t, u, targets[row, u]], u + 1
                else:
                    total, t = total + held[row, t, u, 0], t + 1
            paths.append(total)
        losses.append(-torch.stack(paths).logsumexp(0))
    return torch.stack(losses)


def test_gradient_by_finite_differences() -> None:
    logits, *rest = made(2, (3, 2), (2, 1), vocabulary=4)
    assert torch.autograd.gradcheck(lambda x: transducer_loss(x, *rest), logits)
    blanks, labels = (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda b, y: lattice_loss(b, y, *rest[1:]), (blanks, labels))


shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 10**6), st.integers(2, 6))
def test_any_shape_equals_the_recursion(shape: list[tuple[int, int]], seed: int, vocabulary: int) -> None:
    frames, lengths = zip(*shape, strict=True)
    values = made(seed, frames, lengths, vocabulary)
    loss, expected = transducer_loss(*values), recursion(*values)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss.sum(), values[0])[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected.sum(), values[0])[0])


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 10**6), st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]))
def test_padding_and_company_change_nothing(shape: list[tuple[int, int]], seed: int, filling: float) -> None:
    frames, lengths = zip(*shape, strict=True)
    logits, targets, num_frames, num_targets = made(seed, frames, lengths)
    padded = torch.full((len(shape), max(frames) + 2, max(lengths) + 3, 5), filling, dtype=torch.float64)
    for row, (t, u) in enumerate(shape):
        padded[row, :t, : u + 1] = logits.detach()[row, :t, : u + 1]
    padded.requires_grad_()
    wide = torch.nn.functional.pad(targets, (0, 2), value=99)
    together = transducer_loss(padded, wide, num_frames, num_targets)
    together.sum().backward()
    for row, (t, u) in enumerate(shape):
        alone = logits.detach()[row : row + 1, :t, : u + 1].clone().requires_grad_()
        loss = transducer_loss(alone, targets[row : row + 1, :u], num_frames[[row]], num_targets[[row]])
        loss.sum().backward()
        torch.testing.assert_close(together[row], loss[0])
        torch.testing.assert_close(padded.grad[row, :t, : u + 1], alone.grad[0])
        assert not padded.grad[row, t:].any()
        assert not padded.grad[row, :, u + 1 :].any()


def test_half_precision_is_summed_in_single() -> None:
    logits, *rest = made(3, (60, 41), (20, 11), vocabulary=30)
    for kind in (torch.bfloat16, torch.float16):
        rounded = logits.detach().to(kind).requires_grad_()
        loss = transducer_loss(rounded, *rest)
        assert loss.dtype == torch.float32
        exact = rounded.detach().double().requires_grad_()
        expected = transducer_loss(exact, *rest)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-4)
        loss.sum().backward()
        expected.sum().backward()
        assert rounded.grad.dtype == kind
        torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_logits_stay_finite(scale: float) -> None:
    logits = torch.zeros(1, 4, 3, 4)
    logits[..., 0], logits[..., 3] = scale, -scale
    logits.requires_grad_()
    loss = transducer_loss(logits, torch.tensor([[1, 1]]), torch.tensor([4]), torch.tensor([2]))
    loss.backward()
    assert loss.isfinite().all()
    assert loss.item() == pytest.approx(2 * scale, rel=1e-3)
    assert logits.grad.isfinite().all()
    shifted = transducer_loss(torch.zeros(1, 4, 3, 4) + scale, *ONE)
    torch.testing.assert_close(shifted, transducer_loss(torch.zeros(1, 4, 3, 4), *ONE))


ONE = (torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2]))


def test_a_text_that_cannot_be_costs_infinity_and_leaves_the_others_alone() -> None:
    logits, targets, frames, lengths = made(4, (3, 3), (2, 2))
    targets[:] = torch.tensor([[1, 2], [3, 3]])
    masked = logits.detach().clone()
    masked[..., 1] = -math.inf  # as ids that are never to be written
    masked.requires_grad_()
    loss = transducer_loss(masked, targets, frames, lengths)
    assert loss.isinf().tolist() == [True, False]
    loss[1].backward()
    assert masked.grad.isfinite().all()
    assert not masked.grad[..., 1].any()
    torch.testing.assert_close(loss[1], brute_force(masked.detach(), targets, frames, lengths)[1])


@pytest.mark.parametrize("frames_at_once", [1, 3, 100])
def test_made_from_the_joint_network_it_is_the_same(frames_at_once: int) -> None:
    torch.manual_seed(5)
    _, targets, frames, lengths = made(5, (7, 4), (3, 2))
    out = torch.nn.Linear(6, 5).double()
    encoded = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    predicted = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)

    def joint(a: Tensor, b: Tensor) -> Tensor:
        return out(torch.tanh(a + b))

    inputs = (encoded, predicted, out.weight, out.bias)
    rest = (targets, frames, lengths)
    whole = transducer_loss(joint(encoded[:, :, None], predicted[:, None]), *rest, fast_emit=0.1)
    parts = joint_transducer_loss(
        joint, encoded, predicted, *rest, fast_emit=0.1, frames_at_once=frames_at_once
    )
    torch.testing.assert_close(parts, whole)
    for ours, theirs in zip(
        torch.autograd.grad(parts.sum(), inputs), torch.autograd.grad(whole.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_chunks_of_frames_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, *rest = made(6, (9, 5), (4, 2))
    whole = transducer_loss(logits, *rest)
    gradient = torch.autograd.grad(whole.sum(), logits)[0]
    monkeypatch.setattr(sys.modules[transducer_loss.__module__], "CHUNK_CELLS", 100)
    parts = transducer_loss(logits, *rest)
    assert torch.equal(parts, whole)
    assert torch.equal(torch.autograd.grad(parts.sum(), logits)[0], gradient)


def test_logits_of_any_stride() -> None:
    logits, *rest = made(7, (4, 3), (2, 1))
    turned = logits.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    for x in (logits, turned):
        transducer_loss(x, *rest).sum().backward()
    torch.testing.assert_close(turned.grad, logits.grad)


def test_overwritten_logits_fail_loudly_for_others() -> None:
    logits, *rest = made(8, (4, 3), (2, 1))
    computed = logits * 1.0
    earlier = computed.square().sum()
    loss = transducer_loss(computed, *rest, in_place=True).sum() + earlier
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
    with pytest.raises(ValueError, match="not a leaf"):
        transducer_loss(logits, *rest, in_place=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_frames": torch.tensor([4, 0])}, "num_frames holds 0; every row needs 1 to 4"),
        ({"num_frames": torch.tensor([4, 5])}, "num_frames holds 5"),
        ({"num_targets": torch.tensor([3, 1])}, "num_targets holds 3; every row needs 0 to 2"),
        ({"num_targets": torch.tensor([-1, 1])}, "num_targets holds -1"),
        ({"num_targets": torch.tensor([1.0, 1.0])}, "lengths are integers"),
        ({"num_targets": torch.tensor([1])}, r"num_targets is \(1,\); give \(2,\)"),
        ({"targets": torch.tensor([[1, 5], [1, 1]])}, "targets hold 5"),
        ({"targets": torch.tensor([[1, -1], [1, 1]])}, "targets hold -1"),
        ({"targets": torch.tensor([[1, 0], [1, 1]])}, "not be the blank, 0"),
        ({"targets": torch.tensor([[1], [1]])}, r"targets are \(2, 1\)"),
        ({"blank": 5}, "blank is 5"),
        ({"logits": torch.zeros(2, 4, 3)}, r"give floats \(B, T, U\+1, V\)"),
        ({"logits": torch.zeros(2, 4, 3, 5, dtype=torch.long)}, "int64"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], words: str) -> None:
    values = dict(
        zip(("logits", "targets", "num_frames", "num_targets"), made(9, (4, 3), (2, 1)), strict=True)
    )
    with pytest.raises(ValueError, match=words):
        transducer_loss(**(values | change))
