"""`sprachbund latency` as it is typed."""

import json
from pathlib import Path

import pytest

from tests.evaluation.made_talks import write_lines
from tests.evaluation.test_emissions import LOG, REFERENCE
from tests.stories.support import command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    logs = write_lines(tmp_path / "log.jsonl", LOG, LOG | {"talk": "b"})
    references = write_lines(tmp_path / "refs.jsonl", REFERENCE, REFERENCE | {"talk": "b"})
    return logs, references


def test_prints_a_table(files: tuple[Path, Path]) -> None:
    ran = command("latency", files[0], "--references", files[1])
    assert (ran.code, ran.err) == (0, "")
    head, first = ran.out.splitlines()[1:3]
    cells = dict(zip(head.split(), first.split(), strict=True))
    # Words after 2, 2 and 4 s of a talk of 10 s: (2 + (2 - 10/3) + (4 - 20/3)) / 3 = -0.67
    assert (cells["talk"], cells["clock"], cells["AL"], cells["NE"]) == ("a", "ideal", "-0.67", "0.50")
    assert "mean of 2" in ran.out


def test_json_has_every_number_and_the_text_by_segment(files: tuple[Path, Path]) -> None:
    ran = command("latency", files[0], "--references", files[1], "--json")
    result = json.loads(ran.out)
    assert result["talks"][0]["scores"]["ideal"]["AP"] == pytest.approx((2 + 2 + 4) / (10 * 3))
    assert result["talks"][0]["segments"] == [
        {"reference": "Guten Tag, Leute.", "hypothesis": "guten Tag Leute"}
    ]
    assert result["means"][0]["num_talks"] == 2
    assert result["without_log"] == []


def test_what_is_not_scored_is_said(files: tuple[Path, Path], tmp_path: Path) -> None:
    silent = write_lines(tmp_path / "silent.jsonl", LOG | {"emissions": []})
    ran = command("latency", silent, "--references", files[1])
    assert ran.code == 0
    assert "not scored, as no log has them: b into de" in ran.err
    assert "nothing was written" in ran.err


def test_bad_input_is_one_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    logs, references = files
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    other = write_lines(tmp_path / "other.jsonl", REFERENCE | {"talk": "c"})
    for arguments, reason in (
        ((logs, "--references", other), "talk 'a' into de has no references"),
        ((logs, "--references", empty), "empty.jsonl is empty; it should have a reference segment"),
        ((empty, "--references", references), "empty.jsonl is empty; it should have a log of emissions"),
        ((references, "--references", references), "refs.jsonl:1: not a log of emissions"),
        ((tmp_path / "no", "--references", references), "No such file"),
        ((tmp_path, "--references", references), "Is a directory"),
    ):
        ran = command("latency", *arguments)
        assert ran.code == 1, ran
        assert (ran.out, len(ran.err.splitlines()), reason in ran.err) == ("", 1, True), ran.err
