"""`data pack` and `data export`, the verbs that read what they wrote, and folders of `data make` that are taken up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from sprachbund.cli import build_app, main
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
    assert "is whole: utterances 12, shards 3" in call("data", "check", out)


def test_export_says_that_it_reads_no_tar_shards(corpus: Path, tmp_path: Path) -> None:
    call("data", "pack", corpus, "--out", tmp_path / "in" / "packed")
    for folder, says in (("packed", "holds tar shards, which this does not read"), ("", "data prepare`")):
        given = ["data", "export", str(tmp_path / "in" / folder), "--out", str(tmp_path / "cuts.jsonl")]
        result = CliRunner().invoke(build_app(), given)
        assert says in str(result.exception)


def test_a_corpus_is_not_packed_into_its_own_folder(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in corpus.iterdir())
    assert main(["data", "pack", str(corpus), "--out", str(corpus)]) == 1
    assert f"{corpus} holds a corpus, which would be there twice" in capsys.readouterr().err
    assert sorted(path.name for path in corpus.iterdir()) == before


def test_a_seed_below_zero_is_refused(corpus: Path, tmp_path: Path) -> None:
    given = ["data", "pack", str(corpus), "--out", str(tmp_path / "packed"), "--seed", "-1"]
    assert CliRunner().invoke(build_app(), given).exit_code == 2


def one_shard(out: Path, *_: Any, **__: Any) -> None:
    """In the place of a corpus that takes minutes."""
    small = out / "train"
    small.mkdir(parents=True, exist_ok=True)
    (small / "cuts.00000.jsonl").touch()


def test_a_phrasebook_goes_on_with_the_same_sentences_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sprachbund.corpora.editions.make_edition", one_shard)
    monkeypatch.setattr("sprachbund.data.synthesisers.check_synthesizers", lambda *_: [])
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "train.tsv").write_text("en\tde\none\teins\n")
    wanted = ["data", "make", "phrasebook", "--sentences", str(tables), "--out", str(tmp_path / "book")]
    assert (main(wanted), main(wanted)) == (0, 0)
    tables = tables.rename(tmp_path / "moved")
    wanted[4] = str(tables)
    assert main(wanted) == 0
    (tables / "train.tsv").write_text("en\tde\ntwo\tzwei\n")
    assert main(wanted) == 2
    assert "book was begun with another sentences_sha256" in capsys.readouterr().err
    assert main([*wanted[:3], *wanted[5:]]) == 2  # without tables
    assert "book was begun with sentence_share" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("make", "phrasebook"), ("make", "outside"), ("make", "mixed"), ("prepare", "asterisk")]
)
def test_recordings_that_were_prepared_stay_what_they_are(
    command: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = tmp_path / "own", tmp_path / "prepared"
    own.mkdir()
    for number in range(6):
        soundfile.write(own / f"{number}.wav", np.zeros(1600, np.float32), 16_000)
        (own / f"{number}.txt").write_text(f"sentence {number}\n")
    prepare = ["data", "prepare", "folder", str(own), "--language", "en", "--dev-share", "0.4"]
    assert main([*prepare, "--licence", "mine", "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["data", *command, "--out", str(out)]) != 0
    assert (
        f"{out} was begun with corpus recordings, not {command[1]}; name a new folder"
        in capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_made_is_not_taken_up_by_another_corpus_of_that_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sprachbund.corpora.editions.make_edition", one_shard)
    monkeypatch.setattr("sprachbund.data.synthesisers.check_synthesizers", lambda *_: [])
    out = str(tmp_path / "corpus")
    assert main(["data", "make", "phrasebook", "--seed", "7", "--out", out]) == 0
    assert main(["data", "make", "outside", "--seed", "7", "--out", out]) == 2
    assert "was begun with corpus phrasebook, not outside" in capsys.readouterr().err
    assert main(["data", "prepare", "asterisk", "--out", out]) != 0
    assert "was begun with corpus phrasebook, not asterisk" in capsys.readouterr().err


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
