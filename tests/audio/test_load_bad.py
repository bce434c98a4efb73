"""Files that cannot be read, that hold less than they promise, and what is said about them."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load, open_audio
from sprachbund.errors import SprachbundError
from tests.audio.support import DURATION_S, damage, melody, write, write_ffmpeg
from tests.nobody import can_be_nobody, nobody


def refused(source: object, message: str) -> None:
    """Check that opening and reading ends in one clear line."""
    with pytest.raises(SprachbundError, match=message) as caught:
        list(open_audio(source).blocks())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what to do next


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", r"none\.wav does not exist")


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory")


def test_a_file_open_as_text(tmp_path: Path) -> None:
    with write(tmp_path / "a.wav").open() as file:
        refused(file, r"a\.wav' .* is open as text; open it as bytes: open\(path, 'rb'\)")


@pytest.mark.parametrize("index_first", [False, True])
def test_an_mp4_from_a_pipe(tmp_path: Path, index_first: bool) -> None:
    content = write_ffmpeg(tmp_path / "a.m4a", index_first=index_first, duration_s=20.0).read_bytes()
    with piped(content) as reader:
        if index_first:
            assert sum(map(len, open_audio(reader).blocks())) > 19 * SAMPLE_RATE
        else:
            refused(reader, "is an MP4 file whose index is behind its sound, .*; save it and name the file")


def test_nothing_from_a_pipe() -> None:
    with piped(b"") as reader:
        refused(reader, r"is empty \(0 bytes\)")
    with piped(b"hello, this is text") as reader:
        refused(reader, "it starts with b'hello, this is t'")


def test_a_closed_file(tmp_path: Path) -> None:
    with write(tmp_path / "a.wav").open("rb") as file:
        pass
    refused(file, r"a\.wav is closed; open it again, as bytes")


def test_a_name_is_said_once() -> None:
    name = "a" * 5000
    with pytest.raises(
        SprachbundError, match=rf"^{name} cannot be opened \(File name too long\); check the name$"
    ):
        open_audio(name)


@contextmanager
def piped(content: bytes) -> Iterator[IO[bytes]]:
    """The end to read from of a pipe that gives some content."""
    out, into = os.pipe()

    def write_all() -> None:
        with suppress(BrokenPipeError), os.fdopen(into, "wb") as writer:
            writer.write(content)

    writing = threading.Thread(target=write_all)
    writing.start()
    with os.fdopen(out, "rb") as reader:
        yield reader
    writing.join()


@pytest.mark.skipif(not can_be_nobody(), reason="there is no other user to be")
def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    path.chmod(0)
    with nobody(tmp_path):
        refused(path, r"a\.wav may not be read")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").touch()
    refused(tmp_path / "a.mp3", r"a\.mp3 is empty \(0 bytes\)")
    refused(io.BytesIO(b""), "is empty")


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "flac", "txt"])
def test_text_under_an_audio_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"notes.{suffix}"
    path.write_text("dear diary, nothing was said today\n" * 50)
    refused(path, r"notes\.\w+ is not audio .*dear diary")


def test_bytes_of_no_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path, "is not audio")


def test_zero_length(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.wav", samples=np.zeros(0, np.float32)), "no audio samples")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    samples = melody(44_100)
    samples[[50_001, 60_000]] = bad
    path = write(tmp_path / "a.wav", 44_100, samples, subtype="FLOAT")
    refused(path, rf"a\.wav has a sample that is {bad} at 1\.1338 s \(sample 50001\)")


def test_video_without_sound(tmp_path: Path) -> None:
    refused(write_ffmpeg(tmp_path / "a.mp4", video=True, audio=False), r"no audio stream \(it holds: video\)")


def test_start_after_the_end(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match=r"no audio after 9\.00 s \(it lasts 3\.00 s\)"):
        load(write(tmp_path / "a.wav"), start_s=9.0)


@pytest.mark.parametrize(
    ("start_s", "duration_s", "message"),
    [
        (-1.0, None, "start_s is -1.0; give a second of the audio, from 0 on"),
        (np.nan, None, "start_s is nan"),
        (0.0, -1.0, "duration_s is -1.0; give a number above 0, or None for all of it"),
        (0.0, 0.0, "duration_s is 0.0"),
        (0.0, np.inf, "duration_s is inf"),
    ],
)
def test_times_that_audio_cannot_have(
    start_s: float, duration_s: float | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SprachbundError, match=message):
        load(write(tmp_path / "a.wav"), start_s, duration_s)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(9), None, "sample_rate"),
        (np.ones(1), 48_000, "lasts 21 µs, less than a sample at 16 kHz"),
        (np.zeros((2, 16_000)), 16_000, r"\(2, 16000\)"),
        (np.zeros(0), 16_000, "no audio samples"),
        (np.zeros(9, complex), 16_000, "complex"),
        (np.array([0.0, np.nan]), 16_000, "nan"),
        (np.array([0.0, 12_000.0]), 16_000, r"12000\.0 at 0\.0001 s .*divide 16-bit numbers by 32768"),
        (np.zeros(9), 1, "rate of 1 Hz; rates of 1000 to 1000000 Hz are read"),
        (np.zeros(9), 2_000_000_000, "rate of 2000000000 Hz; rates of 1000 to 1000000 Hz are read"),
    ],
)
def test_wrong_arrays(samples: NDArray[np.float64], rate: int | None, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        load(samples, sample_rate=rate)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"RIFF", r"audio is of type bytes; wrap them as io\.BytesIO"),
        (bytearray(4), r"audio is of type bytearray; wrap them as io\.BytesIO"),
        ([0.1, 0.2], r"audio is of type list; give one path, or samples as numpy\.array"),
        (
            torch.zeros(9),
            r"audio is of type Tensor; give its samples as an array, \.numpy\(\), with sample_rate",
        ),
        (None, "audio is of type NoneType; give a path, an open binary file, or an array of samples"),
    ],
)
def test_what_is_no_audio_is_named_by_its_type(source: Any, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        load(source, sample_rate=SAMPLE_RATE)


def test_a_cut_wav_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[: 44 + SAMPLE_RATE * 2])
    source = open_audio(path)
    assert len(np.concatenate(list(source.blocks()))) == SAMPLE_RATE
    assert source.warnings == [
        f"{path}: cut off: the header promises 3.00 s, the file holds 1.00 s, which are used"
    ]


@pytest.mark.parametrize("suffix", ["flac", "mp3", "webm"])
def test_other_cut_files_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path = write(path) if suffix == "flac" else write_ffmpeg(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    source = open_audio(path)
    samples = np.concatenate(list(source.blocks()))
    assert 0.5 * SAMPLE_RATE < len(samples) < 2.5 * SAMPLE_RATE
    np.testing.assert_allclose(samples[:8000], melody(SAMPLE_RATE)[:8000], atol=0.2)
    assert len(source.warnings) >= 1
    assert all(str(path) in warning for warning in source.warnings)


@pytest.mark.parametrize("suffix", ["mp3", "m4a"])
@pytest.mark.parametrize("has_cover", [False, True])
def test_a_cover_hides_no_cut(tmp_path: Path, suffix: str, has_cover: bool) -> None:
    path = write_ffmpeg(tmp_path / f"a.{suffix}", cover=has_cover, index_first=suffix == "m4a")
    content = path.read_bytes()
    whole = open_audio(path)
    assert len(np.concatenate(list(whole.blocks()))) > 2.9 * SAMPLE_RATE
    assert whole.warnings == []
    path.write_bytes(content[: len(content) - 10_000])
    source = open_audio(path)
    assert len(np.concatenate(list(source.blocks()))) < 2.5 * SAMPLE_RATE
    assert "cut off: the header promises" in source.warnings[-1]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("part", [0.5, 0.95, 1.0])
def test_an_ogg_without_its_last_page_says_so(tmp_path: Path, subtype: str, part: float) -> None:
    path = tmp_path / "a.ogg"
    whole = np.tile(melody(SAMPLE_RATE), 10)
    soundfile.write(path, whole, SAMPLE_RATE, format="OGG", subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    source = open_audio(path)
    samples = np.concatenate(list(source.blocks()))
    said = f"{path}: cut off: its last page is missing; what comes before is used"
    assert (said in source.warnings) == (part < 1)
    assert (len(samples) == len(whole)) == (part == 1)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_ffmpeg(tmp_path / "a.m4a")
    path.write_bytes(path.read_bytes()[:3000])
    refused(path, "cut off before its index")


def test_a_damaged_packet_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = write_ffmpeg(tmp_path / "a.m4a")
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 8000
    content[begin : begin + 300] = bytes([0xFF]) * 300
    path.write_bytes(content)
    source = open_audio(path)
    samples = np.concatenate(list(source.blocks()))
    assert len(samples) > 2 * SAMPLE_RATE
    assert "damaged packets" in " ".join(source.warnings)


def test_only_what_lies_before_damage_is_intact(tmp_path: Path) -> None:
    path = damage(write_ffmpeg(tmp_path / "a.m4a"))
    assert len(load(path, 0.1, 0.3, intact=True)) == round(0.3 * SAMPLE_RATE)
    assert len(load(path, 2.2, 0.5)) == round(0.5 * SAMPLE_RATE)
    with pytest.raises(
        SprachbundError, match=r"damaged packets from .* s on, before the utterance ends at 2\.70 s"
    ):
        load(path, 2.2, 0.5, intact=True)
    with pytest.raises(SprachbundError, match="damaged packets left out"):
        load(path, intact=True)


def test_a_wav_written_to_a_pipe_is_not_called_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    source = open_audio(path)
    assert len(np.concatenate(list(source.blocks()))) == round(DURATION_S * SAMPLE_RATE)
    assert source.warnings == []


def test_nothing_is_printed_and_files_are_closed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_ffmpeg(tmp_path / "a.mp3")
    path.write_bytes(path.read_bytes()[:20_000])
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        load(path)
        load(path, duration_s=0.1)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_while_reading_is_not_swallowed(tmp_path):
    """Callbacks from C would print a KeyboardInterrupt and go on."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(60 * 8000, np.float32), 8000)
    handles = []
    original = soundfile.SoundFile

    def opened(file, *args, **kwargs):
        handles.append(file)
        return original(file, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", opened)
        assert len(load(path)) == 60 * 16_000
    assert all(isinstance(handle, int) for handle in handles)


class Breaking(io.BytesIO):
    """A file of which the first bytes can be read, and that breaks off with an exception or gives nothing more."""

    def __init__(self, content: bytes, fault: BaseException | None, *, seekable: bool) -> None:
        super().__init__(content)
        self.fault, self.can_seek, self.num_ends = fault, seekable, 0

    def seekable(self) -> bool:
        return self.can_seek

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < 100_000:
            return super().read(size)
        self.num_ends += 1
        if self.num_ends > 100:  # a reader that goes on for ever would hang
            return b""
        if self.fault is None:
            return None  # type: ignore[return-value]  # as of a pipe that does not wait
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (RuntimeError("the program's own"), RuntimeError, "the program's own"),
        (OSError(5, "Input/output error"), SprachbundError, r"its end \(Input/output error\)"),
        (EOFError("the archive is cut off"), SprachbundError, r"its end \(the archive is cut off\)"),
        (None, SprachbundError, r"its end \(it does not wait for more"),
    ],
)
@pytest.mark.parametrize(
    ("suffix", "seekable"), [(".wav", True), (".wav", False), (".mp3", True), (".mp3", False)]
)
def test_what_reading_meets_is_neither_swallowed_nor_taken_for_a_cut_file(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    suffix: str,
    seekable: bool,
    fault: BaseException | None,
    raised: type[BaseException],
    message: str | None,
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".wav":
        soundfile.write(path, np.zeros(60 * 8000, np.float32), 8000)
    else:
        write_ffmpeg(path, duration_s=60.0)
    content = path.read_bytes()
    assert len(content) > 200_000
    with pytest.raises(raised, match=message):
        load(Breaking(content, fault, seekable=seekable))
    assert capfd.readouterr() == ("", "")
