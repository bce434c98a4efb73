"""Speech at another tempo and the same pitch."""

import math

import numpy as np
import numpy.typing as npt

from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray

_HOP = 256  # 16 ms; a frame is two hops and holds at least one period of any voice
_SEARCH = 160  # samples either way: half a period of 50 Hz
_COARSE = 4  # the search compares every fourth sample: alignment within 0.25 ms is inaudible


def change_tempo(samples: FloatArray, tempo: float) -> FloatArray:
    """``samples`` spoken ``tempo`` times as fast at the same pitch: ``round(len(samples) / tempo)`` samples.

    Overlap-add of frames shifted to where they fit best (WSOLA). Raises `SprachbundError` unless 0.25 <=
    tempo <= 4.
    """
    if not 0.25 <= tempo <= 4.0:
        raise SprachbundError(f"tempo is {tempo}: choose 0.25 to 4")
    num_out = round(len(samples) / tempo)
    if tempo == 1.0 or num_out == 0:
        return samples.copy()
    num_frames = math.ceil(num_out / _HOP) + 1
    source = np.pad(samples, (_HOP + _SEARCH, 4 * _HOP + 2 * _SEARCH + int(_HOP * tempo)))
    starts = _best_starts(source, tempo, num_frames)
    window = np.hanning(2 * _HOP + 1)[:-1].astype(np.float32)
    frames = source[starts[:, None] + np.arange(2 * _HOP)] * window
    out = np.zeros((num_frames + 1) * _HOP, np.float32)
    out[: num_frames * _HOP] += frames[:, :_HOP].reshape(-1)
    out[_HOP:] += frames[:, _HOP:].reshape(-1)
    return out[_HOP : _HOP + num_out]


def _best_starts(source: FloatArray, tempo: float, num_frames: int) -> npt.NDArray[np.int64]:
    """Start of each output frame in the source: near its time, shifted to continue the frame before it."""
    starts = np.empty(num_frames, np.int64)
    coarse = [np.ascontiguousarray(source[phase::_COARSE]) for phase in range(_COARSE)]
    length, num_shifts = _HOP // _COARSE, 2 * _SEARCH // _COARSE
    energy = np.concatenate(([0.0], np.cumsum(np.square(coarse[0], dtype=np.float64))))
    starts[0] = _SEARCH
    for frame in range(1, num_frames):
        natural = int(starts[frame - 1]) + _HOP
        template = coarse[natural % _COARSE][natural // _COARSE : natural // _COARSE + length]
        first = round(frame * _HOP * tempo) // _COARSE  # _SEARCH before the frame's own time
        products = np.correlate(coarse[0][first : first + num_shifts + length - 1], template, "valid")
        powers = energy[first + length : first + length + num_shifts] - energy[first : first + num_shifts]
        starts[frame] = (first + int(np.argmax(products / np.sqrt(powers + 1e-6)))) * _COARSE
    return starts
