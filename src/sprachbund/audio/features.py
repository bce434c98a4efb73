"""Log-mel features, in pure torch, so that training workers, decoding and streaming share one definition.

Four normalisations exist because they answer different needs. ``whisper`` repeats the arithmetic Whisper
checkpoints were trained with: its floor follows the loudest frame of the utterance, and its edges are
mirrored, so a frame's value depends on other frames and on the padding. ``fixed`` has a constant floor and
silent edges: a frame depends on nothing but the 400 samples under it, so real-length, zero-padded, batched
and streamed audio give equal features. ``voxtral`` is the same with the floor of Voxtral Realtime. ``nemo``
repeats what NeMo's streaming checkpoints were trained with
(https://github.com/NVIDIA/NeMo, AudioToMelSpectrogramPreprocessor without normalization): it depends on nothing but the
samples under a frame either.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.audio.constants import HOP, NUM_FREQUENCIES, SAMPLE_RATE, WINDOW

Normalisation = Literal["whisper", "fixed", "voxtral", "nemo"]

WHISPER_FLOOR = 1e-10
WHISPER_DYNAMIC_RANGE = 8.0  # decades below the loudest frame
FIXED_FLOOR = (
    1e-8  # just above what the rounding noise of 16-bit audio reaches, so such noise reads as silence
)
VOXTRAL_LOUDEST = 1.5  # decades; stands for the loudest bin of Whisper's floor
NEMO_EMPHASIS = 0.97
NEMO_POINTS = 512  # of the transform, around the same window
NEMO_GUARD = 2.0**-24
NEMO_DEVIATION_GUARD = 1e-5
VOXTRAL_FLOOR = 10 ** (VOXTRAL_LOUDEST - WHISPER_DYNAMIC_RANGE)
_HALF = WINDOW // 2
_HZ_PER_MEL = 200.0 / 3  # Slaney's scale: linear up to 1 kHz, logarithmic above
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def num_frames(num_samples: int) -> int:
    """Count the log-mel frames that ``log_mel`` gives for this many samples."""
    return num_samples // HOP


def log_mel(
    samples: Tensor | NDArray[Any],
    num_mel_bins: int = 80,
    *,
    pad_to_s: float | None = None,
    normalise: Normalisation = "whisper",
) -> Tensor:
    """Turn 16 kHz samples into log-mel features.

    Frame t is centred on sample 160 t and sees the 200 samples on either side.

    Args:
        samples: mono audio in [-1, 1], shape (N,) or (B, N) for N samples.
        num_mel_bins: M; Whisper checkpoints use 80, and 128 from large-v3 on.
        pad_to_s: zero-pad to this many seconds first (30 for a standard Whisper window).
        normalise: ``whisper`` is the feature extractor of Whisper: log10, floor at 8 decades below the
            loudest bin of the row, then (x + 4) / 4. ``fixed`` is (log10(max(x, 1e-8)) + 4) / 4, with silence
            before and after the audio: digital silence is exactly -1, and no frame depends on other frames,
            on padding or on the batch. ``voxtral`` is the same with a floor of 10^-6.5. ``nemo`` is
            ln(x + 2^-24) of samples emphasised as `emphasise` does.

    Returns:
        float32 features of shape (M, T) or (B, M, T), T = N // 160 after padding, on the device of
        ``samples``.

    Raises:
        ValueError: samples are not one- or two-dimensional, or longer than ``pad_to_s``.
    """
    audio = torch.as_tensor(samples).to(torch.float32)
    if audio.ndim not in (1, 2):
        raise ValueError(
            f"samples have shape {tuple(audio.shape)}; give (N,) or (B, N), channels already mixed down"
        )
    if pad_to_s is not None:
        audio = _pad(audio, round(pad_to_s * SAMPLE_RATE))
    if normalise == "nemo":
        return emphasised_log_mel(emphasise(audio), num_mel_bins)
    power = _power_spectrum(audio, _hann(), WINDOW, mirror_edges=normalise == "whisper")
    mel = mel_filters(num_mel_bins).to(audio.device) @ power
    if normalise == "whisper":
        return _whisper_scale(mel)
    return _fixed_scale(mel, FIXED_FLOOR if normalise == "fixed" else VOXTRAL_FLOOR)


def emphasise(samples: Tensor, before: float | None = None) -> Tensor:
    """Each sample (..., N) less 0.97 of the one before it: `before` for the first, which stays whole without."""
    if before is None:
        return torch.cat([samples[..., :1], samples[..., 1:] - NEMO_EMPHASIS * samples[..., :-1]], dim=-1)
    first = samples.new_full((*samples.shape[:-1], 1), before)
    return samples - NEMO_EMPHASIS * torch.cat([first, samples[..., :-1]], dim=-1)


def emphasised_log_mel(emphasised: Tensor, num_mel_bins: int) -> Tensor:
    """Features ``nemo``, (M, T) or (B, M, T), of samples (N,) or (B, N) that are emphasised already."""
    power = _power_spectrum(emphasised, _even_hann(), NEMO_POINTS, mirror_edges=False)
    filters = mel_filters(num_mel_bins, NEMO_POINTS // 2 + 1).to(emphasised.device)
    return (filters @ power + NEMO_GUARD).log()


def normalised_per_bin(mel: Tensor) -> Tensor:
    """Features (T, M) of an utterance, each bin with mean 0 and variance 1 over it: NeMo's "per_feature".

    Args:
        mel: features ``nemo`` of two frames or more; one frame has no variance.
    """
    deviation, mean = torch.std_mean(mel, dim=0, keepdim=True)
    return (mel - mean) / (deviation + NEMO_DEVIATION_GUARD)


def htk_log_mel(samples: Tensor, num_mel_bins: int) -> Tensor:
    """Features of torchaudio's MelSpectrogram on Whisper's scale, as Granite Speech reads them.

    Args:
        samples: (N,) at 16 kHz; more than 256.
        num_mel_bins: M; filters are triangles of equal height on the HTK scale.

    Returns:
        (M, T), T = N // 160 + 1: the last frame is centred on the end.
    """
    half = NEMO_POINTS // 2
    rows = torch.nn.functional.pad(samples[None, None], (half, half), mode="reflect")[0]
    window = _hann().to(samples.device)
    spectrum = torch.stft(rows, NEMO_POINTS, HOP, WINDOW, window, center=False, return_complex=True)[0]
    power = spectrum.real.square() + spectrum.imag.square()
    return _whisper_scale(htk_filters(num_mel_bins, half + 1).to(samples.device) @ power)


def _pad(audio: Tensor, num_samples: int) -> Tensor:
    missing = num_samples - audio.shape[-1]
    if missing < 0:
        raise ValueError(
            f"{audio.shape[-1]} samples do not fit {num_samples}; cut the audio into windows first"
        )
    return torch.nn.functional.pad(audio, (0, missing))


def _power_spectrum(audio: Tensor, window: Tensor, num_points: int, *, mirror_edges: bool) -> Tensor:
    """Squared magnitudes, (N,) -> (F, T) or (B, N) -> (B, F, T), F = num_points / 2 + 1 frequencies."""
    rows = audio if audio.ndim == 2 else audio[None]
    frames, half = num_frames(rows.shape[-1]), num_points // 2
    if frames == 0 or rows.shape[0] == 0:
        return audio.new_zeros((*audio.shape[:-1], half + 1, frames))
    if mirror_edges and rows.shape[-1] > half:  # nothing to mirror in audio shorter than half a window
        rows = torch.nn.functional.pad(rows[:, None], (half, half), mode="reflect")[:, 0]
    else:
        rows = torch.nn.functional.pad(rows, (half, half))
    spectrum = torch.stft(
        rows, num_points, HOP, WINDOW, window.to(audio.device), center=False, return_complex=True
    )[..., :frames]
    power = spectrum.real.square() + spectrum.imag.square()
    return power if audio.ndim == 2 else power[0]


def _whisper_scale(mel: Tensor) -> Tensor:
    if mel.numel() == 0:
        return mel
    logs = mel.clamp(min=WHISPER_FLOOR).log10()
    loudest = logs.amax(dim=(-2, -1), keepdim=True)
    return (torch.maximum(logs, loudest - WHISPER_DYNAMIC_RANGE) + 4.0) / 4.0


def _fixed_scale(mel: Tensor, floor: float) -> Tensor:
    return (mel.clamp(min=floor).log10() + 4.0) / 4.0


@cache
def _hann() -> Tensor:
    # a tensor born in inference mode could not take part in a later backward pass
    with torch.inference_mode(False):
        return torch.hann_window(WINDOW)


@cache
def _even_hann() -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(WINDOW, periodic=False)


@cache
def mel_filters(num_mel_bins: int, num_frequencies: int = NUM_FREQUENCIES) -> Tensor:
    """Triangular filters on Slaney's mel scale from 0 to 8 kHz, each of unit area, shape (M, num_frequencies).

    The tensor is cached and shared: do not write to it.
    """
    edges_mel = np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), num_mel_bins + 2)
    edges_hz = _mel_to_hz(edges_mel)
    triangles = _triangles(edges_hz, num_frequencies) * 2.0 / (edges_hz[2:, None] - edges_hz[:-2, None])
    with torch.inference_mode(False):
        return torch.tensor(triangles, dtype=torch.float32)


@cache
def htk_filters(num_mel_bins: int, num_frequencies: int) -> Tensor:
    """Triangular filters on the HTK mel scale from 0 to 8 kHz, each of height 1, shape (M, num_frequencies).

    The tensor is cached and shared: do not write to it.
    """
    highest = 2595.0 * np.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (np.linspace(0.0, highest, num_mel_bins + 2) / 2595.0) - 1.0)
    with torch.inference_mode(False):
        return torch.tensor(_triangles(edges_hz, num_frequencies), dtype=torch.float32)


def _triangles(edges_hz: NDArray[np.float64], num_frequencies: int) -> NDArray[np.float64]:
    """Filters (M, num_frequencies) of height 1 between edges (M + 2,)."""
    bins_hz = np.linspace(0.0, SAMPLE_RATE / 2, num_frequencies)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return float(_KNEE_MEL + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * _HZ_PER_MEL
    return np.where(mel < _KNEE_MEL, linear, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))


# Streaming: log-mel of audio in blocks of any size, equal frame by frame to that of the whole.

StreamedNormalisation = Literal["fixed", "voxtral", "nemo"]
"""Normalisations in which a frame depends on the samples under it alone."""


class LogMelStream:
    """Frames of a normalisation, each as soon as the 200 samples behind its centre are there.

    Args:
        num_mel_bins: M.
        normalise: see `log_mel`.
    """

    def __init__(self, num_mel_bins: int = 80, normalise: StreamedNormalisation = "fixed") -> None:
        self.num_mel_bins, self.normalise = num_mel_bins, normalise
        self._before: float | None = None  # the sample in front of the next ones
        self._held = np.zeros(_HALF, np.float32)  # from 200 samples before the centre of the next frame on

    def push(self, samples: NDArray[np.float32]) -> Tensor:
        """Take the next samples (N,) and give the frames (T, M) that they complete."""
        new = samples.astype(np.float32, copy=False)
        if self.normalise == "nemo" and len(new):
            before, self._before = self._before, float(new[-1])
            new = emphasise(torch.from_numpy(new), before).numpy()
        self._held = np.concatenate([self._held, new])
        return self._frames(max(0, (len(self._held) - WINDOW) // HOP + 1))

    def finish(self) -> Tensor:
        """End the audio: the last frames (T, M), with silence behind them."""
        num_left = max(0, (len(self._held) - _HALF) // HOP)
        self._held = np.pad(self._held, (0, WINDOW))
        return self._frames(num_left)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the stream as tensors, to be kept or moved; ready for `safetensors.torch.save`."""
        before = [] if self._before is None else [self._before]
        return {"held": torch.from_numpy(self._held.copy()), "before": torch.tensor(before)}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        num_mel_bins: int = 80,
        normalise: StreamedNormalisation = "fixed",
    ) -> Self:
        """The stream that gave `tensors`, where it was.

        Args:
            tensors: the state by name, as the stream returned it.
            num_mel_bins: mel bins of the stream.
            normalise: normalisation of the stream.

        Raises:
            ValueError: naming what is missing or too much.
        """
        if different := {"held", "before"} ^ set(tensors):
            raise ValueError(
                f"{', '.join(sorted(different))}: too much or missing in the state of log-mel frames"
            )
        made = cls(num_mel_bins, normalise)
        made._held = tensors["held"].numpy().copy()
        made._before = tensors["before"].tolist()[0] if len(tensors["before"]) else None
        return made

    def _frames(self, count: int) -> Tensor:
        if count == 0:
            return torch.zeros(0, self.num_mel_bins)
        # Frame t of a piece is centred on its sample 160 t, so the piece has to begin a whole hop earlier.
        lead = -(-_HALF // HOP) * HOP - _HALF
        piece = np.pad(self._held[: (count - 1) * HOP + WINDOW], (lead, 0))
        first = (lead + _HALF) // HOP
        if self.normalise == "nemo":
            mel = emphasised_log_mel(torch.from_numpy(piece), self.num_mel_bins)
        else:
            mel = log_mel(piece, self.num_mel_bins, normalise=self.normalise)
        self._held = self._held[count * HOP :]
        return mel.T[first : first + count]
