"""Data augmentation: codecs, tempo and voice, noise, rooms, levels, drawn at random from one set of options.

All functions are pure: the same samples, generator state and options give the same result. Samples are
float32 mono at 16 kHz.
"""

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.machinery import PathFinder
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.tempo import change_tempo
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import FloatArray

# Lossy channels: telephone lines and codecs, by the encoders of libsndfile.

TELEPHONE_RATE = 8_000
TELEPHONE_BAND_HZ = (300.0, 3400.0)


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A container and encoding of libsndfile; ``sample_rate`` is what the encoder works at."""

    container: str
    subtype: str
    sample_rate: int = TELEPHONE_RATE
    compression_level: float | None = None


CODECS = {
    "mu-law": Codec(container="WAV", subtype="ULAW"),
    "a-law": Codec(container="WAV", subtype="ALAW"),
    "gsm": Codec(container="WAV", subtype="GSM610"),
    "ima-adpcm": Codec(container="WAV", subtype="IMA_ADPCM"),
    "g721": Codec(container="AU", subtype="G721_32"),
    "g723-24": Codec(container="AU", subtype="G723_24"),
    "mp3": Codec(container="MP3", subtype="MPEG_LAYER_III", sample_rate=SAMPLE_RATE, compression_level=0.9),
    "opus": Codec(container="OGG", subtype="OPUS", sample_rate=SAMPLE_RATE, compression_level=0.95),
}
TELEPHONE_CODECS = tuple(name for name, codec in CODECS.items() if codec.sample_rate == TELEPHONE_RATE)


def transcode(samples: FloatArray, codec: str, sample_rate: int = SAMPLE_RATE) -> FloatArray:
    """``samples`` after the encoder and decoder ``codec`` (a key of `CODECS`): as many samples, same rate.

    Args:
        samples: float32 mono, shape (N,).
        codec: a key of `CODECS`.
        sample_rate: sample rate of `samples`, in Hz.

    Raises `SprachbundError` for an unknown codec.
    """
    if codec not in CODECS:
        raise SprachbundError(f"unknown codec '{codec}': choose from {', '.join(CODECS)}")
    chosen = CODECS[codec]
    narrow = _resample(samples, sample_rate, chosen.sample_rate)
    return _fit(_resample(_round_trip(narrow, chosen), chosen.sample_rate, sample_rate), len(samples))


def telephone(samples: FloatArray, codec: str | None = None, sample_rate: int = SAMPLE_RATE) -> FloatArray:
    """``samples`` over a telephone line: 300 to 3,400 Hz at 8 kHz, then optionally one of `TELEPHONE_CODECS`.

    Args:
        samples: float32 mono, shape (N,).
        codec: one of `TELEPHONE_CODECS`; None filters only.
        sample_rate: sample rate of `samples`, in Hz.

    Raises `SprachbundError` for another codec.
    """
    if codec is not None and codec not in TELEPHONE_CODECS:
        raise SprachbundError(f"'{codec}' is no telephone codec: choose from {', '.join(TELEPHONE_CODECS)}")
    from scipy.signal import sosfilt

    narrow = _resample(samples, sample_rate, TELEPHONE_RATE)
    line: FloatArray = sosfilt(_telephone_filter(), narrow).astype(np.float32)
    if codec is not None:
        line = _round_trip(line, CODECS[codec])
    return _fit(_resample(line, TELEPHONE_RATE, sample_rate), len(samples))


@cache
def _telephone_filter() -> npt.NDArray[np.float64]:
    from scipy.signal import butter

    sections: npt.NDArray[np.float64] = butter(
        3, TELEPHONE_BAND_HZ, "bandpass", fs=TELEPHONE_RATE, output="sos"
    )
    return sections


def _round_trip(samples: FloatArray, codec: Codec) -> FloatArray:
    import soundfile

    file = io.BytesIO()
    soundfile.write(
        file,
        samples.clip(-1.0, 1.0),
        codec.sample_rate,
        format=codec.container,
        subtype=codec.subtype,
        compression_level=codec.compression_level,
    )
    file.seek(0)
    decoded: FloatArray = soundfile.read(file, dtype="float32")[0]
    return decoded


def _resample(samples: FloatArray, from_rate: int, to_rate: int) -> FloatArray:
    import soxr

    return samples if from_rate == to_rate else soxr.resample(samples, from_rate, to_rate)


def _fit(samples: FloatArray, num_samples: int) -> FloatArray:
    """Encoders pad to whole blocks, resamplers round: back to the length of the original."""
    if len(samples) >= num_samples:
        return samples[:num_samples]
    return np.pad(samples, (0, num_samples - len(samples)))


# Tempo and voice.

_PERIOD_MS = 5.0  # analysis step of WORLD


def change_voice(samples: FloatArray, ratio: float, tempo: float = 1.0) -> FloatArray:
    """Pitch and formants times ``ratio`` (above 1: a smaller speaker), spoken ``tempo`` times as fast.

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        ratio: ratio of new to old pitch and formants.
        tempo: ratio of new to old speed.
    """
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

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        f0_ratio: ratio of new to old pitch.
        formant_ratio: ratio of new to old formants.
        tempo: ratio of new to old speed.
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


def set_pitch(samples: FloatArray, pitch_hz: npt.NDArray[np.float64], tempo: float = 1.0) -> FloatArray:
    """Speech on a melody: where a voice sounds, its pitch becomes the one given, by the WORLD vocoder.

    Raises `SprachbundError` if pyworld is not installed.

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        pitch_hz: pitch in Hz at every sample of the result, shape (N / tempo,); the last one goes on where it is
            shorter.
        tempo: ratio of new to old speed.
    """
    world = _world()
    wide = samples.astype(np.float64)
    f0, times_s = world.dio(wide, SAMPLE_RATE, frame_period=_PERIOD_MS)
    envelope = world.cheaptrick(wide, f0, times_s, SAMPLE_RATE)
    aperiodicity = world.d4c(wide, f0, times_s, SAMPLE_RATE)
    indices = np.minimum((times_s / tempo * SAMPLE_RATE).astype(np.int64), len(pitch_hz) - 1)
    melody = np.where(f0 > 0, pitch_hz[indices], 0.0)
    sung = world.synthesize(melody, envelope, aperiodicity, SAMPLE_RATE, _PERIOD_MS / tempo)
    return np.asarray(sung / max(1.0, float(np.abs(sung).max())), np.float32)


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


# Noise under speech, and sounds without speech.

_SPECTRAL_SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0}  # exponent of the amplitude over frequency
NOISE_KINDS = (*_SPECTRAL_SLOPES, "hum")
_LOWEST_NOISE_HZ = 20.0


def rms(samples: FloatArray) -> float:
    """Root mean square of ``samples``; 0 for none."""
    return float(np.sqrt(np.dot(samples, samples) / len(samples))) if len(samples) else 0.0


def make_noise(kind: str, num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Noise of one of `NOISE_KINDS` at an RMS of 1. Hum is mains hum at 50 or 60 Hz with harmonics.

    Args:
        kind: one of `NOISE_KINDS`.
        num_samples: length of the result, at 16 kHz.
        rng: source of randomness.

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
    """Three to six of the utterances ``others`` talking at once, at an RMS of 1.

    Args:
        others: utterances, each float32 mono at 16 kHz, shape (N,).
        num_samples: length of the result, at 16 kHz.
        rng: source of randomness.
    """
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

    Args:
        kind: one of `NO_SPEECH_KINDS`.
        duration_s: length of the result in seconds.
        rng: source of randomness.

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


# Synthetic room impulse responses.


def room_response(
    rt60_s: float,
    rng: np.random.Generator,
    *,
    direct_to_reverberant_db: float = 3.0,
    sample_rate: int = SAMPLE_RATE,
) -> FloatArray:
    """Impulse response of a room whose sound falls by 60 dB in ``rt60_s``.

    The direct sound at sample 0, six early reflections in the first 40 ms and a tail of noise with
    exponential decay; ``direct_to_reverberant_db`` is the energy of the first against the rest (near speaker:
    high).

    Args:
        rt60_s: reverberation time in seconds.
        rng: source of randomness.
        direct_to_reverberant_db: energy of the direct sound against the rest; high for a near speaker.
        sample_rate: sample rate of the response, in Hz.
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


Range = tuple[float, float]
Chosen = TypeVar("Chosen")
_SILENCE_RMS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The probability of each change, and the range that its strength is drawn from.

    With ``clean_probability`` only the level changes. Otherwise, in the order of sound on its way: voice and
    tempo, silence around, room, noise, tone of the microphone, overload, line. Tempo multiplies that of the
    speaker: a fast synthetic voice may become too fast to be understood. ``babble_probability`` is the share of
    noise that is babble when other utterances are given. ``level_dbfs`` is the RMS level at the end; None leaves it.
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
    tone_probability: float = 0.0
    tone_db: float = 10.0
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
"""Augmentation for training: every channel the software may meet, and a good third left clean."""

WIDE = replace(
    TRAIN,
    clean_probability=0.2,
    voice_probability=0.55,
    voice_ratio=(0.78, 1.28),
    tempo=(0.5, 1.5),
    tone_probability=0.4,
    telephone_probability=0.35,
    codec_probability=0.15,
)
"""Augmentation for a model that has to understand people it never heard: voices, tempos and microphones wider apart."""


def augment(
    samples: FloatArray,
    rng: np.random.Generator,
    options: Augmentation,
    others: Sequence[FloatArray] = (),
) -> FloatArray:
    """One random variation of ``samples``; ``others`` are utterances for babble (without any: no babble).

    The result is finite, within [-1, 1] unless `CLEAN`, and longer or shorter only by tempo and added
    silence.

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        rng: source of randomness.
        options: probabilities and ranges.
        others: utterances for babble, each of shape (N,).
    """
    if rng.random() >= options.clean_probability:
        samples = _change_speaker(samples, rng, options)
        samples = _add_room_and_noise(samples, rng, options, others)
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


def colour(samples: FloatArray, rng: np.random.Generator, range_db: float) -> FloatArray:
    """``samples`` as another microphone hears them: a smooth random gain over frequency, at the same level.

    The gain is drawn at eight frequencies, evenly spaced in mel from 0 to 8 kHz, and is linear in mel between them.

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        rng: source of randomness.
        range_db: each of the eight gains is within plus and minus this.
    """
    nodes_mel = np.linspace(0.0, _mel(np.float32(SAMPLE_RATE / 2)), 8)
    gains_db = rng.uniform(-range_db, range_db, size=8)
    shaped = _shape(
        samples,
        lambda hz: (10.0 ** (np.interp(_mel(hz), nodes_mel, gains_db) / 20.0)).astype(np.float32),
    )
    level = rms(shaped)
    return shaped * np.float32(rms(samples) / level) if level > 0.0 else samples


def _mel(hz: Any) -> Any:
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def surround(samples: FloatArray, before_s: float, after_s: float) -> FloatArray:
    """``samples`` with digital silence before and after.

    Args:
        samples: float32 mono at 16 kHz, shape (N,).
        before_s: silence before, in seconds.
        after_s: silence after, in seconds.
    """
    return np.pad(samples, (round(before_s * SAMPLE_RATE), round(after_s * SAMPLE_RATE)))


def _change_speaker(samples: FloatArray, rng: np.random.Generator, options: Augmentation) -> FloatArray:
    if rng.random() < options.voice_probability:
        samples = change_voice(samples, rng.uniform(*options.voice_ratio), rng.uniform(*options.tempo))
    if rng.random() < options.silence_probability:
        samples = surround(samples, rng.uniform(*options.silence_s), rng.uniform(*options.silence_s))
    return samples


def _add_room_and_noise(
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
    # Not drawn where it is off: what an edition without it draws has to stay the same.
    if options.tone_probability and rng.random() < options.tone_probability:
        samples = colour(samples, rng, options.tone_db)
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
