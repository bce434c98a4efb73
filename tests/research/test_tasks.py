"""What a folder of a study was begun with: its data may lie elsewhere, and be no other."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from sprachbund.errors import SprachbundError
from sprachbund.research import size_file
from sprachbund.research.code_switch.options import CodeSwitchRecipe
from sprachbund.research.code_switch.recipe import run as run_code_switch
from sprachbund.research.discrete_units.options import DiscreteUnitsRecipe
from sprachbund.research.discrete_units.recipe import run as run_discrete_units
from sprachbund.research.dual_scale.options import DualScaleRecipe
from sprachbund.research.dual_scale.recipe import run as run_dual_scale
from sprachbund.research.gradient_sharing.options import GradientSharingRecipe
from sprachbund.research.gradient_sharing.recipe import run as run_gradient_sharing
from sprachbund.research.tasks import DATA_FILE, remember
from sprachbund.training.options import read_recipe
from tests.training.made import make_corpus

PARTS = ("train", "dev", "test", "monolingual-train", "monolingual-dev", "monolingual-test")


class Options(BaseModel):
    """Options of a study."""

    steps: int = 1


def remember_with(out: Path, data: Sequence[Path]) -> None:
    out.mkdir(exist_ok=True)
    remember(out, Options(), may_change=(), data=data)


def make_parts(directory: Path, count: int = 2) -> list[Path]:
    for name in PARTS:
        make_corpus(directory / name, count)
    return [directory / name for name in PARTS]


def test_data_may_have_moved_but_are_the_same(tmp_path: Path) -> None:
    parts, out = make_parts(tmp_path / "data"), tmp_path / "run"
    remember_with(out, parts[:2])
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    remember_with(out, [tmp_path / "moved" / name for name in (*PARTS, "spliced-test")])
    assert json.loads((out / DATA_FILE).read_text()).keys() == set(PARTS)
    shutil.rmtree(tmp_path / "moved" / "test")
    make_corpus(tmp_path / "moved" / "test", 3)
    with pytest.raises(
        SprachbundError, match=r"holds a study of other data: .*moved/test has other utterances"
    ):
        remember_with(out, [tmp_path / "moved" / name for name in PARTS])
    (out / DATA_FILE).write_text("[")
    with pytest.raises(
        SprachbundError, match=r"data\.json.*; delete it if the study was begun with the data"
    ):
        remember_with(out, parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "run"),
    [
        ("code_switch", CodeSwitchRecipe, run_code_switch),
        ("discrete_units", DiscreteUnitsRecipe, run_discrete_units),
        ("dual_scale", DualScaleRecipe, run_dual_scale),
        ("gradient_sharing", GradientSharingRecipe, run_gradient_sharing),
    ],
)
def test_a_folder_with_numbers_of_other_data_is_refused(
    name: str, kind: type, run: object, tmp_path: Path
) -> None:
    parts = make_parts(tmp_path / "data")
    recipe = read_recipe(kind, size_file(name, "tiny"), [f'data="{tmp_path / "data"}"'])
    (tmp_path / "run").mkdir()
    remember(tmp_path / "run", recipe, may_change=("data",), data=parts)
    shutil.rmtree(parts[2])
    make_corpus(parts[2], 3)
    with pytest.raises(
        SprachbundError, match=r"holds a study of other data: .*data/test has other utterances"
    ):
        run(recipe, tmp_path / "run", report=lambda line: None)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "kind", "run", "change"),
    [
        ("discrete_units", DiscreteUnitsRecipe, run_discrete_units, "learning_rates=[1e-3, 2e-3]"),
        ("dual_scale", DualScaleRecipe, run_dual_scale, "seeds=[0, 1]"),
    ],
)
def test_seeds_are_added_behind_the_first_whose_numbers_are_used_for_all(
    name: str, kind: type, run: object, change: str, tmp_path: Path
) -> None:
    make_parts(tmp_path / "data")
    changes = [f'data="{tmp_path / "data"}"', change]
    recipe = read_recipe(kind, size_file(name, "tiny"), [*changes, "seeds=[0, 1]"])
    (tmp_path / "run").mkdir()
    remember(tmp_path / "run", recipe, may_change=(), data=())
    remember(
        tmp_path / "run",
        recipe.model_copy(update={"seeds": (0, 2, 1)}),
        may_change=("seeds",),
        data=(),
        first_stays=("seeds",),
    )
    other = recipe.model_copy(update={"seeds": (1, 0)})
    with pytest.raises(SprachbundError, match=r"was begun with seeds\[0\] 0, not 1; give another --out"):
        run(other, tmp_path / "run", report=lambda line: None)  # type: ignore[operator]
