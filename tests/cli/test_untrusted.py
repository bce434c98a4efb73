"""`--untrusted`, and recordings on standard input: the same text, and exit code 1 for half of one."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sprachbund.audio import isolated
from tests.stories.support import command, speech, write_tiny_model, write_wav


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "talk.wav", speech())


@contextmanager
def standard_input(file: io.BufferedReader) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(file))
        yield


def transcribed(model: Path, *more: str | Path, code: int = 0) -> tuple[str, str]:
    ran = command("transcribe", "--model", model, "--no-guard", *more)
    assert ran.code == code, ran.err
    return ran.out, ran.err


def test_the_text_is_the_same(model: Path, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = isolated.IsolatedDecoder.__init__

    def counted(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        opened.append(1)
        original(self, *args, **kwargs)

    monkeypatch.setattr(isolated.IsolatedDecoder, "__init__", counted)
    trusted = transcribed(model, talk, "--json")
    assert not opened
    assert transcribed(model, talk, "--json", "--untrusted") == trusted
    assert opened
    assert '"text"' in trusted[0]


@pytest.mark.parametrize("untrusted", [(), ("--untrusted",)])
def test_a_file_as_standard_input(model: Path, talk: Path, untrusted: tuple[str, ...]) -> None:
    with talk.open("rb") as file, standard_input(file):
        assert transcribed(model, "-", *untrusted)[0] == transcribed(model, talk)[0] != ""


@pytest.mark.parametrize("untrusted", [(), ("--untrusted",)])
def test_half_a_recording_on_a_pipe_is_told_and_fails(
    model: Path, talk: Path, untrusted: tuple[str, ...]
) -> None:
    content = talk.read_bytes()
    half = content[: min(len(content) // 2, 60_000)]
    out, into = os.pipe()
    with os.fdopen(into, "wb") as writer:
        writer.write(half)
    with os.fdopen(out, "rb") as reader, standard_input(reader):
        _, said = transcribed(model, "-", *untrusted, code=1)
    assert "cut off: the header promises" in said
    assert "the result is of what could be read" in said
