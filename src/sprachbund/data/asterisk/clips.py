"""Decodes recordings and keeps those of composed utterances in memory: trimmed, at one level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
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
NOISE_MARGIN_DB = 8.0
LEAST_RANGE_DB = -18.0
RUMBLE_HZ = 70.0
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


def without_rumble(samples: Samples) -> Samples:
    """High-pass at 70 Hz: the recordings of some speakers start with a decaying offset of the amplifier."""
    from scipy.signal import sosfilt, sosfilt_zi

    settled = sosfilt_zi(_rumble_filter()) * samples[0]  # as if the offset had always been there: no click
    return np.asarray(sosfilt(_rumble_filter(), samples, zi=settled)[0], dtype=np.float32)


@cache
def _rumble_filter() -> npt.NDArray[np.float64]:
    from scipy.signal import butter

    return np.asarray(butter(4, RUMBLE_HZ, btype="highpass", fs=SAMPLE_RATE, output="sos"))


def _frame_powers_db(samples: Samples) -> npt.NDArray[np.float64]:
    size = int(FRAME_S * SAMPLE_RATE)
    count = len(samples) // size
    powers = (samples[: count * size].reshape(count, size).astype(np.float64) ** 2).mean(axis=1)
    return np.asarray(10 * np.log10(powers + 1e-12))


def noise_floor_db(recordings: Iterable[Samples]) -> float:
    """The level of a speaker's silence: median over the recordings of the quietest tenth of each."""
    quiet = [
        np.percentile(_frame_powers_db(samples), 10) for samples in recordings if len(samples) > SAMPLE_RATE
    ]
    return float(np.median(quiet)) if quiet else -np.inf


def trim(samples: Samples, floor_db: float = -np.inf) -> Samples:
    """Cut the silence at both ends, less a margin of 20 ms.

    Silence is what lies 38 dB under the loudest frame, or less than 8 dB over the speaker's noise
    ``floor_db``, but never what lies within 18 dB of the loudest.
    """
    powers = _frame_powers_db(samples)
    if len(powers) < 3 or not np.any(samples):
        return samples
    peak = powers.max()
    threshold = min(max(peak + SILENCE_DB, floor_db + NOISE_MARGIN_DB), peak + LEAST_RANGE_DB)
    loud = np.flatnonzero(powers > threshold)
    size, margin = int(FRAME_S * SAMPLE_RATE), int(MARGIN_S * SAMPLE_RATE)
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
    recordings = [without_rumble(prompt.load()) for prompt in prompts]
    floor_db = noise_floor_db(recordings)
    trimmed = (level(trim(samples, floor_db)) for samples in recordings)
    return Clips(
        language=prompts[0].language,
        speaker=prompts[0].speaker,
        held_out=prompts[0].held_out,
        samples={prompt.name: samples for prompt, samples in zip(prompts, trimmed, strict=True)},
        texts={prompt.name: prompt.text for prompt in prompts},
    )
