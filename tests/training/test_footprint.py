"""Memory is told before a run as it will be; recomputing keeps the gradients and takes less of it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import batches
from sprachbund.training.loop import train
from sprachbund.training.memory import (
    Footprint,
    Kept,
    keep_layers,
    measure,
    measure_kept,
    memory_of,
    recompute_layers,
)
from tests.training import made

PLAN = BatchingOptions(batch_s=6.0)


class Stack(nn.Module):
    """Two layers whose needs can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 4)])
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder.layers:
            x = torch.sigmoid(layer(x))
        return x.square().sum()


def test_what_is_kept_is_counted_by_hand() -> None:
    stack, x = Stack(), torch.randn(5, 8)
    kept = measure_kept(stack, lambda: stack(x))
    # A linear layer keeps its input, a sigmoid its output: which is the next one's input, or squared.
    assert kept == Kept(outside=4 * (5 * 16 + 5 * 4), inside=[4 * 5 * 8, 0], inputs=[4 * 5 * 8, 4 * 5 * 16])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("footprint")
    made.make_corpus(directory, 24)
    return directory


def test_recomputed_gradients_are_the_same_bits(corpus: Path) -> None:
    model = made.make_model(dropout=0.1).train()
    batch = next(batches(made.make_training_data(corpus), PLAN, 0))
    names, gradients, weights = [], [], []
    for change in (keep_layers, recompute_layers, keep_layers):
        change(model)
        model.zero_grad()
        torch.manual_seed(1)
        model.loss(batch).total.backward()
        names.append([name for name, _ in model.named_parameters()])
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        weights.append(list(model.state_dict()))
    assert names[0] == names[2] != names[1]
    assert weights[0] == weights[1] == weights[2]
    assert sum(g is not None for g in gradients[0]) > 0
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_a_layer_runs_again_when_recomputed(corpus: Path) -> None:
    model = made.make_model()
    batch = next(batches(made.make_training_data(corpus), PLAN, 0))
    calls = []
    model.encoder.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for change in (keep_layers, recompute_layers):
        change(model)
        model.loss(batch).total.backward()
        counts.append(len(calls))
    assert counts == [1, 1 + 2]


def size_up(corpus: Path, **changes: object) -> Footprint:
    model = made.make_model()
    chosen = made.options(1, **changes)
    data = made.make_training_data(corpus)
    adam = torch.optim.AdamW(model.parameters())
    found = measure(
        model, model.loss, data, BatchingOptions(batch_s=chosen.batch_s), [adam], device=torch.device("cpu")
    )
    assert found is not None
    return found


def test_the_estimate_is_what_a_whole_batch_keeps(corpus: Path) -> None:
    found = size_up(corpus)
    model, data = made.make_model(), made.make_training_data(corpus)
    whole = [
        measure_kept(model, lambda: model.loss(batch)).total  # noqa: B023
        for batch in batches(data, PLAN, 0)
    ]
    assert 0.7 < found.activations / max(whole) < 1.3
    assert found.recomputed < found.activations
    number = sum(p.numel() for p in model.parameters())
    assert (found.num_parameters, found.weights, found.moments) == (number, 4 * number, 8 * number)


def test_moments_are_those_that_the_optimizer_then_has(corpus: Path) -> None:
    model = made.make_model()
    adam = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    held = sum(v.numel() * 4 for s in adam.state.values() for k, v in s.items() if k.startswith("exp_avg"))
    assert size_up(corpus).moments == held


def test_measuring_moves_nothing(corpus: Path) -> None:
    model, data = made.make_model(dropout=0.1), made.make_training_data(corpus)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(model, model.loss, data, PLAN, [], device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


BIG = Footprint(
    num_parameters=10**9,
    num_trained=10**9,
    weights=4 * 2**30,
    gradients=4 * 2**30,
    moments=8 * 2**30,
    activations=20 * 2**30,
    recomputed=3 * 2**30,
    batch=10,
    per_utterance=2 * 2**30,
    available=24 * 2**30,
)


def test_what_does_not_fit_is_said_with_what_to_change() -> None:
    lines = BIG.lines(recompute=False, batch_s=300)
    assert "together 36.00 GiB of 24.00 GiB" in lines[1]
    assert lines[2] == (
        "this does not fit: set training.recompute = true (then 19.00 GiB, a third slower), or "
        "training.batch_s = 120, or adapters ([lora], then about 24.00 GiB) or fewer parts (training.trainable)"
    )
    assert len(BIG.lines(recompute=True, batch_s=300)) == 2
    assert len(replace(BIG, available=2**40).lines(recompute=False, batch_s=300)) == 2


def test_a_run_tells_its_size_first(corpus: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(made.make_model(), made.make_training_data(corpus), made.options(1), tmp_path, report=lines.append)
    assert re.fullmatch(r"63\.0 k parameters, 63\.0 k of them are trained", lines[0])
    assert lines[1].startswith("memory, about: weights")
    assert 2**28 < memory_of(torch.device("cpu")) < 2**50


def test_memory_is_counted_once_and_weights_are_not() -> None:
    weight = nn.Parameter(torch.randn(6, 6))
    model = Stack()
    model.weight = weight
    x = torch.randn(3, 6)

    def forward() -> torch.Tensor:
        y = F.linear(x, weight)
        return (y * y).sum() + y.pow(2).sum()

    assert measure_kept(model, forward).outside == 4 * (3 * 6 + 3 * 6)  # x and y
