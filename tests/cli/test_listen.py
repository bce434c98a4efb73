"""The verb `listen`, on recordings and pipes; the bundled model does the work."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from sprachbund.audio.load import load
from sprachbund.audio.microphone import Microphone
from sprachbund.cli import main
from sprachbund.cli.listen import JsonLines, level_bar
from sprachbund.streaming.events import LiveNotice
from sprachbund.streaming.live import Moment
from tests.audio.standin_sounddevice import installed
from tests.documented import documented_fields

RECORDING = Path(__file__).parents[2] / "examples" / "recordings" / "es.flac"


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("listen") / "short.wav"
    soundfile.write(path, load(RECORDING, 0.0, 5.0), 16_000)
    return path


def test_a_recording_is_written_line_by_line(short, capsys):
    assert main(["listen", str(short), "--to", "de", "--fast"]) == 0
    assert "drücken Sie die Eins um diese Nummer anzurufen" in capsys.readouterr().out


def test_events_are_json_lines_that_add_up(short, capsys):
    assert main(["listen", str(short), "--to", "de,en", "--fast", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    engine, *events = events
    assert engine.keys() == {"type", "name", "why", "parts"}
    assert engine["type"] == "engine"
    assert {event["target"] for event in events} == {"de", "en"}
    german = [event for event in events if event["target"] == "de"]
    assert "".join(event["committed"] for event in german) == "drücken Sie die Eins um diese Nummer anzurufen"
    assert any(event["tentative"] for event in german)
    assert german[-1]["final"]


def test_every_field_of_an_event_is_documented(short, capsys):
    known = documented_fields("listen.md", "event")
    assert main(["listen", str(short), "--to", "de", "--fast", "--json"]) == 0
    JsonLines().add(Moment(event=LiveNotice(kind="warning", message="m", audio_s=1.0), second=1.0))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["type"] for event in events} == known.keys()
    known["engine"].remove("translator")  # of a cascade
    for event in events:
        assert event.keys() - {"type"} == known[event["type"]]


def test_raw_sound_is_not_untrusted(capsys):
    assert main(["listen", "-", "--untrusted"]) == 2
    said = "--untrusted is for recordings; raw sound is not decoded, so leave it out"
    assert capsys.readouterr().err == f"sprachbund: error: {said}\n"


def test_without_a_language_it_writes_the_one_spoken(short, capsys):
    assert main(["listen", str(short), "--fast", "--policy", "span"]) == 0
    assert "marque uno para llamar a este número" in capsys.readouterr().out


def test_a_log_can_be_scored(short, tmp_path, capsys):
    log, references = tmp_path / "log.jsonl", tmp_path / "refs.jsonl"
    assert main(["listen", str(short), "--to", "de", "--fast", "--log", str(log)]) == 0
    text = "drücken Sie die Eins um diese Nummer anzurufen"
    line = {"talk": "short", "target": "de", "start_s": 0.8, "end_s": 4.4, "text": text}
    references.write_text(json.dumps(line) + "\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["latency", str(log), "--references", str(references), "--json"]) == 0
    (talk,) = json.loads(capsys.readouterr().out)["talks"]
    assert talk["quality"]["chrF"] == pytest.approx(100)
    assert 0 < talk["scores"]["ideal"]["StreamLAAL"] < 5


def test_raw_sound_comes_through_a_pipe(short, monkeypatch, capsys):
    raw = (load(short) * 32767).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw), isatty=lambda: False))
    assert main(["listen", "-", "--to", "de", "--policy", "span"]) == 0
    assert "diese Nummer anzurufen" in capsys.readouterr().out


def test_a_file_through_the_pipe_is_refused(monkeypatch, capsys):
    file = io.BytesIO((RECORDING.parent / "fr.mp3").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
    assert main(["listen", "-", "--to", "de"]) == 1
    said = "standard input is an mp3 file; give the file name, or raw 16-bit mono sound at 16 kHz"
    assert f"sprachbund: error: {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "wait"], "local-agreement, alignatt"),
        (["--step", "0"], "--step is 0"),
        (["--to", "Klingon"], "Klingon"),
        (["--fast"], "recordings"),
        (["x.wav", "--microphone", "hw:0"], "--microphone"),
        (["x.wav", "--system-sound"], "--system-sound is instead of x.wav"),
        (["x.wav", "--log", "/nowhere/at/all.jsonl"], "no folder"),
        (["x.wav", "--log", "/"], "--log / is a folder; name a file in it"),
        (["x.wav"], "x.wav does not exist"),
        (["--microphone", "nobody-has-this"], "--microphone"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments, message, capsys, monkeypatch):
    installed(monkeypatch)
    assert main(["listen", *arguments]) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sprachbund:")]
    assert message in lines[-1]


@pytest.mark.parametrize("arguments", [[], ["--microphone", "nobody-has-this"], ["--system-sound"]])
def test_sound_that_is_not_there_is_said_before_the_model_is_loaded(arguments, capsys, monkeypatch):
    installed(monkeypatch).seen.clear()
    monkeypatch.setattr(sys, "platform", "darwin")

    def load(options):
        raise AssertionError("loaded")

    monkeypatch.setattr("sprachbund.cli.listen.load_model", load)
    assert main(["listen", *arguments]) == 1
    assert "--microphone" in capsys.readouterr().err


def test_microphones_are_listed(capsys, monkeypatch):
    installed(monkeypatch)
    assert main(["listen", "--microphones"]) == 0
    table = capsys.readouterr().out
    assert "Built-in" in table
    assert "USB headset" in table
    assert "Loudspeaker" not in table
    assert main(["listen", "--microphones", "--json"]) == 0
    assert [device["name"] for device in json.loads(capsys.readouterr().out)] == ["Built-in", "USB headset"]


def test_a_microphone_is_listened_to_until_it_is_stopped(capsys, monkeypatch):
    machine = installed(monkeypatch)
    opened = Microphone._open

    def open_and_stop_later(self):
        opened(self)
        self.stop()

    monkeypatch.setattr(Microphone, "_open", open_and_stop_later)
    assert main(["listen", "--to", "de", "--policy", "span"]) == 0
    assert "listening; Ctrl-C ends it" in capsys.readouterr().err
    assert all(stream.closed.is_set() for stream in machine.streams)


def test_the_level_is_a_bar_of_its_decibels():
    tone = np.sin(np.arange(1600) * 0.3).astype(np.float32)
    assert level_bar(np.zeros(1600, np.float32)) == "░" * 20 + " -60 dB"
    assert level_bar(tone) == "█" * 19 + "░" + " -3 dB"
    assert level_bar(tone / 10).endswith(" -23 dB")
    assert level_bar(np.zeros(0, np.float32)).endswith(" -60 dB")


def test_silence_gives_no_text(tmp_path, capsys):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000 * 3, np.float32), 16_000)
    assert main(["listen", str(tmp_path / "quiet.wav"), "--to", "de", "--fast"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sprachbund: warning: no speech found in 3.0 s of audio\n" in captured.err
