"""A melody in files of many kinds."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE

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


def damage(path: Path) -> Path:
    """Overwrite packets of an m4a of `write_ffmpeg`, from about 1 s to 1.8 s."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 8000
    content[begin : begin + 6000] = bytes([0xFF]) * 6000
    path.write_bytes(content)
    return path


def write_ffmpeg(
    path: Path,
    *,
    video: bool = False,
    audio: bool = True,
    audio_from_s: float = 0.0,
    duration_s: float = DURATION_S,
    title: str = "",
    cover: bool = False,
    index_first: bool = False,
) -> Path:
    codec, rate = FFMPEG_CODECS.get(path.suffix[1:], ("aac", 44_100))
    # Only "mp4" takes covers into m4a.
    form = "mp4" if cover and path.suffix == ".m4a" else None
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", format=form, options=options) as container:
        container.metadata["title"] = title
        picture = (
            container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p") if video else None
        )
        sound = container.add_stream(codec, rate=rate, layout="mono") if audio else None
        if cover:
            image = container.add_stream("mjpeg", rate=25, width=512, height=512, pix_fmt="yuvj420p")
            image.disposition = av.stream.Disposition.attached_pic
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
            drawn = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="yuvj420p")
            drawn.pts, drawn.time_base = 0, Fraction(1, 25)
            container.mux(image.encode(drawn))
            container.mux(image.encode())
        if picture is not None:
            for _ in range(int(duration_s * 10)):
                black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(black))
            container.mux(picture.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(melody(rate, duration_s)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = (
                rate,
                Fraction(1, rate),
                round(audio_from_s * rate),
            )
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path
