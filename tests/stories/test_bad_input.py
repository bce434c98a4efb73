"""Whatever is wrong with the input: one clear line, a non-zero exit code, and the other files go on."""

import contextlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.models.whisper_support import make_directory
from tests.nobody import can_be_nobody, nobody
from tests.stories.support import command, speech, write_tiny_model, write_wav

KEEP = ("--no-guard", "--model")


def one_line(ran, *parts: str) -> None:
    """The command failed with one line that holds all `parts`, and no traceback."""
    assert ran.code != 0
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    line = ran.err.strip()
    assert line.startswith("sprachbund: error: ")
    for part in parts:
        assert part in line


def translate(model: Path, *files: str | Path, to: str = "de", more: tuple[str, ...] = ()):
    return command("translate", *files, "--to", to, *KEEP, model, *more)


def test_missing_file(tiny_model: Path, here: Path) -> None:
    one_line(translate(tiny_model, "nowhere.wav"), "nowhere.wav", "does not exist")


def test_an_address(tiny_model: Path, here: Path) -> None:
    said = "https://a.org/b.mp3 is an address, and addresses are not opened; download it first"
    one_line(translate(tiny_model, "https://a.org/b.mp3"), said)
    ran = translate(tiny_model, "https://a.org/b.mp3", "c.wav")
    assert said in ran.err.splitlines()[0]


@pytest.mark.parametrize("more", [("--engine", "cuda"), ("--device", "cuda:99"), ("--device", "abacus")])
def test_an_engine_or_a_device_that_there_is_not(tiny_model: Path, talk: Path, more: tuple[str, ...]) -> None:
    ran = translate(tiny_model, talk, more=more)
    assert ran.code == 2
    assert more[1] in ran.err


def test_empty_file(tiny_model: Path, here: Path) -> None:
    Path("nothing.wav").touch()
    one_line(translate(tiny_model, "nothing.wav"), "nothing.wav", "empty")


def test_truncated_file_gives_what_it_holds_and_fails(tiny_model: Path, talk: Path, here: Path) -> None:
    Path("cut.wav").write_bytes(talk.read_bytes()[:60_000])
    ran = translate(tiny_model, "cut.wav", more=("--format", "txt"))
    one_line(ran, "cut.wav")
    assert Path("cut.de.txt").read_text().strip()


def test_text_renamed_to_wav(tiny_model: Path, here: Path) -> None:
    Path("letter.wav").write_text("Dear Sir or Madam,\n" * 100)
    one_line(translate(tiny_model, "letter.wav"), "letter.wav")


def test_zero_length_audio(tiny_model: Path, here: Path) -> None:
    write_wav(Path("zero.wav"), [])
    one_line(translate(tiny_model, "zero.wav"), "zero.wav", "no audio samples")


def test_nan_samples(tiny_model: Path, here: Path) -> None:
    samples = speech()
    samples[20_000] = np.nan
    soundfile.write("nan.wav", samples, 16_000, subtype="FLOAT")
    one_line(translate(tiny_model, "nan.wav"), "nan.wav", "nan at 1.25", "sample 20000")


def test_directory(tiny_model: Path, here: Path) -> None:
    Path("recordings").mkdir()
    one_line(translate(tiny_model, "recordings"), "recordings", "is a directory")


@pytest.mark.skipif(not can_be_nobody(), reason="there is no other user to be")
def test_no_permission(here: Path, talk: Path) -> None:
    torch.set_num_threads(1)  # no note of more threads than cores
    model = write_tiny_model(here / "model")
    for path in model.iterdir():
        path.chmod(0o644)
    Path("secret.wav").write_bytes(talk.read_bytes())
    Path("secret.wav").chmod(0)
    with nobody(here):
        plain = ("--engine", "torch")  # no cache of this user is needed
        one_line(translate(model, "secret.wav", more=plain), "secret.wav", "may not be read")


@pytest.mark.parametrize("sample_rate", [192_000, 8_000])
def test_unusual_rates_are_read(tiny_model: Path, here: Path, sample_rate: int) -> None:
    import soxr

    write_wav(Path("rate.wav"), soxr.resample(speech(), 16_000, sample_rate), sample_rate)
    ran = translate(tiny_model, "rate.wav")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("[0.")


def test_eight_channels_are_read(tiny_model: Path, talk: Path, here: Path) -> None:
    write_wav(Path("eight.wav"), np.repeat(speech()[:, None], 8, axis=1))
    one, eight = translate(tiny_model, talk), translate(tiny_model, "eight.wav")
    assert eight.code == 0
    assert eight.out == one.out  # the mean of eight equal channels is each of them


def test_unknown_language_names_the_nearest_and_the_list(tiny_model: Path, talk: Path, here: Path) -> None:
    ran = translate(tiny_model, talk, to="germn")
    one_line(ran, "'germn'", "nearest: de (German)", "de (German), en (English), fr (French)")
    assert ran.code == 2
    one_line(translate(tiny_model, talk, more=("--from", "xx")), "'xx'", "it knows de (German)")
    one_line(translate(tiny_model, talk, more=("--languages", "en,q")), "'q'")


def test_unknown_pair_lists_the_known_ones_and_never_falls_back_to_english(talk: Path, here: Path) -> None:
    make_directory(Path("whisper"))
    ran = translate(Path("whisper"), talk, more=("--from", "es"))
    [error, *hints] = ran.err.splitlines()
    for part in ("es to de", "from es it knows en (English), es (Spanish)", "into de it knows de (German)"):
        assert part in error
    assert hints
    assert all(line.startswith("sprachbund: hint: ") and "--to de" in line for line in hints)
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize(
    "broken", ["config.json", "tokenizer.model", "transcript_tokenizer.model", "model.safetensors"]
)
@pytest.mark.parametrize("way", ["missing", "cut off", "empty"])
def test_broken_model_directory(talk: Path, here: Path, broken: str, way: str) -> None:
    path = write_tiny_model(Path("model")) / broken
    content = path.read_bytes()
    path.unlink()
    if way != "missing":
        path.write_bytes(content[: len(content) // 2] if way == "cut off" else b"")
    one_line(translate(Path("model"), talk), "model")


def test_model_that_is_not_there(talk: Path, here: Path) -> None:
    one_line(translate(Path("./no/model"), talk), "no/model")
    one_line(translate(Path("nobody/nothing"), talk, more=("--offline",)), "nobody/nothing", "offline")


def test_batch_goes_on_and_the_exit_code_says_so(tiny_model: Path, talk: Path, here: Path) -> None:
    Path("empty.wav").touch()
    Path("other.wav").write_bytes(talk.read_bytes())
    ran = translate(tiny_model, talk, "empty.wav", "other.wav", more=("--format", "txt,srt"))
    assert ran.code == 1
    assert len(ran.error_lines) == 1
    assert sorted(path.name for path in here.glob("*.de.*")) == [
        "other.de.srt",
        "other.de.txt",
        "talk.de.srt",
        "talk.de.txt",
    ]


def test_batch_as_json_has_an_object_for_every_file(tiny_model: Path, talk: Path, here: Path) -> None:
    ran = translate(tiny_model, talk, "gone.wav", talk, more=("--json",))
    objects = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 1
    assert [o["file"] for o in objects] == [str(talk), "gone.wav", str(talk)]
    assert objects[0] == objects[2]
    assert "does not exist" in objects[1]["error"]


def test_nothing_is_overwritten_unasked(tiny_model: Path, talk: Path, here: Path) -> None:
    Path("talk.de.txt").write_text("mine")
    ran = translate(tiny_model, talk, more=("--format", "txt"))
    one_line(ran, "talk.de.txt", "--overwrite")
    assert Path("talk.de.txt").read_text() == "mine"
    assert translate(tiny_model, talk, more=("--format", "txt", "--overwrite")).code == 0
    assert Path("talk.de.txt").read_text() != "mine"


def test_two_files_of_one_name(tiny_model: Path, talk: Path, here: Path) -> None:
    Path("talk.wav").write_bytes(talk.read_bytes())
    one_line(translate(tiny_model, talk, "talk.wav", more=("--format", "txt")), "talk.de.txt", str(talk))
    assert not Path("talk.de.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--format", "doc"), ("'doc'", "txt, srt, vtt, json, jsonl, tsv")),
        (("--beam", "0"), ("--beam is 0",)),
        (("--min-tokens", "9", "--max-tokens", "3"), ("--max-tokens is 3",)),
        (("--threads", "0"), ("--threads is 0",)),
        (("--threads", "x"), ("--threads is 'x'", "valid integer", "`sprachbund translate --help`")),
        (("--tempos", "x"), ("--tempos is 'x'; write numbers with commas between",)),
        (("--threads", "100000"), ("--threads is 100000, and this machine has",)),
        (("--tp", "de"), ("--tp",)),
    ],
)
def test_options_that_cannot_be(
    tiny_model: Path, talk: Path, here: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    ran = translate(tiny_model, talk, more=arguments)
    one_line(ran, *parts)
    assert ran.code == 2


def test_what_the_model_cannot_serve_is_said_once_before_the_first_file(
    tiny_model: Path, talk: Path, here: Path
) -> None:
    ran = translate(tiny_model, talk, talk, more=("--prompt", "names: Ada"))
    one_line(
        ran,
        "error: the model conformer has no room for a prompt; leave it out, or take a whisper or qwen3_asr",
    )
    assert ran.code == 2


@pytest.fixture(scope="module")
def long_talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sentences with pauses."""
    return write_wav(tmp_path_factory.mktemp("long") / "long.wav", np.tile(speech("Good morning."), 10))


@contextlib.contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """The disk is full after so many bytes of each file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format_name", ["txt", "srt", "jsonl", "json"])
def test_full_disk_keeps_whole_segments(
    tiny_model: Path, long_talk: Path, here: Path, format_name: str
) -> None:
    assert translate(tiny_model, long_talk, more=("--format", format_name, "--out", "whole")).code == 0
    size = (here / "whole" / f"long.de.{format_name}").stat().st_size
    with files_no_larger_than(size // 3):
        ran = translate(tiny_model, long_talk, more=("--format", format_name))
    one_line(ran, f"long.de.{format_name}.partial")
    assert ran.code == 1
    assert [path.name for path in here.glob("long.*")] == [f"long.de.{format_name}.partial"]
    kept = Path(f"long.de.{format_name}.partial").read_text()
    assert kept
    if format_name in ("jsonl", "json"):
        assert all(json.loads(line)["text"] for line in kept.splitlines())
    else:
        assert (here / "whole" / f"long.de.{format_name}").read_text().startswith(kept)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_stdout(tiny_model: Path, talk: Path, here: Path) -> None:
    arguments = ["translate", str(talk), "--to", "de", "--no-guard", "--model", str(tiny_model)]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "sprachbund", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ran.returncode == 1
    said = f"{talk}: standard output: No space left on device; make room there and run the same command again"
    assert ran.stderr.strip().splitlines() == [f"sprachbund: error: {said}"]


@pytest.mark.slow
def test_interruption_keeps_finished_segments(tiny_model: Path, long_talk: Path, here: Path) -> None:
    samples, _ = soundfile.read(long_talk, dtype="float32")
    write_wav(Path("hour.wav"), np.tile(samples, 120))
    arguments = [
        "translate",
        "hour.wav",
        "--to",
        "de,fr",
        "--format",
        "srt",
        "--threads",
        "1",
        "--engine",
        "torch",
        *KEEP,
        tiny_model,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "sprachbund", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a shell has the signal ignored, and so have their children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    waiting = Path("hour.fr.srt.partial")
    deadline = time.monotonic() + 120
    while not (waiting.exists() and waiting.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.startswith("sprachbund: interrupted; hour.wav was done up to ")
    assert len(err.strip().splitlines()) == 1
    assert not list(here.glob("hour.*.srt"))
    for language in ("de", "fr"):
        kept = Path(f"hour.{language}.srt.partial")
        assert str(kept) in err
        cues = kept.read_text().strip().split("\n\n")
        assert [cue.splitlines()[0] for cue in cues] == [str(n) for n in range(1, len(cues) + 1)]
        assert all(" --> " in cue.splitlines()[1] for cue in cues)
