"""Changes of tempo and voice, so that few speakers stand for many."""

import importlib.util
import math
from functools import cache
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
import numpy.typing as npt

from sprachbund.errors import SprachbundError

FloatArray = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000
_HOP = 256  # 16 ms; a frame is two hops and holds at least one period of any voice
_SEARCH = 160  # samples either way: half a period of 50 Hz
_COARSE = 4  # the search compares every fourth sample: alignment within 0.25 ms is inaudible
_PERIOD_MS = 5.0  # analysis step of WORLD


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
    """Where each output frame is taken from: near its time, shifted to continue the frame before it."""
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


def change_voice(samples: FloatArray, ratio: float, tempo: float = 1.0) -> FloatArray:
    """Pitch and formants times ``ratio`` (above 1: a smaller speaker), spoken ``tempo`` times as fast."""
    if ratio == 1.0:
        return change_tempo(samples, tempo)
    import soxr

    resampled: FloatArray = soxr.resample(samples, SAMPLE_RATE * ratio, SAMPLE_RATE)
    return change_tempo(resampled, tempo / ratio)


def revoice(
    samples: FloatArray, f0_ratio: float = 1.0, formant_ratio: float = 1.0, tempo: float = 1.0
) -> FloatArray:
    """``samples`` from another throat: pitch, formants and tempo changed independently by the WORLD vocoder.

    Takes some 20 ms per second of speech on one core. Raises `SprachbundError` if pyworld is not installed.
    """
    world = _world()
    wide = samples.astype(np.float64)
    f0, times_s = world.dio(wide, SAMPLE_RATE, frame_period=_PERIOD_MS)
    f0 = world.stonemask(wide, f0, times_s, SAMPLE_RATE)
    envelope = world.cheaptrick(wide, f0, times_s, SAMPLE_RATE)
    aperiodicity = world.d4c(wide, f0, times_s, SAMPLE_RATE)
    voiced = world.synthesize(
        f0 * f0_ratio,
        _warp(envelope, formant_ratio),
        _warp(aperiodicity, formant_ratio),
        SAMPLE_RATE,
        _PERIOD_MS / tempo,
    )
    num_out = round(len(samples) / tempo)
    out = np.zeros(num_out, np.float32)
    out[: min(num_out, len(voiced))] = voiced[:num_out]
    return out


@cache
def _world() -> Any:
    """The compiled part of pyworld. Its package asks for pkg_resources, which setuptools dropped."""
    package = importlib.util.find_spec("pyworld")
    if package is None or not package.submodule_search_locations:
        raise SprachbundError(
            "re-voicing needs pyworld, which is not installed: pip install 'sprachbund[train]'"
        )
    spec = PathFinder.find_spec("pyworld", package.submodule_search_locations)
    if spec is None or spec.loader is None:
        raise SprachbundError(
            "pyworld is installed without its compiled part: pip install --force-reinstall pyworld"
        )
    world = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(world)
    return world


def _warp(spectra: npt.NDArray[np.float64], ratio: float) -> npt.NDArray[np.float64]:
    """Rows of ``spectra`` (T, frequencies) with every frequency times ``ratio``."""
    if ratio == 1.0:
        return spectra
    num_bins = spectra.shape[1]
    position = np.minimum(np.arange(num_bins) / ratio, num_bins - 1.0)
    low = np.minimum(position.astype(np.int64), num_bins - 2)
    weight = position - low
    return np.ascontiguousarray(spectra[:, low] * (1.0 - weight) + spectra[:, low + 1] * weight)
