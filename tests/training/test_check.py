"""Memory of a run is told before it: within a tenth of what torch's own tracker sees in a whole step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from sprachbund.cli import USAGE, main
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches
from sprachbund.data.manifest import Manifest
from sprachbund.models.conformer import Conformer
from sprachbund.models.speech_llm import STAGES
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter
from sprachbund.training.check import Shape, check_shape, hours_of, probe, rows_of, verdict
from sprachbund.training.memory import recompute_layers
from sprachbund.training.optimizers import make_optimizers
from sprachbund.training.parallel import LossOf, in_16_bits
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.training import made

SHAPES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "wide": ({"width": 192, "feed_forward_width": 512, "num_heads": 4}, {"batch_s": 4.0}),
    "deep": ({"num_encoder_layers": 4, "num_decoder_layers": 3, "width": 48}, {"batch_s": 12.0}),
    "dropout in 16 bits": ({"width": 64, "dropout": 0.1}, {"batch_s": 10.0, "precision": "bf16"}),
    "AdamW": ({"width": 96, "feed_forward_width": 256}, {"batch_s": 6.0, "optimizer": "adamw"}),
}
RECOMPUTED = ("deep", "dropout in 16 bits")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("check")
    made.make_corpus(directory / "data", 24)
    return directory


def model_of(**changes: Any) -> Conformer:
    plain = made.make_model()
    return Conformer(plain.config.model_copy(update=changes), plain.tokenizer, plain.transcript_tokenizer)


def measured(model: Any, data: Any, options: Any) -> int:
    """Most bytes at a time in two steps on the largest batch."""
    optimizers, loss_of = make_optimizers(model, options), LossOf(model, options).train()
    plan = BatchingOptions(batch_s=options.batch_s)
    sizes = [float(data.durations_s[batch].max()) * len(batch) for batch in data.plan(plan, 0)]
    batch = next(batches(data, plan, 0, sizes.index(max(sizes))))
    if options.recompute:
        recompute_layers(model)
    tracker = MemTracker()
    tracker.track_external(model, *optimizers)
    with tracker:
        for _ in range(2):
            loss_of(batch).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            tracker.reset_mod_stats()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def allocated(model: Any, data: Any, options: Any, trace: Path) -> int:
    """The same by torch's allocator: its tracker does not take layers that are frozen."""
    optimizers, loss_of = make_optimizers(model, options), LossOf(model, options).train()
    for optimizer in optimizers:
        optimizer.zero_grad()
    plan = BatchingOptions(batch_s=options.batch_s)
    sizes = [float(data.durations_s[batch].max()) * len(batch) for batch in data.plan(plan, 0)]
    batch = next(batches(data, plan, 0, sizes.index(max(sizes))))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        for _ in range(2):
            loss_of(batch).total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    seen.export_chrome_trace(str(trace))
    events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return held + max(event["Total Allocated"] for event in events) - before


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_prediction_is_what_a_step_takes(name: str, root: Path) -> None:
    shape, changes = SHAPES[name]
    recompute = name in RECOMPUTED
    options = made.options(2, recompute=recompute, **changes)
    data = made.make_training_data(root / "data", time_masks=0, frequency_masks=0)
    predicted = check_shape(model_of(**shape), data, options).strategy(
        1, shard=False, recompute=recompute, accumulate=1
    )
    assert predicted.total == pytest.approx(measured(model_of(**shape), data, options), rel=0.1)


@pytest.mark.slow
def test_the_prediction_holds_for_a_speech_llm(root: Path, tmp_path: Path) -> None:
    """Frozen weights in 16 bits, projector and adapters in 32."""

    def fresh() -> Any:
        sizes = {"groups": (("en",), ("de",)), "spliced_frames": 1, "hidden_width": 64}
        model = make_speech_llm(projector=sizes, target_languages=made.LANGUAGES)
        enter(model, STAGES[1])
        return model

    training = {
        "precision": "bf16",
        "frozen_bf16": True,
        "optimizer": "adamw",
        "trainable": STAGES[1].patterns,
    }
    options, model = made.options(2, batch_s=8.0, **training), fresh()
    examples = ExampleOptions(rows_per_utterance=2, max_tokens=24, time_masks=0, frequency_masks=0)
    data = Corpus([(Manifest(root / "data"), 1.0)], SpeechLLMExamples(model, made.LANGUAGES), examples)
    predicted = check_shape(model, data, options).strategy(1, shard=False, recompute=False, accumulate=1)
    model = fresh()
    in_16_bits(model)
    assert predicted.total == pytest.approx(allocated(model, data, options, tmp_path / "trace.json"), rel=0.1)


def test_operations_are_those_of_the_formulas() -> None:
    """A linear layer, forward, and backward with respect to weights and input; attention; a convolution."""
    rows, width, heads = 6, 16, 4
    linear, convolution = torch.nn.Linear(width, 3 * width), torch.nn.Conv1d(width, 8, 3, padding=1)
    model = torch.nn.ModuleList([linear, convolution])
    x = torch.randn(2, rows, width, requires_grad=True)

    def loss() -> torch.Tensor:
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in linear(x).split(width, dim=2)
        )
        heard = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return convolution(heard.transpose(1, 2).flatten(2).transpose(1, 2)).square().sum()

    of_linear, of_convolution = 2 * 2 * rows * width * 3 * width, 2 * 2 * rows * width * 8 * 3
    scores = 2 * 2 * rows * rows * width  # queries times keys; as many for weights times values
    # Backward, the scores are computed again, and there are four products.
    assert probe(model, loss).flops == 3 * (of_linear + of_convolution) + (2 + 5) * scores


def test_probing_changes_nothing(root: Path) -> None:
    model, data = model_of(dropout=0.1), made.make_training_data(root / "data")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_shape(model, data, made.options(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


SHAPE = Shape(
    num_parameters=200,
    num_trained=200,
    weights=800,
    gradients=800,
    moments=1600,
    largest_layer=50,
    outside=100,
    probed=(2, 5),
    activations={False: (200, 500), True: (60, 120)},
    utterances=64,
    flops={False: 3e15, True: 4e15},
)


def test_strategies_are_counted_by_hand() -> None:
    copies, shares, recomputed, both = SHAPE.strategies(8, 1600)
    # 3,200 are held anyway by each process that has a copy, whatever is done with the activations.
    assert (copies.total, copies.accumulate) == (3200 + 200 - 100, 8)
    # Activations of 8 utterances are 800, fetched layers 250, and an eighth of all else is 400.
    assert (shares.total, shares.accumulate, shares.utterances) == (400 + 250 + 800, 1, 8)
    assert (both.total, both.accumulate) == (400 + 250 + 60 + 6 * 20, 1)
    assert verdict([copies, shares, recomputed, both], 1600) == "it fits with shard = true"
    # Four GPUs of 10^12 operations a second: three quarters of a quarter of an hour, and a third more.
    rows = rows_of([copies, both], 1600, flops_per_s=4e12)
    assert [row[-1] for row in rows] == ["0.21", "0.28"]
    assert "nothing fits: with shard = true, recompute = true it takes 0.0 MiB" in verdict([both], 10)


def test_train_checks_a_recipe_and_trains_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.toml"
    shape = (
        "width = 32\nnum_heads = 2\nnum_encoder_layers = 1\nnum_decoder_layers = 1\nfeed_forward_width = 32"
    )
    path.write_text(
        'languages = ["en", "de"]\nvocabulary_size = 40\ntranscript_vocabulary_size = 30\n'
        f'[[train]]\npath = "{root}/data"\n[[dev]]\npath = "{root}/data"\n[model]\n{shape}\n'
        '[training]\nsteps = 9\nnum_workers = 0\n[card]\nname = "small"\n'
    )
    command = ["train", str(path), "--out", str(tmp_path / "run"), "--check", "--gpus", "4"]
    assert main([*command, "--gpu-memory", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "each of 4 GPUs, with 0.50 GiB" in said
    assert "shard = true, recompute = true" in said
    assert "it fits with the settings as they are" in said
    assert "at 350 TFLOP/s that each GPU sustains" in said
    assert not (tmp_path / "run" / "model").exists()
    assert main([*command, "--gpu-memory", "0.0001"]) == USAGE


def test_hours_have_two_digits_and_less_than_a_minute_none() -> None:
    shown = [hours_of(hours) for hours in (1.1e-10, 0.0, 0.016, 0.017, 0.55, 12.34, 1234.0)]
    assert shown == [*3 * ["under a minute"], "0.017", "0.55", "12", "1234"]
