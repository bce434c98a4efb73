import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.nn.pruned_transducer import (
    SIMPLE_LOSS_SCALE,
    SimpleJoint,
    band_starts,
    occupancy_of_blanks,
    pruned_transducer_loss,
)
from sprachbund.nn.transducer import Transducer, TransducerShape
from sprachbund.nn.transducer_loss import lattice_loss, transducer_loss

SHAPE = TransducerShape(vocabulary_size=7, encoder_width=6, prediction_width=5, joint_width=4, prune_range=2)
ROWS = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9)), min_size=1, max_size=4)


def made(rows: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder states in double precision, lengths, targets, lengths; targets' padding is beyond the vocabulary."""
    draw = torch.Generator().manual_seed(seed)
    num_frames, num_targets = (torch.tensor(numbers) for numbers in zip(*rows, strict=True))
    longest = max(1, int(num_targets.max()))
    encoded = torch.randn(len(rows), int(num_frames.max()), 6, generator=draw, dtype=torch.float64) * 3
    targets = torch.randint(1, 7, (len(rows), longest), generator=draw)
    targets[torch.arange(longest) >= num_targets[:, None]] = -7
    return encoded, num_frames, targets, num_targets


def transducer(seed: int = 0, prune_range: int = 2) -> Transducer:
    torch.manual_seed(seed)
    shape = TransducerShape(**{**vars(SHAPE), "prune_range": prune_range})
    return Transducer(shape).double()


def pruned(model: Transducer, inputs: tuple[Tensor, Tensor, Tensor, Tensor], prune_range: int) -> Tensor:
    """The first part of the pruned loss alone."""
    encoded, num_frames, targets, num_targets = inputs
    predicted = model.prediction(targets)
    simple = model.simple_joint(encoded, predicted, targets, 0)
    both = pruned_transducer_loss(
        model.joint,
        model.joint.encoder(encoded),
        model.joint.prediction(predicted),
        simple,
        targets,
        num_frames,
        num_targets,
        0,
        prune_range,
    )
    return both - SIMPLE_LOSS_SCALE * lattice_loss(*simple, num_frames, num_targets)


def all_logits(model: Transducer, encoded: Tensor, targets: Tensor) -> Tensor:
    frames = model.joint.encoder(encoded)[:, :, None]
    return model.joint(frames, model.joint.prediction(model.prediction(targets))[:, None])


def bands(model: Transducer, inputs: tuple[Tensor, Tensor, Tensor, Tensor], size: int) -> Tensor:
    encoded, num_frames, targets, num_targets = inputs
    simple = model.simple_joint(encoded, model.prediction(targets), targets, 0)
    occupancy = occupancy_of_blanks(*simple, num_frames, num_targets)
    return band_starts(occupancy, num_frames, num_targets, size)


def test_the_simple_network_is_one_that_adds_logits() -> None:
    """Against logits of all pairs, with gradients; the products are those of the same numbers."""
    torch.manual_seed(0)
    joint = SimpleJoint(6, 5, 7).double()
    encoded, _, targets, _ = made([(5, 4), (3, 2)], 0)
    predicted = torch.randn(2, 5, 5, dtype=torch.float64)
    logits = joint.encoder(encoded)[:, :, None] + joint.prediction(predicted)[:, None]
    log_probs = logits.log_softmax(-1)
    following = torch.cat([targets.clamp(0, 6), torch.zeros(2, 1, dtype=torch.long)], 1)
    wanted = log_probs[..., 0], log_probs.gather(3, following[:, None, :, None].expand(-1, 5, -1, -1))[..., 0]
    found = joint(encoded, predicted, targets, 0)
    weights = torch.randn(2, 5, 5, dtype=torch.float64)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
        gradients = [
            torch.autograd.grad((arcs * weights).sum(), joint.encoder.weight, retain_graph=True)[0]
            for arcs in (mine, theirs)
        ]
        torch.testing.assert_close(*gradients)


def test_logits_far_apart_stay_finite() -> None:
    joint = SimpleJoint(6, 5, 7)
    with torch.no_grad():
        joint.encoder.weight.mul_(1e4)
        joint.prediction.weight.mul_(1e4)
    encoded, _, targets, _ = made([(5, 4)], 1)
    arcs = joint(encoded.float(), torch.randn(1, 5, 5), targets, 0)
    assert all(arc.isfinite().all() and (arc <= 1e-3).all() for arc in arcs)


def test_occupancy_is_the_share_of_alignments() -> None:
    """Against all alignments, one by one."""
    blanks, labels = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    for exits in itertools.combinations_with_replacement(range(4), 4):
        if exits[-1] != 3:
            continue
        before, log_prob = 0, 0.0
        for t, u in enumerate(exits):
            log_prob = log_prob + labels[0, t, before:u].sum() + blanks[0, t, u]
            before = u
        for t, u in enumerate(exits):
            wanted[t, u] += torch.as_tensor(log_prob).exp()
    found = occupancy_of_blanks(blanks, labels, torch.tensor([4]), torch.tensor([3]))
    torch.testing.assert_close(found[0], wanted / wanted[0].sum())


@given(ROWS, st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_band_always_holds_an_alignment(rows: list[tuple[int, int]], size: int, seed: int) -> None:
    inputs = made(rows, seed)
    size = max(size, *(targets // frames + 2 for frames, targets in rows))
    size = min(size, inputs[2].shape[1] + 1)
    starts = bands(transducer(seed), inputs, size)
    for own, (frames, targets) in zip(starts.tolist(), rows, strict=True):
        own = own[:frames]
        assert own[0] == 0
        assert own[-1] <= targets < own[-1] + size
        assert all(0 <= later - earlier < size for earlier, later in itertools.pairwise(own))


@given(ROWS, st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_the_loss_of_the_alignments_within_the_band(
    rows: list[tuple[int, int]], prune_range: int, seed: int
) -> None:
    """Against all logits, those outside the band made impossible; with the gradients of every weight."""
    inputs, model = made(rows, seed), transducer(seed)
    encoded, num_frames, targets, num_targets = inputs
    width = targets.shape[1] + 1
    size = max(prune_range, *(targets // frames + 2 for frames, targets in rows))
    starts = bands(model, inputs, min(size, width))
    u = torch.arange(width)
    inside = (u >= starts[..., None]) & (u < starts[..., None] + size)
    log_probs = all_logits(model, encoded, targets).log_softmax(-1)
    following = torch.cat([targets.clamp(0, 6), torch.zeros(len(rows), 1, dtype=torch.long)], 1)
    following = following[:, None, :, None].expand(-1, encoded.shape[1], -1, -1)
    arcs = log_probs[..., 0], log_probs.gather(3, following)[..., 0]
    arcs = tuple(arc.masked_fill(~inside, -torch.inf) for arc in arcs)
    # A token that leads out of the band is none of its alignments.
    leads_out = moved_left(inside)
    wanted = lattice_loss(arcs[0], arcs[1].masked_fill(~leads_out, -torch.inf), num_frames, num_targets)
    found = pruned(model, inputs, prune_range)
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted)
    weights = [model.joint.out.weight, model.joint.encoder.weight, model.prediction.lstm.weight_hh_l1]
    mine = torch.autograd.grad(found.sum(), weights)
    theirs = torch.autograd.grad(wanted.sum(), weights)
    torch.testing.assert_close(mine, theirs)


def moved_left(inside: Tensor) -> Tensor:
    """Whether the next token is inside."""
    return torch.cat([inside[..., 1:], torch.zeros_like(inside[..., :1])], -1)


@given(ROWS, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_it_is_exact_where_the_band_holds_all_tokens_and_never_below(
    rows: list[tuple[int, int]], seed: int
) -> None:
    inputs, model = made(rows, seed), transducer(seed)
    encoded, num_frames, targets, num_targets = inputs
    exact = transducer_loss(all_logits(model, encoded, targets), targets, num_frames, num_targets)
    torch.testing.assert_close(pruned(model, inputs, targets.shape[1] + 1), exact)
    assert (pruned(model, inputs, 2) >= exact - 1e-9).all()


@pytest.mark.parametrize("exits", [(0, 1, 1, 3, 5, 6), (2, 4, 4, 4, 5, 6), (0, 0, 0, 2, 4, 6)])
def test_the_band_holds_the_alignment_that_the_simple_network_finds(exits: tuple[int, ...]) -> None:
    """A planted alignment of at most two tokens a frame, with bands of three."""
    occupancy = torch.zeros(1, 6, 7)
    occupancy[0, torch.arange(6), torch.tensor(exits)] = 1.0
    [starts] = band_starts(occupancy, torch.tensor([6]), torch.tensor([6]), 3).tolist()
    for start, entry, exit_ in zip(starts, (0, *exits), exits, strict=False):
        assert start <= entry <= exit_ < start + 3


def test_company_and_padding_change_nothing() -> None:
    model = transducer(3)
    rows = [(7, 5), (4, 6), (2, 0)]
    encoded, num_frames, targets, num_targets = made(rows, 3)
    together = pruned(model, (encoded, num_frames, targets, num_targets), 4)
    for row, (frames, length) in enumerate(rows):
        one = slice(row, row + 1)
        alone = encoded[one, :frames], num_frames[one], targets[one, : max(length, 1)], num_targets[one]
        torch.testing.assert_close(pruned(model, alone, 4), together[one])


def test_training_is_pruned_and_evaluation_exact() -> None:
    """And a few steps of training write the text."""
    torch.manual_seed(0)
    model = Transducer(TransducerShape(**{**vars(SHAPE), "joint_width": 32, "prediction_width": 32}))
    encoded = torch.randn(2, 8, 6)
    targets, num_targets = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 6, 1, 0, 0, 0]]), torch.tensor([6, 3])
    inputs = encoded, torch.tensor([8, 5]), targets, num_targets
    exact = transducer_loss(all_logits(model, encoded, targets), targets, inputs[1], num_targets)
    assert (model.loss(*inputs) > exact).all()
    torch.testing.assert_close(model.eval().loss(*inputs), exact)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(*inputs, frames_at_once=3), exact)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*inputs).sum().backward()
        optimizer.step()
    assert (model.eval().loss(*inputs) < 0.1).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="prune_range is 1; it is at least 2"):
        TransducerShape(vocabulary_size=7, encoder_width=6, prune_range=1)
    with pytest.raises(ValueError, match="without durations"):
        TransducerShape(vocabulary_size=7, encoder_width=6, prune_range=5, durations=(0, 1))
    model = transducer()
    encoded, num_frames, targets, num_targets = made([(5, 4)], 0)
    with pytest.raises(ValueError, match="num_frames holds 9; every row needs 1 to 5"):
        model.loss(encoded, num_frames + 4, targets, num_targets)
    targets[0, 1] = 0
    with pytest.raises(ValueError, match="targets hold 0"):
        model.loss(encoded, num_frames, targets, num_targets)
