"""`translate --text`, text files and standard input, and every way to ask for what cannot be."""

import io
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sprachbund.cli import main
from sprachbund.decoding.texts import TranslatedText
from sprachbund.models.io import save
from tests.stories.support import command, speech, write_tiny_model, write_wav
from tests.units.translators import model_of, speak, talkative


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text")
    made = speak(directory / "data")
    save(talkative(model_of(made.units, head="ctc_attention")), directory / "model")
    return directory / "model"


def translated(model: Path, *more: str | Path) -> str:
    ran = command("translate", "--model", model, "--from", "de", "--to", "fr", *more)
    assert ran.code == 0, ran.err
    return ran.out


def test_a_line_comes_out_for_each_that_goes_in(model: Path, tmp_path: Path) -> None:
    texts = ["abc", "", "fade", "  "]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    out = translated(model, "--texts", tmp_path / "texts.txt")
    lines = out.split("\n")
    assert len(lines) == 5
    assert lines[1] == lines[3] == lines[4] == ""
    assert lines[0]
    assert out == translated(model, *(part for text in texts for part in ("--text", text)))


def test_a_line_break_in_a_translation_makes_no_further_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        family: Any, texts: Sequence[str], targets: Sequence[str], *others: Any
    ) -> list[list[TranslatedText]]:
        return [
            [
                TranslatedText(source="de", target=target, text=f"{text}\n\nb", log_probability=-1.0)
                for target in targets
            ]
            for text in texts
        ]

    monkeypatch.setattr("sprachbund.decoding.texts.translate_texts", broken)
    assert translated(model, "--text", "one", "--text", "two") == "one b\ntwo b\n"
    assert (
        json.loads(translated(model, "--text", "one", "--json"))["translations"]["fr"]["text"] == "one\n\nb"
    )


def test_standard_input_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = translated(model, "--text", "abc", "--text", "fade")
    for mark in ("", "\ufeff"):  # which some programs write before UTF-8
        content = f"{mark}abc\nfade\n".encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert translated(model, "--texts", "-") == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_read_as_a_file(model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "texts"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("abc\nfade\n",), daemon=True)
    writer.start()
    assert translated(model, "--texts", pipe) == translated(model, "--text", "abc", "--text", "fade")
    writer.join(10)


def test_json_says_what_was_found(model: Path) -> None:
    lines = translated(model, "--text", "abc", "--text", "fade", "--json").splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 2
    assert (first["text"], first["source_language"]) == ("abc", "de")
    assert first["translations"]["fr"]["text"] == translated(model, "--text", "abc").strip()
    assert first["translations"]["fr"]["log_probability"] < 0


def test_a_beam_is_for_text_too(model: Path) -> None:
    assert translated(model, "--text", "abc", "--beam", "10")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to translate; name recordings, or give a text with --text"),
        (("--text", "abc", "talk.wav"), "text is translated without recordings"),
        (("--text", "abc", "--words"), "text is translated without --words"),
        (("--text", "abc", "--overwrite"), "text is translated without --overwrite"),
        (("--text", "abc", "--num-speakers", "2"), "text is translated without --num-speakers"),
        (("--text", "abc", "--untrusted"), "text is translated without --untrusted"),
        (("--text", "abc", "--max-out-of-domain", "0.3"), "text is translated without --max-out-of-domain"),
        (("--text", "abc", "--tempos", "1.3"), "text is translated without --tempos"),
        (("--texts", "gone.txt"), "there is no file gone.txt"),
        (("--texts", "-", "--texts", "-"), "stdin is named twice"),
        (("--text", "abc", "--to", "it"), "it"),
        (("--text", "abc", "--from", "es"), "es"),
    ],
)
def test_what_cannot_be_is_one_line(model: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = command("translate", "--model", model, "--to", "fr", *arguments)
    assert ran.code == 2
    assert len(ran.error_lines) == 1
    assert said in ran.error_lines[0]
    assert ran.out == ""


def test_a_file_that_is_not_text_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "sound.txt").write_bytes(b"\xff\xfe\x00\x80")
    ran = command("translate", "--model", model, "--to", "fr", "--texts", tmp_path / "sound.txt")
    assert ran.code == 1
    assert "sound.txt is not UTF-8" in ran.error_lines[0]


def test_a_model_of_speech_alone_says_so(tmp_path: Path) -> None:
    ran = command("translate", "--model", write_tiny_model(tmp_path), "--to", "fr", "--text", "abc")
    assert ran.code == 2
    assert "turns speech into text, and cannot translate text" in ran.error_lines[0]


def test_the_same_model_translates_speech(model: Path, tmp_path: Path) -> None:
    talk = write_wav(tmp_path / "talk.wav", speech())
    out = translated(model, talk, "--no-guard")
    assert out.startswith("[0.")
    ran = command("translate", "--model", model, "--from", "de", "--to", "fr", talk, "--words", "--json")
    assert "words get no times" in ran.error_lines[0]
    assert translated(model, talk, "--no-guard", "--engine", "torch-fp32") == out
    assert translated(model, talk, "--no-guard", "--engine", "torch-bf16").startswith("[0.")


def test_a_recipe_with_units_is_trained_by_the_verb(model: Path, tmp_path: Path) -> None:
    encoded = model.parent / "data" / "encoded"
    (tmp_path / "recipe.toml").write_text(RECIPE.format(units=model / "units", encoded=encoded))
    ran = command("train", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "12 sentences of speech, 12 sentences of text" in ran.out
    assert translated(tmp_path / "run" / "model", "--text", "abc")
    ran = command("train", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--set", "model.heads=2")
    assert "unknown key model.heads; did you mean model.head?" in ran.error_lines[0]


RECIPE = """
units = "{units}"
train = ["{encoded}"]
dev = ["{encoded}"]
pairs = [["de", "fr"], ["en", "fr"]]

[model]
width = 16
num_lower = 1
num_upper = 1
num_decoder_layers = 1

[training]
steps = 1
num_workers = 0

[card]
name = "tones"
"""


def test_transcribe_has_no_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--help"]) == 0
    assert "--text" not in capsys.readouterr().out
