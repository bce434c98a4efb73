"""Noise to put under speech, and sound without speech: a recogniser must learn to answer neither."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sprachbund.errors import SprachbundError

FloatArray = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000

_SPECTRAL_SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0}  # exponent of the amplitude over frequency
NOISE_KINDS = (*_SPECTRAL_SLOPES, "hum")
_LOWEST_NOISE_HZ = 20.0


def rms(samples: FloatArray) -> float:
    """Root mean square of ``samples``; 0 for none."""
    return float(np.sqrt(np.dot(samples, samples) / len(samples))) if len(samples) else 0.0


def make_noise(kind: str, num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Noise of one of `NOISE_KINDS` at an RMS of 1. Hum is mains hum at 50 or 60 Hz with harmonics.

    Raises `SprachbundError` for other kinds.
    """
    if kind == "hum":
        return _unit(_hum(num_samples, rng))
    if kind not in _SPECTRAL_SLOPES:
        raise SprachbundError(f"unknown noise '{kind}': choose from {', '.join(NOISE_KINDS)}")
    white = rng.standard_normal(num_samples, dtype=np.float32)
    slope = _SPECTRAL_SLOPES[kind]
    if slope:
        white = _shape(white, lambda hz: np.power(np.maximum(hz, _LOWEST_NOISE_HZ), slope, dtype=np.float32))
    return _unit(white)


def make_babble(others: Sequence[FloatArray], num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Three to six of the utterances ``others`` talking at once, at an RMS of 1."""
    if not len(others):
        raise SprachbundError("babble needs other utterances and got none: pass others=[...]")
    babble = np.zeros(num_samples, np.float32)
    for index in rng.integers(len(others), size=int(rng.integers(3, 7))):
        voice = _unit(others[index])
        repeated = np.resize(voice, num_samples + len(voice))
        start = int(rng.integers(max(1, len(voice))))
        babble += repeated[start : start + num_samples]
    return _unit(babble)


def add_noise(samples: FloatArray, noise: FloatArray, snr_db: float) -> FloatArray:
    """``samples`` with ``noise`` (same length) ``snr_db`` below them, by overall RMS. Silence stays."""
    level = rms(noise)
    if level == 0.0:
        return samples
    return samples + noise * np.float32(rms(samples) / level * 10.0 ** (-snr_db / 20.0))


def no_speech(kind: str, duration_s: float, rng: np.random.Generator) -> FloatArray:
    """Sound without words at a random level: one of `NO_SPEECH_KINDS`, float32 mono at 16 kHz.

    Raises `SprachbundError` for other kinds.
    """
    makers: dict[str, Callable[[int, np.random.Generator], FloatArray]] = {
        "silence": _almost_silence,
        "tones": _chords,
        "clicks": _clicks,
        "murmur": _murmur,
    }
    num_samples = round(duration_s * SAMPLE_RATE)
    if kind in makers:
        sound = makers[kind](num_samples, rng)
    elif kind in NOISE_KINDS:
        sound = make_noise(kind, num_samples, rng)
    else:
        raise SprachbundError(f"unknown kind '{kind}': choose from {', '.join(NO_SPEECH_KINDS)}")
    peak = float(np.abs(sound).max(initial=0.0))
    wanted = 10.0 ** rng.uniform(-2.0, -0.1)
    return sound if kind == "silence" or peak == 0.0 else sound * np.float32(wanted / peak)


NO_SPEECH_KINDS = ("silence", *NOISE_KINDS, "tones", "clicks", "murmur")
"""Kinds for `no_speech`. "silence" is digital silence or noise of a few least significant bits."""


def _unit(samples: FloatArray) -> FloatArray:
    level = rms(samples)
    return samples * np.float32(1.0 / level) if level > 0.0 else samples


def _shape(samples: FloatArray, gain: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """``samples`` through a zero-phase filter given as amplitude over frequency in Hz."""
    from scipy import fft

    num_samples = len(samples)
    size = fft.next_fast_len(num_samples, real=True)
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, size // 2 + 1, dtype=np.float32)
    shaped: FloatArray = fft.irfft(fft.rfft(samples, size) * gain(frequencies), size)[:num_samples]
    return shaped.astype(np.float32, copy=False)


def _times_s(num_samples: int) -> FloatArray:
    return np.arange(num_samples, dtype=np.float32) * np.float32(1.0 / SAMPLE_RATE)


def _hum(num_samples: int, rng: np.random.Generator) -> FloatArray:
    mains_hz = 50.0 if rng.random() < 0.5 else 60.0
    angle = _times_s(num_samples) * np.float32(2.0 * np.pi * mains_hz)
    hum = np.zeros(num_samples, np.float32)
    for harmonic in range(1, 8):
        strength = np.float32(rng.uniform(0.2, 1.0) / harmonic)
        hum += strength * np.sin(angle * harmonic + np.float32(rng.uniform(0.0, 2.0 * np.pi)))
    return hum


def _almost_silence(num_samples: int, rng: np.random.Generator) -> FloatArray:
    if rng.random() < 0.5:
        return np.zeros(num_samples, np.float32)
    return rng.standard_normal(num_samples, dtype=np.float32) * np.float32(10.0 ** rng.uniform(-4.5, -3.0))


def _chords(num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Music-like: chords of three harmonic tones with attack and decay, 0.2 to 0.8 s each."""
    sound = np.zeros(num_samples, np.float32)
    start = 0
    while start < num_samples:
        length = min(num_samples - start, int(rng.uniform(0.2, 0.8) * SAMPLE_RATE))
        times_s = _times_s(length)
        root_hz = 110.0 * 2.0 ** (rng.integers(0, 24) / 12.0)
        chord = np.zeros(length, np.float32)
        for semitones in (0, int(rng.choice((3, 4))), 7):
            angle = times_s * np.float32(2.0 * np.pi * root_hz * 2.0 ** (semitones / 12.0))
            for harmonic in (1, 2, 3, 5):
                chord += np.sin(angle * harmonic) / np.float32(harmonic)
        envelope = np.minimum(times_s / 0.02, 1.0) * np.exp(-times_s * np.float32(rng.uniform(1.0, 8.0)))
        sound[start : start + length] = chord * envelope
        start += length
    return sound


def _clicks(num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Short resonant knocks at random times, as of keys, switches and line faults."""
    sound = np.zeros(num_samples, np.float32)
    num_clicks = 1 + int(rng.poisson(3.0 * num_samples / SAMPLE_RATE))
    for start in rng.integers(max(1, num_samples), size=num_clicks):
        times_s = _times_s(min(num_samples - int(start), SAMPLE_RATE // 20))
        knock = np.sin(times_s * np.float32(2.0 * np.pi * rng.uniform(200.0, 5000.0)))
        sound[start : start + len(times_s)] += knock * np.exp(
            -times_s * np.float32(rng.uniform(100.0, 800.0))
        )
    return sound


def _murmur(num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Noise with the spectrum and the syllable rhythm of distant speech but without words."""
    low_hz, high_hz = rng.uniform(120.0, 300.0), rng.uniform(700.0, 2500.0)
    band = _shape(
        rng.standard_normal(num_samples, dtype=np.float32),
        lambda hz: (1.0 / (1.0 + (low_hz / np.maximum(hz, 1.0)) ** 4 + (hz / high_hz) ** 4)).astype(
            np.float32
        ),
    )
    num_points = max(2, int(num_samples / SAMPLE_RATE * rng.uniform(3.0, 6.0)) + 2)
    points = rng.gamma(1.5, 1.0, size=num_points)
    rhythm = np.interp(np.linspace(0.0, num_points - 1.0, num_samples), np.arange(num_points), points)
    return band * rhythm.astype(np.float32)
