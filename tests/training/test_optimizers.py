"""What is frozen stays frozen to the bit, and one schedule drives every parameter group."""

from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.training.loop import train
from sprachbund.training.optimizers import RATIO, freeze_others, make_optimizers, set_rates
from tests.training import made

LAST = "encoder.layers.1.*"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    made.make_corpus(directory, 24)
    return directory


def rates_of(model, options, rate: float) -> dict[str, float]:
    optimizers = make_optimizers(model, options)
    set_rates(optimizers, rate)
    result = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    return {name: result[id(p)] for name, p in model.named_parameters() if id(p) in result}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_group_rises_and_falls_with_the_schedule(optimizer: str) -> None:
    patterns = {"encoder.layers.1.feed_forward_out.*": 4e-5, "encoder.*": 1e-4}
    options = made.options(40, optimizer=optimizer, learning_rate=2e-4, warmup_steps=8, rates=patterns)
    model = made.make_model()
    full = rates_of(model, options, options.learning_rate)
    assert set(full) == {name for name, _ in model.named_parameters()}
    for step in (0, 3, 8, 20, 33, 39):
        share = options.rate(step) / options.learning_rate
        now = rates_of(model, options, options.rate(step))
        assert now == pytest.approx({name: share * rate for name, rate in full.items()})
    muon = 2.5 if optimizer == "muon" else 1.0
    assert full["encoder.layers.1.feed_forward_out.expand.bias"] == pytest.approx(4e-5)
    assert full["encoder.layers.1.feed_forward_out.expand.weight"] == pytest.approx(4e-5 * muon)
    assert full["encoder.layers.0.feed_forward_out.norm.weight"] == pytest.approx(1e-4)
    assert full["decoder.embedding.weight"] == pytest.approx(2e-4)


def test_without_patterns_there_is_a_group_of_each_kind() -> None:
    first, second = make_optimizers(made.make_model(), made.options(4, optimizer="muon"))
    assert [group["weight_decay"] for group in first.param_groups] == [0.01, 0.0]
    assert [group[RATIO] for group in (*first.param_groups, *second.param_groups)] == [1.0, 1.0, 2.5]


def test_auto_is_bf16_where_a_device_is_fast_in_it(monkeypatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr("sprachbund.training.options.is_fast_in_bf16", lambda device: device.type == "cuda")
    auto, half, single = (made.options(4, precision=p) for p in ("auto", "bf16", "no"))
    assert [o.in_bf16(gpu) for o in (auto, half, single)] == [True, True, False]
    assert [o.in_bf16(cpu) for o in (auto, half, single)] == [False, True, False]
    assert made.options(4, precision="auto", frozen_bf16=True).in_bf16(cpu)
    with pytest.raises(ValueError, match="frozen_bf16 needs precision"):
        made.options(4, precision="no", frozen_bf16=True)


@pytest.mark.parametrize(
    ("precision", "line"), [("auto", "fp32: this device"), ("bf16", "bf16 is slow here"), ("no", "")]
)
def test_a_processor_without_bf16_is_named(
    precision: str, line: str, data: Path, tmp_path: Path, monkeypatch
) -> None:
    for place in ("options", "loop"):
        monkeypatch.setattr(f"sprachbund.training.{place}.is_fast_in_bf16", lambda device: False)
    said = list[str]()
    options = made.options(1, precision=precision)
    train(made.make_model(), made.make_training_data(data), options, tmp_path, report=said.append)
    about = [one for one in said if one.startswith(("fp32: ", "bf16 is"))]
    assert about == [one for one in said if line and one.startswith(line)]
    assert len(about) == bool(line)


def test_only_what_is_named_is_trained(data: Path, tmp_path: Path) -> None:
    before = made.make_model().state_dict()
    options = made.options(3, trainable=(LAST, "language_head.*"), rates={LAST: 1e-2}, weight_decay=0.5)
    model = train(made.make_model(), made.make_training_data(data), options, tmp_path)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    named = {name for name in before if name.startswith(("encoder.layers.1.", "language_head."))}
    assert changed == named


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_part_without_vectors_can_be_trained_alone(optimizer: str) -> None:
    model = made.make_model()
    freeze_others(model, ("*.feed_forward_out.expand.weight",))
    optimizers = make_optimizers(model, made.options(4, optimizer=optimizer))
    assert sum(len(g["params"]) for o in optimizers for g in o.param_groups) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trainable": ("encoder.layer.1.*",)},
            r"trainable: 'encoder.layer.1.\*'.*nearest: .*encoder.layers.1",
        ),
        ({"rates": {"encodr.*": 1.0}}, r"rates: 'encodr.\*'"),
        (
            {"trainable": (LAST,), "rates": {"decoder.*": 1.0}},
            r"rates: 'decoder.\*' matches no parameter that is",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(change, message, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=message):
        train(made.make_model(), made.make_training_data(data), made.options(3, **change), tmp_path)


@pytest.mark.slow
def test_it_stops_when_patience_is_at_its_end_and_resumes_to_the_same(data: Path, tmp_path: Path) -> None:
    # A rate that only does harm: the dev loss is lowest at once.
    change = {"patience": 3, "evaluate_every": 2, "learning_rate": 3.0, "warmup_steps": 0, "keep_best": 2}
    corpus, said = made.make_training_data(data), list[str]()
    options = made.options(100, optimizer="adamw", **change)
    whole = train(made.make_model(), corpus, options, tmp_path / "a", dev=corpus, report=said.append)
    stopped = next(line for line in said if line.startswith("stopped at step"))
    assert "3 times no better dev loss than" in stopped
    step = int(stopped.split()[3].rstrip(":"))
    assert step < 100
    train(made.make_model(), corpus, options, tmp_path / "b", dev=corpus, stop_after=step - 3)
    again = train(made.make_model(), corpus, options, tmp_path / "b", dev=corpus)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    after = train(made.make_model(), corpus, options, tmp_path / "b", dev=corpus)  # nothing is left to do
    assert all(torch.equal(after.state_dict()[name], value) for name, value in whole.state_dict().items())
