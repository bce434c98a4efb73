"""The recipe from data to table on the tiny size, by the command; and that a second run does nothing again."""

import json
from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.data.editions import edition, make_edition
from sprachbund.models.conformer.directory import load
from sprachbund.models.sharing_plan import SharingPlan


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_edition(directory / "data", edition("tiny", heldout_sentences=8), workers=1)
    assert main(command(directory)) == 0
    return directory


def command(directory: Path) -> list[str]:
    return [
        "recipe",
        "gradient_sharing",
        "--size",
        "tiny",
        "--data",
        str(directory / "data"),
        "--out",
        str(directory / "run"),
        "--threads",
        "1",
    ]


def test_every_arm_has_its_row(run: Path) -> None:
    rows = json.loads((run / "run" / "table.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["uft", "sharing", "one branch a language", "lora"]
    assert all({"chrF all", "chrF starved", "p all"} <= row.keys() for row in rows)


def test_arms_are_what_they_are_called(run: Path) -> None:
    seed = run / "run" / "seed-0"
    plans = {
        name: load(seed / name / "run" / "model").sharing_plan
        for name in ("uft", "sharing", "one-branch-a-language", "lora")
    }
    assert plans["uft"] is None
    assert plans["lora"] is None
    for name in ("sharing", "one-branch-a-language"):
        plan = plans[name]
        assert isinstance(plan, SharingPlan)
        assert sorted(tag for group in plan.splits[0].groups for tag in group) == ["de", "en"]
    assert plans["one-branch-a-language"].splits[0].groups == (("de",), ("en",))


def test_frozen_parts_did_not_move(run: Path) -> None:
    """The second stage trains the last two encoder layers and what is new; adapters are merged into the encoder."""
    seed = run / "run" / "seed-0"
    first = load(seed / "first" / "model").state_dict()
    for name, moving in (("uft", ("encoder.layers.1.", "encoder.layers.2.")), ("lora", ("encoder.layers.",))):
        then = load(seed / name / "run" / "model").state_dict()
        assert then.keys() == first.keys()
        moved = {key for key in first if not first[key].equal(then[key])}
        assert moved
        assert all(key.startswith(moving) for key in moved), name


def test_a_second_run_makes_nothing_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}
    assert main([*command(run), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("model.safetensors")} == before
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["recipe", "gradient"], "no recipe 'gradient'; there are gradient_sharing"),
        (["recipe", "gradient_sharing", "--size", "huge"], "no size 'huge'; there are tiny, small"),
        (["recipe", "gradient_sharing", "--set", "arm=1"], "unknown key arm; did you mean arms?"),
        (["recipe", "gradient_sharing", "--size", "tiny"], "holds no cuts.*.jsonl"),
    ],
)
def test_bad_input(changed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*changed, "--data", str(tmp_path), "--out", str(tmp_path / "run")]) != 0
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
