"""Scores against the commands of sacrebleu and jiwer on the same files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import METRICS, ErrorRate, bleu, chrf, corpus_score, metric, ter
from sprachbund.evaluation.options import CompareOptions, ScoreOptions
from sprachbund.evaluation.quality import ERROR_RATES, QUALITY
from tests.evaluation.made import made_texts

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    references, hypotheses = made_texts(120, 0.25)
    hypotheses[5] = ""
    hypotheses[3] = "Übergröße, »sagt« er: 3,5 % – naïve…"
    references[3] = "Übergrößen, „sagte“ er: 3.5% - naïve ..."
    (folder / "ref").write_text("\n".join(references) + "\n", encoding="utf-8")
    (folder / "hyp").write_text("\n".join(hypotheses) + "\n", encoding="utf-8")
    return folder, references, hypotheses


def command(*args):
    return subprocess.run([str(arg) for arg in args], capture_output=True, text=True, check=True).stdout


def test_as_the_sacrebleu_command_to_the_last_digit_with_its_signature(files):
    folder, references, hypotheses = files
    printed = json.loads(
        command(
            BIN / "sacrebleu",
            folder / "ref",
            "-i",
            folder / "hyp",
            "-m",
            "bleu",
            "chrf",
            "ter",
            "-w",
            "10",
            "-f",
            "json",
        )
    )
    plus = json.loads(
        command(
            BIN / "sacrebleu", folder / "ref", "-i", folder / "hyp", "-m", "chrf",
            "--chrf-word-order", "2", "-w", "10", "-f", "json",
        )
    )  # fmt: skip
    for scorer, theirs in zip((bleu("de"), chrf(), ter(), chrf(2)), [*printed, plus], strict=True):
        assert f"{corpus_score(scorer, hypotheses, references):.10f}" == f"{theirs['score']:.10f}"
        assert scorer.signature == theirs["signature"]


def test_as_the_jiwer_command(files, tmp_path):
    # jiwer's command silently leaves out empty lines; its input here has none.
    references, hypotheses = zip(
        *((r, h) for r, h in zip(*files[1:], strict=True) if len(h) > 1), strict=True
    )
    (tmp_path / "ref").write_text("\n".join(references), encoding="utf-8")
    (tmp_path / "hyp").write_text("\n".join(hypotheses), encoding="utf-8")
    for scorer, flags in ((ErrorRate("word"), []), (ErrorRate("character"), ["-c"])):
        printed = command(BIN / "jiwer", "-r", tmp_path / "ref", "-h", tmp_path / "hyp", *flags)
        errors, units = scorer.statistics(hypotheses, references).sum(0)
        assert repr(float(errors / units)) == printed.strip()
        assert corpus_score(scorer, hypotheses, references) == pytest.approx(100 * float(printed), abs=1e-12)


def test_error_rates_count_empty_hypotheses_as_jiwer_does(files):
    _, references, hypotheses = files
    assert "" in hypotheses
    wer = corpus_score(metric("wer"), hypotheses, references)
    assert wer == pytest.approx(100 * jiwer.wer(references, hypotheses), abs=1e-12)
    cer = corpus_score(metric("CER"), hypotheses, references)
    assert cer == pytest.approx(100 * jiwer.cer(references, hypotheses), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_score_is_a_function_of_summed_counts(files, name):
    _, references, hypotheses = files
    scorer = metric(name, "de")
    counts = scorer.statistics(hypotheses, references)
    parts = counts[:50].sum(0) + counts[50:].sum(0)
    assert float(scorer.score(parts)) == corpus_score(scorer, hypotheses, references)
    assert len(counts) == len(references)


def test_scripts_without_spaces_get_a_tokenizer_that_fits():
    assert "tok:zh" in bleu("zh-Hans").signature
    assert "tok:char" in bleu("th").signature
    assert "tok:13a" in bleu("de").signature
    assert "tok:zh" in bleu("cmn").signature
    assert "tok:zh" in bleu("nan-TW").signature
    assert "tok:13a" in bleu("ja-Latn").signature
    chinese = BLEU(tokenize="zh").corpus_score(["这是一个测试句子"], [["这是个测试句子"]]).score
    assert corpus_score(bleu("zh"), ["这是一个测试句子"], ["这是个测试句子"]) == chinese


def test_exact_match():
    assert corpus_score(metric("exact"), ["a  b", "A b", ""], ["a b", "a b", "c"]) == pytest.approx(100 / 3)


def test_nothing_to_score_is_nought():
    for name in ("WER", "exact"):
        assert metric(name).score(np.zeros(2)) == 0


def test_unknown_metric():
    with pytest.raises(SprachbundError, match="no metric 'bleurt'; there are chrF"):
        metric("bleurt")


def test_every_metric_is_measured_shown_and_offered() -> None:
    """The command's help names them by hand, since importing them takes longer than showing it."""
    assert {*QUALITY, *ERROR_RATES} == set(METRICS)
    for options in (CompareOptions, ScoreOptions):
        named = re.search(r"metrics: some of ([^;]+);", str(options.__doc__))
        assert named is not None
        assert set(named[1].split(", ")) == set(METRICS)
