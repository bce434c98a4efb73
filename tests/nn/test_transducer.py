import pytest
import torch
from safetensors.torch import load, save

from sprachbund.decoding.transducer import transducer_greedy
from sprachbund.nn.transducer import Transducer, TransducerShape, TransducerState
from sprachbund.nn.transducer_loss import transducer_loss

SHAPE = TransducerShape(
    vocabulary_size=7, encoder_width=6, prediction_width=5, prediction_layers=2, joint_width=8
)


def make(**changes: int) -> Transducer:
    torch.manual_seed(0)
    shape = TransducerShape(**({f: getattr(SHAPE, f) for f in SHAPE.__dataclass_fields__} | changes))
    return Transducer(shape).double()


TARGETS = torch.tensor([[1, 2, 3], [4, 6, 0]])


def test_token_by_token_equals_all_at_once() -> None:
    transducer = make()
    whole = transducer.joint.prediction(transducer.prediction(TARGETS))
    state = transducer.start(2)
    torch.testing.assert_close(state.predicted, whole[:, 0])
    for u in range(3):
        state = transducer.advance(TARGETS[:, u], state)
        torch.testing.assert_close(state.predicted, whole[:, u + 1])


def test_the_prediction_looks_only_back() -> None:
    transducer = make()
    other = TARGETS.clone()
    other[:, 2] = 5
    before, after = transducer.prediction(TARGETS), transducer.prediction(other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_the_recurrence_is_computed_in_float32_where_the_rest_is_in_bf16() -> None:
    """Processors without AVX-512 have no other LSTM."""
    transducer = make().float()
    with torch.autocast("cpu", torch.bfloat16):
        predicted = transducer.prediction(TARGETS)
        assert transducer.joint.prediction(predicted).dtype == torch.bfloat16
    assert torch.equal(predicted, transducer.prediction(TARGETS))


@pytest.mark.parametrize("frames_at_once", [None, 1, 3])
def test_loss_and_gradients_do_not_depend_on_how_many_logits_are_held(frames_at_once: int | None) -> None:
    transducer = make()
    encoded = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    given = (encoded, torch.tensor([5, 3]), TARGETS, torch.tensor([3, 2]))
    loss = transducer.loss(*given, frames_at_once=frames_at_once)
    logits = transducer.joint(
        transducer.joint.encoder(encoded)[:, :, None],
        transducer.joint.prediction(transducer.prediction(TARGETS))[:, None],
    )
    expected = transducer_loss(logits, TARGETS, given[1], given[3])
    torch.testing.assert_close(loss, expected)
    weights = (encoded, *transducer.parameters())
    ours = torch.autograd.grad(loss.sum(), weights)
    for a, b in zip(ours, torch.autograd.grad(expected.sum(), weights), strict=True):
        torch.testing.assert_close(a, b)


def test_a_few_steps_of_training_write_the_text() -> None:
    transducer = make()
    encoded = torch.randn(2, 6, 6, dtype=torch.float64)
    frames, lengths = torch.tensor([6, 4]), torch.tensor([3, 2])
    optimizer = torch.optim.Adam(transducer.parameters(), lr=0.03)
    for _ in range(150):
        loss = transducer.loss(encoded, frames, TARGETS, lengths, fast_emit=0.005).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hypotheses, _ = transducer_greedy(transducer, encoded, frames)
    assert [h.tokens for h in hypotheses] == [(1, 2, 3), (4, 6)]
    assert not transducer.prediction.embedding.weight[0].any()


def test_states_can_be_taken_stacked_saved_and_moved() -> None:
    transducer = make()
    state = transducer.advance(torch.tensor([1, 2, 3]), transducer.start(3))
    swapped = state.take(torch.tensor([2, 0]))
    assert torch.equal(swapped.hidden[1], state.hidden[0])
    again = TransducerState.stack([swapped.take(torch.tensor([1])), state.take(torch.tensor([1, 2]))])
    loaded = TransducerState.from_tensors(load(save({n: t.contiguous() for n, t in again.tensors().items()})))
    for name, tensor in state.tensors().items():
        assert torch.equal(loaded.to("cpu").tensors()[name], tensor)
    next_one = transducer.advance(torch.tensor([4, 4, 4]), loaded)
    torch.testing.assert_close(
        next_one.predicted, transducer.advance(torch.tensor([4, 4, 4]), state).predicted
    )


def test_bad_input_is_named() -> None:
    transducer = make()
    with pytest.raises(ValueError, match="blank is 7"):
        TransducerShape(vocabulary_size=7, encoder_width=1, blank=7)
    with pytest.raises(
        ValueError, match=r"hidden is \(3, 1, 5\) and \(3, 2, 5\) is needed; it belongs to another"
    ):
        transducer.check_state(make(prediction_layers=1).start(3), 3)
    with pytest.raises(ValueError, match="number of streams"):
        transducer.check_state(transducer.start(3), 2)
    with pytest.raises(ValueError, match="cell: too much or missing"):
        TransducerState.from_tensors({n: t for n, t in transducer.start(1).tensors().items() if n != "cell"})


def test_size_at_the_published_shape() -> None:
    with torch.device("meta"):
        transducer = Transducer(TransducerShape(vocabulary_size=8193, encoder_width=1024))
    lstm = 2 * 4 * (640 * 640 * 2 + 640 * 2)
    joint = (1024 + 1) * 640 + 640 * 640 + 641 * 8193
    assert sum(p.numel() for p in transducer.parameters()) == 8193 * 640 + lstm + joint
