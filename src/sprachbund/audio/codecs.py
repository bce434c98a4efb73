"""Lossy channels: what telephones and low bit rates leave of a voice, by real encoders through libsndfile."""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from sprachbund.errors import SprachbundError

FloatArray = npt.NDArray[np.float32]
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
    "mp3": Codec(container="MP3", subtype="MPEG_LAYER_III", sample_rate=16_000, compression_level=0.9),
    "opus": Codec(container="OGG", subtype="OPUS", sample_rate=16_000, compression_level=0.95),
}
TELEPHONE_CODECS = tuple(name for name, codec in CODECS.items() if codec.sample_rate == TELEPHONE_RATE)


def transcode(samples: FloatArray, codec: str, sample_rate: int = 16_000) -> FloatArray:
    """``samples`` after the encoder and decoder ``codec`` (a key of `CODECS`): as many samples, same rate.

    Raises `SprachbundError` for an unknown codec.
    """
    if codec not in CODECS:
        raise SprachbundError(f"unknown codec '{codec}': choose from {', '.join(CODECS)}")
    chosen = CODECS[codec]
    narrow = _resample(samples, sample_rate, chosen.sample_rate)
    return _fit(_resample(_round_trip(narrow, chosen), chosen.sample_rate, sample_rate), len(samples))


def telephone(samples: FloatArray, codec: str | None = None, sample_rate: int = 16_000) -> FloatArray:
    """``samples`` over a telephone line: 300 to 3,400 Hz at 8 kHz, then optionally one of `TELEPHONE_CODECS`.

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
