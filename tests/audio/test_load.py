import io
import os
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load, open_audio
from sprachbund.errors import SprachbundError

DURATION_S = 3.0
FFMPEG_CODECS = {
    "m4a": ("aac", 44_100),
    "webm": ("libopus", 48_000),
    "mkv": ("libopus", 48_000),
    "mp3": ("libmp3lame", 44_100),
    "opus": ("libopus", 48_000),
    "aac": ("aac", 44_100),
}


def melody(rate: int, duration_s: float = DURATION_S) -> NDArray[np.float32]:
    """A gliding tone with pauses: whatever shifts or stretches it shows in a correlation."""
    t = np.arange(round(rate * duration_s)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 * t + 150 * t**2)) * (np.sin(2 * np.pi * 1.7 * t) > -0.5)).astype(
        np.float32
    )


def write(
    path: Path, rate: int = SAMPLE_RATE, samples: NDArray[np.float32] | None = None, **options: str
) -> Path:
    soundfile.write(path, melody(rate) if samples is None else samples, rate, **options)
    return path


def write_ffmpeg(path: Path, *, video: bool = False, audio: bool = True, audio_from_s: float = 0.0) -> Path:
    codec, rate = FFMPEG_CODECS.get(path.suffix[1:], ("aac", 44_100))
    with av.open(str(path), "w") as container:
        picture = (
            container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p") if video else None
        )
        sound = container.add_stream(codec, rate=rate, layout="mono") if audio else None
        if picture is not None:
            for _ in range(int(DURATION_S * 10)):
                black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(black))
            container.mux(picture.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(melody(rate)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = (
                rate,
                Fraction(1, rate),
                round(audio_from_s * rate),
            )
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


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


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32, np.float64])
def test_arrays(dtype: type) -> None:
    floats = np.stack([melody(8000), -0.5 * melody(8000)], axis=1)
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 2**7}.get(dtype, 1)
    samples = (floats.astype(np.float64) * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)
    expected = soxr.resample(floats.mean(axis=1), 8000, SAMPLE_RATE)
    np.testing.assert_allclose(
        load(samples, sample_rate=8000), expected, atol=1e-2 if dtype is np.uint8 else 1e-4
    )


class TenHours(io.RawIOBase):
    """A WAV file of ten hours that exists only while it is read."""

    def __init__(self, rate: int = 8000) -> None:
        size = 36_000 * rate * 2
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


def test_ten_hours_need_no_ten_hour_buffer() -> None:
    source = open_audio(TenHours())
    assert source.duration_s == 36_000
    tracemalloc.start()
    num_samples = sum(map(len, source.blocks()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_samples == 36_000 * SAMPLE_RATE
    assert peak < 16e6  # the whole would be 2.3 GB


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


def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        refused(path, r"a\.wav may not be read")
    finally:
        os.seteuid(user)


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
    ("samples", "rate", "message"),
    [
        (np.zeros(9), None, "sample_rate"),
        (np.zeros((2, 16_000)), 16_000, r"\(2, 16000\)"),
        (np.zeros(0), 16_000, "no audio samples"),
        (np.zeros(9, complex), 16_000, "complex"),
        (np.array([0.0, np.nan]), 16_000, "nan"),
        (np.zeros(9), 1, "1 Hz"),
    ],
)
def test_wrong_arrays(samples: NDArray[np.float64], rate: int | None, message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        load(samples, sample_rate=rate)


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
