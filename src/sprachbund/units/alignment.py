"""What is said in each frame: phones from a file, or, where there is none, characters spread evenly over the speech.

Spreading a transcript over its frames is a crude guess: it keeps the order of the letters and knows nothing of their
lengths. What is measured against it is a lower bound.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.units.encoded import UnitUtterance

NOTHING = -1
"""Of frames in which nothing is known to be said."""
COLUMNS = ("id", "start_s", "end_s", "phone")


@dataclass
class Labels:
    """Names as numbers, in the order in which they appear."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """Of a name, a new one if need be."""
        return self.numbers.setdefault(name, len(self.numbers))


def letters(text: str) -> list[str]:
    """Letters and digits of a text, in lower case; marks stay with their letter."""
    kept = "".join(
        c for c in unicodedata.normalize("NFC", text.casefold()) if unicodedata.category(c)[0] in "LNM"
    )
    found: list[str] = []
    for character in kept:
        if unicodedata.category(character)[0] == "M" and found:
            found[-1] += character
        else:
            found.append(character)
    return found


class Characters:
    """Letters of the transcript, spread evenly over the frames."""

    kind = "characters, spread evenly over the frames"

    def __init__(self) -> None:
        self.labels = Labels()

    def align(self, utterance: UnitUtterance) -> np.ndarray:
        """Number of the letter of each frame (T,)."""
        num_frames = sum(utterance.durations)
        found = [self.labels.number(letter) for letter in letters(utterance.text)]
        if not found:
            return np.full(num_frames, NOTHING)
        places = ((np.arange(num_frames) + 0.5) * len(found) / num_frames).astype(np.int64)
        return np.array(found)[places]


class Phones:
    """Phones from a table with the columns id, start_s, end_s and phone, separated by tabs.

    Args:
        path: of the table.
        frame_s: seconds of a frame.

    Raises:
        SprachbundError: no such file, another header, or a line that is not understood.
    """

    kind = "phones"

    def __init__(self, path: Path, frame_s: float) -> None:
        self.labels, self._frame_s = Labels(), frame_s
        self._spans: dict[str, list[tuple[float, float, int]]] = {}
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SprachbundError(f"{path} cannot be read ({error}); check the path") from error
        if not lines or tuple(lines[0].split("\t")) != COLUMNS:
            raise SprachbundError(f"{path}:1: the columns have to be {', '.join(COLUMNS)}, separated by tabs")
        for number, line in enumerate(lines[1:], start=2):
            self._read(line, f"{path}:{number}")

    def align(self, utterance: UnitUtterance) -> np.ndarray:
        """Number of the phone at the middle of each frame (T,); `NOTHING` where none is."""
        middles = (np.arange(sum(utterance.durations)) + 0.5) * self._frame_s
        found = np.full(len(middles), NOTHING)
        for start_s, end_s, phone in self._spans.get(utterance.id, ()):
            found[(middles >= start_s) & (middles < end_s)] = phone
        return found

    def _read(self, line: str, where: str) -> None:
        try:
            name, start_s, end_s, phone = line.split("\t")
            if not 0 <= float(start_s) <= float(end_s) < math.inf:
                raise ValueError("the times are none")
            span = (float(start_s), float(end_s), self.labels.number(phone))
        except ValueError as error:
            raise SprachbundError(f"{where}: {line!r} is not {', '.join(COLUMNS)}; mend the line") from error
        self._spans.setdefault(name, []).append(span)


Aligner = Characters | Phones


def shuffled(aligned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same labels (T,) in another order: what would be found by chance, as runs of equal ones stay together."""
    starts = np.flatnonzero(np.diff(aligned, prepend=NOTHING - 1)) if len(aligned) else np.zeros(0, np.int64)
    runs: Sequence[np.ndarray] = np.split(aligned, starts[1:])
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))])
