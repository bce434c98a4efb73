"""`share plan`, `share show` and `share diff` as a person runs them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.research.gradient_sharing.made import as_groups, planted_groups, planted_rows
from tests.stories.support import Ran, command

PARTS = (1, 3)


def gradients(path: Path, *, common: float = 0.5) -> Path:
    """A file as anybody would write it."""
    arrays = {
        f"net.{layer}.mlp|{tag}": 3 * rows
        for layer in range(3)
        for tag, rows in planted_rows(PARTS, apart=0.3 + 0.4 * layer, common=common).items()
    }
    np.savez(path, **arrays)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return gradients(tmp_path / "gradients.npz")


def failed(ran: Ran, *parts: str, code: int = 1) -> None:
    assert ran.code == code, ran.err
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    for part in ("sprachbund: error: ", *parts):
        assert part in ran.err


def test_plan_of_anybodys_gradients_as_json(file: Path, tmp_path: Path) -> None:
    ran = command("share", "plan", file, "--json", "--out", tmp_path / "plan.json")
    assert ran.code == 0
    result = json.loads(ran.out)
    split = result["splits"][0]
    assert as_groups(split["groups"]) == planted_groups(PARTS, planted_rows(PARTS))
    assert split["delta"] == pytest.approx(split["self_similarity"] - split["cross_similarity"], abs=2e-6)
    assert sorted(result["modules"]) == [f"net.{layer}.mlp" for layer in range(3)]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["splits"][0]["groups"] == split["groups"]
    assert written["modules"] == result["modules"]


def test_plan_in_words(file: Path) -> None:
    ran = command("share", "plan", file, "--modules", "2", "--rho", "0.4", "--private-widths", "energy")
    assert ran.code == 0
    assert ran.out.count("\nsplit net.") == 2
    assert "40.0% of the inner width" in ran.out
    assert "4 languages (aeb bem cs de), 3 modules, 50 vectors of each language" in ran.out


def test_every_option_reaches_the_plan(file: Path) -> None:
    ran = command(
        *("share", "plan", file, "--json", "--modules", "2", "--groups", "3", "--choose-by", "separation"),
        *("--thresholds", "0.001,0.002,0.003", "--ratios", ".8,.7,.6,.1", "--private-widths", "energy"),
        *("--start", "random", "--veto", "0.5", "--seed", "7", "--cluster", "kmeans"),
    )
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert [split["module"] for split in result["splits"]] == ["net.2.mlp", "net.1.mlp"]
    for split in result["splits"]:
        assert len(split["groups"]) == 3
        assert split["shared_ratio"] == 0.1
        assert split["private_shares"] == split["energy_shares"]
        assert (split["start"], split["seed"], split["clustering"]) == ("random", 7, "kmeans")


@pytest.mark.slow
def test_show_gradients_and_plans(file: Path, tmp_path: Path) -> None:
    command("share", "plan", file, "--out", tmp_path / "plan.json")
    from_gradients = command("share", "show", file)
    assert from_gradients.code == 0
    assert from_gradients.out == command("share", "show", tmp_path / "plan.json").out
    assert from_gradients.out.startswith("who fights most, and where:")
    for name in ("report.html", "report.png"):
        ran = command("share", "show", tmp_path / "plan.json", "--out", tmp_path / name)
        assert ran.err == f"sprachbund: the report is in {tmp_path / name}\n"
        assert (tmp_path / name).stat().st_size > 10_000


def test_show_against_another_checkpoint(file: Path, tmp_path: Path) -> None:
    before = gradients(tmp_path / "before.npz", common=2.0)
    ran = command("share", "show", file, "--against", before)
    assert "conflict grew in" in ran.out
    changes = json.loads(command("share", "show", file, "--against", before, "--json").out)["changes"]
    assert [change["module"] for change in changes] == [f"net.{layer}.mlp" for layer in range(3)]
    assert changes[2]["change"] > 0


def test_diff(file: Path, tmp_path: Path) -> None:
    for name, options in (("a", ()), ("b", ("--rho", "0.3", "--start", "svd"))):
        command("share", "plan", file, "--out", tmp_path / f"{name}.json", *options)
    ran = command("share", "diff", tmp_path / "a.json", tmp_path / "b.json")
    assert ran.code == 0
    assert "start neuron against svd" in ran.out
    same = command("share", "diff", tmp_path / "a.json", tmp_path / "a.json", "--json")
    assert json.loads(same.out)["same"]


def test_bad_input_is_one_line(file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("no")
    old = tmp_path / "old.json"
    old.write_text('{"version": 9}')
    by_hand = tmp_path / "hand.json"
    by_hand.write_text('{"splits": [{"module": "m", "groups": [["a"], ["b"]], "shared_ratio": 0.5}]}')
    failed(command("share", "plan", tmp_path / "none.npz"), "none.npz", "is not a file")
    failed(command("share", "plan", text), "not an .npz")
    failed(command("share", "plan", file, "--groups", "9"), "9 groups", "2 to 4")
    failed(command("share", "plan", file, "--modules", "9"), "9 modules", "1 to 3")
    failed(command("share", "plan", file, "--thresholds", "a,b"), "--thresholds", "'a,b'", code=2)
    failed(command("share", "plan", file, "--ratios", "0.5"), "2 thresholds need 3 ratios", code=2)
    failed(command("share", "plan", file, "--start", "magic"), "neuron, svd, random", code=2)
    failed(command("share", "plan", file, "--out", file), "name a .json", code=2)
    failed(command("share", "show", tmp_path / "none.json"), "none.json", "does not exist")
    failed(command("share", "show", old), "version 9")
    failed(command("share", "show", file, "--out", tmp_path / "r.pdf"), ".html or .png", code=2)
    failed(command("share", "show", by_hand, "--out", tmp_path / "r.png"), "no evidence")
    failed(command("share", "show", by_hand, "--against", file), "hand.json", "no evidence")
    failed(command("share", "diff", old, old), "version 9")
    failed(
        command("share", "diff", file, by_hand),
        "is not UTF-8; mend it, or plan again with `sprachbund share plan",
    )


def test_a_plan_is_not_written_into_a_model_which_could_not_be_loaded_then(
    file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model.json"
    folder.mkdir()
    for out in (tmp_path, folder):
        failed(command("share", "plan", file, "--out", out), f"--out is {out}; name a .json file", code=2)
    assert list(folder.iterdir()) == []
