"""What a model with token input needs of the units it was trained on; `sprachbund.units` has it.

Shapes: V vocabulary, N samples, S source tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from sprachbund.errors import SprachbundError


class Vocabulary(Protocol):
    """One space of ids for speech and text, 0 the blank; see `sprachbund.units.pieces.JointVocabulary`."""

    end: int
    is_unit: np.ndarray
    """(V,) True for pieces of units."""
    suppressed: np.ndarray
    """(V,) True for what is never written."""

    def __len__(self) -> int: ...

    def language_id(self, language: str) -> int:
        """Token of a language. Raises KeyError for one that it lacks."""
        ...

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; all that is none vanishes."""
        ...


class Reader(Protocol):
    """Turns speech and text into source tokens, without their end; see `sprachbund.units.reader.UnitReader`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokens."""
        ...

    @property
    def directory(self) -> Path:
        """Of the units."""
        ...

    def speech(self, samples: Sequence[np.ndarray]) -> list[list[int]]:
        """Tokens (S,) of each utterance, (N,) float32 at 16 kHz. Raises SprachbundError for one without a frame."""
        ...

    def text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens (S,) of each text, made as long as speech."""
        ...


class WrittenTokens:
    """The tokens that may be written, numbered without gaps: the joint vocabulary without its pieces of units.

    Args:
        vocabulary: the joint one.

    Attributes:
        ids: (W,) the id in the joint vocabulary of each; 0 is the blank in both.
        end: ends a row.
        suppressed: boolean (W,), what is never written all the same: blank, unknown, language tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.ids = np.flatnonzero(~vocabulary.is_unit)
        self._places = {int(token): place for place, token in enumerate(self.ids)}
        self.end = self._places[vocabulary.end]
        self.suppressed = vocabulary.suppressed[self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: Sequence[int]) -> list[int]:
        """Ids of the joint vocabulary as such tokens. Raises KeyError for a unit."""
        return [self._places[int(token)] for token in ids]

    def language(self, tag: str) -> int:
        """Token of a language. Raises SprachbundError for one without."""
        try:
            return self._places[self._vocabulary.language_id(tag)]
        except KeyError:
            raise SprachbundError(
                f"the vocabulary of the units has no token for {tag}; make the units from data that hold it"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of such tokens; special ones vanish."""
        return self._vocabulary.decode_text([int(self.ids[token]) for token in tokens])
