"""Router accuracy: the arithmetic on made spans and routes, and its way from a model and a corpus to the page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.data.manifest import ManifestWriter, Utterance
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import run
from sprachbund.evaluation.lines import (
    DecodingEvidence,
    EmbeddedSpan,
    RoutedSpan,
    SpokenSpan,
    joined,
    read_lines,
    routed_s,
    spoken_spans,
)
from sprachbund.evaluation.manifest import DataUsed, ModelUsed, read_manifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.replay import replay
from sprachbund.evaluation.report import write_report
from sprachbund.evaluation.router import EMBEDDED, SPANS, TIME, RouteCounts
from sprachbund.evaluation.run import evaluate, rescore
from sprachbund.evaluation.tables import as_text
from sprachbund.models.io import load
from tests.evaluation.made import line
from tests.evaluation.scores import summarise
from tests.evaluation.test_commands import run as command

MODEL = ModelUsed(path="m", name="m", sha256="0")
DATA = DataUsed(path="d", name="d", sha256="0", utterances=1, scored_utterances=1)


def routes(*stretches):
    return tuple(RoutedSpan(start_s=a, end_s=b, language=tag) for a, b, tag in stretches)


def spoken(*stretches, main="es"):
    return tuple(
        SpokenSpan(start_s=a, end_s=b, language=tag, embedded=tag != main) for a, b, tag in stretches
    )


def output(spans, *stretches, **values):
    given = {"source": "es", "target": "de", "switched": True, "duration_s": 2.0, **values}
    return line("ja", "ja", spoken=spans, evidence=DecodingEvidence(routes=routes(*stretches)), **given)


def accuracies(*lines):
    counts = RouteCounts()
    for one in lines:
        counts.add(one)
    return {name: (result.right, result.evaluated, result.left_out) for name, result in counts.scores()}


MIXED = spoken((0.0, 1.0, "es"), (1.0, 1.5, "en"), (1.5, 2.0, "es"))


def test_a_router_that_is_right_throughout():
    result = accuracies(output(MIXED, (0.0, 1.0, "es"), (1.0, 1.5, "en"), (1.5, 2.0, "es")))
    assert result == {SPANS: (3, 3, 0), EMBEDDED: (1, 1, 0), TIME: (2.0, 2.0, 0)}


def test_the_main_language_alone_misses_what_is_embedded():
    result = accuracies(output(MIXED, (0.0, 2.0, "es")))
    assert result == {SPANS: (2, 3, 0), EMBEDDED: (0, 1, 0), TIME: (1.5, 2.0, 0)}


@pytest.mark.parametrize(("until_s", "right"), [(0.5, 0), (0.51, 1), (0.49, 0)])
def test_right_is_more_than_half(until_s, right):
    result = accuracies(output(spoken((0.0, 1.0, "es")), (0.0, until_s, "es"), (until_s, 2.0, "en")))
    assert result[SPANS] == (right, 1, 0)
    assert result[TIME][0] == pytest.approx(until_s)


def test_a_gap_is_nobodys():
    result = accuracies(output(spoken((0.0, 1.0, "es")), (0.0, 0.2, "es"), (0.9, 1.5, "es")))
    assert result[SPANS] == (0, 1, 0)
    assert result[TIME] == (pytest.approx(0.3), 1.0, 0)


def test_routes_that_overlap_share_the_time():
    assert routed_s(0, 2, "es", routes((0.0, 2.0, "es"), (1.0, 2.0, "en"))) == 1.5
    assert routed_s(0, 2, "es", routes((0.0, 2.0, "es"), (0.0, 2.0, "es"))) == 2
    everything = routes(*((0.0, 2.0, tag) for tag in ("es", "en", "de", "fr")))
    assert routed_s(0, 2, "es", everything) == 0.5


def test_regions_are_one_language_and_unknown_ones_are_never_right():
    result = accuracies(output(spoken((0.0, 1.0, "es")), (0.0, 1.0, "es-MX")))
    assert result[SPANS] == (1, 1, 0)
    result = accuracies(output(spoken((0.0, 1.0, "es")), (0.0, 1.0, "group 3"), (0.0, 1.0, "und")))
    assert result[SPANS] == (0, 1, 0)


def test_what_cannot_be_scored_is_left_out_and_counted():
    unknown = (SpokenSpan(language="en", embedded=True), SpokenSpan(language="es"))
    nowhere = spoken((0.5, 0.5, "es"), (0.0, 1.0, "und"))
    result = accuracies(output((*unknown, *nowhere, *spoken((0.0, 1.0, "es"))), (0.0, 1.0, "es")))
    assert result == {SPANS: (1, 1, 4), EMBEDDED: (0, 0, 2), TIME: (1.0, 1.0, 4)}
    words = (EmbeddedSpan(language="en", said="meeting"), EmbeddedSpan(language="en", said="room"))
    assert accuracies(output((), (0.0, 1.0, "es"), embedded=words))[EMBEDDED] == (0, 0, 2)
    assert accuracies(output((), (0.0, 1.0, "es")))[SPANS] == (0, 0, 1)
    without_routes = accuracies(output(MIXED), output(MIXED, (0.0, 2.0, "es")))
    assert without_routes[SPANS] == (2, 3, 3)


def test_speech_in_one_language_is_one_span():
    one = line(
        "ja", "ja", source="es", duration_s=2.0, evidence=DecodingEvidence(routes=routes((0.0, 1.5, "es")))
    )
    assert accuracies(one) == {SPANS: (1, 1, 0), TIME: (1.5, 2.0, 0)}


TENTHS = st.integers(0, 30)


@given(st.lists(st.tuples(TENTHS, TENTHS, st.sampled_from(["es", "en", "de"])), max_size=6), TENTHS, TENTHS)
def test_the_same_as_asking_at_every_instant(stretches, start, end):
    start, end = sorted((start, end))
    made = [(min(a, b), max(a, b), tag) for a, b, tag in stretches]
    expected = 0.0
    for instant in range(start, end):
        there = [tag for a, b, tag in made if a <= instant < b]
        expected += there.count("es") / len(there) if there else 0.0
    assert routed_s(start, end, "es", routes(*made)) == pytest.approx(expected)


def test_neighbours_are_joined():
    frames = [(n / 10, (n + 1) / 10, "es" if n < 7 else "en") for n in range(10)]
    assert joined(frames) == routes((0.0, 0.7, "es"), (0.7, 1.0, "en"))
    assert joined([(0.0, 0.1, "es"), (0.2, 0.3, "es")]) == routes((0.0, 0.1, "es"), (0.2, 0.3, "es"))


@pytest.mark.parametrize("times", [(1.0, 0.5), (-0.1, 1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_times_that_are_none(times):
    with pytest.raises(ValueError, match="a route from"):
        routes((*times, "es"))
    custom = {"spans": [{"start_s": times[0], "end_s": times[1], "language": "es"}]}
    with pytest.raises(SprachbundError, match=r"u: a span from .* prepare the corpus again"):
        spoken_spans(utterance(custom))


def utterance(custom):
    return Utterance(
        id="u", duration_s=2.0, text="x", language="es", speaker="", translations={}, custom=custom
    )


def test_times_of_a_corpus():
    spans = [{"start_s": 0.0, "end_s": 1, "language": "es"}, {"language": "en"}]
    assert spoken_spans(utterance({"spans": spans})) == (
        SpokenSpan(language="es", start_s=0, end_s=1),
        SpokenSpan(language="en", embedded=True),
    )
    estimated = spoken_spans(utterance({"spans": spans, "spans_estimated": True}))
    assert [span.start_s for span in estimated] == [None, None]
    turned = spoken_spans(utterance({"spans": spans, "main_language": "en"}))
    assert [span.embedded for span in turned] == [True, False]
    with pytest.raises(SprachbundError, match="a span from 1 to None s"):
        spoken_spans(utterance({"spans": [{"start_s": 1, "language": "es"}]}))


def test_numbers_of_each_kind_of_speech_and_direction():
    mixed = output(MIXED, (0.0, 2.0, "es"), id="1")
    into_french = replace(mixed, target="fr", id="2")
    mono = line(
        "ja",
        "ja",
        source="es",
        id="3",
        duration_s=2.0,
        evidence=DecodingEvidence(routes=routes((0, 2, "es"))),
    )
    manifest = summarise([mixed, into_french, mono], MODEL, [DATA], EvaluationOptions())
    wanted = {"group": "switching", "task": "translation", "guard": True}
    values = {
        (name, member): manifest.number(name, member, **wanted).value
        for name in (SPANS, TIME)
        for member in ("code-switched", "monolingual", "all", "es-de", "es-fr")
    }
    assert {member: round(v, 1) for (name, member), v in values.items() if name == SPANS} == {
        "code-switched": 66.7,
        "monolingual": 100,
        "all": 71.4,
        "es-de": 66.7,
        "es-fr": 66.7,
    }
    assert values[TIME, "all"] == pytest.approx(100 * 5 / 6)
    rows = [row.split() for row in as_text(manifest).splitlines() if row.startswith("router accuracy")]
    assert rows[0] == ["router", "accuracy", "66.67", "100.00", "71.43", "6", "0"]
    assert rows[1] == ["router", "accuracy,", "embedded", "0.00", "0.00", "2", "0"]


def test_speech_without_switches_is_shown_too(tmp_path):
    mono = line(
        "ja", "ja", source="es", duration_s=2.0, evidence=DecodingEvidence(routes=routes((0, 2, "es")))
    )
    manifest = summarise([mono], MODEL, [DATA], EvaluationOptions())
    rows = [row.split() for row in as_text(manifest).splitlines() if row.startswith("router accuracy")]
    assert rows == [
        ["router", "accuracy", "100.00", "100.00", "1", "0"],
        ["router", "accuracy", "by", "time", "100.00", "100.00", "2", "0"],
    ]
    write_report([mono], manifest, tmp_path / "page.html", data=[])
    assert "<td>router accuracy by time</td>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_routes_there_are_no_such_numbers():
    manifest = summarise([output(MIXED)], MODEL, [DATA], EvaluationOptions())
    assert not [n for n in manifest.numbers if "router" in n.metric]
    assert "router" not in as_text(manifest)


class Routed:
    """A model with a router that sends the first half second to its first group, and the rest to its second."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    @property
    def capabilities(self):
        return replace(self.model.capabilities, experts=self)

    def routes(self, memory, durations_s=None):
        return [
            [(0.0, 0.25, "de"), (0.25, 0.5, "de"), (0.5, frames * self.model.frame_s, "en")]
            for frames in memory.num_frames.tolist()
        ]

    def spans(self, memory, durations_s):
        return [() for _ in durations_s]


@pytest.fixture
def mixed_corpus(tmp_path):
    spans = [
        {"start_s": 0.0, "end_s": 0.6, "language": "de"},
        {"start_s": 0.6, "end_s": 0.8, "language": "en"},
        {"start_s": 0.8, "end_s": 1.0, "language": "de"},
    ]
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number, custom in enumerate(({"spans": spans}, {})):
            writer.add(
                np.random.default_rng(number).normal(0, 0.1, 16_000).astype(np.float32),
                text="wir gehen in den meeting room",
                language="de",
                speaker="s",
                utterance_id=f"u{number}",
                translations={"en": "we go to the meeting room"},
                custom=custom,
            )
    return tmp_path / "corpus"


@pytest.mark.slow
def test_from_a_model_with_a_router_to_the_page(
    mixed_corpus, model_directory, tiny_options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "load", lambda *args, **options: Routed(load(*args, **options)))
    out = tmp_path / "out"
    options = replace(tiny_options, targets=("en",), no_speech_per_kind=0)
    result = evaluate([mixed_corpus], model_directory, options, out=out).manifest
    first = next(iter(read_lines(out / "hypotheses.jsonl")))
    assert first.evidence.routes[0] == RoutedSpan(start_s=0.0, end_s=0.5, language="de")
    assert len(first.evidence.routes) == 2
    wanted = {"group": "switching", "guard": True}
    # de 0.5 of 0.6, en 0.2 of 0.2, de 0 of 0.2; the second utterance is half right
    assert result.number(SPANS, "code-switched", **wanted).value == pytest.approx(100 * 2 / 3)
    assert result.number(TIME, "code-switched", **wanted).value == pytest.approx(70)
    assert result.number(TIME, "monolingual", **wanted).value == pytest.approx(50)
    assert rescore(out, read_manifest(out)).numbers == result.numbers
    assert replay(out).same
    assert command("score", out) == 0
    printed = capsys.readouterr().out
    assert "router accuracy by time" in printed
    assert printed.endswith(f"the same as {out / 'scores.json'}\n")
    write_report(read_lines(out / "hypotheses.jsonl"), result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<td>router accuracy, embedded</td>" in page


def test_routes_that_are_none_are_named_with_their_line(evaluated, tmp_path):
    first, *rest = (evaluated[0] / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    values = json.loads(first)
    for broken in ([{"start_s": 2, "end_s": 1, "language": "de"}], [{"start_s": 2}], [1], {"a": 1}, 3):
        values["evidence"]["routes"] = broken
        path = tmp_path / "hypotheses.jsonl"
        path.write_text("\n".join([rest[0], json.dumps(values)]) + "\n", encoding="utf-8")
        with pytest.raises(SprachbundError, match=r"hypotheses\.jsonl:2: not a line of hypotheses"):
            list(read_lines(path))


def test_score_tells_when_written_scores_are_not_those_of_the_texts(evaluated, tmp_path, capsys):
    for name in ("hypotheses.jsonl", "scores.json"):
        (tmp_path / name).write_bytes((evaluated[0] / name).read_bytes())
    manifest = read_manifest(tmp_path)
    manifest.number("chrF", "en-de", group="pair").value += 1
    manifest.write(tmp_path / "scores.json")
    assert command("score", tmp_path) == 0
    assert "1 of" in (printed := capsys.readouterr().out)
    assert "chrF pair en-de" in printed
    assert command("score", tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["different"]) == 1
    with pytest.raises(SprachbundError, match="--metrics go with text files"):
        command("score", tmp_path, "--metrics", "BLEU")
    with pytest.raises(SprachbundError, match="is no folder of results; give a file of references too"):
        command("score", tmp_path / "scores.json")
