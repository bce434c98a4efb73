"""`evaluate --languages`: the languages declared reach the router, stand in the manifest, and are replayed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sprachbund.cli import main
from sprachbund.data.manifest import ManifestWriter
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import Line, read_lines, routed_s
from sprachbund.evaluation.manifest import read_manifest
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.replay import replay
from sprachbund.evaluation.run import evaluate
from sprachbund.models.speech_llm import save
from tests.models.speech_llm_support import make_model, speech

SPANS = [
    {"language": "es", "start_s": 0.0, "end_s": 0.7, "text": "la torre mide"},
    {"language": "zh", "start_s": 0.75, "end_s": 1.5, "text": "两米", "word_ranges": {"en": [3, 5]}},
]
DECODING = DecodingOptions(max_tokens=6, guard=GuardOptions(enabled=False))
OPTIONS = EvaluationOptions(no_speech_per_kind=0, first_segments=0, decoding=DECODING)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose groups are es, en with de, and zh; a corpus with an utterance of es and zh, and one of es."""
    folder = tmp_path_factory.mktemp("declared")
    save(make_model(), folder / "model")
    with ManifestWriter(folder / "corpus") as writer:
        mixed, plain = speech(1.5, 1.2)
        said = {"language": "es", "speaker": "a", "translations": {"en": "the tower is two metres"}}
        writer.add(mixed, text="la torre mide 两米", utterance_id="mixed", custom={"spans": SPANS}, **said)
        writer.add(plain, text="la torre", utterance_id="plain", **said)
    return folder


def lines(out: Path) -> dict[tuple[str, str], Line]:
    return {(line.id, line.target): line for line in read_lines(out / "hypotheses.jsonl") if line.source}


def declared(*tags: str) -> EvaluationOptions:
    return replace(OPTIONS, decoding=replace(DECODING, allowed_languages=tags))


@pytest.mark.slow
def test_the_command_declares_them_and_replay_does_so_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = here / "results"
    command = ["evaluate", str(here / "corpus"), "--model", str(here / "model"), "--out", str(out)]
    command += ["--no-speech", "1", "--no-guard"]
    assert main([*command, "--languages", "Spanish,zh", "--languages", "es"]) == 0
    printed = capsys.readouterr().out
    assert "router accuracy" in printed
    assert "span recall" in printed
    manifest = read_manifest(out)
    assert manifest.configuration["decoding"]["allowed_languages"] == ["es", "zh"]
    assert main(["replay", str(out)]) == 0
    assert "the same" in capsys.readouterr().out
    values = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    values["configuration"]["decoding"]["allowed_languages"] = ["es"]
    (out / "scores.json").write_text(json.dumps(values), encoding="utf-8")
    assert not replay(out / "scores.json").same


@pytest.mark.parametrize(
    ("tags", "heard"),
    [(("es", "zh"), {"es", "zh"}), (("zh", "de"), {"es", "zh", "en+de"}), (("es",), {"es"})],
)
def test_only_groups_of_declared_languages_and_the_utterances_own_are_gone_to(
    here: Path, tmp_path: Path, tags: tuple[str, ...], heard: set[str]
) -> None:
    evaluate([here / "corpus"], here / "model", declared(*tags), out=tmp_path)
    for line in lines(tmp_path).values():
        assert {route.language for route in line.evidence.routes} <= heard


def test_router_accuracy_is_what_the_routes_say_span_by_span(here: Path, tmp_path: Path) -> None:
    options = declared("es", "zh")
    manifest = evaluate([here / "corpus"], here / "model", options, out=tmp_path).manifest
    result = lines(tmp_path)
    spans = [(line, span) for line in (result["mixed", "en"],) for span in line.spoken]
    right_s = [routed_s(s.start_s or 0, s.end_s or 0, s.language, line.evidence.routes) for line, s in spans]
    lengths_s = [(s.end_s or 0) - (s.start_s or 0) for _, s in spans]
    number = manifest.number("router accuracy", "code-switched", task="translation")
    assert number is not None
    assert number.value == pytest.approx(
        50.0 * sum(2 * r > n for r, n in zip(right_s, lengths_s, strict=True))
    )
    by_time = manifest.number("router accuracy by time", "code-switched", task="translation")
    assert by_time is not None
    assert by_time.value == pytest.approx(100 * sum(right_s) / sum(lengths_s))
    alone = manifest.number("router accuracy by time", "monolingual", task="translation")
    assert alone is not None
    own_s = routed_s(0.0, 1.2, "es", result["plain", "en"].evidence.routes)
    assert alone.value == pytest.approx(100 * own_s / 1.2)


def test_a_language_without_a_group_is_told_before_any_decoding(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SprachbundError, match=r"the language 'fr' has no group of experts .* groups for de"):
        evaluate([here / "corpus"], here / "model", declared("es", "fr"))
    command = ["evaluate", str(here / "corpus"), "--model", str(here / "model"), "--languages", "es,fr"]
    assert main(command) != 0
    assert "'fr' has no group of experts" in capsys.readouterr().err
