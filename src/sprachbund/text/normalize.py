"""Normalisation that makes texts comparable in any script: words are compared, not punctuation or case.

Marks (Unicode Mn, Mc) are letters' other halves in Arabic, Hebrew and every Indic script, so none is removed;
case is folded only where a script has case, by the language's own rules (the Turkish dotted and dotless i);
joiners that decide how Persian and Indic words are written stay. Both the raw and the normalized score are
meant to be shown, since a normalizer is a choice.
"""

import unicodedata
from collections.abc import Callable

from sprachbund.text.languages import primary

_DOTTED_I = frozenset({"tr", "az", "crh", "gag", "kk-Latn", "tt-Latn"})
_APOSTROPHES = {"\u2019": "'", "\u02bc": "'", "\u2018": "'", "\uff07": "'", "`": "'", "\u00b4": "'"}
_WITHIN_WORDS = {
    "'",
    "\u00b7",
    "\u05f3",
    "\u05f4",
}  # apostrophe, Catalan middle dot, Hebrew geresh, gershayim
_WITHIN_NUMBERS = {".", ",", ":", "/"}
_JOINERS = {"\u200c", "\u200d"}
_WORD_BREAKING_SYMBOLS = {"Sk", "So"}
_SHAPES = {"\ufe0e", "\ufe0f", *_JOINERS}  # text or emoji; several emoji as one

Normalizer = Callable[[str, str], str]


def lower(text: str, language: str = "") -> str:
    """Lower case by the rules of a language; scripts without case come out as they went in.

    Turkish and its kin: I becomes dotless ı, İ becomes i, where other languages have I to i. German ß stays.
    """
    if language in _DOTTED_I or primary(language) in _DOTTED_I:
        text = unicodedata.normalize("NFC", text).replace("\u0130", "i").replace("I", "\u0131")
    return text.lower()


def normalize(text: str, language: str = "") -> str:
    """Lower case, no punctuation, single spaces; every letter, mark, digit and currency sign stays.

    Apostrophes of all shapes become one and stay within words, as do points, commas, colons and slashes
    between digits; a hyphen becomes a space, since whether it is written is the least agreed on of all. Symbols such as
    emoji go, and with them the invisible signs that choose or join their shapes.

    Args:
        text: text in any script.
        language: BCP-47 tag, for its rules of case.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(_APOSTROPHES.get(c, c) for c in text)
    kept = (_kept(text, i) for i in range(len(text)))
    return " ".join(lower("".join(kept), language).split())


def _kept(text: str, i: int) -> str:
    """The character at `i`, a space in its place, or nothing."""
    character = text[i]
    category = unicodedata.category(character)
    if category[0] == "P" or character in _WITHIN_WORDS:
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        if character in _WITHIN_WORDS and _is_letter(before) and _is_letter(after):
            return character
        if character in _WITHIN_NUMBERS and before.isdigit() and after.isdigit():
            return character
        return character if character == "%" else " "
    if category in _WORD_BREAKING_SYMBOLS:
        return " "
    if character in _SHAPES and _is_symbol_before(text, i):
        return ""
    if category == "Cf":
        return character if character in _JOINERS else ""
    return " " if category in {"Cc", "Zl", "Zp", "Zs"} else character


def _is_symbol_before(text: str, i: int) -> bool:
    """Whether the sign at `i` belongs to a symbol, and to no letter."""
    while i and text[i] in _SHAPES:
        i -= 1
    return unicodedata.category(text[i]) in _WORD_BREAKING_SYMBOLS


def _is_letter(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LM"


def spaced_characters(text: str) -> str:
    """A text as its characters with spaces between, marks kept with their letter."""
    units: list[str] = []
    for character in text:
        if character.isspace():
            continue
        if units and (unicodedata.category(character)[0] == "M" or character in _JOINERS):
            units[-1] += character
        else:
            units.append(character)
    return " ".join(units)
