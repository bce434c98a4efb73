"""What a run leaves is whole at any moment, and the same bytes however often it was taken up."""

import json
import signal
import sys
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.utils._python_dispatch import TorchDispatchMode

from sprachbund.compression.distillation import Distillation
from sprachbund.compression.options import DistillationOptions
from sprachbund.errors import SprachbundError
from sprachbund.training import checkpoint
from sprachbund.training.checkpoint import (
    RESUME_FILE,
    SHARDS,
    SHARDS_FILE,
    BestCheckpoints,
    ResumeFiles,
    claim_folder,
    load_resume,
    save_resume,
)
from sprachbund.training.draft import DraftOptions, DraftTraining, make_network
from sprachbund.training.loop import train
from sprachbund.training.lora import add_lora, merge_lora
from sprachbund.training.optimizers import freeze_others, make_optimizers
from sprachbund.training.options import Strict, TrainingOptions
from sprachbund.util.files import write_text
from sprachbund.util.options import RenamedWarning
from tests.training import made


def _weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def test_a_run_that_is_killed_before_the_index_is_written_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = BestCheckpoints(tmp_path, keep=2)
    best.offer(1, 3.0, _weights(3))
    best.offer(2, 2.0, _weights(2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name, place in (("write_text", checkpoint), ("write_text", Path)):  # whatever writes the index
        monkeypatch.setattr(place, name, killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        best.offer(3, 1.0, _weights(1))
    monkeypatch.undo()
    again = BestCheckpoints(tmp_path, keep=2)
    torch.testing.assert_close(dict(again.average())["w"], torch.full((2,), 2.5))
    again.offer(3, 1.0, _weights(1))
    torch.testing.assert_close(dict(again.average())["w"], torch.full((2,), 1.5))
    kept = {"best.json", "best.00000002.safetensors", "best.00000003.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_checkpoint_that_no_index_names_any_more_goes_with_the_next(tmp_path: Path) -> None:
    """A run that was killed after the index was written, and before the worse checkpoint was removed."""
    (tmp_path / "best.00000001.safetensors").write_bytes(b"worse")
    best = BestCheckpoints(tmp_path, keep=1)
    best.offer(2, 1.0, _weights(1))
    assert {path.name for path in tmp_path.iterdir()} == {"best.json", "best.00000002.safetensors"}


class Doubles(TorchDispatchMode):
    """Sees how many numbers of 64 bits there are at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._made = 0, list[weakref.ref[Tensor]]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dtype == torch.float64:
            self._made.append(weakref.ref(made))
        alive = [tensor for one in self._made if (tensor := one()) is not None]
        self.most = max(self.most, sum(tensor.numel() for tensor in alive))
        return made


def test_checkpoints_are_averaged_one_tensor_at_a_time(tmp_path: Path) -> None:
    """A sum, what is added to it, the new sum, and that of the tensor before: four of twenty tensors."""
    random = torch.Generator().manual_seed(0)
    kept = [{f"w{n}": torch.randn(50, generator=random) for n in range(20)} for _ in range(4)]
    best = BestCheckpoints(tmp_path, keep=4)
    for step, weights in enumerate(kept):
        best.offer(step, 1.0, weights)
    with Doubles() as doubles:
        means = dict(best.average())
    assert 50 <= doubles.most <= 4 * 50
    assert means.keys() == kept[0].keys()
    for name, mean in means.items():
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean, torch.stack([weights[name] for weights in kept]).mean(0))


class Drafted(nn.Module):
    """A model with a draft network, which the version before called `guesser` in all files."""

    def __init__(self, draft: str) -> None:
        super().__init__()
        self.base = nn.Linear(2, 2)
        self.add_module(draft, nn.Linear(2, 3))


def trained(draft: str, seed: int, *, steps: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Drafted(draft)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 2)
        sum(part(x).square().sum() for part in model.children()).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_run_of_the_version_before_goes_on_under_the_names_of_today(
    tmp_path: Path, is_sharded: bool
) -> None:
    before, moments = trained("guesser", 0, steps=3)
    files = ResumeFiles(tmp_path, before, [moments], [*before.state_dict()], is_sharded=False)
    if is_sharded:  # as several processes write it
        state_dict_saver.save(files._shards(None), checkpoint_id=tmp_path / SHARDS / "3", no_dist=True)
        write_text(tmp_path / SHARDS_FILE, json.dumps({"folder": "3", "step": 3}))
    else:
        files.save({"step": 3}, None)
    now, optimizer = trained("draft_network", 1, steps=0)
    files = ResumeFiles(tmp_path, now, [optimizer], [*now.state_dict()], is_sharded=False)
    with pytest.warns(RenamedWarning, match=r"resume\.\w+: guesser\.\* is called draft_network\.\* now"):
        state = files.load(None)
    assert state is not None
    assert state["step"] == 3
    for mine, theirs in zip(now.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(optimizer.state[mine]["exp_avg"], moments.state[theirs]["exp_avg"])


def test_checkpoints_of_the_version_before_are_averaged_with_those_of_today(tmp_path: Path) -> None:
    best = BestCheckpoints(tmp_path, keep=2)
    best.offer(1, 1.0, {"guesser.w": torch.zeros(2)})
    best.offer(2, 1.0, {"draft_network.w": torch.ones(2)})
    [(name, mean)] = best.average()
    assert name == "draft_network.w"
    assert mean.tolist() == [0.5, 0.5]


def test_patterns_of_the_version_before_are_refused_with_names_of_today() -> None:
    model = Drafted("draft_network")
    said = r"'guesser\.\*' matches no parameter that is trained; nearest: .*draft_network\."
    with pytest.raises(SprachbundError, match=f"trainable: {said}"):
        freeze_others(model, ("guesser.*",))
    options = TrainingOptions(steps=1, rates={"guesser.*": 1e-3})
    with pytest.raises(SprachbundError, match=f"rates: {said}"):
        make_optimizers(model, options)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
def test_a_disk_that_is_full_is_named_with_the_checkpoint(tmp_path: Path) -> None:
    """No file may grow beyond 10 kB: writing fails as on a full disk, for torch's files and those of safetensors."""
    import resource

    weights = {"weight": torch.ones(10_000)}
    save_resume(tmp_path, {"step": 2})
    before = (tmp_path / RESUME_FILE).read_bytes()
    best = BestCheckpoints(tmp_path / "best", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            SprachbundError, match=r"of step 4 could not .* \(File too large; .* MiB are free\); make"
        ):
            save_resume(tmp_path, {"step": 4, **weights})
        with pytest.raises(
            SprachbundError, match=r"of step 5 could not be written to .*best \(.*; make room"
        ):
            best.offer(5, 0.1, weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / RESUME_FILE).read_bytes() == before
    assert not [*(tmp_path / "best").glob("best.*")]
    assert best.offer(5, 0.1, weights)


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    """A state that was read again holds equal texts as several objects, which pickle writes in another way."""
    step = "".join(["st", "ep"])
    betas = (0.9, 0.95)
    state = {
        "step": 3,
        "model": OrderedDict(w=torch.arange(4.0)),
        "optimizers": [
            {"state": {0: {step: 1}, 1: {step: 2}}, "groups": [{"betas": betas}, {"betas": betas}]}
        ],
    }
    save_resume(tmp_path / "first", state)
    read = load_resume(tmp_path / "first")
    assert read is not None
    assert read["optimizers"] == state["optimizers"]
    read["optimizers"][0]["state"][1] = {"".join(["s", "tep"]): 2}
    read["optimizers"][0]["groups"][1] = {"betas": (betas[0], betas[1])}
    save_resume(tmp_path / "second", read)
    assert (tmp_path / "first" / RESUME_FILE).read_bytes() == (tmp_path / "second" / RESUME_FILE).read_bytes()


class Recipe(Strict):
    words: tuple[str, ...] = ("one",)
    training: TrainingOptions


class SizedRecipe(Strict):
    vocabulary_size: int


def test_a_folder_that_holds_a_run_refuses_another_recipe_and_names_its_keys(tmp_path: Path) -> None:
    first = Recipe(training=made.options(4))
    claim_folder(tmp_path, first)
    claim_folder(tmp_path, Recipe(training=made.options(5)))  # nothing has begun
    claim_folder(tmp_path, first)
    save_resume(tmp_path, {"step": 1})
    claim_folder(tmp_path, Recipe(training=made.options(4, log_every=7, recompute=True)))  # the same run
    other = Recipe(words=("two",), training=made.options(5))
    wanted = r"differs in training\.steps, words \(training\.steps: 4 there, 5 now\); choose .* with --accept-changes"
    with pytest.raises(SprachbundError, match=wanted):
        claim_folder(tmp_path, other)
    claim_folder(tmp_path, other, accept_changes=True)
    claim_folder(tmp_path, other)


def test_a_run_goes_on_with_the_corpora_that_it_was_begun_with(tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", Recipe(training=made.options(4))
    data = [tmp_path / "train", tmp_path / "dev"]
    for path in data:
        path.mkdir()
    claim_folder(run, recipe, data=data)
    for path in data:
        (path / "cuts.00000.jsonl").write_text("{}\n")
    claim_folder(run, recipe, data=data)  # nothing has begun
    save_resume(run, {"step": 1})
    claim_folder(run, recipe, data=data)
    with (data[1] / "cuts.00000.jsonl").open("a") as cuts:
        cuts.write("\n")
    wanted = r"run was begun with another \S+dev \(SHA-256 .*; choose another --out, or go on with --accept-changes"
    with pytest.raises(SprachbundError, match=wanted):
        claim_folder(run, recipe, data=data)
    claim_folder(run, recipe, data=data, accept_changes=True)
    claim_folder(run, recipe, data=data)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\n")
    claim_folder(run, recipe, data=[*data, pairs])  # as in the folder of an earlier version
    pairs.write_text("a\tc\n")
    with pytest.raises(SprachbundError, match=r"run was begun with another \S+pairs\.tsv \(SHA-256 "):
        claim_folder(run, recipe, data=[*data, pairs])
    (run / "data.json").unlink()  # as in the folder of an earlier version
    claim_folder(run, recipe, data=data)


def test_what_is_made_before_the_first_step_is_made_anew_for_another_recipe(tmp_path: Path) -> None:
    first = Recipe(training=made.options(4))
    claim_folder(tmp_path, first)
    (tmp_path / "tokenizer.model").write_text("pieces")
    (tmp_path / "live-0" / "epoch-000000").mkdir(parents=True)
    claim_folder(tmp_path, first)
    assert (tmp_path / "tokenizer.model").exists()
    assert (tmp_path / "live-0" / "epoch-000000").exists()
    claim_folder(tmp_path, Recipe(training=made.options(5)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "recipe.json"]


def test_a_run_goes_on_with_no_tokenizer_of_another_size(tmp_path: Path) -> None:
    claim_folder(tmp_path, SizedRecipe(vocabulary_size=100))
    save_resume(tmp_path, {"step": 1})
    with pytest.raises(
        SprachbundError, match=r"vocabulary_size: 100 there, 200 now\); choose another --out$"
    ):
        claim_folder(tmp_path, SizedRecipe(vocabulary_size=200), accept_changes=True)


def test_moments_go_by_name_and_groups_are_those_of_the_recipe(tmp_path: Path) -> None:
    first = made.options(4, optimizer="muon", weight_decay=0.01, rates={"encoder.layers.0.*": 1e-4})
    other = made.options(4, optimizer="muon", weight_decay=0.5, rates={"encoder.layers.1.*": 1e-5})
    moments: list[dict[str, dict[str, Tensor]]] = []
    for options, step in ((first, "save"), (other, "load")):
        model = made.make_model()
        optimizers = make_optimizers(model, options)
        fresh = [{k: v for k, v in g.items() if k != "params"} for o in optimizers for g in o.param_groups]
        files = ResumeFiles(tmp_path, model, optimizers, [], is_sharded=False)
        if step == "save":
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, float(number + 1))
            for optimizer in optimizers:
                optimizer.step()
            files.save({"step": 1}, None)
        else:
            assert files.load(None) is not None
            groups = [
                {k: v for k, v in g.items() if k != "params"} for o in optimizers for g in o.param_groups
            ]
            assert groups == fresh
        moments.append(
            {
                name: {k: v for o in optimizers if p in o.state for k, v in o.state[p].items()}
                for name, p in model.named_parameters()
            }
        )
    before, after = moments
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.keys() == after[name].keys() != set(), name
        for key, value in values.items():
            torch.testing.assert_close(after[name][key], value, rtol=0, atol=0)


def test_groups_of_shards_are_those_of_the_recipe(tmp_path: Path) -> None:
    model, written = trained("draft_network", 0, steps=3)
    files = ResumeFiles(tmp_path, model, [written], [*model.state_dict()], is_sharded=False)
    state_dict_saver.save(files._shards(None), checkpoint_id=tmp_path / SHARDS / "3", no_dist=True)
    write_text(tmp_path / SHARDS_FILE, json.dumps({"folder": "3", "step": 3}))
    again, optimizer = trained("draft_network", 1, steps=0)
    optimizer.param_groups[0]["weight_decay"] = 0.625
    assert ResumeFiles(tmp_path, again, [optimizer], [*again.state_dict()], is_sharded=False).load(None)
    assert optimizer.param_groups[0]["weight_decay"] == 0.625
    for mine, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(optimizer.state[mine]["exp_avg"], written.state[theirs]["exp_avg"])


def test_moments_without_names_fit_the_same_parameters_alone(tmp_path: Path) -> None:
    model = made.make_model()
    optimizers = make_optimizers(model, made.options(4, optimizer="adamw"))
    ResumeFiles(tmp_path, model, optimizers, [], is_sharded=False).save({"step": 1}, None)
    state = load_resume(tmp_path)
    assert state is not None
    for moments in state["optimizers"]:
        del moments["names"]
    save_resume(tmp_path, state)
    assert ResumeFiles(tmp_path, model, optimizers, [], is_sharded=False).load(None) is not None
    freeze_others(model, ("decoder.*",))
    fewer = make_optimizers(model, made.options(4, optimizer="adamw"))
    with pytest.raises(
        SprachbundError, match=r"cannot resume from .* are trained\); delete it to start anew"
    ):
        ResumeFiles(tmp_path, model, fewer, [], is_sharded=False).load(None)


LORA = ("decoder.layers.?.feed_forward.*", "encoder.layers.?.attention.query")


def adapted(root: Path, out: Path, steps: int, **options: object) -> made.Conformer:
    """A model with adapters after so many steps of four."""
    model, data = made.make_model(), made.make_training_data(root / "data")
    torch.manual_seed(0)
    add_lora(model, LORA, 4)
    chosen = made.options(4, learning_rate=2e-5, warmup_steps=0, optimizer="adamw", **options)
    train(model, data, chosen, out, dev=data, report=lambda line: None, stop_after=steps)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("frozen")
    made.make_corpus(directory / "data", 12)
    return directory


def test_what_does_not_move_is_in_no_checkpoint(root: Path, tmp_path: Path) -> None:
    adapted(root, tmp_path / "run", 2, keep_best=1, evaluate_every=1)
    state = load_resume(tmp_path / "run")
    assert state is not None
    assert all("lora" in name for name in state["model"])
    [best] = (tmp_path / "run" / "best").glob("*.safetensors")
    assert best.stat().st_size < 4 * sum(v.numel() + 100 for v in state["model"].values())
    whole = adapted(root, tmp_path / "whole", 4, keep_best=1, evaluate_every=1).state_dict()
    parts = adapted(root, tmp_path / "run", 4, keep_best=1, evaluate_every=1).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_refuses_other_frozen_weights(root: Path, tmp_path: Path) -> None:
    adapted(root, tmp_path, 2)
    model = made.make_model()
    add_lora(model, LORA, 4)
    model.get_parameter("encoder.layers.0.attention.value.weight").data[0] += 1e-6
    with pytest.raises(SprachbundError, match=r"not trained are not those that the run in .* began with"):
        train(model, made.make_training_data(root / "data"), made.options(4), tmp_path, report=lambda _: None)


@pytest.mark.parametrize("kind", ["draft", "distillation"])
def test_a_run_refuses_another_model_to_learn_from(kind: str, root: Path, tmp_path: Path) -> None:
    def run(change: float, stop_after: int | None = None) -> list[str]:
        teacher, lines = made.make_model(), list[str]()
        teacher.get_parameter("decoder.layers.0.self_attention.value.weight").data[0] += change
        options = DraftOptions(blocks=1)
        learner = (
            DraftTraining(teacher, make_network(teacher, options), options)
            if kind == "draft"
            else Distillation(made.make_model(), teacher, DistillationOptions())
        )
        data = made.make_training_data(root / "data")
        train(learner, data, made.options(4), tmp_path, report=lines.append, stop_after=stop_after)
        return lines

    run(0.0, 2)
    with pytest.raises(
        SprachbundError, match=r"of the model that is learned from are not those that the run in"
    ):
        run(1e-6)
    state = torch.load(tmp_path / RESUME_FILE)
    assert len(state.pop("learned_from")) == 64
    assert any("resumed at step 2" in line for line in run(0.0, 3))
    torch.save(state, tmp_path / RESUME_FILE)  # as an earlier version wrote it
    assert any("resumed at step 2" in line for line in run(1e-6))


def moved(model: torch.nn.Module) -> torch.Tensor:
    """Of all adapters."""
    return torch.cat([v.flatten() for name, v in model.state_dict().items() if "lora" in name])


def test_adapters_on_weights_in_16_bits_lose_no_update(root: Path, tmp_path: Path) -> None:
    start = made.make_model()
    torch.manual_seed(0)
    add_lora(start, LORA, 4)
    begun, full = moved(start), moved(adapted(root, tmp_path / "full", 4, precision="bf16"))
    model = adapted(root, tmp_path / "half", 4, frozen_bf16=True, precision="bf16")
    half = moved(model)
    updated = (full - begun).norm()
    assert half.dtype == torch.float32
    # The direction is that of the gradients of rounded weights; the steps are as long.
    assert (half - begun).norm() == pytest.approx(float(updated), rel=0.01)
    assert torch.cosine_similarity(half - begun, full - begun, 0) > 0.95
    # Adapters in 16 bits would have kept little of it.
    rounded = (begun.bfloat16().float() + (full - begun)).bfloat16().float() - begun.bfloat16().float()
    assert ((rounded == 0) & (full != begun)).float().mean() > 0.4
    frozen = dict(start.named_parameters())["encoder.layers.0.attention.value.weight"]
    kept = model.get_parameter("encoder.layers.0.attention.value.weight")
    assert torch.equal(kept, frozen.bfloat16().float())
    adapter = model.get_submodule("decoder.layers.0.feed_forward.expand")
    delta = adapter.get_delta_weight("default").detach()
    base = adapter.get_base_layer().weight.detach().clone()
    merge_lora(model)
    merged = model.get_parameter("decoder.layers.0.feed_forward.expand.weight")
    torch.testing.assert_close(merged, base + delta, rtol=0, atol=1e-7)
