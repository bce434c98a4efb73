"""Drawing among the segmentations of a unigram SentencePiece model (arXiv 1804.10959, section 3.2).

SentencePiece draws them too, but a seed means something else to it in every process, so that a run that was taken up
would not see what it would have seen. Shapes: N characters.
"""

import math
from itertools import groupby
from typing import Any

import numpy as np

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
        """Pieces of a string, drawn with nothing but `rng`; neighbouring unknown characters are one piece."""
        normal = self.model.normalize(string)
        ways = self._ways(normal, alpha)
        chances, end, found = rng.random(len(normal)).tolist(), len(normal), []
        while end:
            start, piece = _choose(ways[end], chances[end - 1])
            found.append(piece)
            end = start
        unmerged = groupby(reversed(found), lambda piece: piece == _UNKNOWN)
        return [piece for unknown, run in unmerged for piece in ([_UNKNOWN] if unknown else run)]

    def _ways(self, string: str, alpha: float) -> list[list[tuple[float, int, int]]]:
        """For each end, 0 to N, the pieces there: weight of all ways that end in it, its start, and its number."""
        sums, ways = [0.0], [list[tuple[float, int, int]]()]
        for end in range(1, len(string) + 1):
            found = []
            for start in range(max(0, end - self._longest), end):
                known = self._pieces.get(string[start:end])
                if known is not None:
                    found.append((sums[start] + alpha * known[1], start, known[0]))
            if string[end - 1] not in self._pieces:
                found.append((sums[end - 1] + alpha * self._unknown_score, end - 1, _UNKNOWN))
            highest = max(found)[0]
            ways.append([(math.exp(log - highest), start, piece) for log, start, piece in found])
            sums.append(highest + math.log(sum(weight for weight, _, _ in ways[-1])))
        return ways


def _choose(found: list[tuple[float, int, int]], chance: float) -> tuple[int, int]:
    """Start and number of the piece that a chance, 0 to 1, falls on."""
    left = chance * sum(weight for weight, _, _ in found)
    for weight, start, piece in found:
        left -= weight
        if left < 0:
            return start, piece
    return found[-1][1:]
