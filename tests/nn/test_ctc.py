import itertools
import math

import torch
from torch import Tensor

from sprachbund.nn.ctc import CtcHead, ctc_loss, min_num_frames


def lattice(rows: int, frames: int, vocabulary: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        (2 * torch.randn(rows, frames, vocabulary, generator=generator, dtype=torch.float64))
        .log_softmax(-1)
        .detach()
    )


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def enumerated(log_probs: Tensor, text: tuple[int, ...]) -> float:
    """Log of the summed probability of every path that collapses to the text."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if collapsed(path) == text:
            total += math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    return math.log(total) if total else -math.inf


def test_loss_is_the_sum_over_all_alignments_and_what_does_not_fit_is_set_apart() -> None:
    log_probs = lattice(5, 4, 3)
    texts = [(1, 2), (1, 1), (2,), (), (1, 1, 2, 2)]
    targets = torch.tensor([[*text, *[0] * (4 - len(text))] for text in texts])
    lengths, frames = torch.tensor([len(text) for text in texts]), torch.tensor([4, 3, 1, 2, 4])
    losses, fits = ctc_loss(log_probs, frames, targets, lengths)
    assert fits.tolist() == [True, True, True, True, False]
    assert losses[4] == 0
    for row, text in enumerate(texts[:4]):
        assert abs(float(losses[row]) + enumerated(log_probs[row, : frames[row]], text)) < 1e-4


def test_gradients_are_finite_differences() -> None:
    logits = lattice(2, 4, 3, seed=1).requires_grad_()
    targets, lengths, frames = torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1]), torch.tensor([4, 3])

    def total(values: Tensor) -> Tensor:
        return ctc_loss(values.log_softmax(-1), frames, targets, lengths)[0].sum()

    total(logits).backward()
    assert logits.grad is not None
    step = 1e-2
    for place in [(0, 0, 1), (0, 3, 0), (1, 1, 2), (1, 3, 1)]:
        up, down = logits.detach().clone(), logits.detach().clone()
        up[place] += step
        down[place] -= step
        assert abs(float(logits.grad[place]) - float(total(up) - total(down)) / (2 * step)) < 2e-3


def test_a_row_that_does_not_fit_has_no_gradient() -> None:
    logits = lattice(1, 2, 3).requires_grad_()
    loss, _ = ctc_loss(logits, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2]))
    loss.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_equal_neighbours_need_a_blank_between_them() -> None:
    targets = torch.tensor([[1, 1, 2], [1, 1, 2], [1, 1, 1]])
    assert min_num_frames(targets, torch.tensor([3, 1, 3])).tolist() == [4, 1, 5]


def test_rows_without_any_text_need_no_frames() -> None:
    assert min_num_frames(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long)).tolist() == [
        0,
        0,
    ]


def test_the_head_asks_for_the_language() -> None:
    torch.manual_seed(0)
    head, states = CtcHead(4, 5, 2), torch.randn(1, 3, 4)
    one, other = head(states.expand(2, -1, -1), torch.tensor([0, 1]))
    torch.testing.assert_close(one.exp().sum(-1), torch.ones(3))
    assert (one - other).abs().max() > 0.01
