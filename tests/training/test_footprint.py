"""Memory is told before a run as it will be; recomputing keeps the gradients and takes less of it."""

import re
from pathlib import Path

import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import batches
from sprachbund.training import loop
from sprachbund.training.check import measure_shape, memory_of
from sprachbund.training.loop import train
from sprachbund.training.memory import keep_layers, recompute_layers
from sprachbund.training.optimizers import make_optimizers
from sprachbund.training.parallel import LossOf
from tests.training import made

PLAN = BatchingOptions(batch_s=6.0)


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


def test_moments_are_those_that_the_optimizer_then_has(corpus: Path) -> None:
    model, chosen = made.make_model(), made.options(1, optimizer="adamw")
    optimizers = make_optimizers(model, chosen)
    shape = measure_shape(LossOf(model, chosen), made.make_training_data(corpus), chosen, optimizers)
    assert shape is not None
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    held = sum(v.numel() * 4 for state in states for k, v in state.items() if k.startswith("exp_avg"))
    assert shape.moments == held


def test_layers_are_as_before_where_a_probe_fails(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chosen = made.make_model(), made.options(1)
    layers = [*model.encoder.layers, *model.decoder.layers]

    def full(batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "loss", full)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        measure_shape(LossOf(model, chosen), made.make_training_data(corpus), chosen, [], recompute=(True,))
    assert [*model.encoder.layers, *model.decoder.layers] == layers


@pytest.mark.usefixtures("predicted_memory")
def test_what_does_not_fit_is_said_with_what_to_change(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines_of(out: Path, **changes: object) -> list[str]:
        lines: list[str] = []
        chosen = made.options(1, batch_s=12.0, **changes)
        train(made.make_model(), made.make_training_data(corpus), chosen, out, report=lines.append)
        return lines[:3]

    lines = lines_of(tmp_path / "fits")
    assert not lines[2].startswith("this does not fit")
    together, activations = (
        float(re.search(rf"{name} ([0-9.]+) MiB", lines[1])[1]) for name in ("together", "activations")
    )
    monkeypatch.setattr(loop, "memory_of", lambda device: round((together - activations / 4) * 2**20))
    lines = lines_of(tmp_path / "does not")
    assert re.fullmatch(
        r"this does not fit; it fits with (recompute = true|accumulate = \d)(, .*)?", lines[2]
    )
    monkeypatch.setattr(loop, "memory_of", lambda device: 2**10)
    assert re.match(
        r"this does not fit; nothing fits: with .* it takes .* of 0\.0 MiB; take",
        lines_of(tmp_path / "no")[2],
    )


@pytest.mark.usefixtures("predicted_memory")
def test_a_run_tells_its_size_first(corpus: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(made.make_model(), made.make_training_data(corpus), made.options(1), tmp_path, report=lines.append)
    assert re.fullmatch(r"63\.0 k parameters, 63\.0 k of them are trained", lines[0])
    assert lines[1].startswith("memory, about: weights")
    assert 2**28 < memory_of(torch.device("cpu")) < 2**50
