"""From a corpus with spans of languages, through its lines, to the printed scores; every error is planted."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu

from sprachbund.data.manifest import Manifest, ManifestWriter, Utterance
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import scoring
from sprachbund.evaluation.hypotheses import make_line
from sprachbund.evaluation.lines import (
    DecodingEvidence,
    Line,
    LineWriter,
    embedded_spans,
    is_code_switched,
    read_lines,
)
from sprachbund.evaluation.manifest import DataUsed, ModelUsed, read_manifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.report import write_report
from sprachbund.evaluation.run import evaluate, rescore
from sprachbund.evaluation.scoring import CometTally
from sprachbund.evaluation.tables import as_text, docs_table
from tests.evaluation.scores import summarise

TIMES = [
    {"start_s": 0.0, "end_s": 0.6, "language": "de"},
    {"start_s": 0.6, "end_s": 0.8, "language": "en"},
    {"start_s": 0.8, "end_s": 1.0, "language": "de"},
]
SAID = "wir gehen in den meeting room jetzt zusammen"
RUSSIAN = "мы сейчас вместе идём в комнату для совещаний"


def spans(**values):
    return [TIMES[0], {**TIMES[1], **values}, TIMES[2]]


def utterance(custom, said=SAID, **translations):
    return Utterance(
        id="u",
        duration_s=1.0,
        text=said,
        language="de",
        speaker="",
        translations={"ru": RUSSIAN, "en": "we go to the meeting room together now", **translations},
        custom=custom,
    )


def ranges_in(custom, target, **values):
    return [(s.language, s.said, s.word_range) for s in embedded_spans(utterance(custom, **values), target)]


def test_what_counts_as_code_switched():
    assert is_code_switched(utterance({"spans": TIMES}))
    assert is_code_switched(utterance({"code_switched": True}))
    assert not is_code_switched(utterance({"spans": TIMES[:1]}))
    assert not is_code_switched(utterance({}))
    assert embedded_spans(utterance({"spans": TIMES[:1]}), "en") == ()


def test_places_are_those_given_or_of_words_that_have_to_stand_there():
    assert ranges_in({"spans": TIMES}, "en") == [("en", "", None)]
    custom = {"spans": spans(text="Meeting room", word_ranges={"ru": [5, 8]})}
    assert ranges_in(custom, "ru") == [("en", "Meeting room", (5, 8))]
    assert ranges_in(custom, "en") == [("en", "Meeting room", (4, 6))]
    assert ranges_in(custom, "de") == [("en", "Meeting room", (4, 6))]
    assert ranges_in(custom, "fr", fr="le meeting room") == [("en", "Meeting room", None)]


def test_a_word_range_is_not_estimated():
    custom = {"spans": spans(text="room")}
    assert ranges_in(custom, "en", en="the room is a room") == [("en", "room", None)]
    assert ranges_in(custom, "en", en="in the hall") == [("en", "room", None)]


def test_words_without_times_and_the_main_language():
    words = {"code_switched": True, "languages": ["de", "en"], "embedded_words": ["meeting room"]}
    assert ranges_in(words, "en") == [("en", "meeting room", (4, 6))]
    main = {"spans": TIMES, "main_language": "en"}
    assert [s.language for s in embedded_spans(utterance(main), "en")] == ["de", "de"]


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"spans": [*TIMES, {"start_s": 1.0}]}, "u: a span without its language"),
        (
            {"spans": spans(word_ranges={"ru": [5, 9]})},
            r"u: a span's word range \[5, 9\] is not in its reference",
        ),
        ({"spans": spans(word_ranges={"ru": "here"})}, "u: a span's word range here is not in its reference"),
    ],
)
def test_broken_spans_are_refused(custom, message):
    with pytest.raises(SprachbundError, match=message):
        embedded_spans(utterance(custom), "ru")


# into Russian: nothing wrong; left untranslated; dropped, and the last word before it wrong
OUTPUTS = [
    RUSSIAN,
    "мы сейчас вместе идём в meeting room",
    "мы сейчас вместе идём во",
    "мы сейчас вместе идём",
]


@pytest.fixture
def lines():
    custom = {"spans": spans(text="meeting room", word_ranges={"ru": [5, 8]})}
    mixed = [replace(utterance(custom), id=f"mixed-{n}") for n in range(3)]
    bare = replace(utterance({"spans": TIMES}), id="bare")
    mono = replace(utterance({}), id="mono")
    written = [*zip(mixed, OUTPUTS[:3], strict=True), (bare, OUTPUTS[3]), (mono, RUSSIAN)]
    return [make_line(u, "ru", text, DecodingEvidence(), "made") for u, text in written]


@pytest.fixture
def manifest(lines):
    data = DataUsed(path="made", name="made", sha256="0", utterances=5, scored_utterances=5)
    model = ModelUsed(path="made", name="made", sha256="0")
    return summarise(lines, model, [data], EvaluationOptions())


def test_planted_errors_are_found(manifest):
    values = {
        n.metric: n.value
        for n in manifest.numbers
        if n.group == "switching" and n.member == "code-switched" and n.guard and n.text == "normalized"
    }
    assert values["span recall"] == pytest.approx(100 * 3 / 9)
    assert values["spans untranslated"] == pytest.approx(100 / 3)
    assert values["spans dropped"] == pytest.approx(100 / 3)
    # one switch, before word 5; near are the words 3 to 6, of which 0, 2 and 3 are wrong
    assert (values["errors near a switch: evaluated"], values["errors elsewhere: evaluated"]) == (12, 12)
    assert values["errors near a switch"] == pytest.approx(100 * 5 / 12)
    assert values["errors elsewhere"] == pytest.approx(100 * 2 / 12)
    names = ("span recall", "spans untranslated", "spans dropped", "errors near a switch", "errors elsewhere")
    assert [values[f"{name}: left out"] for name in names] == [1, 1, 1, 1, 1]


def test_quality_is_split(manifest, lines):
    def chrf(result: list[Line]) -> float:
        return sacrebleu.corpus_chrf([x.hypothesis for x in result], [[x.reference for x in result]]).score

    for member, result in (("code-switched", lines[:4]), ("monolingual", lines[4:]), ("all", lines)):
        number = manifest.number("chrF", member, group="switching")
        assert number.value == pytest.approx(chrf(result))
        assert number.num_lines == len(result)


def test_comet_is_split(lines, monkeypatch):
    values = [10.0, 20.0, 30.0, 40.0, 80.0]
    comet = SimpleNamespace(signature="made", scores=lambda *texts: [values.pop(0) for _ in texts[0]])
    monkeypatch.setattr(scoring, "Comet", lambda model, *, offline: comet)
    tally = CometTally("some/model")
    for some in (lines[:2], lines[2:]):
        tally.add(some)
    result = {(s.group, s.member): (s.value, s.num_lines) for s in tally.scores()}
    assert result["switching", "code-switched"] == (25, 4)
    assert result["switching", "monolingual"] == (80, 1)
    assert result["switching", "all"] == result["mean", "all"] == (36, 5)


def test_they_are_printed_and_in_the_table(manifest):
    text = as_text(manifest)
    assert "code-switched speech" in text
    row = next(line for line in text.splitlines() if line.startswith("spans dropped"))
    assert row.split() == ["spans", "dropped", "33.33", "3", "1"]
    table = docs_table("switching", [manifest])
    assert "| span recall | 33.33 |  |  | 9 | 1 |" in table
    assert "| chrF |" in table
    assert docs_table("switched", [manifest]).splitlines()[-1].split(" | ")[4] == "33.3"


def test_the_report_shows_them_by_direction(lines, manifest, tmp_path):
    others = [replace(x, source="fr") for x in lines]
    both = summarise([*lines, *others], manifest.model, manifest.data, EvaluationOptions())
    write_report([*lines, *others], both, tmp_path / "r.html", data=[], num_examples=0)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h2>Code-switched speech</h2>" in page
    row = re.search(r"<tr><td>fr-ru</td>(.*?)</tr>", page)
    assert re.findall(r"<td>(.*?)</td>", row[1]) == [
        "4",
        "33.3 of 9",
        "41.7 of 12",
        "16.7 of 12",
        "33.3 of 3",
        "33.3 of 3",
    ]
    write_report(lines, manifest, tmp_path / "one.html", data=[], num_examples=0)
    assert "By direction" not in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_other_speech_has_no_such_numbers(evaluated):
    out, evaluation = evaluated
    assert not [n for n in evaluation.manifest.numbers if n.group == "switching"]
    assert "code-switched" not in as_text(evaluation.manifest)
    first = json.loads((out / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "embedded" not in first


def test_lines_keep_their_spans(lines, tmp_path):
    with LineWriter(tmp_path / "lines.jsonl") as writer:
        for line in lines:
            writer.write(line)
    assert list(read_lines(tmp_path / "lines.jsonl")) == lines


def test_evaluate_scores_a_corpus_with_spans(model_directory, tiny_options, tmp_path):
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number, custom in enumerate(({"spans": spans(text="meeting room")}, {})):
            writer.add(
                np.random.default_rng(number).normal(0, 0.1, 16_000).astype(np.float32),
                text=SAID,
                language="de",
                speaker="s",
                utterance_id=f"u{number}",
                translations={"en": "we go to the meeting room together now"},
                custom=custom,
            )
    assert len(Manifest(tmp_path / "corpus")) == 2
    out = tmp_path / "out"
    options = replace(tiny_options, no_speech_per_kind=0)
    result = evaluate([tmp_path / "corpus"], model_directory, options, out=out).manifest
    for task in ("translation", "transcription"):
        wanted = {"group": "switching", "task": task, "guard": True}
        assert result.number("span recall: evaluated", "code-switched", **wanted).value == 2
        assert result.number("chrF", "monolingual", **wanted).num_lines == 1
    assert rescore(out, read_manifest(out)).numbers == result.numbers
