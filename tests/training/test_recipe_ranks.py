"""Two processes and one recipe: one of them writes, a run goes on to the same bits, an error in one ends both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sprachbund.cli import USAGE, main
from sprachbund.errors import SprachbundError
from sprachbund.research.code_switch import recipe as code_switch
from sprachbund.research.discrete_units import recipe as discrete_units
from sprachbund.research.dual_scale import recipe as dual_scale
from sprachbund.research.encoder_transfer import recipe as encoder_transfer
from sprachbund.research.gradient_sharing import recipe as gradient_sharing
from tests.training.recipe_ranks import BROKEN

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipes")
    command = (sys.executable, "-m", "tests.training.recipe_ranks", directory)
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return directory


def ended(root: Path, case: str) -> dict[str, Any]:
    found = json.loads((root / "found.json").read_text())[case]
    paths = [root / case / "2" / f"failure.{rank}.txt" for rank in (0, 1)]
    return {
        **found,
        "errors": [path.read_text().strip().splitlines()[-1] if path.exists() else "" for path in paths],
    }


def test_a_streaming_recipe_without_ctc_goes_on_to_the_same_bits(root: Path) -> None:
    found = ended(root, "whole and in parts")
    assert found["codes"] == [0, 0], found["errors"]
    out = root / "whole and in parts" / "out"
    whole, parts = (load_file(out / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) for name in whole)


def test_files_are_written_by_the_first_process_alone(root: Path) -> None:
    first, second = (
        json.loads((root / "whole and in parts" / f"out.writes.{rank}.json").read_text()) for rank in (0, 1)
    )
    assert any(path.endswith("recipe.json") for path in first)
    assert any("best" in path for path in first)
    assert second == []


def test_data_that_one_process_cannot_read_end_both_with_its_message(root: Path) -> None:
    found = ended(root, "broken data")
    assert found["codes"] == [1, 1]
    assert found["errors"][1].endswith(BROKEN)
    assert found["errors"][0].endswith(f"process 1 of 2 failed: {BROKEN}")
    assert found["seconds"] < 60


def test_an_error_in_the_process_that_writes_ends_both(root: Path) -> None:
    found = ended(root, "full disk")
    assert found["codes"] == [1, 1]
    assert "No space left on device" in found["errors"][0]
    assert "process 0 of 2" in found["errors"][1]
    assert found["seconds"] < 60


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize(
    "module", [code_switch, discrete_units, dual_scale, encoder_transfer, gradient_sharing]
)
def test_a_recipe_that_starts_its_own_processes_refuses_torchrun(module: Any, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"is one process, and 2 were started; run it without torchrun"):
        module.run(None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize(
    "command",
    [
        "units fit CORPUS --encoder MODEL --out OUT",
        "data make phrasebook --out OUT",
        "recipe discrete_units --data DATA --out OUT",
        "share plan FILE.npz --out OUT",
    ],
)
def test_a_command_whose_files_every_process_would_write_refuses_torchrun(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == USAGE
    assert "is one process, and 2 were started; run it without torchrun" in capsys.readouterr().err
