"""Translators of text by the command, from a directory as published."""

import json
from pathlib import Path

import pytest

from sprachbund.engines.extension import missing_because
from tests.models.translation.support import make_checkpoint
from tests.stories.support import command, speech, write_wav


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("commands") / "model", "nllb").directory


def test_text_is_translated_into_several_languages(directory: Path) -> None:
    asked = (
        "translate",
        "--model",
        directory,
        "--from",
        "German",
        "--to",
        "fr,zh",
        "--text",
        "der Hund",
        "--json",
    )
    ran = command(*asked)
    assert ran.code == 0, ran.err
    done = json.loads(ran.out)
    assert done["source_language"] == "de"
    assert done["translations"].keys() == {"fr", "zh"}
    assert done["translations"]["fr"]["text"] != done["translations"]["zh"]["text"]
    compiled = () if missing_because() else ("native", "native-int4")
    for engine in ("torch", "torch-fp32", "torch-bf16", "torch-int8", *compiled):
        ran = command(*asked, "--engine", engine)
        assert json.loads(ran.out)["translations"].keys() == {"fr", "zh"}, ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--text", "der Hund"), "cannot identify the language of a text; name it with --from"),
        (("--text", "der Hund", "--from", "fr"), "does not know the pair fr to fr"),
        (("--text", "x", "--from", "tlh"), "language 'tlh' is not among those of this model"),
        (("--text", "e" * 70, "--from", "de"), "tokens and the model m2m_100 reads 64"),
    ],
)
def test_what_cannot_be_is_one_line(directory: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = command("translate", "--model", directory, "--to", "fr", *arguments)
    assert ran.code in (1, 2)
    assert len(ran.error_lines) == 1
    assert said in ran.error_lines[0]


def test_it_hears_nothing(directory: Path, tmp_path: Path) -> None:
    talk = write_wav(tmp_path / "talk.wav", speech())
    ran = command("translate", talk, "--model", directory, "--from", "de", "--to", "fr")
    assert ran.code in (1, 2)
    assert "reads text and hears nothing" in ran.error_lines[0]


def test_it_is_described_and_checked(directory: Path) -> None:
    assert "whole; m2m_100" in command("models", "check", directory).out
    shown = command("models", "show", directory)
    assert shown.code == 0, shown.err
    assert "zh-Hant" in shown.out
