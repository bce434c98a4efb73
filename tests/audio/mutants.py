"""Recordings of many kinds with a few bytes changed, mostly in their heads, and what opening them comes to."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from sprachbund.audio.load import open_audio
from sprachbund.errors import SprachbundError
from tests.audio.support import melody, write_ffmpeg

RATE, DURATION_S = 16_000, 0.4
LONGEST_S = 600.0  # what is read of a mutant whose header says that it goes on
_SNDFILE = {
    "wav": {"format": "WAV"},
    "wav-float": {"format": "WAV", "subtype": "FLOAT"},
    "wav-adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "caf-alac": {"format": "CAF", "subtype": "ALAC_16"},
    "flac": {"format": "FLAC"},
    "ogg-vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "ogg-opus": {"format": "OGG", "subtype": "OPUS"},
}
_FFMPEG = ("mp3", "m4a", "webm", "aac")
KINDS = (*_SNDFILE, *_FFMPEG)
_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def seed(kind: str, folder: Path) -> bytes:
    """A short recording of a kind."""
    if kind in _SNDFILE:
        file = io.BytesIO()
        soundfile.write(file, melody(RATE, DURATION_S), RATE, **_SNDFILE[kind])
        return file.getvalue()
    return write_ffmpeg(folder / f"seed.{kind}", duration_s=DURATION_S).read_bytes()


def mutants(content: bytes, count: int, *, number: int = 0) -> Iterator[bytes]:
    """Copies with bytes, words and lengths changed, parts cut out or doubled; four of five in the first 200 bytes."""
    rng = random.Random(number)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4))):
            end = min(len(changed), 200) if rng.random() < 0.8 else len(changed)
            position = rng.randrange(max(1, end))
            how = rng.randrange(6)
            if how == 0:
                changed[position : position + 1] = bytes([rng.randrange(256)])
            elif how == 1:
                changed[position : position + 1] = bytes([rng.choice(_EDGES)])
            elif how == 2:
                width = rng.choice((2, 4, 8))
                value = rng.choice(
                    (0, 1, (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1), (1 << 8 * width) - 1)
                )
                changed[position : position + width] = value.to_bytes(width, rng.choice(("big", "little")))
            elif how == 3:
                changed[position : position + 4] = rng.randbytes(4)
            elif how == 4:
                del changed[position : position + rng.randrange(1, 64)]
            else:
                changed[position:position] = changed[position : position + rng.randrange(1, 64)]
        yield bytes(changed)


def outcome(content: bytes, *, untrusted: bool = False) -> str:
    """What reading it comes to: "read", "refused", or the name of an error that is not ours."""
    read_s = 0.0
    try:
        for block in open_audio(io.BytesIO(content), name="mutant", untrusted=untrusted).blocks():
            assert block.dtype == np.float32
            read_s += len(block) / RATE
            if read_s > LONGEST_S:
                break
    except SprachbundError as error:
        return "refused" if "\n" not in str(error) else "refused in two lines"
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    return "read"
