"""The loss of a transducer of tokens and durations: every path by hand, transformers' recursion, and its gradient."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_tdt import tdt_loss

from sprachbund.nn.transducer import Transducer, TransducerShape
from sprachbund.nn.transducer_loss import duration_transducer_loss

DURATIONS = (0, 1, 2, 4)
VOCABULARY, WIDTH = 5, 6
BLANK = 4


def joint(frames: Tensor, tokens: Tensor) -> Tensor:
    """A joint network without weights: the logits are the sum."""
    return frames + tokens


def made(frames: tuple[int, ...], lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    size = VOCABULARY + len(DURATIONS)
    encoded = torch.randn(len(frames), max(frames), size, generator=draw)
    predicted = torch.randn(len(frames), max(lengths) + 1, size, generator=draw)
    targets = torch.randint(0, BLANK, (len(frames), max(lengths)), generator=draw)
    return encoded, predicted, targets, torch.tensor(frames), torch.tensor(lengths)


def paths(t: int, u: int, num_frames: int, targets: list[int]) -> Iterator[list[tuple[int, int, int, int]]]:
    """Every way from (t, u) to the end: frame, tokens so far, what is written, and which duration."""
    if t >= num_frames:
        return
    for number, duration in enumerate(DURATIONS):
        if duration > 0:
            step = (t, u, BLANK, number)
            if t + duration == num_frames and u == len(targets):
                yield [step]
            for rest in paths(t + duration, u, num_frames, targets):
                yield [step, *rest]
        if u < len(targets):
            for rest in paths(t + duration, u + 1, num_frames, targets):
                yield [(t, u, targets[u], number), *rest]


def brute_force(
    encoded: Tensor, predicted: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor
) -> Tensor:
    losses = []
    for row, (num_frames, length) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        scores = []
        for path in paths(0, 0, num_frames, targets[row, :length].tolist()):
            total = torch.zeros(())
            for t, u, token, number in path:
                logits = encoded[row, t] + predicted[row, u]
                total = total + logits[:VOCABULARY].log_softmax(-1)[token]
                total = total + logits[VOCABULARY:].log_softmax(-1)[number]
            scores.append(total)
        losses.append(-torch.stack(scores).logsumexp(0))
    return torch.stack(losses)


@pytest.mark.parametrize("frames_at_once", [1, 3, 8])
def test_it_sums_over_every_path(frames_at_once: int) -> None:
    encoded, predicted, targets, frames, lengths = made((5, 1, 4, 6), (2, 0, 3, 1))
    encoded.requires_grad_()
    expected = brute_force(encoded, predicted, targets, frames, lengths)
    (wanted,) = torch.autograd.grad(expected.sum(), encoded)
    loss = duration_transducer_loss(
        joint, encoded, predicted, targets, frames, lengths, BLANK, DURATIONS, frames_at_once=frames_at_once
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), encoded)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_it_is_that_of_transformers() -> None:
    encoded, predicted, targets, frames, lengths = made((30, 17, 24), (9, 0, 5), seed=1)
    encoded.requires_grad_()
    logits = encoded[:, :, None] + predicted[:, None]
    expected = tdt_loss(
        logits[..., :VOCABULARY],
        logits[..., VOCABULARY:],
        targets,
        frames,
        lengths,
        BLANK,
        list(DURATIONS),
        reduction="none",
    )
    (wanted,) = torch.autograd.grad(expected.sum(), encoded)
    loss = duration_transducer_loss(joint, encoded, predicted, targets, frames, lengths, BLANK, DURATIONS)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)
    (gradient,) = torch.autograd.grad(loss.sum(), encoded)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_a_text_without_a_path_costs_infinity_and_has_no_gradient() -> None:
    encoded, predicted, targets, frames, lengths = made((1, 4), (2, 1))
    encoded.requires_grad_()
    loss = duration_transducer_loss(joint, encoded, predicted, targets, frames, lengths, BLANK, (2, 4))
    assert loss[0].isinf()
    assert loss[1].isfinite()
    (gradient,) = torch.autograd.grad(loss[1:].sum(), encoded)
    assert not gradient[0].any()
    assert gradient.isfinite().all()


def test_padding_does_not_matter() -> None:
    encoded, predicted, targets, frames, lengths = made((6, 3), (2, 1))
    loss = duration_transducer_loss(joint, encoded, predicted, targets, frames, lengths, BLANK, DURATIONS)
    alone = duration_transducer_loss(
        joint, encoded[1:, :3], predicted[1:, :2], targets[1:, :1], frames[1:], lengths[1:], BLANK, DURATIONS
    )
    torch.testing.assert_close(loss[1:], alone)


def test_a_transducer_with_durations_learns_a_text() -> None:
    torch.manual_seed(0)
    shape = TransducerShape(
        vocabulary_size=VOCABULARY,
        encoder_width=WIDTH,
        prediction_width=8,
        prediction_layers=1,
        joint_width=16,
        blank=BLANK,
        durations=DURATIONS,
    )
    model, encoded = Transducer(shape), torch.randn(1, 6, WIDTH)
    rest = (torch.tensor([6]), torch.tensor([[1, 3]]), torch.tensor([2]))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = model.loss(encoded, *rest).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 < losses[0]
    with pytest.raises(ValueError, match="FastEmit"):
        model.loss(encoded, *rest, fast_emit=0.1)
