"""Our commands beside those of sacrebleu, on the same files: every number and p-value as both print them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from tests.evaluation.made import made_texts
from tests.evaluation.test_commands import run

BIN = Path(sys.executable).parent
NAMES = {"BLEU": "BLEU", "chrF2": "chrF", "TER": "TER"}
DRAWS = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    references, first = made_texts(80, 0.30, seed=1)
    for name, texts in {"ref": references, "a": first, "b": made_texts(80, 0.26, seed=2)[1]}.items():
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


def sacrebleu(folder, *args):
    """What the command prints in a folder, so that systems are called what their files are."""
    command = [BIN / "sacrebleu", "ref", "-i", *map(str, args), "-m", "bleu", "chrf", "ter"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_score_prints_what_sacrebleu_prints(files, capsys):
    printed = json.loads(sacrebleu(files, "a", "-w", "12", "-f", "json"))
    assert run("score", files / "a", files / "ref", "--metrics", "BLEU,chrF,TER", "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    for result, theirs in zip(ours, printed, strict=True):
        assert f"{result['raw']:.12f}" == f"{theirs['score']:.12f}"
        assert result["signature"] == theirs["signature"]


@pytest.mark.parametrize(("ours", "theirs"), [("bootstrap", "bs"), ("randomization", "ar")])
def test_compare_prints_the_p_values_of_sacrebleu_at_the_same_seed(files, capsys, ours, theirs):
    options = [f"--paired-{theirs}", f"--paired-{theirs}-n", DRAWS, "-w", "8", "-f", "text"]
    lines = sacrebleu(files, "a", "b", *options).splitlines()
    names = re.findall(r"BLEU|chrF2|TER", next(line for line in lines if "System" in line))
    p_values = re.findall(r"p = ([\d.]+)", next(line for line in lines if "p = " in line))
    scores = next(line for line in lines if re.match(r"│\s+b │", line)).split("│", 2)[2]
    numbers = re.findall(r"[\d.]+", scores.replace("95%", ""))
    assert run(
        "compare", f"a={files / 'a'}", f"b={files / 'b'}", "--reference", files / "ref",
        "--metrics", "BLEU,chrF,TER", "--test", ours, "--draws", DRAWS, "--json",
    ) == 0  # fmt: skip
    result = {
        row["metric"]: row for row in json.loads(capsys.readouterr().out)["pairs"] if row["system"] == "b"
    }
    per_metric = len(numbers) // 3  # score, and with bootstrap mean and half width
    for place, (name, p) in enumerate(zip(names, p_values, strict=True)):
        row, shown = result[NAMES[name]], numbers[place * per_metric : (place + 1) * per_metric]
        assert f"{row['p_value']:.4f}" == p
        wanted = [row["score"]] + ([row["mean"], row["half_width"]] if ours == "bootstrap" else [])
        assert [f"{value:.8f}" for value in wanted] == shown


def test_compare_takes_texts_without_spaces_apart_as_sacrebleu_does(tmp_path, capsys):
    texts = {
        "ref": ["我想喝茶", "今天天气很好"],
        "a": ["我想喝咖啡", "今天天气好"],
        "b": ["我要喝茶", "今天的天气很好"],
    }
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    systems = [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]
    asked = ["compare", *systems, "--metrics", "BLEU", "--draws", 10, "--language", "Chinese"]
    assert run(*asked, "--reference", tmp_path / "ref", "--json") == 0
    for row in json.loads(capsys.readouterr().out)["pairs"]:
        command = [BIN / "sacrebleu", "ref", "-i", row["system"], "-m", "bleu", "-tok", "zh", "-b", "-w", "8"]
        theirs = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert row["pair"] == "text-zh"
        assert f"{row['score']:.8f}" == theirs.strip()
    with pytest.raises(SprachbundError, match="is a text file; name the references with --reference"):
        run(*asked)
    with pytest.raises(SprachbundError, match="--language Chinese is that of text files"):
        run("compare", tmp_path, tmp_path.parent, "--language", "Chinese")
