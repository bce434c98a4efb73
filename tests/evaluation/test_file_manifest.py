"""Numbers of `score` and `compare` as manifests: written, run again, and what is said when they cannot be."""

import json

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.compare import row_differences
from sprachbund.evaluation.manifest import read_manifest
from sprachbund.evaluation.replay import replay as run_again
from tests.evaluation.made import made_texts
from tests.evaluation.test_commands import run


@pytest.fixture
def texts(tmp_path):
    for name, wrong in (("one", 0.2), ("other", 0.4)):
        references, hypotheses = made_texts(40, wrong, seed=len(name))
        (tmp_path / f"{name}.txt").write_text("\n".join(hypotheses) + "\n", encoding="utf-8")
    (tmp_path / "ref.txt").write_text("\n".join(references) + "\n", encoding="utf-8")
    return tmp_path


def write_score(texts, capsys):
    out = texts / "score.json"
    args = [texts / "one.txt", texts / "ref.txt", "--metrics", "BLEU,WER", "--language", "de"]
    assert run("score", *args, "--out", out, "--json") == 0
    return out, json.loads(capsys.readouterr().out)


def test_a_score_is_written_with_all_that_decides_it_and_comes_again(texts, capsys):
    out, printed = write_score(texts, capsys)
    values = json.loads(out.read_text(encoding="utf-8"))
    assert values["numbers"] == printed
    assert values["configuration"]["metrics"] == ["BLEU", "WER"]
    assert [len(file["sha256"]) for file in values["files"]] == [64, 64]
    assert {"commit", "machine", "versions", "created"} <= values.keys()
    assert values["versions"]["sacrebleu"]
    assert run("replay", out) == 0
    assert "the same: all 4 numbers came out again" in capsys.readouterr().out


def test_another_number_is_reported(texts, capsys):
    out, _ = write_score(texts, capsys)
    values = json.loads(out.read_text(encoding="utf-8"))
    values["numbers"][0]["raw"] += 0.5
    out.write_text(json.dumps(values), encoding="utf-8")
    assert run("replay", out) == 1
    assert "not the same: 1 of 4 numbers differ" in (printed := capsys.readouterr().out)
    assert "BLEU raw: was" in printed


def test_files_that_moved_with_the_manifest_are_found_and_changed_ones_refused(texts, capsys, monkeypatch):
    monkeypatch.chdir(texts)
    assert run("score", "one.txt", "ref.txt", "--metrics", "exact", "--out", "score.json") == 0
    monkeypatch.chdir("/")
    assert run_again(texts / "score.json").same
    (texts / "one.txt").write_text("something else\n" * 40, encoding="utf-8")
    with pytest.raises(SprachbundError, match=r"one\.txt has hash .* put that file back"):
        run_again(texts / "score.json")
    (texts / "one.txt").unlink()
    with pytest.raises(SprachbundError, match=r"one\.txt does not exist"):
        run_again(texts / "score.json")
    with pytest.raises(SprachbundError, match="leave out --data and --model"):
        run_again(texts / "score.json", model="bundled")


def test_a_comparison_of_texts(texts, capsys):
    out = texts / "compare.json"
    systems = [f"a={texts / 'one.txt'}", f"b={texts / 'other.txt'}", "--reference", texts / "ref.txt"]
    assert run("compare", *systems, "--draws", 50, "--seed", 3, "--out", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    values = json.loads(out.read_text(encoding="utf-8"))
    assert values["seed"] == values["configuration"]["seed"] == 3
    rows = [*printed["means"], *printed["pairs"]]
    assert [{**row, "signature": printed["signatures"][row["metric"]]} for row in rows] == values["numbers"]
    assert run("replay", out) == 0
    assert "the same" in capsys.readouterr().out
    values["configuration"]["seed"] = 4
    out.write_text(json.dumps(values), encoding="utf-8")
    assert run("replay", out, "--json") == 1


def test_a_test_has_one_name_in_manifests(texts, tmp_path):
    out = tmp_path / "compare.json"
    systems = [f"a={texts / 'one.txt'}", f"b={texts / 'other.txt'}", "--reference", texts / "ref.txt"]
    assert run("compare", *systems, "--draws", 20, "--test", "ar", "--out", out) == 0
    values = json.loads(out.read_text(encoding="utf-8"))
    assert values["configuration"]["test"] == "randomization"
    assert values["configuration"]["metrics"] == ["chrF", "BLEU"]


def test_a_field_that_nobody_knows_is_refused(texts, capsys):
    out, _ = write_score(texts, capsys)
    values = json.loads(out.read_text(encoding="utf-8"))
    values["configuration"]["luck"] = 7
    out.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(SprachbundError, match=r"score\.json: .*luck: Unexpected"):
        run_again(out)


def test_a_comparison_of_results_names_the_models(evaluated, tmp_path):
    out = tmp_path / "compare.json"
    assert run("compare", f"a={evaluated[0]}", f"b={evaluated[0]}", "--draws", 20, "--out", out) == 0
    values = json.loads(out.read_text(encoding="utf-8"))
    assert {file["model_sha256"] for file in values["files"]} == {evaluated[1].manifest.model.sha256}
    assert run_again(out).same


def test_a_manifest_of_a_later_format_names_the_release(evaluated, tmp_path):
    values = json.loads((evaluated[0] / "scores.json").read_text())
    values |= {"format": 3, "versions": {"sprachbund": "9.1"}}
    (tmp_path / "scores.json").write_text(json.dumps(values))
    with pytest.raises(
        SprachbundError, match=r"format 3, known here are formats up to 2; .*'sprachbund': '9.1'"
    ):
        read_manifest(tmp_path)


def test_a_manifest_without_failures_has_the_current_names(evaluated, tmp_path):
    values = json.loads((evaluated[0] / "scores.json").read_text())
    values["numbers"] = [{**values["numbers"][0], "metric": "span recall: judged"}]
    del values["failures"]
    (tmp_path / "scores.json").write_text(json.dumps(values))
    assert [one.metric for one in read_manifest(tmp_path).numbers] == ["span recall: evaluated"]


def test_manifests_that_are_none(tmp_path):
    path = tmp_path / "x.json"
    for values, message in (
        ({"kind": "score"}, "numbers: Field required"),
        ({"kind": "play"}, "kind: Input should be 'evaluate'"),
    ):
        path.write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(SprachbundError, match=rf"x\.json: .*{message[:10]}"):
            run_again(path)


def test_differences_of_rows():
    row = {"metric": "BLEU", "pair": "en-de", "system": "b", "score": 1.0, "interval": [0.0, None]}
    assert row_differences([row], [{**row, "score": 1.0 + 1e-12}]) == []
    assert row_differences([row], [{**row, "interval": [0.0, 1.0]}]) == [
        "BLEU en-de b interval: was [0.0, None], is [0.0, 1.0]"
    ]
    assert len(row_differences([row], [])) == 5
