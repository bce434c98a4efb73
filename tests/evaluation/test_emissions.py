"""The files that latency is computed from, and what is wrong with some."""

from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import (
    EmissionRecorder,
    read_logs,
    read_references,
    write_logs,
)
from tests.evaluation.made_talks import write_lines

LOG = {
    "talk": "a",
    "target": "de",
    "duration_s": 10,
    "emissions": [
        {"text": "guten Tag", "audio_s": 2.0, "wall_s": 2.5},
        {"text": "Leute", "audio_s": 4, "wall_s": 4.0},
    ],
    "shown": [{"text": "gut", "audio_s": 1.0}, {"text": "guten Tag", "audio_s": 2.0}],
}
REFERENCE = {"talk": "a", "target": "de", "start_s": 0, "end_s": 4.5, "text": "Guten Tag, Leute."}


def changed(place: int, **values) -> dict:
    emissions = [dict(emission) for emission in LOG["emissions"]]
    emissions[place] |= values
    return LOG | {"emissions": emissions}


def test_logs_come_back_as_they_were_written(tmp_path: Path) -> None:
    logs = read_logs([write_lines(tmp_path / "in.jsonl", LOG, LOG | {"target": "fr"})])
    assert [log.target for log in logs] == ["de", "fr"]
    assert logs[0].emissions[1].audio_s == 4.0
    write_logs(tmp_path / "out.jsonl", logs)
    assert read_logs([tmp_path / "out.jsonl"]) == logs


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({k: v for k, v in LOG.items() if k != "duration_s"}, "lacks 'duration_s'"),
        (LOG | {"duration_s": 0}, "duration_s: .*greater than 0"),
        (LOG | {"speed": 3}, "speed: is no known field"),
        (changed(1, wall_s="4"), r"emissions\.1\.wall_s: .*valid number"),
        (changed(1, audio_s=float("nan")), r"emissions\.1\.audio_s: .*finite"),
        (changed(1, audio_s=1.0), r"emissions\.1: audio_s 1\.0 after one of 2\.0; time goes forward"),
        (changed(0, wall_s=4.5), r"emissions\.1: wall_s 4\.0 after one of 4\.5; time goes forward"),
        (changed(0, wall_s=1.5), r"emissions\.0: wall_s 1\.5 before its audio_s 2\.0"),
        (LOG | {"shown": [{"text": "a", "audio_s": 2}, {"text": "b", "audio_s": 1}]}, r"shown\.1: audio_s 1"),
        (LOG | {"talk": ""}, "talk: "),
        ([LOG], "no JSON object"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: dict, reason: str) -> None:
    path = write_lines(tmp_path / "log.jsonl", LOG | {"talk": "first"}, line)
    with pytest.raises(SprachbundError, match=rf"log\.jsonl:2: not a log of emissions: {reason}"):
        read_logs([path])


@pytest.mark.parametrize(
    ("raw", "reason"), [(b"{", "no JSON"), (b"\xff{}", "log"), (b"", "is empty"), (b"\n", "is empty")]
)
def test_broken_files_are_named(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "log.jsonl").write_bytes(raw)
    with pytest.raises(SprachbundError, match=rf"log\.jsonl.*{reason}"):
        read_logs([tmp_path / "log.jsonl"])
    with pytest.raises(SprachbundError, match=r"none\.jsonl: No such file.*check the path"):
        read_references(tmp_path / "none.jsonl")


def test_a_talk_twice_is_refused(tmp_path: Path) -> None:
    first, second = (write_lines(tmp_path / name, LOG) for name in ("1.jsonl", "2.jsonl"))
    with pytest.raises(SprachbundError, match=r"2\.jsonl:1: talk 'a' into de is in .*1\.jsonl:1 already"):
        read_logs([first, second])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (REFERENCE | {"start_s": 5, "end_s": 5}, r"end_s 5\.0 is not after start_s 5\.0"),
        (REFERENCE | {"start_s": 5, "end_s": 6, "text": " "}, "text: is empty"),
        (REFERENCE | {"start_s": -1}, "start_s: .*greater than or equal to 0"),
        (
            REFERENCE | {"start_s": 4.0, "end_s": 6},
            r"segment 4\.0-6\.0 s of talk 'a' begins before the one above",
        ),
    ],
)
def test_broken_references_are_named(tmp_path: Path, line: dict, reason: str) -> None:
    path = write_lines(tmp_path / "refs.jsonl", REFERENCE, line)
    with pytest.raises(SprachbundError, match=rf"refs\.jsonl:2: .*{reason}"):
        read_references(path)


def test_references_by_talk_and_target(tmp_path: Path) -> None:
    later, other = REFERENCE | {"start_s": 4.5, "end_s": 6}, REFERENCE | {"target": "fr"}
    result = read_references(write_lines(tmp_path / "refs.jsonl", REFERENCE, other, later))
    assert {key: len(segments) for key, segments in result.items()} == {("a", "de"): 2, ("a", "fr"): 1}


def test_recorder_keeps_what_was_committed_and_what_stood_on_the_screen() -> None:
    recorder = EmissionRecorder("a", "de")
    recorder.add(0, "", "gut", 1.0, 1.2)
    recorder.add(0, "guten", " Tat", 2.0, 2.2)
    recorder.add(0, "", " Tat", 2.5, 2.6)  # nothing new
    recorder.add(1, "", "und", 3.0, 3.1)
    recorder.add(0, " Tag", "", 3.0, 2.0)  # a clock that lags behind the audio
    log = recorder.log(10.0)
    assert [(e.text, e.audio_s, e.wall_s) for e in log.emissions] == [("guten", 2.0, 2.2), ("Tag", 3.0, 3.0)]
    assert [s.text for s in log.shown] == ["gut", "guten Tat", "guten Tat und", "guten Tag und"]


def test_a_word_counts_from_when_it_is_whole() -> None:
    recorder = EmissionRecorder("a", "de")
    recorder.add(0, "ein vier", "", 1.0, 1.0)
    recorder.add(0, "und", "", 2.0, 2.0)
    recorder.add(0, "zwanzig Mal", "", 3.0, 3.0)
    recorder.add(1, "gut", "", 4.0, 4.0)
    emissions = recorder.log(10.0).emissions
    assert [(e.text, e.audio_s) for e in emissions] == [
        ("ein", 1.0),
        ("vierundzwanzig Mal", 3.0),
        ("gut", 4.0),
    ]
    assert recorder.log(10.0).shown[-1].text == "ein vierundzwanzig Mal gut"


def test_recorder_of_a_language_without_spaces() -> None:
    recorder = EmissionRecorder("a", "zh")
    recorder.add(0, "你", "号", 1.0, 1.0)
    recorder.add(0, "好", "", 2.0, 2.0)
    recorder.add(1, "吗", "", 3.0, 3.0)
    assert [e.text for e in recorder.log(5.0).emissions] == ["你", "好", "吗"]
    assert [s.text for s in recorder.log(5.0).shown] == ["你号", "你好", "你好吗"]
