"""Ordinals, dates and clock times in recordings, with the words heard; None where the recordings cannot say
it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from sprachbund.data.asterisk.compose.numbers import number, russian_form, tens_of
from sprachbund.data.asterisk.compose.pieces import Piece, Pieces, digit
from sprachbund.text.numbers import ordinal as ordinal_words

MAX_ORDINAL = 99
_DE = Piece(("digits/es-de", "vm-from"), "de")
_HEURES = Piece(("hours", "digits/oclock"), "heures")
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


def _ordinal_clip(value: int, language: str, glue: str = " ") -> Piece:
    if language == "es" and 13 <= value <= 19:  # recorded as two words: "décimo tercero"
        return digit(f"h-{value}", f"décimo {ordinal_words(value - 10, 'es')}", glue)
    return digit(f"h-{value}", ordinal_words(value, language), glue)


@cache
def _name(kind: str, index: int, language: str) -> str:
    from sprachbund.data.phrasebook import dates

    return dates.weekday(index, language) if kind == "day" else dates.month(index, language, "of")


def weekday(index: int, language: str) -> Piece:
    """The recording of a weekday, 0 = Monday (recordings count from Sunday)."""
    return digit(f"day-{(index + 1) % 7}", _name("day", index, language))


def month(index: int, language: str) -> Piece:
    """The recording of a month, 1 = January (recordings count from 0)."""
    return digit(f"mon-{index - 1}", _name("month", index, language))


def date(
    month_: int, day: int, language: str, *, year: int = 0, weekday_: int | None = None
) -> Pieces | None:
    """The recordings of a date in the order of the language; ``year`` 0 for none, ``weekday_`` 0 = Monday."""
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
    """The recordings of a time of day, hour 0 to 23; in English on the twelve-hour face."""
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
    joint = [Piece(("digits/and", "vm-and"), "y")] if hour <= 12 else []
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
    return [*pieces, Piece(("digits/e", "vm-and"), "e"), *(number(minute, "it") or [])]


def _time_russian(hour: int, minute: int, rng: random.Random) -> Pieces | None:
    """Only hours and minutes whose noun is ``часов``, ``минут``: the other forms were never recorded."""
    if russian_form(hour) != 2 or (minute and russian_form(minute) != 2):
        return None
    pieces = [*(number(hour, "ru") or []), Piece(("hours", "digits/oclock"), "часов")]
    if not minute:
        return pieces
    return [
        *pieces,
        *(number(minute, "ru") or []),
        Piece(("minutes", "vm-minutes", "queue-minutes"), "минут"),
    ]


_TIMES: dict[str, Callable[[int, int, random.Random], Pieces | None]] = {
    "en": _time_english,
    "es": _time_spanish,
    "fr": _time_french,
    "it": _time_italian,
    "ru": _time_russian,
}
