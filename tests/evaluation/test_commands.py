"""The verbs of this room, end to end."""

import json

import pytest
import typer

from sprachbund.cli import evaluate
from sprachbund.cli.console import UsageError
from sprachbund.errors import SprachbundError
from tests.models.whisper_support import make_directory


def run(verb: str, *args):
    app = typer.Typer()
    app.callback()(lambda: None)
    evaluate.register(app)
    command = typer.main.get_command(app)
    try:
        with command.make_context("sprachbund", [verb, *map(str, args)]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


@pytest.fixture(scope="module")
def results(corpus, model_directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("verbs") / "out"
    page = out.parent / "page.html"
    options = [
        "--model",
        model_directory,
        "--to",
        "de,Russian",
        "--limit",
        6,
        "--no-speech",
        1,
        "--threads",
        1,
    ]
    assert run("evaluate", corpus, *options, "--out", out, "--report", page) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    return out


def test_evaluate_prints_a_manifest_for_machines(corpus, model_directory, capsys):
    args = [
        "--model",
        model_directory,
        "--to",
        "de",
        "--limit",
        2,
        "--no-speech",
        0,
        "--threads",
        1,
        "--json",
    ]
    assert run("evaluate", corpus, *args) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {n["member"] for n in printed["numbers"] if n["group"] == "pair"} <= {"de-de", "en-de"}
    assert printed["failures"][0]["failure"] != "hallucination"


@pytest.mark.slow
def test_two_models_side_by_side(corpus, model_directory, tmp_path, capsys):
    options = ["--model", model_directory, "--to", "de", "--limit", 2, "--no-speech", 0, "--threads", 1]
    page, out = tmp_path / "page.html", tmp_path / "out"
    with pytest.raises(SprachbundError, match="nowhere"):
        run("evaluate", corpus, *options, "--out", out, "--speed-against", tmp_path / "nowhere", "--offline")
    make_directory(tmp_path / "whisper")
    others = ["ru,en" if option == "de" else option for option in options]
    with pytest.raises(SprachbundError, match=r"no utterance of .* with the same targets"):
        run("evaluate", corpus, *others, "--out", out, "--speed-against", tmp_path / "whisper")
    assert not out.exists()  # refused before the evaluation, not behind it
    other = tmp_path / "other"
    other.symlink_to(model_directory)
    assert run("evaluate", corpus, *options, "--out", out, "--speed-against", other, "--report", page) == 0
    assert "speed side by side" in capsys.readouterr().out
    race = json.loads((out / "scores.json").read_text(encoding="utf-8"))["race"]
    assert [row["system"] for row in race] == [str(other), str(model_directory)]
    assert race[0]["time_ratio"] == race[0]["peak_memory_ratio"] == 1
    # The same model twice: processes that hold the same, whatever this one holds.
    assert race[1]["peak_memory_ratio"] == pytest.approx(1, abs=0.1)
    assert 50 < race[0]["peak_memory_mb"] < 3_000
    assert "<h2>Speed side by side</h2>" in page.read_text(encoding="utf-8")


def test_compare(results, capsys):
    assert run("compare", f"a={results}", f"b={results}", "--draws", 20) == 0
    printed = capsys.readouterr().out
    assert "no difference between b and a may be claimed" in printed
    assert run("compare", f"a={results}", f"b={results}", "--draws", 20, "--test", "ar", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["systems"] == ["a", "b"]
    assert result["pairs"][1]["interval"] is None
    for given, message in (
        (("--test", "x"), "--test is 'x'; choose one of bootstrap, randomization, bs, ar"),
        (("--draws", 9), "--draws is 9; give 10 or more"),
    ):
        with pytest.raises(SprachbundError, match=message):
            run("compare", f"a={results}", f"b={results}", *given)


def test_replay_exits_with_one_when_not_the_same(results, tmp_path, capsys):
    assert run("replay", results) == 0
    assert "the same" in capsys.readouterr().out
    changed = tmp_path / "scores.json"
    text = (results / "scores.json").read_text(encoding="utf-8")
    assert '"num_lines"' in text
    manifest = json.loads(text)
    manifest["numbers"][0]["value"] += 1
    changed.write_text(json.dumps(manifest), encoding="utf-8")
    assert run("replay", changed, "--json") == 1
    assert json.loads(capsys.readouterr().out)["same"] is False


def test_score(tmp_path, capsys):
    (tmp_path / "hyp").write_text("Guten Tag, Welt!\nja\n", encoding="utf-8")
    (tmp_path / "ref").write_text("guten tag welt\nja\n", encoding="utf-8")
    assert run("score", tmp_path / "hyp", tmp_path / "ref", "--metrics", "exact,chrF,WER", "--json") == 0
    result = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert (result["exact"]["raw"], result["exact"]["normalized"]) == (50, 100)
    assert result["WER"]["normalized"] == 0 < result["WER"]["raw"]
    assert "nrefs:1" in result["chrF"]["signature"]
    assert run("score", tmp_path / "hyp", tmp_path / "ref") == 0
    assert "2 texts" in capsys.readouterr().out
    (tmp_path / "ref").write_text("guten tag welt\n...\n", encoding="utf-8")
    with pytest.raises(SprachbundError, match="ref:2: the reference has nothing but punctuation"):
        run("score", tmp_path / "hyp", tmp_path / "ref")
    (tmp_path / "ids").write_text("a\na\n", encoding="utf-8")
    with pytest.raises(SprachbundError, match="ids:2: id 'a'"):
        run("score", tmp_path / "hyp", tmp_path / "ref", "--ids", tmp_path / "ids")


def test_results_and_inputs_are_not_replaced(corpus, results, tmp_path, capsys):
    before = (results / "scores.json").read_bytes()
    with pytest.raises(SprachbundError, match=r"out holds results already; --overwrite replaces them"):
        run("evaluate", corpus, "--out", results)
    for name in ("h.txt", "ref.json"):
        (tmp_path / name).write_text("one\n")
    given = [tmp_path / "h.txt", tmp_path / "ref.json", "--language", "en"]
    with pytest.raises(
        SprachbundError, match=r"ref\.json would replace what is read from .*ref\.json; name another"
    ):
        run("score", *given, "--out", tmp_path / "ref.json")
    with pytest.raises(SprachbundError, match=r"--out .*h\.txt does not end in \.json"):
        run("score", *given, "--out", tmp_path / "h.txt")
    with pytest.raises(SprachbundError, match="would replace what is read from"):
        run("compare", f"a={results}", f"b={results}", "--out", results / "scores.json")
    with pytest.raises(SprachbundError, match="would replace what is read from"):
        run("score", results, "--out", results / "scores.json")
    with pytest.raises(SprachbundError, match=r"--overwrite is for the results of --out, which is not given"):
        run("evaluate", corpus, "--overwrite")
    with pytest.raises(SprachbundError, match=r"--out .*scores\.json does not end in \.html"):
        run("report", results, "--out", results / "scores.json")
    assert (results / "scores.json").read_bytes() == before
    assert (tmp_path / "ref.json").read_text() == "one\n"


def test_bad_arguments_are_reported(results, tmp_path):
    (tmp_path / "hyp").write_text("ja\n", encoding="utf-8")
    with pytest.raises(SprachbundError, match="--language 'klingonish' is not a language; write tlh if you"):
        run("score", tmp_path / "hyp", tmp_path / "hyp", "--language", "klingonish")
    with pytest.raises(SprachbundError, match="nowhere does not exist; name a folder"):
        run("compare", f"a={results}", f"b={tmp_path / 'nowhere'}")
    with pytest.raises(SprachbundError, match=r"nowhere does not exist; check the path"):
        run("report", results, "--out", tmp_path / "page.html", "--data", tmp_path / "nowhere")
    assert not (tmp_path / "page.html").exists()


def test_a_language_that_is_not_known_is_the_fault_of_the_command(corpus, model_directory):
    with pytest.raises(UsageError, match="'klingon' is not among those of this model"):
        run("evaluate", corpus, "--model", model_directory, "--to", "klingon", "--threads", 1)
    with pytest.raises(UsageError, match="not in all of quz; choose other languages with --from"):
        run("evaluate", corpus, "--model", model_directory, "--from", "quz", "--threads", 1)


def test_a_report_needs_no_folder_of_results(corpus, model_directory, tmp_path):
    page = tmp_path / "page.html"
    options = ["--model", model_directory, "--to", "de", "--limit", 2, "--no-speech", 0, "--threads", 1]
    assert run("evaluate", corpus, *options, "--report", page) == 0
    assert "<article>" in page.read_text(encoding="utf-8")


def test_report(results, tmp_path, capsys):
    assert run("report", results, "--out", tmp_path / "page.html", "--examples", 2) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<audio") == 4
