"""One space of ids for speech and text: 0 blank, 1 unknown, pieces of text, pieces of units, the end.

It is made of two SentencePiece models (`union`) or of one over both (`single`), which differ only in the ids of units.
Segmentations are drawn by this module (arXiv 1804.10959, section 3.2), since a seed of SentencePiece gives other draws
in every process, and a resumed run would differ.
Shapes: V vocabulary, N characters.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.strings import holds_units
from sprachbund.text.tokenizer import language_token, read_pieces

# Drawing segmentations.

_UNKNOWN = 0
_BELOW_ALL = 10.0
"""An unknown character scores so much less than the worst piece, as in SentencePiece."""


class PieceSampler:
    """Draws with probability proportional to P(segmentation) ** alpha, of all there are.

    Args:
        model: a SentencePiece processor, whose unknown piece is 0.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        special = (model.is_control, model.is_unknown, model.is_unused)
        numbers = [n for n in range(len(model)) if not any(is_one(n) for is_one in special)]
        self._pieces = {model.id_to_piece(n): (n, model.get_score(n)) for n in numbers}
        self._longest = max(map(len, self._pieces))
        self._unknown_score = min(score for _, score in self._pieces.values()) - _BELOW_ALL

    def draw(self, string: str, rng: np.random.Generator, alpha: float) -> list[int]:
        """Pieces of a string, drawn with nothing but `rng`; neighbouring unknown characters are one piece.

        Args:
            string: text or units as characters.
            rng: source of all random choices.
            alpha: smoothing of the distribution over segmentations; 0 is uniform.
        """
        normal = self.model.normalize(string)
        ways = self._ways(normal, alpha)
        chances, end, drawn = rng.random(len(normal)).tolist(), len(normal), []
        while end:
            start, piece = _choose(ways[end], chances[end - 1])
            drawn.append(piece)
            end = start
        unmerged = groupby(reversed(drawn), lambda piece: piece == _UNKNOWN)
        return [piece for unknown, run in unmerged for piece in ([_UNKNOWN] if unknown else run)]

    def _ways(self, string: str, alpha: float) -> list[list[tuple[float, int, int]]]:
        """For each end, 0 to N, the pieces there: weight of all ways that end in it, its start, and its number."""
        sums, ways = [0.0], [list[tuple[float, int, int]]()]
        for end in range(1, len(string) + 1):
            candidates = []
            for start in range(max(0, end - self._longest), end):
                known = self._pieces.get(string[start:end])
                if known is not None:
                    candidates.append((sums[start] + alpha * known[1], start, known[0]))
            if string[end - 1] not in self._pieces:
                candidates.append((sums[end - 1] + alpha * self._unknown_score, end - 1, _UNKNOWN))
            highest = max(candidates)[0]
            ways.append([(math.exp(log - highest), start, piece) for log, start, piece in candidates])
            sums.append(highest + math.log(sum(weight for weight, _, _ in ways[-1])))
        return ways


def _choose(candidates: list[tuple[float, int, int]], chance: float) -> tuple[int, int]:
    """Start and number of the piece that a chance, 0 to 1, falls on."""
    left = chance * sum(weight for weight, _, _ in candidates)
    for weight, start, piece in candidates:
        left -= weight
        if left < 0:
            return start, piece
    return candidates[-1][1:]


# The space of ids.

BLANK, UNKNOWN = 0, 1
REPEAT = BLANK
"""Says in a text that was made longer that the piece before it goes on: nothing else that is read has this id."""
_SENTENCEPIECE_UNKNOWN = 0
"""Unknown piece of each SentencePiece model; its other pieces follow each other in the joint space."""
SAMPLING_ALPHA = 0.4


def marked(text: str) -> str:
    """A text as its pieces are looked for: white space single, one space before the first word."""
    return " " + " ".join(text.split())


class JointVocabulary:
    """Text and units as ids of one space.

    Args:
        models: SentencePiece models by name, as `sprachbund.units.fit.train_models` gives them.
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

        Args:
            text: normal text.
            rng: source of the draws; None takes the best segmentation.
            alpha: smoothing of the distribution over segmentations.

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
        """Ids of units that are given as characters, without an end; drawn given `rng`.

        Args:
            string: units as characters.
            rng: source of the draws; None takes the best segmentation.
            alpha: smoothing of the distribution over segmentations.
        """
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
    return [UNKNOWN if piece == _SENTENCEPIECE_UNKNOWN else piece + offset for piece in pieces]
