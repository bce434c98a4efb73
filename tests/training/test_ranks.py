"""Several processes give the gradients of one, for every objective, with batches of fewer utterances than processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.util.distributed import launched_processes, local_device
from tests.training.objectives import OBJECTIVES
from tests.training.ranks import BY_FOUR, STEPS

ROOT = Path(__file__).parents[2]
UNIT_ROUNDOFF = 2.0**-24
TOLERANCE = 1000 * UNIT_ROUNDOFF
"""Relative, of the norm of all gradients: processes add up some hundred terms in another order, each rounded once.

A token that is counted twice, or a mean of means in the place of a sum, moves the gradient by more than a hundredth.
"""
ROUGH = {"speech LLM": 10, "speech LLM, two kinds of data": 10}
"""How many times as much where weights that are far too large amplify rounding."""
NOT_SHARED = "router balance"
"""In the log of a speech LLM: the mean of the processes' own; it has no weight here."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("ranks"), "1,2,4", "--some")


def trained(directory: Path, *given: str) -> Path:
    command = (sys.executable, "-m", "tests.training.ranks", directory, *given)
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    why = [path.read_text()[-2000:] for path in sorted(directory.glob("*/failure.*.txt"))]
    assert ran.returncode == 0, (ran.stderr[-2000:], why)
    return directory


def norm(gradients: dict[str, Tensor]) -> float:
    return float(sum(value.double().square().sum() for value in gradients.values()) ** 0.5)


def without_balance(line: str) -> list[str]:
    words = line.replace(NOT_SHARED, "balance").split()
    return [w for n, w in enumerate(words) if "balance" not in words[max(0, n - 1) : n + 1]]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_and_losses_are_those_of_one_process(name: str, root: Path) -> None:
    for count in (2, 4) if name in BY_FOUR else (2,):
        compare(root, name, count)


@pytest.mark.slow
@pytest.mark.skipif("ALL_RANKS" not in os.environ, reason="half a minute of two cores; set ALL_RANKS=1")
def test_gradients_of_four_processes_too_are_those_of_one(tmp_path: Path) -> None:
    rest = [name for name in OBJECTIVES if name not in BY_FOUR]
    root = trained(tmp_path, "1,4", *rest)
    for name in rest:
        compare(root, name, 4)


def compare(root: Path, name: str, count: int) -> None:
    one, many = (torch.load(root / str(n) / f"{name}.pt") for n in (1, count))
    for size, steps in STEPS.items():
        assert len(one[size]["gradients"]) == len(many[size]["gradients"]) == steps
        _compare(one[size], many[size], TOLERANCE * ROUGH.get(name, 1))


def _compare(one: dict[str, Any], many: dict[str, Any], tolerance: float) -> None:
    for wanted, found in zip(one["gradients"], many["gradients"], strict=True):
        assert found.keys() == wanted.keys(), "another set of parameters was trained"
        assert norm(wanted) > 0
        differences = {key: found[key] - wanted[key] for key in wanted}
        assert norm(differences) <= tolerance * norm(wanted)
    for wanted, found in zip(one["losses"], many["losses"], strict=True):
        for a, b in zip(without_balance(wanted), without_balance(found), strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-3, abs=2e-3), (wanted, found)
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
