"""Synthetic rooms: what walls do to a voice, without recorded impulse responses."""

import numpy as np
import numpy.typing as npt

from sprachbund.audio.noise import rms

FloatArray = npt.NDArray[np.float32]


def room_response(
    rt60_s: float,
    rng: np.random.Generator,
    *,
    direct_to_reverberant_db: float = 3.0,
    sample_rate: int = 16_000,
) -> FloatArray:
    """Impulse response of a room whose sound falls by 60 dB in ``rt60_s``.

    The direct sound at sample 0, six early reflections in the first 40 ms and a tail of noise with
    exponential decay; ``direct_to_reverberant_db`` is the energy of the first against the rest (near speaker:
    high).
    """
    num_samples = max(2, int(rt60_s * sample_rate))
    times_s = np.arange(num_samples, dtype=np.float32) / sample_rate
    decay = np.exp(times_s * np.float32(-3.0 * np.log(10.0) / rt60_s))
    tail = rng.standard_normal(num_samples, dtype=np.float32) * decay
    reflections = rng.integers(sample_rate // 1000, max(sample_rate // 25, 17), size=6)
    reflections = reflections[reflections < num_samples]
    tail[reflections] += rng.choice((-4.0, 4.0), size=len(reflections)) * decay[reflections]
    tail[0] = 0.0
    energy = float(np.dot(tail, tail))
    response = tail * np.float32(np.sqrt(10.0 ** (-direct_to_reverberant_db / 10.0) / max(energy, 1e-12)))
    response[0] = 1.0
    return response


def reverberate(samples: FloatArray, response: FloatArray) -> FloatArray:
    """``samples`` heard in the room: as many samples, same level; the tail after the end is cut off."""
    from scipy import fft

    num_samples = len(samples)
    size = fft.next_fast_len(num_samples + len(response) - 1, real=True)
    wet = fft.irfft(fft.rfft(samples, size) * fft.rfft(response, size), size)[:num_samples]
    level = rms(wet)
    scaled: FloatArray = (wet * (rms(samples) / level if level > 0.0 else 1.0)).astype(np.float32)
    return scaled
