"""Sentences of a text."""

import re

_END = re.compile(r"[.!?…。!?।؟][\"'”“’‘»«)\]]*$")


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence does."""
    return _END.search(text.rstrip()) is not None


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a text, without white space around them; the whole where nothing divides it.

    Args:
        text: of any length.
        language: as a BCP-47 tag; it decides what is an abbreviation.
    """
    from sentencex import segment

    sentences = [sentence.strip() for sentence in segment(language.partition("-")[0], text)]
    return [sentence for sentence in sentences if sentence]
