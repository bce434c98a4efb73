"""Several processes give the gradients of one, for every objective, with batches of fewer utterances than processes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from sprachbund.errors import SprachbundError
from sprachbund.training.loop import train
from sprachbund.training.parallel import whole_tensor
from sprachbund.util.distributed import launched_processes, local_device
from tests.training import made
from tests.training.objectives import OBJECTIVES, Objective
from tests.training.ranks import fork_ranks

STEPS = {1: 1, 3: 2}
"""Most utterances of a batch, fewer than there are processes, of which some then have none; and steps with these."""
BY_FOUR = (
    "attention and CTC",
    "streaming transducer without CTC",
    "text LLM",
    "speech LLM, two kinds of data",
    "tokens by CTC and attention",
    "dual scale",
)
"""Objectives that differ most in how they go from utterances to a sum; all of them by four take longer."""
VARIANTS: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    1: {"": {}, ".parts": {"accumulate": 3}},
    2: {"": {}, ".shards": {"shard": True}},
    4: {"": {}},
}
WITHOUT = {
    # Each part draws its look-ahead; the gate sees as many means as there are parts; kinds of data have means by part.
    ".parts": {
        "streaming transducer",
        "streaming transducer without CTC",
        "dual scale",
        "dual scale, no gate",
        "speech LLM, two kinds of data",
    },
    ".shards": set(),
}


def of_variant(variant: str, names: Iterable[str]) -> list[str]:
    """Those of some objectives that can be trained so: `BY_FOUR`, and all with ALL_RANKS set."""
    chosen = OBJECTIVES if "ALL_RANKS" in os.environ else BY_FOUR
    return [name for name in names if name in chosen and name not in WITHOUT[variant]]


UNIT_ROUNDOFF = 2.0**-24
TOLERANCE = 1000 * UNIT_ROUNDOFF
"""Relative, of the norm of all gradients: processes add up some hundred terms in another order, each rounded once.

A token that is counted twice, or a mean of means in the place of a sum, moves the gradient by more than a hundredth.
"""
ROUGH = {"speech LLM": 10, "speech LLM, two kinds of data": 10}
"""How many times as much where weights that are far too large amplify rounding."""
NOT_SHARED = "router balance"
"""In the log of a speech LLM: the mean of the processes' own; it has no weight here."""


class Gradients:
    """Records the whole gradients that the optimizer sees, step by step, by the number of their parameter."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self._handle = register_optimizer_step_pre_hook(self._record)

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        if all(float(group["lr"]) == 0 for group in optimizer.param_groups):
            return  # torch prepares the moments of an optimizer by a step that moves nothing
        self.steps.append(
            {str(n): whole_tensor(p.grad).detach().clone() for n, p in enumerate(moved) if p.grad is not None}
        )

    def end(self) -> None:
        self._handle.remove()


def run(objective: Objective, directory: Path, **changes: Any) -> dict[int, Any]:
    """Gradients, progress and buffers of a few steps, so small that the weights hardly move."""
    result: dict[int, Any] = {}
    for size, steps in STEPS.items():
        gradients, lines = Gradients(), []
        chosen = made.options(
            steps,
            max_utterances=size,
            batch_s=100.0,
            learning_rate=1e-7,
            warmup_steps=1,
            weight_decay=0.0,
            clip_norm=1e9,
            log_every=1,
            save_every=1000,
            **changes,
        )
        train(objective.model, objective.corpus, chosen, directory / f"run-{size}", report=lines.append)
        gradients.end()
        losses = [line.split(" | ")[0] for line in lines if line.startswith("step ")]
        buffers = {name: buffer.clone() for name, buffer in objective.model.named_buffers()}
        result[size] = {"gradients": gradients.steps, "losses": losses, "buffers": buffers}
    return result


def train_objectives(root: Path, wanted: Mapping[int, Sequence[str]]) -> None:
    """Train the objectives named for each number of processes, all at once.

    `root`/COUNT/OBJECTIVE.pt is what the first process saw: the gradient of each step. One process also makes its
    batches in three parts, into OBJECTIVE.parts.pt, and two also share the weights out, into OBJECTIVE.shards.pt.
    """
    made.make_corpus(root / "data", 8)
    made.make_corpus(root / "other", 10)
    names = dict.fromkeys(name for some in wanted.values() for name in some)
    objectives = {name: OBJECTIVES[name](root) for name in names}

    def work(rank: int, count: int) -> None:
        for name in wanted[count]:
            for variant, changes in VARIANTS[count].items():
                if variant and name not in of_variant(variant, wanted[count]):
                    continue
                model = objectives[name].model
                before = {key: value.clone() for key, value in model.state_dict().items()}
                trained = [p.requires_grad for p in model.parameters()]
                result = run(objectives[name], root / str(count) / f"{name}{variant}" / str(rank), **changes)
                model.load_state_dict(before)
                for parameter, is_trained in zip(model.parameters(), trained, strict=True):
                    parameter.requires_grad_(is_trained)
                if rank == 0:
                    torch.save(result, root / str(count) / f"{name}{variant}.pt")

    codes = fork_ranks([*wanted], work, root)
    why = [path.read_text()[-2000:] for path in sorted(root.glob("*/failure.*.txt"))]
    assert not any(codes.values()), (codes, why)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    train_objectives(directory, {1: [*OBJECTIVES], 2: [*OBJECTIVES], 4: BY_FOUR})
    return directory


def norm(gradients: dict[str, Tensor]) -> float:
    return float(sum(value.double().square().sum() for value in gradients.values()) ** 0.5)


def without_balance(line: str) -> list[str]:
    words = line.replace(NOT_SHARED, "balance").split()
    return [w for n, w in enumerate(words) if "balance" not in words[max(0, n - 1) : n + 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_and_losses_are_those_of_one_process(name: str, root: Path) -> None:
    for count in (2, 4) if name in BY_FOUR else (2,):
        compare(root, name, count)


@pytest.mark.slow
@pytest.mark.parametrize("name", of_variant(".parts", OBJECTIVES))
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name: str, root: Path) -> None:
    compare(root, name, 1, ".parts")


@pytest.mark.slow
@pytest.mark.parametrize("name", of_variant(".shards", OBJECTIVES))
def test_processes_that_hold_shares_of_the_weights_have_the_gradient_of_one(name: str, root: Path) -> None:
    compare(root, name, 2, ".shards")


@pytest.mark.slow
@pytest.mark.skipif("ALL_RANKS" not in os.environ, reason="half a minute of two cores; set ALL_RANKS=1")
def test_gradients_of_four_processes_too_are_those_of_one(tmp_path: Path) -> None:
    rest = [name for name in OBJECTIVES if name not in BY_FOUR]
    train_objectives(tmp_path, {1: rest, 4: rest})
    for name in rest:
        compare(tmp_path, name, 4)


def compare(root: Path, name: str, count: int, variant: str = "") -> None:
    one, many = (torch.load(root / str(n) / f"{name}{which}.pt") for n, which in ((1, ""), (count, variant)))
    for size, steps in STEPS.items():
        assert len(one[size]["gradients"]) == len(many[size]["gradients"]) == steps
        _compare(one[size], many[size], TOLERANCE * ROUGH.get(name, 1), zeros=variant == ".shards")


def _compare(one: dict[str, Any], many: dict[str, Any], tolerance: float, *, zeros: bool = False) -> None:
    """With `zeros`, parameters that the batch leaves unused may have gradients of zero."""
    for wanted, result in zip(one["gradients"], many["gradients"], strict=True):
        assert result.keys() == wanted.keys() or zeros, "another set of parameters was trained"
        assert norm(wanted) > 0
        differences = {key: result[key] - wanted.get(key, 0) for key in result}
        assert norm(differences) <= tolerance * norm(wanted)
    for wanted, result in zip(one["losses"], many["losses"], strict=True):
        for a, b in zip(without_balance(wanted), without_balance(result), strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-3, abs=2e-3), (wanted, result)
    for key, buffer in one["buffers"].items():
        torch.testing.assert_close(many["buffers"][key], buffer, rtol=1e-5, atol=1e-5)


def test_every_process_has_a_gpu_of_its_own_or_none_has() -> None:
    assert local_device({"LOCAL_RANK": "3"}, 0) == torch.device("cpu")
    assert local_device({"LOCAL_RANK": "3"}, 4) == torch.device("cuda", 3)
    assert local_device({}, 2) == torch.device("cuda", 0)
    with pytest.raises(
        SprachbundError, match=r"process 2 of this machine has no GPU .* there are 2; .*-node 2"
    ):
        local_device({"LOCAL_RANK": "2"}, 2)


def test_a_process_is_alone_unless_a_launcher_says_its_rank() -> None:
    assert launched_processes({}) == 1
    assert launched_processes({"WORLD_SIZE": "8"}) == 1
    assert launched_processes({"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}) == 8
