"""`recipe --check` of every system, in every size and for every recipe of the repository: it comes, and is positive."""

import math
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sprachbund.cli.train import RECIPES, SIZES
from sprachbund.research import size_file
from sprachbund.training.options import read_recipe
from tests.stories.support import command

FOLDER = Path(__file__).parents[2] / "recipes" / "research"
FILES = {
    "code_switch_six": "code_switch",
    "dual_scale_memory_bound": "dual_scale",
    "dual_scale_pruning": "dual_scale",
    "sharing_low_resource": "gradient_sharing",
    "transfer_controls": "encoder_transfer",
    "transfer_rates": "encoder_transfer",
    "units_equal_steps": "discrete_units",
}
"""Recipes of the repository, and whose they are."""
OF_TRAIN = {"code_switch_bundled"}
"""Those that `train` runs."""
NONE_OF_IT = {"draft_network", "adapters"}
"""Parts that an arm may be without."""
QUICK = {("encoder_transfer", "tiny"), ("encoder_transfer", "small"), ("discrete_units", "units_equal_steps")}
"""Less than a second."""


def cases() -> Iterator[Any]:
    named = [(name, size, size_file(name, size)) for name in RECIPES for size in SIZES]
    named += [(name, stem, FOLDER / f"{stem}.toml") for stem, name in FILES.items()]
    for name, size, path in named:
        marks = () if (name, size) in QUICK else pytest.mark.slow
        yield pytest.param(name, path, id=f"{name}-{size}", marks=marks)


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Numbers in nested values, with the key that they stand under."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from numbers(each, str(name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from numbers(each, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def test_every_recipe_of_the_repository_is_estimated() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {*FILES, *OF_TRAIN}
    for stem in OF_TRAIN:
        assert tomllib.loads((FOLDER / f"{stem}.toml").read_text(encoding="utf-8"))["train"]


@pytest.mark.parametrize(("name", "path"), cases())
def test_an_estimate_is_positive(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"sprachbund.research.{name}.recipe")
    needed = module.estimate_memory(read_recipe(getattr(module, RECIPES[name]), path))
    found = list(numbers(needed.model_dump()))
    assert found
    assert all(math.isfinite(number) for _, number in found)
    assert {key for key, number in found if number <= 0} <= NONE_OF_IT
    for training in needed.of_trainings:
        assert min(training.fixed_bytes, training.batch_bytes, training.utterances, training.flops) > 0
    if name == "code_switch":  # its command measures a step besides, see tests/training/test_check.py
        return
    assert needed.of_trainings
    monkeypatch.setattr(module, "estimate_memory", lambda recipe: needed)
    ran = command("recipe", name, "--size", path, "--check")
    assert (ran.code, ran.err) == (0, "")
    assert all(training.name in ran.out for training in needed.of_trainings)
