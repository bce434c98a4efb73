"""An evaluation from beginning to end, its manifest, its replay, its tables."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.data.shards import Shards, pack
from sprachbund.decoding.options import GuardOptions
from sprachbund.engines.options import CHOICES
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import run as running
from sprachbund.evaluation import tables
from sprachbund.evaluation.hypotheses import translate_no_speech
from sprachbund.evaluation.lines import read_lines
from sprachbund.evaluation.manifest import (
    FORMER_IDENTIFIER,
    FailureRate,
    Number,
    ResultManifest,
    differences,
    read_manifest,
)
from sprachbund.evaluation.options import EvaluationOptions, configuration, options_from
from sprachbund.evaluation.replay import _find_data, replay
from sprachbund.evaluation.report import write_report
from sprachbund.evaluation.run import evaluate, race_models, rescore
from sprachbund.evaluation.tables import docs_table, fill
from sprachbund.models.io import load
from sprachbund.util.options import RenamedWarning
from sprachbund.util.provenance import data_hash, model_hash
from tests.evaluation.tiny_model import save_tiny_model, write_corpus
from tests.models.whisper_support import make_directory


def test_files_of_a_run_agree_with_each_other(evaluated, corpus, model_directory):
    out, evaluation = evaluated
    assert list(read_lines(out / "hypotheses.jsonl")) == list(evaluation.lines())
    manifest = read_manifest(out)
    assert manifest == evaluation.manifest
    assert manifest.data[0].sha256 == data_hash(corpus)
    assert manifest.model.sha256 == model_hash(model_directory)
    assert manifest.versions["sacrebleu"]
    assert not list(out.glob("*.partial"))
    hypotheses = (out / "texts" / "en-de.hyp.txt").read_text(encoding="utf-8").split("\n")
    assert len(hypotheses) - 1 == manifest.number("chrF", "en-de", group="pair").num_lines


def test_scores_are_those_of_sacrebleu_on_the_text_files(evaluated):
    out, evaluation = evaluated
    command = [
        Path(sys.executable).parent / "sacrebleu",
        out / "texts/en-de.ref.txt",
        "-i",
        out / "texts/en-de.hyp.txt",
    ]
    printed = subprocess.run(
        [*map(str, command), "-m", "chrf", "bleu", "-w", "8", "-f", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    for theirs, name in zip(json.loads(printed.stdout), ("BLEU", "chrF"), strict=True):
        ours = evaluation.manifest.number(name, "en-de", group="pair", text="raw", guard=True)
        assert f"{ours.value:.8f}" == f"{theirs['score']:.8f}"
        assert ours.signature == theirs["signature"]


def test_languages_that_may_be_spoken_leave_the_first_segment_timed(corpus, model_directory, tiny_options):
    decoding = replace(tiny_options.decoding, allowed_languages=("en", "de"))
    options = replace(tiny_options, decoding=decoding, limit=2, no_speech_per_kind=0, engine="torch")
    assert "first_segment_s" in evaluate([corpus], model_directory, options).manifest.measured


def test_failures_on_no_speech_before_and_behind_the_guard(evaluated):
    rates = {rate.key: rate for rate in evaluated[1].manifest.failures}
    before, behind = (rates["hallucination", "all", str(guard)] for guard in (False, True))
    assert before.evaluated == behind.evaluated == 9 * 3  # nine kinds of sound, three target languages
    assert before.failed > behind.failed == 0
    assert rates["hallucination", "hum", "False"].evaluated == 3


def test_scores_come_again_from_the_hypotheses_alone(evaluated):
    out, evaluation = evaluated
    again = rescore(out, read_manifest(out))
    assert again.numbers == evaluation.manifest.numbers
    assert again.failures == evaluation.manifest.failures


def test_scores_come_again_without_comet_whose_numbers_stay(evaluated, tmp_path):
    out, _ = evaluated
    shutil.copytree(out, tmp_path / "out")
    path = tmp_path / "out" / "scores.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["configuration"]["comet"] = "nobody/has-this"
    values["numbers"].append(
        {**values["numbers"][0], "metric": "COMET", "value": 77.0, "signature": "COMET|x"}
    )
    path.write_text(json.dumps(values), encoding="utf-8")
    written = read_manifest(path)
    again = rescore(tmp_path / "out", written)
    assert differences(written, again) == []
    assert [number.value for number in again.numbers if number.metric == "COMET"] == [77.0]
    assert again.configuration["comet"] == "nobody/has-this"


def test_options_come_back_from_their_plain_form(tiny_options):
    plain = json.loads(json.dumps(configuration(tiny_options)))
    assert options_from(plain) == tiny_options
    for values, name in [
        ({**plain, "tempo": 3}, "tempo"),
        ({**plain, "decoding": {**plain["decoding"], "beams": 3}}, "decoding.beams"),
        ({**plain, "decoding": {**plain["decoding"], "guard": {"level": 3}}}, "decoding.guard.level"),
    ]:
        with pytest.raises(SprachbundError) as raised:
            options_from(values, Path("scores.json"))
        said = f"scores.json: the configuration does not fit this version (this version has no option {name})"
        assert str(raised.value).startswith(said)
    with pytest.raises(SprachbundError, match="'decoding' is missing"):
        options_from({})


def test_manifests_of_the_earlier_version_are_read(tiny_options):
    plain = json.loads(json.dumps(configuration(tiny_options)))
    plain["decoding"]["guesses"] = plain["decoding"].pop("num_draft_tokens")
    with pytest.warns(RenamedWarning, match="guesses is called num_draft_tokens now"):
        assert options_from(plain) == tiny_options


def test_rates_of_the_earlier_version_are_read(evaluated, tmp_path):
    manifest = evaluated[1].manifest
    counts = Number(
        metric="span recall: evaluated",
        value=7,
        signature="",
        group="switching",
        member="all",
        task="translation",
        num_lines=9,
    )
    manifest = manifest.model_copy(update={"numbers": [*manifest.numbers, counts]})
    former = manifest.model_dump_json().replace('"evaluated":', '"judged":')
    (tmp_path / "scores.json").write_text(former.replace("span recall: evaluated", "span recall: judged"))
    with pytest.warns(RenamedWarning, match=r"/scores\.json: judged is called evaluated now"):
        assert read_manifest(tmp_path) == manifest


def test_counts_of_another_identifier_are_not_compared(evaluated):
    new = read_manifest(evaluated[0])
    assert new.identifier.startswith("py3langid ")
    rate = FailureRate(failure="wrong language", member="all", failed=3, evaluated=4, guard=True)
    old = new.model_copy(update={"failures": [*new.failures, rate]})
    assert differences(old, new) != ()
    former = old.model_copy(update={"identifier": FORMER_IDENTIFIER})
    assert not [line for line in differences(former, new) if "wrong language" in line]
    values = json.loads(new.model_dump_json())
    del values["identifier"]
    assert ResultManifest.model_validate(values).identifier == FORMER_IDENTIFIER


def test_a_manifest_without_an_engine_was_measured_on_torch(tiny_options):
    values = configuration(tiny_options)
    del values["engine"]
    assert options_from(values).engine == "torch"


@pytest.mark.slow
def test_the_engine_is_recorded_and_replayed(
    evaluated, corpus, model_directory, tiny_options, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # of the packed weights
    for engine, recorded in (("torch-fp32", {"torch-fp32"}), ("auto", {*CHOICES} - {"auto", "native-int4"})):
        out = tmp_path / engine
        result = evaluate([corpus], model_directory, replace(tiny_options, engine=engine), out=out).manifest
        assert result.configuration["engine"] in recorded
        assert replay(out).same
    written = [line.hypothesis for line in read_lines(tmp_path / "torch-fp32" / "hypotheses.jsonl")]
    assert written == [line.hypothesis for line in evaluated[1].lines()]
    with pytest.raises(SprachbundError, match="engine is 'fast'; choose one of auto"):
        evaluate([corpus], model_directory, replace(tiny_options, engine="fast"))


def test_replay_gives_the_same(evaluated):
    result = replay(evaluated[0])
    assert result.same
    assert result.in_words().startswith("the same: all ")


def test_replay_tells_what_differs(evaluated, tmp_path):
    manifest = read_manifest(evaluated[0])
    number = manifest.number("chrF", "en-de", group="pair")
    number.value += 0.01
    manifest.versions["sacrebleu"] = "1.0"
    manifest.write(tmp_path / "scores.json")
    result = replay(tmp_path / "scores.json")
    assert not result.same
    assert "not the same: 1 of" in result.in_words()
    assert "chrF pair en-de" in result.in_words()
    assert "version of sacrebleu was 1.0" in result.in_words()


def test_replay_of_other_data_or_another_model_is_refused(evaluated, tmp_path):
    other = write_corpus(tmp_path / "other", seed=1)
    with pytest.raises(SprachbundError, match="no corpus with the hash"):
        replay(evaluated[0], data=[other])
    with pytest.raises(SprachbundError, match="is not there; say where it is with --data"):
        replay(evaluated[0], data=[tmp_path / "none"])
    with pytest.raises(SprachbundError, match=r"the model .* has hash"):
        replay(evaluated[0], model=str(save_tiny_model(tmp_path / "model", seed=1)))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("phrasebook/standard/test", "data make phrasebook --edition standard --out gone`"),
        ("telephone/known", "data make telephone --out gone`"),
        ("my-talks", "data make` or `data prepare`"),
    ],
)
def test_replay_says_how_a_corpus_that_is_not_there_is_made(evaluated, tmp_path, name, command):
    manifest = read_manifest(evaluated[0])
    [used] = manifest.data
    moved = used.model_copy(update={"path": "gone/test", "name": name})
    manifest.model_copy(update={"data": [moved]}).write(tmp_path / "scores.json")
    with pytest.raises(SprachbundError) as raised:
        replay(tmp_path)
    assert str(raised.value).endswith(f"say where it is with --data, or make it with `sprachbund {command}")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"command": "sprachbund bench", "rows": []}, "to make it anew, run: sprachbund bench"),
        ({"rows": [{"a": 1}]}, "to make it anew, docs/results.md, or the page"),
    ],
)
def test_replay_of_a_table_says_how_it_is_made(tmp_path, values, says):
    (tmp_path / "table.json").write_text(json.dumps(values))
    with pytest.raises(SprachbundError, match=f"table.json is a table of rows, .*{says}"):
        replay(tmp_path / "table.json")


def test_data_are_told_by_their_content(evaluated, corpus, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(corpus)
    assert replay(evaluated[0], data=[moved]).same


def test_shards_of_a_url_are_found_again(evaluated, corpus, tmp_path):
    pack(corpus, tmp_path / "packed")
    url = Path((tmp_path / "packed").as_uri())
    old = read_manifest(evaluated[0])
    used = old.data[0].model_copy(update={"path": str(url), "sha256": Shards(url).digest})
    assert _find_data(old.model_copy(update={"data": [used]}), [], tmp_path) == [url]


def test_ids_that_two_corpora_of_one_name_share_are_named_before_the_work(
    corpus, model_directory, tiny_options, tmp_path
):
    other = write_corpus(tmp_path / "corpus", num_utterances=2)
    with pytest.raises(SprachbundError, match="are both called 'corpus' and have both an utterance 'u000'"):
        evaluate([corpus, other], model_directory, tiny_options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_off_run_leaves_a_partial_file(corpus, model_directory, tiny_options, tmp_path):
    def stop(what, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([corpus], model_directory, tiny_options, out=tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["hypotheses.jsonl.partial"]
    assert len(list((tmp_path / "hypotheses.jsonl.partial").open())) == 3
    with pytest.raises(SprachbundError, match="partial is of a run that was broken off"):
        list(read_lines(tmp_path / "hypotheses.jsonl"))


def test_what_cannot_be_evaluated_is_said_at_once(corpus, model_directory, tmp_path):
    with pytest.raises(SprachbundError, match="no corpus named"):
        evaluate([], model_directory)
    with pytest.raises(SprachbundError, match="named twice"):
        evaluate([corpus, corpus], model_directory)
    with pytest.raises(SprachbundError, match="holds no cuts"):
        evaluate([tmp_path], model_directory)
    with pytest.raises(SprachbundError, match="COMET is not installed"):
        evaluate([corpus], model_directory, EvaluationOptions(comet="some/model"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:400], r"scores\.json:\d+: not JSON"),
        (lambda text: text.replace('"seed": 2024', '"seed": "x"'), "seed: Input should be a valid integer"),
        (
            lambda text: text.replace('"format": 2', '"format": 9'),
            "format 9, known here are formats up to 2; use the release that wrote it",
        ),
        (lambda text: "[]", "the whole: .* no result manifest"),
        (lambda text: "\ufeff" + text, r"scores\.json:1: begins with a byte order mark"),
        (lambda text: text.replace('"sha256"', '"sha"'), "Extra inputs|Field required"),
    ],
)
def test_corrupt_manifests(evaluated, tmp_path, damage, message):
    path = tmp_path / "scores.json"
    path.write_text(damage((evaluated[0] / "scores.json").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(SprachbundError, match=message):
        read_manifest(path)


def test_corrupt_hypotheses_are_named_with_their_line(evaluated, tmp_path):
    good = (evaluated[0] / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path / "hypotheses.jsonl"
    path.write_text("".join([*good[:4], good[4][:50] + "\n"]), encoding="utf-8")
    with pytest.raises(SprachbundError, match=r"hypotheses.jsonl:5: not a line"):
        list(read_lines(path))
    path.write_text("".join([*good[:4], good[1]]), encoding="utf-8")
    with pytest.raises(
        SprachbundError, match=r"hypotheses.jsonl:5: id 'u000' into en stands on line 2 already"
    ):
        list(read_lines(path))


def test_hypotheses_that_are_not_all_there_are_scored_and_shown_by_nobody(evaluated, tmp_path):
    *lines, last = (evaluated[0] / "hypotheses.jsonl").read_bytes().splitlines(keepends=True)
    lines = [line for line in lines if b'"id": "u002"' not in line]
    (tmp_path / "hypotheses.jsonl").write_bytes(b"".join([*lines, last]))
    manifest = evaluated[1].manifest
    with pytest.raises(SprachbundError, match=r"there are \d+ hypotheses of speech, and scores\.json is of"):
        rescore(tmp_path, manifest)
    with pytest.raises(SprachbundError, match="nothing is scored on a part"):
        write_report(read_lines(tmp_path / "hypotheses.jsonl"), manifest, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "hypotheses.jsonl").write_bytes(b"".join([*lines, last[:-1] + b"\r\n"]))
    with pytest.raises(SprachbundError, match=rf"hypotheses\.jsonl:{len(lines) + 1}: mixed line ends"):
        rescore(tmp_path, manifest)


def test_tables_of_a_document_come_from_manifests(evaluated, tmp_path, capsys):
    out = evaluated[0]
    document = tmp_path / "README.md"
    text = f"a\n\n<!-- table: scores from {out}/scores.json -->\nold\n<!-- end -->\n\nb\n"
    document.write_text(text, encoding="utf-8")
    assert tables.main([str(document), "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert document.read_text(encoding="utf-8") == text
    assert tables.main([str(document)]) == 0
    assert tables.main([str(document), "--check"]) == 0
    written = document.read_text(encoding="utf-8")
    mean = read_manifest(out).number("chrF", "all", group="mean", task="translation", text="raw")
    assert f"| {mean.value:.1f} |" in written
    assert "old" not in written
    assert written.startswith("a\n")
    assert written.endswith("\n<!-- end -->\n\nb\n")


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_can_be_made(evaluated, name):
    rows = docs_table(name, [evaluated[1].manifest]).splitlines()
    assert len(rows) >= 3
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1


def test_scores_name_the_tier_and_the_model_where_they_differ(evaluated):
    one = evaluated[1].manifest
    tiers = [
        one.model_copy(update={"configuration": {**one.configuration, "right_context": frames}})
        for frames in (27, 6)
    ]
    head, _, *rows = docs_table("scores", tiers).splitlines()
    assert head.startswith("| test set | tier | pairs |")
    assert [row.split(" | ")[1] for row in rows] == ["27", "6"]
    other = one.model_copy(update={"model": one.model.model_copy(update={"name": "other"})})
    head, _, *rows = docs_table("scores", [other, tiers[0]]).splitlines()
    assert head.startswith("| test set | model | tier | pairs |")
    assert [row.split(" | ")[1:3] for row in rows] == [["other", "-"], [one.model.name, "27"]]
    assert "tier" not in docs_table("scores", [one, one])


def test_table_beside_other_systems_names_the_processor(tmp_path):
    row = {"shape": "small", "30_s,_s": "1.19", "5_s,_s": "0.17", "first_text_s": "2.69", "peak_mib": "606"}
    rows = [{**row, "shape": "tiny", "system": "ours"}, {**row, "system": "ours"}]
    rows.append({**row, "system": "ours, draft 0.91"})
    path = tmp_path / "peers.json"
    machine = {"processor": "Made Up 7", "instruction_set": "avx3"}
    path.write_text(json.dumps({"machine": machine, "options": {"threads": 2}, "rows": rows}))
    text = fill("<!-- table: peers from peers.json -->\n<!-- end -->", tmp_path)
    assert [line for line in text.splitlines() if line.startswith("| ours")] == [
        "| ours | 1.19 | 0.17 | 2.69 | 606 |"
    ]
    assert "| Made Up 7, avx3, 2 threads: small |" in text
    path.write_text(json.dumps({"machine": "x86_64", "rows": rows}))
    with pytest.raises(SprachbundError, match="does not name its processor"):
        fill("<!-- table: peers from peers.json -->\n<!-- end -->", tmp_path)


def test_broken_blocks_are_refused(tmp_path):
    with pytest.raises(SprachbundError, match="1 tables begin and 0 are whole"):
        fill("<!-- table: scores from x.json -->\nno end", tmp_path)
    with pytest.raises(SprachbundError, match=r"x\.json does not exist"):
        fill("<!-- table: scores from x.json -->\n<!-- end -->", tmp_path)
    with pytest.raises(SprachbundError, match="no table 'score'"):
        docs_table("score", [])


def test_whisper_models_transcribe_and_translate_where_they_can(corpus, tiny_options, tmp_path):
    make_directory(tmp_path)
    evaluation = evaluate([corpus], tmp_path, tiny_options, out=tmp_path / "out")
    lines = list(evaluation.lines())
    spoken = {(line.source, line.target) for line in lines if line.source}
    assert spoken == {("de", "de"), ("de", "en"), ("en", "en")}
    assert evaluation.manifest.data[0].unknown_pairs == {"de-ru": 6, "en-de": 6, "en-ru": 5}
    silent = [line for line in lines if not line.source]
    assert len(silent) == 9
    assert all(line.target == line.evidence.language for line in silent)


def test_numbers_of_a_whisper_model_are_replayed_under_the_options_they_were_measured_under(
    corpus, tiny_options, tmp_path
):
    """Manifests of format 1 name `timestamps: true`, and rows were decoded without them."""
    make_directory(tmp_path / "model")
    decoding = replace(tiny_options.decoding, timestamps=True, guard=GuardOptions(enabled=False))
    timed = replace(tiny_options, decoding=decoding, no_speech_per_kind=0)
    plain = replace(timed, decoding=replace(decoding, timestamps=False))
    new = evaluate([corpus], tmp_path / "model", timed, out=tmp_path / "new").manifest
    assert (new.format, new.configuration["decoding"]["timestamps"]) == (2, True)
    assert replay(tmp_path / "new").same
    evaluate([corpus], tmp_path / "model", plain, out=tmp_path / "old")
    path = tmp_path / "old" / "scores.json"
    text = path.read_text(encoding="utf-8").replace('"format": 2', '"format": 1')
    path.write_text(text.replace('"timestamps": false', '"timestamps": true'), encoding="utf-8")
    old = read_manifest(path)
    assert old.configuration == new.configuration
    assert differences(old, new)  # the two ways of decoding do not give the same numbers
    assert replay(path).same
    assert rescore(tmp_path / "old", old).numbers == old.numbers


def test_a_model_that_cannot_tell_languages_is_measured_on_no_speech(
    model_directory, tiny_options, monkeypatch
):
    model = load(model_directory)
    monkeypatch.setattr(
        model, "language_log_probs", lambda memory: torch.zeros(len(memory.states), 3).log_softmax(-1)
    )
    monkeypatch.setattr(model, "pairs", lambda: frozenset({("de", "de"), ("en", "en"), ("ru", "ru")}))
    lines = list(translate_no_speech(model, tiny_options))
    assert len(lines) == 9
    assert {line.target for line in lines} == {"und"}
    assert {line.evidence.dropped for line in lines} != {"unknown pair: und to und"}
    assert all(line.evidence.num_tokens for line in lines)


def test_names_of_languages_are_targets_on_no_speech_too(model_directory, tiny_options):
    model = load(model_directory)
    by_name, by_tag = (
        list(translate_no_speech(model, replace(tiny_options, targets=targets)))
        for targets in (("German", "EN"), ("de", "en"))
    )
    assert {line.target for line in by_name} == {"de", "en"}
    assert by_name == by_tag


def test_models_race_on_what_both_can_do(corpus, model_directory, tiny_options, tmp_path, monkeypatch):
    monkeypatch.setattr(
        running, "_peak_apart", lambda model, *work: 200.0
    )  # a process each: see test_commands
    options = replace(tiny_options, targets=("de",), limit=4)
    other = str(save_tiny_model(tmp_path / "other", seed=1))
    rows = race_models(corpus, [str(model_directory), other], options, rounds=2)
    assert [row["system"] for row in rows] == [str(model_directory), other]
    assert rows[0]["time_ratio"] == 1
    make_directory(tmp_path / "whisper")
    with pytest.raises(SprachbundError, match=r"no utterance of .* with the same targets"):
        race_models(
            corpus, [str(model_directory), str(tmp_path / "whisper")], replace(options, targets=("ru", "en"))
        )
