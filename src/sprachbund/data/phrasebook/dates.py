"""Dates as people say them, because the formats of CLDR are made for the eye ("5 марта 2026 г.")."""

from functools import cache

from babel import Locale

from sprachbund.text import numbers

_WEEKDAY_ON = {"en": "on {}", "es": "el {}", "fr": "{}", "it": "{}", "de": "am {}", "nl": "op {}"}
_PT_WEEKDAY_ON = ("na {}", "no {}")  # weekdays are feminine, Saturday and Sunday masculine
_RU_ACCUSATIVE = {"среда": "среду", "пятница": "пятницу", "суббота": "субботу"}
_RU_GENITIVE = {
    "понедельник": "понедельника",
    "вторник": "вторника",
    "среда": "среды",
    "четверг": "четверга",
    "пятница": "пятницы",
    "суббота": "субботы",
    "воскресенье": "воскресенья",
}


@cache
def weekday(index: int, language: str, form: str = "") -> str:
    """Name a weekday, 0 = Monday; `form` "on" says "on Monday", "acc" and "from" serve
    Russian, where "from Tuesday" takes a case and a preposition of its own.
    """
    name = str(Locale(language).days["stand-alone"]["wide"][index])
    if not form:
        return name
    if language == "ru":
        if form == "from":
            return f"{'со' if name[0] in 'вс' and name[1] in 'тр' else 'с'} {_RU_GENITIVE[name]}"
        accusative = _RU_ACCUSATIVE.get(name, name)
        return accusative if form == "acc" else f"{'во' if name.startswith('вт') else 'в'} {accusative}"
    if form in ("acc", "from"):
        return name
    if language == "pt":
        return _PT_WEEKDAY_ON[index > 4].format(name)
    return _WEEKDAY_ON[language].format(name)


@cache
def month(index: int, language: str, form: str = "") -> str:
    """Name a month, 1 = January; `form` "in" adds the preposition, "of" is the form within a date."""
    names = Locale(language).months
    if form == "of":
        return str(names["format"]["wide"][index])
    name = str(names["stand-alone"]["wide"][index])
    if not form:
        return name
    if language == "ru":
        return f"в {name.rstrip('ьй') if name[-1] in 'ьй' else name}е"
    if language == "it":
        return f"{'ad' if name[0] == 'a' else 'a'} {name}"
    return {"es": "en", "fr": "en", "de": "im", "pt": "em"}.get(language, "in") + f" {name}"


def date(value: tuple[int, int, int, int], language: str, form: str = "", variant: int = 0) -> str:
    """Say a date.

    `value` is month, day, year (0 for none), weekday (-1 for none, 0 = Monday); `form` "on" adds the words
    that put something on that day; `variant` 1 chooses another common wording where there is one.
    """
    month_, day, year, weekday_ = value
    on, named = form == "on", weekday_ >= 0
    parts = [weekday(weekday_, language, "on" if on else "")] if named else []
    parts.append(
        _DAY_MONTH.get(language, _romance)(day, month(month_, language, "of"), language, on, named, variant)
    )
    if year:
        parts.append(_year(year, language))
    return " ".join(parts)


def _year(year: int, language: str) -> str:
    if language == "ru":
        return numbers.year(year, "ru", "gen") + " года"
    return ("de " if language in ("es", "pt") else "") + numbers.year(year, language)


def _english(day: int, month_: str, _: str, on: bool, named: bool, variant: int) -> str:
    nth = numbers.ordinal(day, "en")
    words = f"the {nth} of {month_}" if variant else f"{month_} {nth}"
    return f"on {words}" if on and not named else words


def _german(day: int, month_: str, _: str, on: bool, named: bool, _variant: int) -> str:
    if not on:
        return f"der {numbers.ordinal(day, 'de')} {month_}"
    return f"{'dem' if named else 'am'} {numbers.ordinal(day, 'de', 'n')} {month_}"


def _russian(day: int, month_: str, _: str, on: bool, _named: bool, _variant: int) -> str:
    return f"{numbers.ordinal(day, 'ru', 'gen' if on else 'n')} {month_}"


def _dutch(day: int, month_: str, _: str, on: bool, named: bool, _variant: int) -> str:
    return f"{'op ' if on and not named else ''}{numbers.cardinal(day, 'nl')} {month_}"


def _romance(day: int, month_: str, language: str, on: bool, named: bool, variant: int) -> str:
    first = day == 1 and (language != "es" or variant == 1)
    number = numbers.ordinal(1, language) if first else numbers.cardinal(day, language)
    words = f"{number} de {month_}" if language in ("es", "pt") else f"{number} {month_}"
    if named or (not on and language != "fr"):
        return words
    if language == "it":
        return f"l'{words}" if number in ("otto", "undici") else f"il {words}"
    return {"es": "el", "fr": "le", "pt": "no dia"}[language] + f" {words}"


_DAY_MONTH = {"en": _english, "de": _german, "ru": _russian, "nl": _dutch}
