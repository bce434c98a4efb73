"""Numbers, ordinals, dates and clock times in recordings: the recordings to play, and the words heard, by language.

This is how exchanges say numbers: English without "and", Spanish with the joined twenties, French counting on from
sixty and eighty, Italian with recordings for the elided ones, Russian with the gender of thousands. A number that a
language's set of recordings cannot say correctly fails later, because its clip does not exist; dates and times are
None instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from sprachbund.text.numbers import cardinal
from sprachbund.text.numbers import ordinal as ordinal_words

# Spoken pieces: a recording and its words.


class PromptPiece(NamedTuple):
    """Play the first of ``clips`` that was recorded; it adds ``text``, joined to what came before by
    ``glue``.

    An ``optional`` piece is left out, sound and words, by a speaker who did not record it.
    """

    clips: tuple[str, ...]
    text: str
    glue: str = " "
    optional: bool = False


Pieces = list[PromptPiece]


def digit(name: str, text: str, glue: str = " ") -> PromptPiece:
    """A piece from the folder ``digits``.

    Args:
        name: name of the recording.
        text: words heard.
        glue: text between these words and those before.
    """
    return PromptPiece((f"digits/{name}",), text, glue)


def written(pieces: Iterable[PromptPiece]) -> str:
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


MAX_NUMBER = 999_999
_AND_ES = PromptPiece(("digits/and", "vm-and"), "y")
_AND_FR = PromptPiece(("digits/et", "vm-and"), "et")


def counted(value: int, language: str, gender: str) -> Pieces | None:
    """A number before a noun of ``gender`` ("m", "f", "n"); None where the form of one was never recorded.

    Args:
        value: the number.
        language: BCP-47 tag.
        gender: gender of the noun.
    """
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


def single(value: int, language: str, glue: str = " ") -> PromptPiece:
    """One recording that says a whole small number (0 to 20, tens, or a special one).

    Args:
        value: the number.
        language: BCP-47 tag.
        glue: text between these words and those before.
    """
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
        head = (
            PromptPiece(("digits/hundred", "digits/100"), "сто")
            if hundreds == 100
            else single(hundreds, "ru")
        )
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
        PromptPiece(("digits/thousands-i", "digits/h-thousand"), "тысячи"),
        digit("thousands", "тысяч"),
    )[form]
    return [noun] if count == 1 else [*_russian_small(count, feminine=True), noun]


def russian_form(value: int) -> int:
    """Form of a Russian noun after a number: 0 after one, 1 after two to four, 2 after five and more."""
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


# Ordinals, dates and clock times.

MAX_ORDINAL = 99
_DE = PromptPiece(("digits/es-de", "vm-from"), "de")
_HEURES = PromptPiece(("hours", "digits/oclock"), "heures")
_HORAS_EN_PUNTO = digit("oclock", "en punto")


def ordinal(value: int, language: str) -> Pieces | None:
    """The recordings of an ordinal, 1 to 99."""
    if not 1 <= value <= MAX_ORDINAL:
        return None
    if value <= 20 or value % 10 == 0:
        return [_ordinal_clip(value, language)]
    tens, last = tens_of(value), value % 10
    if language == "es":
        return [_ordinal_clip(tens, "es"), _ordinal_clip(last, "es")]
    if language == "en":
        return [*(number(tens, "en") or []), _ordinal_clip(last, "en", "-")]
    if language == "ru":
        return [*(number(tens, "ru") or []), _ordinal_clip(last, "ru")]
    return None  # French and Italian change the last word: "vingt et unième", "ventunesimo"


def _ordinal_clip(value: int, language: str, glue: str = " ") -> PromptPiece:
    if language == "es" and 13 <= value <= 19:  # recorded as two words: "décimo tercero"
        return digit(f"h-{value}", f"décimo {ordinal_words(value - 10, 'es')}", glue)
    return digit(f"h-{value}", ordinal_words(value, language), glue)


@cache
def _name(kind: str, index: int, language: str) -> str:
    from sprachbund.corpora.phrasebook import dates

    return dates.weekday(index, language) if kind == "day" else dates.month(index, language, "of")


def weekday(index: int, language: str) -> PromptPiece:
    """The recording of a weekday, 0 = Monday (recordings count from Sunday)."""
    return digit(f"day-{(index + 1) % 7}", _name("day", index, language))


def month(index: int, language: str) -> PromptPiece:
    """The recording of a month, 1 = January (recordings count from 0)."""
    return digit(f"mon-{index - 1}", _name("month", index, language))


def date(
    month_: int, day: int, language: str, *, year: int = 0, weekday_: int | None = None
) -> Pieces | None:
    """The recordings of a date in the order of the language; ``year`` 0 for none, ``weekday_`` 0 = Monday.

    Args:
        month_: 1 to 12.
        day: 1 to 31.
        language: BCP-47 tag.
        year: four digits, or 0 for none.
        weekday_: 0 is Monday; None for none.
    """
    day_pieces = _day(day, language)
    year_pieces = _YEARS[language](year) if year else []
    if day_pieces is None or year_pieces is None:
        return None
    name = [month(month_, language)]
    head = [] if weekday_ is None else [weekday(weekday_, language)]
    if language == "en":
        return [*head, *name, *day_pieces, *year_pieces]
    joint = [_DE] if language == "es" else []
    return [*head, *day_pieces, *joint, *name, *(joint if year_pieces else []), *year_pieces]


def _day(day: int, language: str) -> Pieces | None:
    if language in ("en", "ru") or (day == 1 and language in ("fr", "it")):
        return ordinal(day, language)
    return number(day, language)


def _year_english(year: int) -> Pieces | None:
    if 2000 <= year < 2010:
        return number(year, "en")
    high, low = divmod(year, 100)
    if not 11 <= high <= 20:
        return None
    if low == 0:
        return [*(number(high, "en") or []), digit("hundred", "hundred")]
    tail = number(low, "en") or []
    return [*(number(high, "en") or []), *([digit("oh", "oh")] if low < 10 else []), *tail]


def _year_italian(year: int) -> Pieces | None:
    """Recorded beginnings ``millenovecento`` and ``duemila``; the whole year is one word."""
    from sprachbund.text.numbers import cardinal

    if not 1900 <= year < 2100:
        return None
    head, rest = ("ore-1900", year - 1900) if year < 2000 else ("ore-2000", year - 2000)
    tail = [piece._replace(text="") for piece in number(rest, "it") or []] if rest else []
    return [digit(head, cardinal(year, "it")), *tail]


_YEARS: dict[str, Callable[[int], Pieces | None]] = {
    "en": _year_english,
    "es": lambda year: number(year, "es"),
    "fr": lambda year: number(year, "fr"),
    "it": _year_italian,
    "ru": lambda year: None,  # needs an ordinal in the genitive, which was never recorded
}


def clock_time(hour: int, minute: int, language: str, rng: random.Random) -> Pieces | None:
    """The recordings of a time of day, hour 0 to 23; in English on the twelve-hour face.

    Args:
        hour: 0 to 23.
        minute: 0 to 59.
        language: BCP-47 tag.
        rng: source of all random choices.
    """
    return _TIMES[language](hour, minute, rng)


def _time_english(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    pieces = list(number((hour - 1) % 12 + 1, "en") or [])
    half = [digit("a-m", "a m")] if hour == 0 else [digit("p-m", "p m")] if hour > 12 else []
    if minute == 0:
        if hour in (0, 12):
            return [*pieces, digit("a-m", "a m") if hour == 0 else digit("p-m", "p m")]
        return [*pieces, *(half or [digit("oclock", "o'clock")])]
    if minute < 10:
        pieces.append(digit("oh", "oh"))
    return [*pieces, *(number(minute, "en") or []), *half]


def _time_spanish(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    """``a las tres y quince``, ``a las quince treinta``; one o'clock would need ``a la una``."""
    if hour in (0, 1, 21):
        return None
    pieces = [digit("at", "a las")._replace(optional=True), *(number(hour, "es") or [])]
    if minute == 0:
        return [*pieces, *([_HORAS_EN_PUNTO] if hour <= 12 and rng.random() < 0.5 else [])]
    joint = [PromptPiece(("digits/and", "vm-and"), "y")] if hour <= 12 else []
    return [*pieces, *joint, *(number(minute, "es") or [])]


def _time_french(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    if hour in (1, 21):  # "une heure": never recorded
        return None
    heures = _HEURES if hour > 1 else _HEURES._replace(text="heure")
    return [*(number(hour, "fr") or []), heures, *_french_minutes(minute)]


def _french_minutes(minute: int) -> Pieces:
    return (number(minute, "fr") or []) if minute else []


def _time_italian(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    if hour == 0:
        pieces: Pieces = [digit("ore-mezzanotte", "mezzanotte")]
    elif hour == 1:
        pieces = [digit("ore-una", "una")]
    else:
        pieces = [digit("at", "alle")._replace(optional=True), *(number(hour, "it") or [])]
    if minute == 0:
        return [*pieces, *([digit("oclock", "in punto")] if hour and rng.random() < 0.3 else [])]
    return [*pieces, PromptPiece(("digits/e", "vm-and"), "e"), *(number(minute, "it") or [])]


def _time_russian(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    """Only hours and minutes whose noun is ``часов``, ``минут``: the other forms were never recorded."""
    if russian_form(hour) != 2 or (minute and russian_form(minute) != 2):
        return None
    pieces = [*(number(hour, "ru") or []), PromptPiece(("hours", "digits/oclock"), "часов")]
    if not minute:
        return pieces
    return [
        *pieces,
        *(number(minute, "ru") or []),
        PromptPiece(("minutes", "vm-minutes", "queue-minutes"), "минут"),
    ]


_TIMES: dict[str, Callable[[int, int, random.Random], Pieces | None]] = {
    "en": _time_english,
    "es": _time_spanish,
    "fr": _time_french,
    "it": _time_italian,
    "ru": _time_russian,
}
