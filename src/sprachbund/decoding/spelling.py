"""The tokens by which a model writes a word that its caller names, or the reason why it cannot."""

import unicodedata

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target


def spellings(family: Family, word: str) -> set[tuple[int, ...]]:
    """The tokens by which a model writes a word: one spelling, or two.

    A vocabulary without some of its letters has unknown pieces instead of them. A search for hot words would gain the
    bonus of the other letters, and never write the word.

    Args:
        family: writes it; its capabilities have `encode_text`.
        word: as it is to be written.

    Raises:
        SprachbundError: the family has no tokens for the word that a search may write.
    """
    encode = family.capabilities.encode_text
    assert encode is not None
    # A transcription, where it transcribes: of a cascade it is the recogniser that writes hot words.
    source, target = min(family.pairs(), key=lambda pair: (pair[0] != pair[1], pair))
    never = family.suppressed(Target(language=target, source=source))
    # Vocabularies that mark the beginning of words spell a word behind a space in another way than the first one.
    spelled = {tuple(encode(form)) for form in (word, f" {word}")}
    written = {
        tokens
        for tokens in spelled
        if _letters(family.decode_text(tokens)) == _letters(word) and not never[list(tokens)].any()
    }
    if not written:
        left = " or ".join(sorted({repr(family.decode_text(tokens).strip()) for tokens in spelled}))
        raise SprachbundError(
            f"the model {family.name} cannot spell the hot word {word!r}: with the pieces that it may write, {left} is "
            "left of it; leave the word out, or take a model of its language"
        )
    return written


def _letters(text: str) -> str:
    """A text without white space and what vocabularies make equal: forms of a character, and often capitals."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
