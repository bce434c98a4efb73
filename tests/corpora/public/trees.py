"""Small copies of corpora, laid out as the originals: sound whose pitch says where it was cut from."""

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(path: Path, hz: float = 440.0, seconds: float = 0.3, rate_hz: int = RATE_HZ) -> Path:
    """A recording of one pitch."""
    return melody(path, [hz], seconds, rate_hz)


def melody(path: Path, hz: list[float], seconds: float = 1.0, rate_hz: int = RATE_HZ) -> Path:
    """A recording that changes its pitch every so many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([_sine(f, seconds, rate_hz) for f in hz]), rate_hz)
    return path


def call(path: Path, left_hz: float, right_hz: float, seconds: float = 4.0) -> Path:
    """A NIST sphere file as the LDC gives them: two channels, 8 kHz, mu-law."""
    path.parent.mkdir(parents=True, exist_ok=True)
    both = np.stack([_sine(left_hz, seconds, 8000), _sine(right_hz, seconds, 8000)], axis=1)
    soundfile.write(path, both, 8000, format="NIST", subtype="ULAW")
    return path


def table(path: Path, *rows: str) -> Path:
    """Lines of a file; "|" stands for a tab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.replace("|", "\t") + "\n" for row in rows), encoding="utf-8")
    return path


def loudest_hz(samples: np.ndarray) -> float:
    """The pitch of a cut."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE_HZ / len(samples))


def _sine(hz: float, seconds: float, rate_hz: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
