"""`train` on a recipe with `draft` in it: from a model directory to one with a draft beside the weights."""

from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import save
from sprachbund.models.io import load
from sprachbund.training.draft_recipe import DraftRecipe
from sprachbund.training.options import read_recipe
from tests.training.made import make_corpus, make_model

TRAINING = """
[training]
steps = 3
precision = "no"
batch_s = 6.0
num_workers = 0
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("draft")
    make_corpus(directory / "data", 16)
    save(make_model(), directory / "model")
    return directory


def recipe(root: Path, kind: str, more: str = "") -> Path:
    path = root / f"{kind}.toml"
    path.write_text(
        f'draft = "{kind}"\nmodel = "{root}/model"\nlanguages = ["en", "de"]\n{more}\n'
        f'[[train]]\npath = "{root}/data"\n[[dev]]\npath = "{root}/data"\n'
        "[network]\nblocks = 1\n" + (TRAINING if kind != "token-map" else "")
    )
    return path


@pytest.mark.parametrize("kind", ["token-map", "parasite"])
def test_train_puts_a_draft_beside_the_model(
    kind: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe(root, kind)), "--out", str(tmp_path)]) == 0
    model = load(tmp_path / "model")
    assert list(model.drafts) == [kind]
    assert "acceptance on the dev data" in capsys.readouterr().out
    same = (tmp_path / "model/model.safetensors").read_bytes() == (
        root / "model/model.safetensors"
    ).read_bytes()
    assert same


def test_a_map_of_the_data_predicts_its_texts(root: Path, tmp_path: Path) -> None:
    from sprachbund.training.draft_recipe import run

    values = read_recipe(DraftRecipe, recipe(root, "token-map"))
    lines: list[str] = []
    run(values, tmp_path, report=lines.append)
    assert "contexts in 2 languages" in lines[0]


def test_what_is_missing_or_unknown_is_named(root: Path) -> None:
    path = root / "untrained.toml"
    path.write_text(recipe(root, "parasite").read_text().replace(TRAINING, ""))
    with pytest.raises(SprachbundError, match=r"a parasite has to be trained: give \[training\]"):
        read_recipe(DraftRecipe, path)
    with pytest.raises(SprachbundError, match="unknown key min_cout; did you mean min_count"):
        read_recipe(DraftRecipe, recipe(root, "token-map", "min_cout = 2"))


def test_memory_of_a_network_is_checked_and_that_of_a_map_is_not(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--out", str(tmp_path), "--check"]
    assert main(["train", str(recipe(root, "parasite")), *command]) == 0
    assert "it fits with the settings as they are" in capsys.readouterr().out
    assert main(["train", str(recipe(root, "token-map")), *command, "--accept-changes"]) != 0
    assert "there is no memory to check" in capsys.readouterr().err
