"""Decodes recordings and keeps those of composed utterances in memory: trimmed, at one level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.data.asterisk.prompts import Prompt

Samples = npt.NDArray[np.float32]
LEVEL_RMS = 0.07
PEAK_LIMIT = 0.95
SILENCE_DB = -38.0
FRAME_S = 0.01
MARGIN_S = 0.02
MAX_CLIP_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The recordings of one speaker, ready to be joined: samples and words by prompt name (small letters)."""

    language: str
    speaker: str
    held_out: bool
    samples: Mapping[str, Samples]
    texts: Mapping[str, str]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of ``names`` that was recorded, or None."""
        return next((name for name in names if name in self.samples), None)


def decode(path: Path) -> Samples:
    """Decode a recording (raw G.722, raw GSM, WAV) to 16 kHz mono float32. Raises SprachbundError if it
    cannot.
    """
    import av

    form = {".g722": "g722", ".gsm": "gsm"}.get(path.suffix)
    try:
        with av.open(str(path), format=form) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            frames.extend(resampler.resample(None))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise SprachbundError(f"{path} cannot be decoded ({error}); unpack the package again") from error
    if not frames:
        raise SprachbundError(f"{path} holds no sound; unpack the package again")
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)


def trim(samples: Samples) -> Samples:
    """Cut the silence at both ends: frames more than 38 dB under the loudest, less a margin of 20 ms."""
    size = int(FRAME_S * SAMPLE_RATE)
    count = len(samples) // size
    if count < 3:
        return samples
    power = (samples[: count * size].reshape(count, size) ** 2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (SILENCE_DB / 10))
    if power.max() == 0.0 or not len(loud):
        return samples
    margin = int(MARGIN_S * SAMPLE_RATE)
    return samples[max(0, loud[0] * size - margin) : (loud[-1] + 1) * size + margin]


def level(samples: Samples) -> Samples:
    """Bring the loud half of a clip to one level, without clipping."""
    loudness = np.abs(samples)
    active = samples[loudness > np.median(loudness)]
    rms = float(np.sqrt((active**2).mean())) if len(active) else 0.0
    if rms == 0.0:
        return samples
    gain = min(LEVEL_RMS * np.sqrt(2) / rms, PEAK_LIMIT / float(loudness.max()))
    return (samples * np.float32(gain)).astype(np.float32)


def load_clips(prompts: Iterable[Prompt], *, max_duration_s: float = MAX_CLIP_S) -> dict[str, Clips]:
    """Decode, trim and level the recordings of every speaker; the result is keyed by speaker.

    Recordings longer than ``max_duration_s`` are left out: nobody joins them to others.
    """
    by_speaker: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.duration_s <= max_duration_s:
            by_speaker.setdefault(prompt.speaker, []).append(prompt)
    return {speaker: _load_speaker(mine) for speaker, mine in by_speaker.items()}


def _load_speaker(prompts: list[Prompt]) -> Clips:
    return Clips(
        language=prompts[0].language,
        speaker=prompts[0].speaker,
        held_out=prompts[0].held_out,
        samples={prompt.name: level(trim(prompt.load())) for prompt in prompts},
        texts={prompt.name: prompt.text for prompt in prompts},
    )
