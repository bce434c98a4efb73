"""`--table`: what it says, on a terminal and elsewhere, and what it goes together with."""

import io
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from sprachbund.cli.speech import ResultTable, short_names
from sprachbund.decoding.result import Segment, Translation
from tests.stories.support import command, write_wav


def translation(text: str, target: str, source: str | None = "en", duration_s: float = 2.0) -> Translation:
    segment = Segment(start_s=0.0, end_s=1.0, source_language=source or "", target_language=target, text=text)
    return Translation(
        source_language=source,
        target_language=target,
        duration_s=duration_s,
        segments=(segment,) if text else (),
    )


@pytest.fixture
def filled() -> ResultTable:
    table = ResultTable(["in/one.wav", "in/a rather long name [of] a recording.wav"])
    table.add("in/one.wav", {"de": translation("guten Tag", "de"), "en": translation("good day", "en")})
    long = "ein langer Satz " * 10
    table.add("in/a rather long name [of] a recording.wav", {"de": translation(long, "de", "fr", 6.0)})
    return table


def test_the_table_and_the_files_of_two_recordings(tiny_model: Path, talk: Path, here: Path) -> None:
    Path("other.wav").write_bytes(talk.read_bytes())
    arguments = ("--to", "de,fr", "--model", tiny_model, "--no-guard", "--table")
    ran = command("translate", talk, "other.wav", *arguments, "--format", "srt,txt", "--out", "out")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert re.fullmatch(r"talk\.wav \((de|en|fr)\)", lines[0])
    assert lines[1] == f"  de  {Path('out/talk.de.txt').read_text().strip()}"
    assert lines[2] == f"  fr  {Path('out/talk.fr.txt').read_text().strip()}"
    assert lines[3].startswith("other.wav (")
    length_s = 2 * soundfile.info(talk).duration
    speed = re.fullmatch(
        r"2 recordings: (\d+\.\d) s of sound in (\d+\.\d) s of work, real-time factor (\d+\.\d+)", lines[-2]
    )
    assert speed
    assert float(speed[1]) == pytest.approx(length_s, abs=0.06)
    assert float(speed[3]) == pytest.approx(float(speed[2]) / length_s, abs=0.03)
    assert lines[-1] == "8 files written (srt, txt) in out/"
    assert len(list(Path("out").iterdir())) == 8


def test_transcripts_stand_under_the_language_spoken(tiny_model: Path, talk: Path) -> None:
    ran = command("transcribe", talk, "--from", "fr", "--model", tiny_model, "--no-guard", "--table")
    assert re.match(r"talk\.wav \(fr\)\n  fr  \S.*\n1 recording: ", ran.out)


def test_silence_and_failures(tiny_model: Path, talk: Path, here: Path) -> None:
    write_wav(Path("silence.wav"), np.zeros(16_000))
    ran = command(
        "translate", "silence.wav", "gone.wav", talk, "--to", "de", "--model", tiny_model, "--table"
    )
    assert ran.code == 1
    assert ran.out.splitlines()[:2] == ["silence.wav (–)", "  de  –"]
    assert "gone.wav" not in ran.out
    assert ran.err.count("gone.wav") == 1
    ran = command("translate", "gone.wav", "--to", "de", "--model", tiny_model, "--table")
    assert (ran.code, ran.out) == (1, "")


def test_json_leaves_no_room_for_a_table(tiny_model: Path, talk: Path) -> None:
    ran = command("translate", talk, "--to", "de", "--model", tiny_model, "--table", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "leave out --table" in ran.err


@pytest.mark.parametrize("width", [80, 120])
def test_drawn_for_a_terminal(filled: ResultTable, width: int) -> None:
    drawn = io.StringIO()
    filled.draw(Console(file=drawn, width=width, force_terminal=True, color_system=None))
    lines = [line.rstrip() for line in drawn.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["recording", "spoken", "in", "text"]
    assert lines[2].split() == ["one.wav", "en", "de", "guten", "Tag"]
    assert lines[3].split() == ["en", "good", "day"]
    assert "[of]" in drawn.getvalue()  # no markup
    assert drawn.getvalue().count("Satz") == 10
    assert "…" not in drawn.getvalue()


def test_names_without_folders_unless_they_are_needed() -> None:
    assert short_names(["a/x.wav", "b/y.wav"]) == {"a/x.wav": "x.wav", "b/y.wav": "y.wav"}
    assert short_names(["a/x.wav", "b/x.wav"]) == {"a/x.wav": "a/x.wav", "b/x.wav": "b/x.wav"}
    assert short_names(["x.wav", "x.wav", "-"]) == {"x.wav": "x.wav", "-": "-"}


@pytest.mark.slow
def test_ctrl_c_prints_what_is_finished(tiny_model: Path, talk: Path, here: Path) -> None:
    samples, _ = soundfile.read(talk, dtype="float32")
    write_wav(Path("hour.wav"), np.tile(samples, 1000))
    arguments = [
        "translate",
        str(talk),
        "hour.wav",
        "--to",
        "de",
        "--model",
        str(tiny_model),
        "--threads",
        "1",
    ]
    arguments += ["--no-guard", "--table", "--format", "txt", "--engine", "torch"]  # a fast one ends too soon
    with Path("printed").open("w") as out, Path("said").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "sprachbund", *arguments],
            stdout=out,
            stderr=err,
            preexec_fn=partial(
                signal.signal, signal.SIGINT, signal.SIG_DFL
            ),  # a shell's background ignores it
        )
        deadline = time.monotonic() + 60
        waiting = Path("hour.de.txt.partial")
        while not (waiting.exists() and waiting.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    printed = Path("printed").read_text()
    assert printed.startswith("talk.wav (")
    assert "\nhour.wav (" in printed
    assert "2 recordings: " in printed
    assert "hour.wav was done up to" in Path("said").read_text()


def test_the_factor_of_quick_work_has_two_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ResultTable(["talk.wav"])
    table.add("talk.wav", {"de": translation("guten Tag", "de", duration_s=1000.0)})
    for work_s, factor in ((4.24, "0.0042"), (99.0, "0.099"), (500.0, "0.50"), (0.0, "0.00")):
        monkeypatch.setattr(table, "_work_s", work_s)
        assert table.closing_lines()[0].endswith(f"of work, real-time factor {factor}")
