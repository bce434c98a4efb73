"""The fixed set of sounds that nobody speaks in: any text written for them is invented.

Silence, noises, mains hum, music-like chords, clicks, a murmur with the rhythm of speech, and babble: several
artificial throats at once, with voices, vowels and syllables but no words of any language. Drawn from a
seed alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sprachbund.audio.augment import NO_SPEECH_KINDS, no_speech
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.evaluation.options import PER_KIND, SEED
from sprachbund.util.arrays import FloatArray

KINDS = (*NO_SPEECH_KINDS, "babble")
_MIN_S, _MAX_S = 0.5, 10.0
_VOICES = (5, 9)
_FORMANTS_HZ = ((250, 900), (800, 2400), (2200, 3200))
_CHUNK = 160  # samples over which the filter stands still: 10 ms


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound without speech: `samples` (num_samples,) float32 at 16 kHz."""

    id: str
    kind: str
    samples: FloatArray

    @property
    def duration_s(self) -> float:
        """Length of the sound in seconds."""
        return len(self.samples) / SAMPLE_RATE


def no_speech_set(seed: int = SEED, per_kind: int = PER_KIND) -> list[Sound]:
    """The set: `per_kind` sounds of each of `KINDS`, 0.5 to 10 s, levels from faint to loud."""
    sounds = []
    for index, kind in enumerate(KINDS):
        for number in range(per_kind):
            rng = np.random.default_rng((seed, index, number))
            duration_s = float(rng.uniform(_MIN_S, _MAX_S))
            samples = babble(duration_s, rng) if kind == "babble" else no_speech(kind, duration_s, rng)
            sounds.append(Sound(id=f"{kind}-{seed}-{number:03d}", kind=kind, samples=samples))
    return sounds


def babble(duration_s: float, rng: np.random.Generator) -> FloatArray:
    """Artificial throats talking at once, without words, at a random level."""
    num_samples = round(duration_s * SAMPLE_RATE)
    mixed = np.zeros(num_samples, np.float64)
    for _ in range(int(rng.integers(*_VOICES))):
        mixed += rng.uniform(0.4, 1.0) * _throat(num_samples, rng)
    peak = float(np.abs(mixed).max(initial=0.0))
    level = 10.0 ** rng.uniform(-2.0, -0.1)
    return (mixed * (level / peak if peak else 0.0)).astype(np.float32)


def _throat(num_samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Pulses of a voice through three resonances that move with the syllables."""
    from scipy.signal import lfilter

    pitch_hz = rng.uniform(90.0, 240.0) * _wandering(num_samples, 2.0, rng, low=0.85, high=1.15)
    phase = np.cumsum(pitch_hz / SAMPLE_RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.02 * rng.standard_normal(num_samples)
    sound = pulses
    for low_hz, high_hz in _FORMANTS_HZ:
        centre_hz = _wandering(num_samples, 5.0, rng, low=low_hz, high=high_hz)
        filtered, state = np.empty(num_samples), np.zeros(2)
        for start in range(0, num_samples, _CHUNK):
            coefficients = _resonance(float(centre_hz[start]))
            block = sound[start : start + _CHUNK]
            filtered[start : start + _CHUNK], state = lfilter(
                [sum(coefficients)], coefficients, block, zi=state
            )
        sound = filtered
    syllables = _wandering(num_samples, 5.0, rng, low=0.0, high=1.0) ** 2
    sound = sound * syllables
    return sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)


def _wandering(
    num_samples: int, points_per_s: float, rng: np.random.Generator, *, low: float, high: float
) -> npt.NDArray[np.float64]:
    """A line through random points."""
    count = max(2, int(num_samples / SAMPLE_RATE * points_per_s) + 2)
    points = rng.uniform(low, high, size=count)
    return np.interp(np.linspace(0.0, count - 1.0, num_samples), np.arange(count), points)


def _resonance(centre_hz: float, bandwidth_hz: float = 90.0) -> list[float]:
    """Denominator of a two-pole resonance."""
    radius = float(np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE))
    angle = 2.0 * np.pi * centre_hz / SAMPLE_RATE
    return [1.0, -2.0 * radius * float(np.cos(angle)), radius * radius]
