"""Dates as people say them, because the formats of CLDR are made for the eye ("5 марта 2026 г.")."""

from functools import cache

from babel import Locale

from sprachbund.text import numbers

_WEEKDAY_ON = {"en": "on {}", "es": "el {}", "fr": "{}", "it": "{}", "de": "am {}", "nl": "op {}"}
_PT_WEEKDAY_ON = ("na {}", "no {}")  # weekdays are feminine, Saturday and Sunday masculine
_RU_ACCUSATIVE = {"среда": "среду", "пятница": "пятницу", "суббота": "субботу"}


@cache
def weekday(index: int, language: str, form: str = "") -> str:
    """Name a weekday, 0 = Monday; `form` "on" adds the words for "on Monday"."""
    name = str(Locale(language).days["stand-alone"]["wide"][index])
    if not form:
        return name
    if language == "ru":
        return ("во " if name.startswith("вт") else "в ") + _RU_ACCUSATIVE.get(name, name)
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
    return {"es": "en", "fr": "en", "it": "a", "de": "im", "pt": "em"}.get(language, "in") + f" {name}"


def date(value: tuple[int, int, int, int], language: str, form: str = "", variant: int = 0) -> str:
    """Say a date.

    `value` is month, day, year (0 for none), weekday (-1 for none, 0 = Monday); `form` "on" adds the words that put
    something on that day; `variant` 1 chooses another common wording where there is one.
    """
    month_, day, year, weekday_ = value
    on = form == "on"
    parts = [_day_month(day, month_, language, on and weekday_ < 0, variant, weekday_ >= 0 and on)]
    if weekday_ >= 0:
        parts.insert(0, weekday(weekday_, language, "on" if on else ""))
    if year:
        parts.append(_year(year, language))
    return " ".join(parts)


def _year(year: int, language: str) -> str:
    if language == "ru":
        return numbers.year(year, "ru", "gen") + " года"
    return ("de " if language in ("es", "pt") else "") + numbers.year(year, language)


def _day_month(day: int, month_: int, language: str, on: bool, variant: int, after_weekday: bool) -> str:
    name = month(month_, language, "of")
    if language == "en":
        nth = numbers.ordinal(day, "en")
        words = f"the {nth} of {name}" if variant else f"{name} {nth}"
        return f"on {words}" if on else words
    if language == "de":
        nth = numbers.ordinal(day, "de", "n" if on or after_weekday else "m")
        return f"{'am' if on else 'dem' if after_weekday else 'der'} {nth} {name}"
    if language == "ru":
        return f"{numbers.ordinal(day, 'ru', 'gen' if on or after_weekday else 'gen')} {name}"
    if language == "nl":
        return f"{'op ' if on else ''}{numbers.cardinal(day, 'nl')} {name}"
    return _romance_day_month(day, name, language, on, variant)


def _romance_day_month(day: int, name: str, language: str, on: bool, variant: int) -> str:
    first = day == 1 and (language in ("fr", "it", "pt") or variant == 1)
    number = numbers.ordinal(1, language) if first else numbers.cardinal(day, language)
    words = f"{number} de {name}" if language in ("es", "pt") else f"{number} {name}"
    if not on:
        return f"le {words}" if language == "fr" and variant == 0 and False else words
    return {"es": "el", "fr": "le", "it": _italian_article(number), "pt": "em"}[language] + f" {words}"


def _italian_article(number: str) -> str:
    return "l'" if number in ("otto", "undici") else "il"
