"""The README of every published system names its paper, its command, and files that exist."""

import re
from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.cli.train import RECIPES
from sprachbund.research import size_file
from sprachbund.training.options import read_recipe
from sprachbund.training.recipe import TranslatorRecipe

ROOT = Path(__file__).parents[2]
RESEARCH = ROOT / "src" / "sprachbund" / "research"
PAPERS = {
    "gradient_sharing": "2603.25836",
    "dual_scale": "2508.11189",
    "code_switch": "2511.10670",
    "discrete_units": "2309.15826",
    "encoder_transfer": "2606.24169",
}
SIZES = ("tiny", "small", "paper")


def test_every_system_has_a_readme() -> None:
    assert set(RECIPES) == set(PAPERS) == {path.parent.name for path in RESEARCH.glob("*/README.md")}


@pytest.mark.parametrize("name", PAPERS)
def test_a_readme_names_paper_command_and_sizes(name: str) -> None:
    text = (RESEARCH / name / "README.md").read_text(encoding="utf-8")
    assert f"[arXiv {PAPERS[name]}](https://arxiv.org/abs/{PAPERS[name]})" in text
    assert f"sprachbund recipe {name} --size small --data DIR --out DIR" in text
    for size in SIZES:
        assert f"`{size}`" in text
        assert size_file(name, size).is_file()


@pytest.mark.parametrize("name", PAPERS)
def test_files_and_modules_of_a_readme_exist(name: str) -> None:
    folder = RESEARCH / name
    text = (folder / "README.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`([\w/]+\.py)`", text))
    local = {file for file in files if "/" not in file}
    assert local == {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert {file for file in files - local if not (RESEARCH.parent / file).is_file()} == set()
    for module in re.findall(r"`sprachbund\.([\w.]+)`", text):
        path = RESEARCH.parent / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (folder / target).is_file(), target
    assert "<!-- table: benchmark from ../../../../docs/results/" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes" / "research").glob("*.toml")), ids=lambda path: path.stem
)
def test_experiments_can_be_run_as_their_first_lines_say(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands in the comment name the recipe and this file; its shapes can be built."""
    text = path.read_text("utf-8")
    trained = re.findall(r"sprachbund train (\S+)", text)
    assert all(ROOT / named == path for named in trained)
    commands = re.findall(r"sprachbund recipe (\w+) --size (\S+)", text)
    assert commands
    if trained:  # what it is compared with is another recipe's
        assert read_recipe(TranslatorRecipe, path).card.name
        assert all((ROOT / size).is_file() for _, size in commands)
        return
    for name, size in commands:
        assert ROOT / size == path
        assert main(["recipe", name, "--size", str(ROOT / size), "--check"]) == 0
    assert "parameters" in capsys.readouterr().out
