"""Log-mel features as Kaldi computes them, which speaker models and many recognisers of its line were trained with."""

import math

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE

_WINDOW, _HOP, _POINTS = 400, 160, 512
_LOWEST_HZ = 20.0
_EMPHASIS = 0.97
_FLOOR = float(np.finfo(np.float32).eps)


def kaldi_fbank(samples: NDArray[np.float32], num_bins: int = 80) -> NDArray[np.float32]:
    """Natural logarithms of mel energies (T, `num_bins`), a frame every 10 ms; without dither.

    Frames of 25 ms lie whole inside the sound; each loses its mean, is emphasised, and is seen through Povey's window
    (a Hann window to the power of 0.85).

    Args:
        samples: (N,), at 16 kHz; in whole numbers of 16 bits, as Kaldi takes them, or otherwise scaled: that adds a
            constant.
        num_bins: mel bins from 20 Hz to 8 kHz.
    """
    count = 1 + (len(samples) - _WINDOW) // _HOP if len(samples) >= _WINDOW else 0
    if count == 0:
        return np.zeros((0, num_bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), _WINDOW)[::_HOP][:count]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(_WINDOW) / (_WINDOW - 1))) ** 0.85
    power = np.abs(np.fft.rfft((frames - _EMPHASIS * before) * window, _POINTS)) ** 2
    energies = power[:, :-1] @ _filters(num_bins).T
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def _filters(num_bins: int) -> NDArray[np.float64]:
    """Triangles on the mel scale (M, bins of the transform without the last)."""
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(SAMPLE_RATE / 2), num_bins + 2)
    mels = _mel(np.arange(_POINTS // 2) * SAMPLE_RATE / _POINTS)
    left, centre, right = (edges[n : n + num_bins, None] for n in range(3))
    filters: NDArray[np.float64] = np.maximum(
        0.0, np.minimum((mels - left) / (centre - left), (right - mels) / (right - centre))
    )
    return filters


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))
