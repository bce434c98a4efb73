"""The phrasebook: meanings drawn at random and said in eight languages, text for small-scale training.

Text is what is spoken: numbers in words, no punctuation but apostrophes and hyphens within words, capitals
only where the language writes the word with one anywhere (German nouns, names, English "I").
"""

from sprachbund.corpora.phrasebook.draw import KINDS, Piece, draw, draw_kind, render, render_pieces
from sprachbund.corpora.phrasebook.sentences import LANGUAGES, Meaning, split_of

__all__ = [
    "KINDS",
    "LANGUAGES",
    "Meaning",
    "Piece",
    "draw",
    "draw_kind",
    "render",
    "render_pieces",
    "split_of",
]
