"""Whole numbers in recordings: which are played in which order, and the words heard, for each language.

This is how exchanges say numbers: English without "and", Spanish with the joined twenties, French counting on
from sixty and eighty, Italian with recordings for the elided ones, Russian with the gender of thousands. A
number that a language's set of recordings cannot say correctly fails later, because the clip asked for does
not exist.
"""

from __future__ import annotations

from collections.abc import Callable

from sprachbund.data.asterisk.compose.pieces import Piece, Pieces, digit
from sprachbund.text.numbers import cardinal

MAX_NUMBER = 999_999
_AND_ES = Piece(("digits/and", "vm-and"), "y")
_AND_FR = Piece(("digits/et", "vm-and"), "et")


def counted(value: int, language: str, gender: str) -> Pieces | None:
    """A number before a noun of ``gender`` ("m", "f", "n"); None where the form of one was never recorded."""
    if not 0 <= value <= MAX_NUMBER:
        return None
    if language == "es":
        return _spanish_feminine(value) if gender == "f" else _spanish_short(value)
    if language == "fr" and gender == "f":
        pieces = _french(value)
        return None if pieces[-1].text == "un" else pieces
    if language == "it" and value == 1:
        return [digit("un", "un")] if gender == "m" else [digit("ore-una", "una")]
    if language == "ru" and gender != "m":
        return _russian_feminine(value) if gender == "f" else _russian_neuter(value)
    return _LANGUAGES[language](value)


def number(value: int, language: str) -> Pieces | None:
    """The recordings that say ``value``, 0 to 999,999, as it is counted; None outside."""
    return _LANGUAGES[language](value) if 0 <= value <= MAX_NUMBER else None


def single(value: int, language: str, glue: str = " ") -> Piece:
    """One recording that says a whole small number (0 to 20, tens, or a special one)."""
    return digit(str(value), cardinal(value, language), glue)


def tens_of(value: int) -> int:
    """The tens of a two-digit number."""
    return value // 10 * 10


def _english(value: int) -> Pieces:
    if value <= 20 or (value < 100 and value % 10 == 0):
        return [single(value, "en")]
    if value < 100:
        return [single(tens_of(value), "en"), single(value % 10, "en", "-")]
    unit, word = (100, "hundred") if value < 1000 else (1000, "thousand")
    head = [*_english(value // unit), digit(word, word)]
    return head + (_english(value % unit) if value % unit else [])


def _spanish(value: int) -> Pieces:
    if value < 30 or (value < 100 and value % 10 == 0):
        return [single(value, "es")]
    if value < 100:
        return [single(tens_of(value), "es"), _AND_ES, single(value % 10, "es")]
    if value == 100:
        return [digit("hundred", "cien")]
    if value < 1000:
        hundreds = value // 100 * 100
        head = digit("100-and", "ciento") if hundreds == 100 else single(hundreds, "es")
        return [head, *(_spanish(value % 100) if value % 100 else [])]
    thousands = [] if value < 2000 else _spanish_short(value // 1000)
    return [*thousands, digit("thousand", "mil"), *(_spanish(value % 1000) if value % 1000 else [])]


def _spanish_short(value: int) -> Pieces:
    """Before a masculine noun or ``mil``: ``un``, ``veintiún``."""
    pieces = _spanish(value)
    if value % 100 == 21:
        return [*pieces[:-1], digit("20-and", "veinti"), digit("1m", "ún", "")]
    if value % 10 == 1 and value % 100 != 11:
        return [*pieces[:-1], digit("1m", "un")]
    return pieces


def _spanish_feminine(value: int) -> Pieces:
    pieces = _spanish(value)
    if value % 100 == 21:
        return [*pieces[:-1], digit("20-and", "veinti"), digit("1f", "una", "")]
    if value % 10 == 1 and value % 100 != 11:
        return [*pieces[:-1], digit("1f", "una")]
    return pieces


def _french(value: int) -> Pieces:
    if value <= 20 or (value < 100 and value % 10 == 0):
        return [single(value, "fr")]
    if value < 100:
        base = 60 if 60 < value < 80 else 80 if value > 80 else tens_of(value)
        tens = digit(str(base), "quatre-vingt" if base == 80 else cardinal(base, "fr"))
        rest = value - base
        if rest in (1, 11) and base != 80:
            return [tens, _AND_FR, single(rest, "fr")]
        return [tens, single(rest, "fr", "-")]
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        word = "cents" if hundreds > 1 and not rest else "cent"
        head = [*(_french(hundreds) if hundreds > 1 else []), digit("hundred", word)]
        return head + (_french(rest) if rest else [])
    thousands, rest = divmod(value, 1000)
    head = [*(_french_before_mille(thousands) if thousands > 1 else []), digit("thousand", "mille")]
    return head + (_french(rest) if rest else [])


def _french_before_mille(value: int) -> Pieces:
    """``quatre-vingts`` and ``cents`` lose their s before ``mille``."""
    pieces = _french(value)
    last = pieces[-1]
    if last.text in ("quatre-vingts", "cents"):
        pieces[-1] = last._replace(text=last.text[:-1])
    return pieces


def _italian(value: int) -> Pieces:
    """Italian numbers are one word: the first piece carries it, the others are only heard."""
    names = _italian_names(value)
    return [digit(names[0], cardinal(value, "it")), *(digit(name, "") for name in names[1:])]


def _italian_names(value: int) -> list[str]:
    if value <= 20 or (value < 100 and value % 10 in (0, 1, 8)):
        return [str(value)]
    if value < 100:
        return [str(tens_of(value)), str(value % 10)]
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        head = [str(hundreds)] if hundreds > 1 else []
        return [*head, "hundred", *(_italian_names(rest) if rest else [])]
    thousands, rest = divmod(value, 1000)
    head = [*_italian_thousands(thousands), "thousands"] if thousands > 1 else ["thousand"]
    return [*head, *(_italian_names(rest) if rest else [])]


def _italian_thousands(value: int) -> list[str]:
    """``ventunomila`` keeps its vowel, so the recordings of 21, 31 … fit."""
    return _italian_names(value)


def _russian(value: int) -> Pieces:
    if value < 1000:
        return _russian_small(value, feminine=False)
    thousands, rest = divmod(value, 1000)
    return [*_russian_thousands(thousands), *(_russian_small(rest, feminine=False) if rest else [])]


def _russian_feminine(value: int) -> Pieces:
    pieces = _russian(value)
    last = value % 10
    if last in (1, 2) and value % 100 not in (11, 12):
        pieces[-1] = digit(f"{last}f", "одна" if last == 1 else "две")
    return pieces


def _russian_neuter(value: int) -> Pieces:
    pieces = _russian(value)
    if value % 10 == 1 and value % 100 != 11:
        pieces[-1] = digit("1n", "одно")
    return pieces


def _russian_small(value: int, *, feminine: bool) -> Pieces:
    if value >= 100:
        hundreds = value // 100 * 100
        head = Piece(("digits/hundred", "digits/100"), "сто") if hundreds == 100 else single(hundreds, "ru")
        return [head, *(_russian_small(value % 100, feminine=feminine) if value % 100 else [])]
    if value > 20 and value % 10:
        return [single(tens_of(value), "ru"), *_russian_small(value % 10, feminine=feminine)]
    if feminine and value in (1, 2):
        return [digit(f"{value}f", "одна" if value == 1 else "две")]
    return [single(value, "ru")]


def _russian_thousands(count: int) -> Pieces:
    form = russian_form(count)
    noun = (
        digit("thousand", "тысяча"),
        Piece(("digits/thousands-i", "digits/h-thousand"), "тысячи"),
        digit("thousands", "тысяч"),
    )[form]
    return [noun] if count == 1 else [*_russian_small(count, feminine=True), noun]


def russian_form(value: int) -> int:
    """Which form a Russian noun takes after a number: 0 after one, 1 after two to four, 2 after five and
    more.
    """
    last, tail = value % 10, value % 100
    if last == 1 and tail != 11:
        return 0
    return 1 if 2 <= last <= 4 and not 12 <= tail <= 14 else 2


_LANGUAGES: dict[str, Callable[[int], Pieces]] = {
    "en": _english,
    "es": _spanish,
    "fr": _french,
    "it": _italian,
    "ru": _russian,
}
