"""Sound that begins late in its container, or has holes: silence in their stead, in pieces, however long."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.decoders import CHUNK_FRAMES, open_decoder
from sprachbund.audio.load import load, open_audio
from tests.audio.support import damage, write_ffmpeg


def test_ten_minutes_of_silence_before_the_sound_comes_in_pieces(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width = video.height = 16
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        picture.pts = 0
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(np.full((1, 1600), 8000, np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 16_000, 600 * 16_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    with path.open("rb") as file:
        chunks = [samples for _, samples in open_decoder(file, "late", seekable=True).chunks()]
    assert max(map(len, chunks)) <= CHUNK_FRAMES
    total = sum(map(len, chunks))
    assert abs(total - 600 * 16_000 - 1600) < 1600
    assert sum(len(block) for block in open_audio(path).blocks()) == total


BEEP_S = 0.1


def beeps(path: Path, times_s: Sequence[float], *, live: bool = False) -> Path:
    """A file of frames of a tenth of a second that begin at these times, and of nothing between them."""
    options = {"live": "1"} if live else {}
    with av.open(str(path), "w", format="matroska", options=options) as container:
        audio = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        for time_s in times_s:
            samples = np.full((1, round(BEEP_S * SAMPLE_RATE)), 8000, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, round(time_s * SAMPLE_RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def onsets_s(samples: NDArray[np.float32]) -> list[float]:
    heard = np.concatenate([[False], np.abs(samples) > 0.1])
    return [round(float(at) / SAMPLE_RATE, 2) for at in np.flatnonzero(heard[1:] & ~heard[:-1])]


@pytest.mark.parametrize("live", [False, True])  # a live recording states no length
def test_a_hole_is_silence_and_what_follows_keeps_its_time(tmp_path: Path, live: bool) -> None:
    path = beeps(tmp_path / "muted.mkv", [0, 0.1, 15, 40], live=live)
    source = open_audio(path)
    samples = np.concatenate(list(source.blocks()))
    assert onsets_s(samples) == [0, 15, 40]
    assert len(samples) == round(40.1 * SAMPLE_RATE)
    assert source.warnings == []
    np.testing.assert_array_equal(load(path, 14.5, 1), samples[round(14.5 * SAMPLE_RATE) :][:SAMPLE_RATE])
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(0.7))), samples)
    with path.open("rb") as file:
        assert (
            max(len(chunk) for _, chunk in open_decoder(file, "muted", seekable=True).chunks())
            <= CHUNK_FRAMES
        )


def test_times_that_jitter_or_fall_behind_give_no_silence(tmp_path: Path) -> None:
    path = beeps(tmp_path / "jitter.mkv", [0, 0.14, 0.2, 0.34, 0.36, 0.5])
    assert len(load(path)) == round(6 * BEEP_S * SAMPLE_RATE)


def test_a_time_that_cannot_be_writes_no_hours_of_silence(tmp_path: Path) -> None:
    path = beeps(tmp_path / "jump.mkv", [0, 0.1, 90_000, 90_000.1, 90_005], live=True)
    source = open_audio(path)
    # Behind the jump, a hole is a hole again.
    assert onsets_s(np.concatenate(list(source.blocks()))) == [0, 5.2]
    assert source.warnings == [
        f"{path}: its time jumps from 0.20 s to 90000.00 s, too far; the jump is left out"
    ]


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "webm"])
def test_ordinary_files_have_the_samples_of_their_frames(tmp_path: Path, suffix: str) -> None:
    path = write_ffmpeg(tmp_path / f"a.{suffix}", duration_s=1.0)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    with path.open("rb") as file:
        chunks = [samples for _, samples in open_decoder(file, "a", seekable=True).chunks()]
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(frames))


def test_damaged_packets_are_silence(tmp_path: Path) -> None:
    path = write_ffmpeg(tmp_path / "a.m4a")
    whole = load(path)
    source = open_audio(damage(path))
    samples = np.concatenate(list(source.blocks()))
    assert "damaged packets" in " ".join(source.warnings)
    assert abs(len(samples) - len(whole)) < 0.05 * SAMPLE_RATE
    tail = slice(round(2.5 * SAMPLE_RATE), round(2.9 * SAMPLE_RATE))
    np.testing.assert_allclose(samples[tail], whole[tail], atol=1e-3)
