"""One space of ids for speech and text: 0 blank, 1 unknown, pieces of text, pieces of units, the end.

Of two SentencePiece models (`union`) or of one over both (`single`); users see no difference but where the units'
ids lie. Shapes: V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import language_token, read_pieces
from sprachbund.units.sampling import PieceSampler
from sprachbund.units.strings import holds_units
from sprachbund.units.training import marked

BLANK, UNKNOWN = 0, 1
REPEAT = BLANK
"""Says in a text that was made longer that the piece before it goes on: nothing else that is read has this id."""
_FOREIGN_UNKNOWN = 0
"""Of each SentencePiece model; its other pieces follow each other in the joint space."""
SAMPLING_ALPHA = 0.4


class JointVocabulary:
    """Text and units as ids of one space.

    Args:
        models: SentencePiece models by name, as `training.train_models` gives them.
        clusters: K of the k-means.
        languages: BCP-47 tags that have a token.

    Attributes:
        end: id that ends a row, the last one.
        is_unit: (V,) True for pieces of units.
        suppressed: (V,) True for what is never written: blank, unknown, units, language tokens.

    Raises:
        SprachbundError: a language without a token.
    """

    def __init__(self, models: Mapping[str, bytes], clusters: int, languages: Sequence[str] = ()) -> None:
        loaded = {name: read_pieces(model) for name, model in models.items()}
        if "joint" not in loaded and not {"text", "units"} <= loaded.keys():
            raise SprachbundError(
                f"the units have the vocabularies {', '.join(loaded) or 'none'}, not joint, or text and units; "
                "copy their directory again, whole"
            )
        self.clusters, self.languages = clusters, tuple(languages)
        self.form = "single" if "joint" in loaded else "union"
        self._text: Any = loaded.get("joint") or loaded["text"]
        self._units: Any = loaded.get("joint") or loaded["units"]
        self._text_sampler, self._unit_sampler = PieceSampler(self._text), PieceSampler(self._units)
        self._unit_offset = 1 if self.form == "single" else len(self._text)
        self.end = self._unit_offset + len(self._units)
        self.is_unit = self._find_units()
        self._language_ids = {tag: self._text.piece_to_id(language_token(tag)) + 1 for tag in languages}
        if missing := [tag for tag, number in self._language_ids.items() if number == UNKNOWN]:
            raise SprachbundError(
                f"the vocabulary has no token for {', '.join(missing)}; make the units for them"
            )
        self.suppressed = self.is_unit.copy()
        self.suppressed[[BLANK, UNKNOWN, *self._language_ids.values()]] = True

    def __len__(self) -> int:
        return self.end + 1

    def language_id(self, language: str) -> int:
        """Token of a language. Raises KeyError for one that it lacks."""
        return self._language_ids[language]

    def encode_text(
        self, text: str, rng: np.random.Generator | None = None, alpha: float = SAMPLING_ALPHA
    ) -> list[int]:
        """Ids of a text, without its end; drawn among its segmentations (arXiv 1804.10959, section 3.2) given `rng`.

        Raises:
            SprachbundError: in a vocabulary of one model, a character that stands for a unit.
        """
        if self.form == "single" and holds_units(text, self.clusters):
            raise SprachbundError(
                f"the text {text!r} holds a character that stands for a unit; make the units with --form union"
            )
        return _encode(self._text_sampler, 1, marked(text), rng, alpha) if text.strip() else []

    def encode_units(
        self, string: str, rng: np.random.Generator | None = None, alpha: float = SAMPLING_ALPHA
    ) -> list[int]:
        """Ids of units that are given as characters, without an end; drawn given `rng`."""
        return _encode(self._unit_sampler, self._unit_offset, string, rng, alpha)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids; all that is none vanishes."""
        silent = {BLANK, self.end, *self._language_ids.values()}
        kept = [int(i) for i in ids if int(i) not in silent and not self.is_unit[int(i)]]
        return self._text.decode([i - 1 for i in kept]).strip()

    def decode_units(self, ids: Sequence[int]) -> str:
        """Units of ids, as characters; all that is none vanishes."""
        return self._units.decode([int(i) - self._unit_offset for i in ids if self.is_unit[int(i)]])

    def piece(self, token: int) -> str:
        """The written form of an id."""
        if token in (BLANK, UNKNOWN, self.end):
            return {BLANK: "<blank>", UNKNOWN: "<unk>", self.end: "</s>"}[token]
        if token <= self._unit_offset or self.form == "single":
            return self._text.id_to_piece(token - 1)
        return self._units.id_to_piece(token - self._unit_offset)

    def _find_units(self) -> np.ndarray:
        ids = np.arange(len(self))
        if self.form == "union":
            return (ids > self._unit_offset) & (ids < self.end)
        inside = [holds_units(self._text.id_to_piece(int(i) - 1), self.clusters) for i in ids[2:-1]]
        return np.array([False, False, *inside, False])


def _encode(
    sampler: PieceSampler, offset: int, string: str, rng: np.random.Generator | None, alpha: float
) -> list[int]:
    pieces = sampler.model.encode(string) if rng is None else sampler.draw(string, rng, alpha)
    return [UNKNOWN if piece == _FOREIGN_UNKNOWN else piece + offset for piece in pieces]
