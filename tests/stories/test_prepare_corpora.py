"""`data prepare NAME SOURCE`: the public corpora as commands."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sprachbund.corpora.public import PREPARATIONS
from sprachbund.corpora.public.items import Published
from tests.corpora.public.trees import melody, table
from tests.stories.support import command


@pytest.fixture
def mustc(here: Path) -> Path:
    """Two splits of a made-up MuST-C; the sound of dev is broken."""
    folder = here / "mustc" / "en-de" / "data"
    for split, name in (("train", "ted_1"), ("dev", "ted_2")):
        segments = [
            f"- {{duration: 0.5, offset: {at}, rW: 9, uW: 0, speaker_id: spk.1, wav: {name}.wav}}"
            for at in (0.2, 1.2)
        ]
        table(folder / split / "txt" / f"{split}.yaml", *segments)
        table(folder / split / "txt" / f"{split}.en", "one", "two")
        table(folder / split / "txt" / f"{split}.de", "eins", "zwei")
        melody(folder / split / "wav" / f"{name}.wav", [400, 800])
    (folder / "dev" / "wav" / "ted_2.wav").write_bytes(b"RIFF")
    return here / "mustc"


def test_prepares_a_split_and_says_how_it_compares(mustc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [
        Published(part="train", utterances=2, source="us"),
        Published(part="train", key="en>de", utterances=9, source="us"),
    ]
    monkeypatch.setitem(PREPARATIONS, "mustc", replace(PREPARATIONS["mustc"], published=sizes))
    ran = command("data", "prepare", "mustc", mustc, "--out", "out", "--splits", "train")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[1].split() == ["out/train", "2", "0.00", "de", "en"]
    assert lines[3] == f"licence: {PREPARATIONS['mustc'].licence} ({PREPARATIONS['mustc'].homepage})"
    assert lines[4] == "train: whole (2 of 2 utterances), by us"
    assert lines[5].startswith("train en>de: differs: found 2 of 9 utterances")
    again = command("data", "prepare", "mustc", mustc, "--out", "out", "--splits", "train", "--json")
    result = json.loads(again.out)
    assert result["parts"] == {"train": {"utterances": 2, "hours": 0.0, "left_out": {}, "clipped": 0}}
    assert all(line in lines for line in result["checks"])
    assert "utterances" in command("data", "show", "out/train").out


def test_what_cannot_be_read_ends_the_work_or_is_listed(mustc: Path) -> None:
    ran = command("data", "prepare", "mustc", mustc, "--out", "out")
    assert ran.code == 1
    assert "--skip-bad" in ran.err
    ran = command("data", "prepare", "mustc", mustc, "--out", "out", "--skip-bad", "--targets", "de")
    assert ran.code == 0, ran.err  # the first try wrote nothing, so the folder is free
    assert ran.out.splitlines()[-2].split("  ")[0] == "left out, listed in left_out.tsv"
    assert ran.out.splitlines()[-1].endswith(" 2")
    assert len(Path("out/dev/left_out.tsv").read_text().splitlines()) >= 2
    ran = command("data", "prepare", "mustc", mustc, "--out", "out", "--skip-bad", "--languages", "en")
    assert ran.code == 1
    assert "was begun with" in ran.err


def test_every_corpus_is_listed_and_has_its_help() -> None:
    listed = json.loads(command("data", "prepare", "--list", "--json").out)
    assert [corpus["name"] for corpus in listed] == list(PREPARATIONS)
    plain = command("data", "prepare", "--list").out
    overview = "".join(command("data", "prepare", "--help").out.split())
    for preparation in PREPARATIONS.values():
        assert f"{preparation.name}: {preparation.summary}\n" in plain
        assert f"  {preparation.licence}; {preparation.homepage}\n" in plain
        entry = f"{preparation.name}{preparation.summary};{preparation.licence};{preparation.homepage}"
        assert "".join(entry.split()) in overview
        assert preparation.summary.split()[0] in command("data", "prepare", preparation.name, "--help").out
    assert {"asterisk", "folder", "tsv"}.isdisjoint(PREPARATIONS)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("covst2", "x"), "Did you mean 'covost2'"),
        (("fleurs", "nowhere", "--out", "out"), "nowhere is not a folder; get fleurs from https://"),
        (("--json",), "--list names the public ones"),
        (("--list", "fleurs", "x", "--out", "y"), "--list stands alone"),
        ((), "Public corpora"),
    ],
)
def test_mistakes(here: Path, arguments: tuple[str, ...], part: str) -> None:
    ran = command("data", "prepare", *arguments)
    assert ran.code in (1, 2)
    assert part in ran.err
    assert ran.out == ""
