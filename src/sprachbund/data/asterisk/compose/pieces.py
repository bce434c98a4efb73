"""A spoken piece: the recording to play and the words it adds; how a telephone exchange's utterances are
written down.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Piece(NamedTuple):
    """Play the first of ``clips`` that was recorded; it adds ``text``, joined to what came before by
    ``glue``.

    An ``optional`` piece is left out, sound and words, by a speaker who did not record it.
    """

    clips: tuple[str, ...]
    text: str
    glue: str = " "
    optional: bool = False


Pieces = list[Piece]


def digit(name: str, text: str, glue: str = " ") -> Piece:
    """A piece from the folder ``digits``."""
    return Piece((f"digits/{name}",), text, glue)


def written(pieces: Iterable[Piece]) -> str:
    """The words of the pieces as one text."""
    text = ""
    for piece in pieces:
        if piece.text:
            text += (piece.glue if text else "") + piece.text
    return text


def single_digits(text: str, language: str) -> Pieces:
    """One recording for each digit of a string of 0-9."""
    from sprachbund.text.numbers import cardinal

    return [digit(sign, cardinal(int(sign), language)) for sign in text]
