"""`data pack` and `data export`, and the verbs that read what they wrote."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sprachbund.cli import build_app
from tests.training import made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pack") / "corpus"
    made.make_corpus(directory, 12)
    return directory


def call(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(), list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_packed_is_shown_and_checked(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    packed = json.loads(call("data", "pack", corpus, "--out", out, "--shard-utterances", 5, "--json"))
    assert (packed["utterances"], packed["shards"]) == (12, 3)
    shown = json.loads(call("data", "show", out, "--json"))
    original = json.loads(call("data", "show", corpus, "--json"))
    assert shown["per_language"].keys() == original["per_language"].keys()
    assert shown["utterances"] == 12
    assert "12 utterances in 3 shards are whole" in call("data", "check", out)


def test_an_exported_cut_set_holds_the_corpus_and_comes_back(corpus: Path, tmp_path: Path) -> None:
    from lhotse import CutSet

    from sprachbund.data.manifest import Manifest

    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        call("data", "export", corpus, "--out", tmp_path / name)
        cuts = CutSet.from_file(tmp_path / name)
        there = Manifest(corpus)
        assert [cut.id for cut in cuts] == [utterance.id for utterance in there]
        assert [cut.num_samples for cut in cuts] == [len(there.samples(i)) for i in range(len(there))]
        assert next(iter(cuts)).load_audio().shape[1] == len(there.samples(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuts.jsonl", "cuts.jsonl.gz"]
    call("data", "prepare", "lhotse", tmp_path / "cuts.jsonl.gz", "--out", tmp_path / "back")
    assert {u.id: u.translations for u in Manifest(tmp_path / "back")} == {
        u.id: u.translations for u in Manifest(corpus)
    }
