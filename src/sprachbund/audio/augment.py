"""Fresh variety for every epoch: other voices, rooms, noise, lines and levels, drawn from one set of options.

All functions are pure: the same samples, generator state and options give the same result. Samples are
float32 mono at 16 kHz.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sprachbund.audio.codecs import CODECS, TELEPHONE_CODECS, telephone, transcode
from sprachbund.audio.noise import NOISE_KINDS, SAMPLE_RATE, add_noise, make_babble, make_noise, rms
from sprachbund.audio.rooms import reverberate, room_response
from sprachbund.audio.stretch import change_voice
from sprachbund.errors import SprachbundError

FloatArray = npt.NDArray[np.float32]
Range = tuple[float, float]
Chosen = TypeVar("Chosen")
_SILENCE_RMS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How often each change happens, and the range its strength is drawn from.

    With ``clean_probability`` only the level changes. Otherwise, in the order of sound on its way: voice and
    tempo, silence around, room, noise, overload, line. Tempo multiplies that of the speaker: a fast synthetic
    voice may become too fast to be understood. ``babble_probability`` is the share of noise that is babble
    when other utterances are given. ``level_dbfs`` is the RMS level at the end; None leaves it.
    """

    clean_probability: float = 0.0
    voice_probability: float = 0.0
    voice_ratio: Range = (0.85, 1.2)
    tempo: Range = (0.7, 1.4)
    silence_probability: float = 0.0
    silence_s: Range = (0.0, 0.6)
    room_probability: float = 0.0
    rt60_s: Range = (0.1, 0.8)
    direct_to_reverberant_db: Range = (-3.0, 12.0)
    noise_probability: float = 0.0
    noise_kinds: tuple[str, ...] = NOISE_KINDS
    babble_probability: float = 0.3
    snr_db: Range = (0.0, 30.0)
    overload_probability: float = 0.0
    overload_db: Range = (1.0, 12.0)
    telephone_probability: float = 0.0
    telephone_codecs: tuple[str | None, ...] = (None, "mu-law", "a-law", "gsm", "ima-adpcm")
    codec_probability: float = 0.0
    codecs: tuple[str, ...] = ("mu-law", "gsm", "ima-adpcm", "mp3")
    level_dbfs: Range | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0.0 <= value <= 1.0:
                raise SprachbundError(f"{field.name} is {value}: choose 0 to 1")
        self._check_names("noise_kinds", self.noise_kinds, NOISE_KINDS)
        self._check_names("telephone_codecs", self.telephone_codecs, (None, *TELEPHONE_CODECS))
        self._check_names("codecs", self.codecs, tuple(CODECS))

    @staticmethod
    def _check_names(option: str, chosen: tuple[str | None, ...], known: tuple[str | None, ...]) -> None:
        for name in chosen:
            if name not in known:
                raise SprachbundError(f"{option} has '{name}': choose from {', '.join(map(str, known))}")


CLEAN = Augmentation()
"""Changes nothing."""

TRAIN = Augmentation(
    clean_probability=0.35,
    voice_probability=0.4,
    tempo=(0.5, 1.4),
    silence_probability=0.4,
    room_probability=0.4,
    noise_probability=0.5,
    overload_probability=0.05,
    telephone_probability=0.3,
    codec_probability=0.1,
    level_dbfs=(-38.0, -12.0),
)
"""For training: every channel the software may meet, and a good third left clean."""

TELEPHONE = Augmentation(
    noise_probability=0.5,
    snr_db=(10.0, 30.0),
    overload_probability=0.05,
    telephone_probability=1.0,
    telephone_codecs=("mu-law", "a-law", "gsm"),
    level_dbfs=(-32.0, -14.0),
)
"""Every utterance over a telephone line."""


def augment(
    samples: FloatArray,
    rng: np.random.Generator,
    options: Augmentation,
    others: Sequence[FloatArray] = (),
) -> FloatArray:
    """One random variation of ``samples``; ``others`` are utterances for babble (without any: no babble).

    The result is finite, within [-1, 1] unless `CLEAN`, and longer or shorter only by tempo and added
    silence.
    """
    if rng.random() >= options.clean_probability:
        samples = _change_speaker(samples, rng, options)
        samples = _place(samples, rng, options, others)
        samples = _transmit(samples, rng, options)
    if options.level_dbfs is not None:
        samples = set_level(samples, rng.uniform(*options.level_dbfs))
    return samples


def set_level(samples: FloatArray, level_dbfs: float) -> FloatArray:
    """``samples`` at an RMS of ``level_dbfs`` (0 is full scale), as far as the peak allows.

    What is below -60 dBFS is silence and the idle noise of codecs, and stays.
    """
    level = rms(samples)
    if level < _SILENCE_RMS:
        return samples
    gain = 10.0 ** (level_dbfs / 20.0) / level
    return samples * np.float32(min(gain, 1.0 / float(np.abs(samples).max())))


def overload(samples: FloatArray, overload_db: float) -> FloatArray:
    """``samples`` cut off at ``overload_db`` below their peak, as by a microphone that was set too loud."""
    limit = float(np.abs(samples).max(initial=0.0)) * 10.0 ** (-overload_db / 20.0)
    return samples.clip(-limit, limit)


def surround(samples: FloatArray, before_s: float, after_s: float) -> FloatArray:
    """``samples`` with digital silence before and after."""
    return np.pad(samples, (round(before_s * SAMPLE_RATE), round(after_s * SAMPLE_RATE)))


def _change_speaker(samples: FloatArray, rng: np.random.Generator, options: Augmentation) -> FloatArray:
    if rng.random() < options.voice_probability:
        samples = change_voice(samples, rng.uniform(*options.voice_ratio), rng.uniform(*options.tempo))
    if rng.random() < options.silence_probability:
        samples = surround(samples, rng.uniform(*options.silence_s), rng.uniform(*options.silence_s))
    return samples


def _place(
    samples: FloatArray, rng: np.random.Generator, options: Augmentation, others: Sequence[FloatArray]
) -> FloatArray:
    if rng.random() < options.room_probability:
        ratio_db = rng.uniform(*options.direct_to_reverberant_db)
        response = room_response(rng.uniform(*options.rt60_s), rng, direct_to_reverberant_db=ratio_db)
        samples = reverberate(samples, response)
    if rng.random() < options.noise_probability:
        if len(others) and rng.random() < options.babble_probability:
            noise = make_babble(others, len(samples), rng)
        else:
            noise = make_noise(_pick(options.noise_kinds, rng), len(samples), rng)
        samples = add_noise(samples, noise, rng.uniform(*options.snr_db))
    if rng.random() < options.overload_probability:
        samples = overload(samples, rng.uniform(*options.overload_db))
    return samples


def _transmit(samples: FloatArray, rng: np.random.Generator, options: Augmentation) -> FloatArray:
    draw = rng.random()
    if draw < options.telephone_probability:
        return telephone(_within(samples), _pick(options.telephone_codecs, rng))
    if draw < options.telephone_probability + options.codec_probability:
        return transcode(_within(samples), _pick(options.codecs, rng))
    return samples


def _within(samples: FloatArray) -> FloatArray:
    """Headroom for encoders, which cut off at full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples * np.float32(0.9 / peak) if peak > 0.9 else samples


def _pick(choices: Sequence[Chosen], rng: np.random.Generator) -> Chosen:
    return choices[int(rng.integers(len(choices)))]
