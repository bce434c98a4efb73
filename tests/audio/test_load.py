import io
import os
import struct
import subprocess
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.decoders import FfmpegDecoder, open_decoder
from sprachbund.audio.load import load, open_audio
from sprachbund.errors import SprachbundError
from tests.audio.support import DURATION_S, FFMPEG_CODECS, melody, write, write_ffmpeg


def assert_melody(samples: NDArray[np.float32], *, least: float, from_s: float = 0.0) -> None:
    """Check by correlation that the melody is there, neither shifted nor stretched."""
    samples = samples[round(from_s * SAMPLE_RATE) :]
    expected = melody(SAMPLE_RATE)
    assert abs(len(samples) - len(expected)) < 0.1 * SAMPLE_RATE
    length = min(len(samples), len(expected))
    assert np.corrcoef(samples[:length], expected[:length])[0, 1] > least


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "FLOAT"}),
        ("a.wav", {"subtype": "DOUBLE"}),
        ("a.w64", {}),
        ("a.aiff", {}),
        ("a.flac", {}),
        ("a.au", {}),
        ("a.raw", {"format": "WAV"}),  # a name that means something else to libsndfile
    ],
)
def test_lossless_files(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = write(tmp_path / name, **options)
    source = open_audio(path)
    assert source.duration_s == DURATION_S
    samples = load(path)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, melody(SAMPLE_RATE), atol=1e-4)
    assert source.warnings == []


CANCEL = "its channels cancel each other out; save one of them alone"


@pytest.mark.parametrize(
    ("second", "warnings"), [(-1.0, [CANCEL]), (-0.99, [CANCEL]), (-0.5, []), (0.0, []), (1.0, [])]
)
def test_channels_that_cancel_each_other_are_named(
    tmp_path: Path, second: float, warnings: list[str]
) -> None:
    channels = np.outer(melody(SAMPLE_RATE), np.array([1.0, second], np.float32))
    path = write(tmp_path / "a.wav", samples=channels)
    sources = {str(path): open_audio(path), "the array of samples": open_audio(channels, SAMPLE_RATE)}
    for name, source in sources.items():
        heard = np.concatenate(list(source.blocks()))
        np.testing.assert_allclose(heard, channels.mean(axis=1), atol=1e-4)
        assert source.warnings == [f"{name}: {warning}" for warning in warnings]
    with path.open("rb") as file:
        decoder = FfmpegDecoder(file, "a.wav", has_length=True)
        heard = np.concatenate([chunk for _, chunk in decoder.chunks()])
    np.testing.assert_allclose(heard, channels.mean(axis=1), atol=1e-4)
    assert decoder.warnings == [f"a.wav: {warning}" for warning in warnings]


@pytest.mark.parametrize(("subtype", "least"), [("ULAW", 0.999), ("GSM610", 0.95), ("PCM_U8", 0.999)])
def test_telephone_wavs(tmp_path: Path, subtype: str, least: float) -> None:
    assert_melody(load(write(tmp_path / "a.wav", 8000, subtype=subtype)), least=least)


@pytest.mark.parametrize(
    "options", [{"format": "OGG", "subtype": "VORBIS"}, {"format": "OGG", "subtype": "OPUS"}]
)
def test_ogg(tmp_path: Path, options: dict[str, str]) -> None:
    assert_melody(load(write(tmp_path / "a.ogg", 48_000, **options)), least=0.99)


@pytest.mark.parametrize("suffix", FFMPEG_CODECS)
def test_ffmpeg_containers(tmp_path: Path, suffix: str) -> None:
    path = write_ffmpeg(tmp_path / f"a.{suffix}")
    source = open_audio(path)
    # bare AAC frames carry no word of the encoder's delay and state no length
    delay_s = 1024 / 44_100 if suffix == "aac" else 0.0
    assert_melody(np.concatenate(list(source.blocks())), least=0.98, from_s=delay_s)
    assert source.warnings == []
    if suffix != "aac":
        assert source.duration_s == pytest.approx(DURATION_S, abs=0.1)


@pytest.mark.parametrize("suffix", ["m4a", "mkv", "webm"])
def test_a_title_in_another_encoding_is_no_obstacle(tmp_path: Path, suffix: str) -> None:
    title, in_latin_1 = "a title, Gruesse", "ein Titel, Grüße".encode("latin-1")
    path = write_ffmpeg(tmp_path / f"a.{suffix}", title=title)
    content = path.read_bytes()
    assert content.count(title.encode()) == 1
    path.write_bytes(content.replace(title.encode(), in_latin_1))  # of the same length
    assert_melody(load(path), least=0.98)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_of_a_video(tmp_path: Path, suffix: str) -> None:
    assert_melody(load(write_ffmpeg(tmp_path / f"a.{suffix}", video=True)), least=0.99)


def test_sound_that_starts_after_the_picture_stays_in_step(tmp_path: Path) -> None:
    path = write_ffmpeg(tmp_path / "a.mkv", video=True, audio_from_s=1.25)
    samples = load(path)
    # Matroska keeps times in whole milliseconds: the best of the shifts within two of them
    lag = np.argmax(np.correlate(samples[: 4 * SAMPLE_RATE], melody(SAMPLE_RATE, 2.0), mode="valid"))
    assert lag / SAMPLE_RATE == pytest.approx(1.25, abs=0.002)
    assert_melody(samples, least=0.98, from_s=lag / SAMPLE_RATE)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_resampling_in_blocks_equals_one_shot(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", rate, subtype="FLOAT")
    blocks = list(open_audio(path).blocks(0.37))
    assert {len(block) for block in blocks[:-1]} == {round(0.37 * SAMPLE_RATE)}
    np.testing.assert_allclose(
        np.concatenate(blocks), soxr.resample(melody(rate), rate, SAMPLE_RATE), atol=1e-4
    )


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW"])
def test_sphere_is_sought_in(tmp_path: Path, subtype: str) -> None:
    path = write(tmp_path / "a.sph", 8000, format="NIST", subtype=subtype)
    with path.open("rb") as file, closing(open_decoder(file, "a", seekable=True)) as decoder:
        assert decoder.seek(SAMPLE_RATE, 1.5) == 1.5
        part = np.concatenate([samples for _, samples in decoder.chunks()])
    with path.open("rb") as file:
        other = FfmpegDecoder(file, "a", has_length=False)
        whole = np.concatenate([samples for _, samples in other.chunks()])
    np.testing.assert_array_equal(part, whole[12_000:])


def test_sphere_that_is_shortened_is_left_to_ffmpeg(tmp_path: Path) -> None:
    path = write(tmp_path / "a.sph", format="NIST", subtype="PCM_16")
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"-s3 pcm", b"-s26 pcm,embedded-shorten-v2.00")[:1024] + b"ajkg" + bytes(2000)
    )
    with pytest.raises(SprachbundError, match=r"a\.sph .*; "):
        load(path)


def test_eight_channels_become_their_mean(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (SAMPLE_RATE, 8)).astype(np.float32)
    path = write(tmp_path / "a.wav", samples=channels, subtype="FLOAT")
    np.testing.assert_allclose(load(path), channels.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, 0.5), (0.777, None), (1.0001, 0.9), (2.9, 5.0)])
def test_parts_are_parts_of_the_whole(
    tmp_path: Path, name: str, start_s: float, duration_s: float | None
) -> None:
    path = tmp_path / name
    path = write_ffmpeg(path) if name.endswith("m4a") else write(path, 44_100)
    whole, part = load(path), load(path, start_s, duration_s)
    begin = round(start_s * SAMPLE_RATE)
    end = len(whole) if duration_s is None else begin + round(duration_s * SAMPLE_RATE)
    np.testing.assert_allclose(part, whole[begin:end], atol=1e-4)


@pytest.mark.parametrize("name", ["a.wav", "a.m4a"])
def test_open_files_are_read_from_where_they_stand(tmp_path: Path, name: str) -> None:
    path = write_ffmpeg(tmp_path / name) if name.endswith("m4a") else write(tmp_path / name)
    file = io.BytesIO(path.read_bytes())
    source = open_audio(file)
    for _ in range(2):  # a seekable file can be read again
        np.testing.assert_array_equal(np.concatenate(list(source.blocks())), load(path))
    assert not file.closed


@pytest.mark.parametrize("name", ["a.wav", "a.webm"])
def test_a_pipe_is_read_once(tmp_path: Path, name: str) -> None:
    path = write_ffmpeg(tmp_path / name) if name.endswith("webm") else write(tmp_path / name)
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader:
        with os.fdopen(into, "wb") as writer:
            fits = path.read_bytes()[: 1 << 16]
            writer.write(fits)
        source = open_audio(reader)
        assert source.duration_s is None
        read = np.concatenate(list(source.blocks()))
        expected = load(path)
        np.testing.assert_allclose(read, expected[: len(read)], atol=1e-4)
        assert len(read) > SAMPLE_RATE
        with pytest.raises(SprachbundError, match="twice"):
            list(source.blocks())


@pytest.mark.parametrize("name", ["a.wav", "a.webm", "a.mp3"])
@pytest.mark.parametrize("kind", ["fifo", "descriptor"])
def test_a_pipe_that_is_given_as_a_path_is_read_from_its_beginning(
    tmp_path: Path, name: str, kind: str
) -> None:
    """As the shell's <(command) gives one."""
    path = write(tmp_path / name) if name.endswith("wav") else write_ffmpeg(tmp_path / name)
    if kind == "fifo":
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = subprocess.Popen(["cp", path, pipe])
    else:
        writer = subprocess.Popen(["cat", path], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        pipe = Path(f"/dev/fd/{writer.stdout.fileno()}")
    source = open_audio(pipe)
    read = np.concatenate(list(source.blocks()))
    assert writer.wait() == 0
    expected, end = load(path), SAMPLE_RATE // 10
    assert len(expected) <= len(read) < len(expected) + end  # an mp3 from a pipe keeps its padding
    np.testing.assert_allclose(read[: len(expected) - end], expected[:-end], atol=1e-4)
    with pytest.raises(SprachbundError, match=rf"{pipe} cannot be read twice; save it to a file first"):
        list(source.blocks())


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32, np.float64])
def test_arrays(dtype: type) -> None:
    floats = np.stack([melody(8000), -0.5 * melody(8000)], axis=1)
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 2**7}.get(dtype, 1)
    samples = (floats.astype(np.float64) * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)
    expected = soxr.resample(floats.mean(axis=1), 8000, SAMPLE_RATE)
    np.testing.assert_allclose(
        load(samples, sample_rate=8000), expected, atol=1e-2 if dtype is np.uint8 else 1e-4
    )


@pytest.mark.parametrize("rate", [0, -8000, float("nan"), "8000"])
def test_a_sample_rate_that_cannot_be_is_named(rate: Any) -> None:
    with pytest.raises(SprachbundError, match=r"the array of samples has the sample rate .*; give it in Hz"):
        load(melody(8000), sample_rate=rate)


class TwoHours(io.RawIOBase):
    """A WAV file of two hours that exists only while it is read."""

    def __init__(self, rate: int = 8000) -> None:
        size = 7200 * rate * 2
        form = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
        self.head = (
            b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
        )
        self.wave = (np.sin(np.arange(1 << 15) * 0.05) * 8000).astype("<i2").tobytes()
        self.end, self.position = len(self.head) + size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = (0, self.position, self.end)[whence] + offset
        return self.position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        in_head = self.position < len(self.head)
        source = self.head if in_head else self.wave
        begin = self.position if in_head else (self.position - len(self.head)) % len(self.wave)
        piece = source[begin : begin + min(len(buffer), self.end - self.position)]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


@pytest.mark.slow
def test_two_hours_need_no_two_hour_buffer() -> None:
    source = open_audio(TwoHours())
    assert source.duration_s == 7200
    tracemalloc.start()
    num_samples = sum(map(len, source.blocks()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_samples == 7200 * SAMPLE_RATE
    assert peak < 16e6  # the whole would be 460 MB
