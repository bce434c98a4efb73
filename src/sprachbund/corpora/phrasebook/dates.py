"""Dates as people say them, because the formats of CLDR are made for the eye ("5 марта 2026 г.")."""

from functools import cache

from babel import Locale

from sprachbund.text import numbers
from sprachbund.text.numbers import cardinal, ordinal

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

    Args:
        index: 0 to 6.
        language: BCP-47 tag.
        form: grammatical form.
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
    """Name a month, 1 = January; `form` "in" adds the preposition, "of" is the form within a date.

    Args:
        index: 1 to 12.
        language: BCP-47 tag.
        form: grammatical form.
    """
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

    Args:
        value: month, day, year and weekday.
        language: BCP-47 tag.
        form: grammatical form.
        variant: number of the wording.
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


# Clock times as people say them. No library does this; the rules are by hand for each language.
#
# Hours up to twelve are said on the twelve-hour face without the part of the day, so that "half past
# three" and "halb vier" are the same meaning; later hours are said so that the afternoon is heard: "three
# thirty p m", "fünfzehn Uhr dreißig", "las quince treinta", or with words for the part of the day.

_RU_HOURS_GENITIVE = (  # noqa: SIM905 (a list would take 24 lines)
    "нуля часа двух трёх четырёх пяти шести семи восьми девяти десяти одиннадцати двенадцати тринадцати "
    "четырнадцати пятнадцати шестнадцати семнадцати восемнадцати девятнадцати двадцати "
    "двадцати_одного двадцати_двух двадцати_трёх"
).split()
_AT = {"en": "at ", "fr": "à ", "de": "um ", "nl": "om "}
_DAY_PARTS = {  # afternoon, evening
    "en": ("in the afternoon", "in the evening"),
    "es": ("de la tarde", "de la noche"),
    "fr": ("de l'après-midi", "du soir"),
    "it": ("del pomeriggio", "di sera"),
    "de": ("nachmittags", "abends"),
    "ru": ("дня", "вечера"),
    "pt": ("da tarde", "da noite"),
    "nl": ("in de middag", "in de avond"),
}
_BOUNDS = {  # from, until
    "en": ("from", "to"),
    "es": ("de", "a"),
    "fr": ("de", "à"),
    "de": ("von", "bis"),
    "nl": ("van", "tot"),
}
_EVENING = {"en": 18, "es": 20, "fr": 18, "it": 18, "de": 18, "ru": 17, "pt": 19, "nl": 18}


def clock_time(hour: int, minute: int, language: str, form: str = "", variant: int = 0) -> str:
    """Say a time of day, hour 0..23.

    `form` is "" (naming), "is" ("it is ..."), "at", or for full hours "from" and "until"; `variant` 0 is the
    canonical wording, 1 the other common one (plain instead of "half past", or the part of the day instead of
    the 24-hour clock).

    Args:
        hour: 0 to 23.
        minute: 0 to 59.
        language: BCP-47 tag.
        form: grammatical form.
        variant: number of the wording.
    """
    return _clock_time(hour, minute, language, form, variant)


@cache
def _clock_time(hour: int, minute: int, language: str, form: str, variant: int) -> str:
    if form in ("from", "until"):
        return _bound(hour, language, form)
    if form == "is":
        return _is(_clock_time(hour, minute, language, "", variant), language)
    if 12 < hour < 23 and variant == 1:  # "quarter to midnight in the evening" is no one's wording
        part = _DAY_PARTS[language][hour >= _EVENING[language]]
        return f"{_SAY[language](hour - 12, minute, form, True)} {part}"
    return _SAY[language](hour, minute, form, hour <= 12 and variant == 0)


def _is(words: str, language: str) -> str:
    """Say that it is this time now, the verb agreeing with the hour."""
    if language == "es":
        return f"{'es' if words.startswith('la ') else 'son'} {words}"
    if language == "it":
        return f"{'sono' if words.startswith('le ') else 'è'} {words}"
    if language == "pt":
        return f"{'é' if words.startswith(('uma ', 'mei')) or words == 'uma' else 'são'} {words}"
    return {"en": "it is", "fr": "il est", "de": "es ist", "ru": "сейчас", "nl": "het is"}[
        language
    ] + f" {words}"


def _bound(hour: int, language: str, form: str) -> str:
    """Say a full hour as the start or end of a span."""
    if language == "ru":
        hours = _RU_HOURS_GENITIVE[hour].replace("_", " ")
        noun = "" if hour == 1 else " часа" if hour == 21 else " часов"
        return f"{'с' if form == 'from' else 'до'} {hours}{noun}"
    words = _clock_time(hour, 0, language, "", 0)
    if language == "it":
        return _contract_it(words, "dal" if form == "from" else "al")
    if language == "pt":
        return _contract_pt(words, form == "from")
    return f"{_BOUNDS[language][form == 'until']} {words}"


def _en(hour: int, minute: int, form: str, natural: bool) -> str:
    at = _AT["en"] if form == "at" else ""
    return at + (_en_natural(hour, minute) if natural else _en_plain(hour, minute))


def _en_natural(hour: int, minute: int) -> str:
    this, following = cardinal((hour - 1) % 12 + 1, "en"), cardinal(hour % 12 + 1, "en")
    if minute == 0:
        return "midnight" if hour == 0 else "noon" if hour == 12 else f"{this} o'clock"
    if hour == 0:
        return _en_plain(hour, minute)
    named = {15: f"quarter past {this}", 30: f"half past {this}", 45: f"quarter to {following}"}
    return named.get(minute) or f"{this} {_en_minute(minute)}"


def _en_plain(hour: int, minute: int) -> str:
    half = " a m" if hour == 0 else " p m" if hour > 12 else ""
    this = cardinal((hour - 1) % 12 + 1, "en")
    if minute == 0:
        return f"{this}{half or (' p m' if hour == 12 else ' o' + chr(39) + 'clock')}"
    return f"{this} {_en_minute(minute)}{half}"


def _en_minute(minute: int) -> str:
    return cardinal(minute, "en") if minute > 9 else f"oh {cardinal(minute, 'en')}"


def _es(hour: int, minute: int, form: str, natural: bool) -> str:
    if natural and hour and minute == 45:
        hour, tail = hour % 12 + 1, " menos cuarto"
    elif natural and hour and minute in (15, 30):
        tail = " y cuarto" if minute == 15 else " y media"
    elif minute:
        tail = (" y " if 0 < hour <= 12 else " ") + cardinal(minute, "es")
    else:
        tail = " horas" if hour > 12 else ""
    hours = cardinal(hour, "es", "f")
    words = f"{'la' if hour == 1 else 'las'} {hours}{tail}"
    if hour == 0 and minute == 0:
        words = "la medianoche"
    return f"a {words}" if form == "at" else words


def _fr(hour: int, minute: int, form: str, natural: bool) -> str:
    at = _AT["fr"] if form == "at" else ""
    if minute == 0 and hour == 12 and natural:
        return f"{at}midi"
    tail = f" {cardinal(minute, 'fr', 'f')}" if minute else ""
    if natural and 0 < hour < 12 and minute in (15, 30, 45):
        tail = {15: " et quart", 30: " et demie", 45: " moins le quart"}[minute]
        hour += minute == 45
    if hour == 0 or (hour == 12 and "quart" in tail):
        return f"{at}{'minuit' if hour == 0 else 'midi'}{tail}"
    return f"{at}{cardinal(hour, 'fr', 'f')} heure{'s' if hour > 1 else ''}{tail}"


def _it(hour: int, minute: int, form: str, natural: bool) -> str:
    tail = f" e {cardinal(minute, 'it')}" if minute else ""
    if hour == 0 or (hour == 12 and minute == 0 and natural):
        return ("a " if form == "at" else "") + ("mezzogiorno" if hour else f"mezzanotte{tail}")
    if natural and minute in (15, 30, 45) and 0 < hour < 12:
        tail = {15: " e un quarto", 30: " e mezza", 45: " meno un quarto"}[minute]
        hour += minute == 45
    words = f"l'una{tail}" if hour == 1 else f"le {cardinal(hour, 'it')}{tail}"
    return _contract_it(words, "al") if form == "at" else words


def _contract_it(words: str, preposition: str) -> str:
    if words.startswith("l'"):
        return preposition + "l'" + words[2:]
    if words.startswith("le "):
        return f"{preposition}le {words[3:]}"
    return f"{preposition.removesuffix('l')} {words}"


def _de(hour: int, minute: int, form: str, natural: bool) -> str:
    at = _AT["de"] if form == "at" else ""
    if natural and 0 < hour <= 12 and minute in (15, 30, 45):
        this, following = (cardinal((value - 1) % 12 + 1, "de") for value in (hour, hour + 1))
        return (
            at + {15: f"Viertel nach {this}", 30: f"halb {following}", 45: f"Viertel vor {following}"}[minute]
        )
    if hour == 0 and minute == 0 and natural:
        return f"{at}Mitternacht"
    return f"{at}{cardinal(hour, 'de', 'm')} Uhr{' ' + cardinal(minute, 'de') if minute else ''}"


def _ru(hour: int, minute: int, form: str, natural: bool) -> str:
    at = form == "at"
    if minute == 0 and hour in (0, 12) and natural:
        return ("в " if at else "") + ("полночь" if hour == 0 else "полдень")
    if natural and 0 < hour <= 12 and minute in (15, 30):
        following = ordinal(hour % 12 + 1, "ru", "gen")
        if minute == 15:
            return f"{'в ' if at else ''}четверть {following}"
        return f"{'в половине' if at else 'половина'} {following}"
    if natural and 0 < hour <= 12 and minute == 45:
        following_hour = hour % 12 + 1
        return f"без четверти {'час' if following_hour == 1 else cardinal(following_hour, 'ru')}"
    words = "час" if hour == 1 and minute == 0 else _ru_counted(hour, "m", ("час", "часа", "часов"))
    if minute:
        words += " " + _ru_counted(minute, "f", ("минуту" if at else "минута", "минуты", "минут"), at)
    return f"в {words}" if at else words


def _ru_counted(value: int, gender: str, nouns: tuple[str, str, str], accusative: bool = False) -> str:
    tail, last = value % 100, value % 10
    index = 0 if last == 1 and tail != 11 else 1 if 2 <= last <= 4 and not 12 <= tail <= 14 else 2
    return f"{cardinal(value, 'ru', 'f.acc' if accusative and gender == 'f' else gender)} {nouns[index]}"


def _pt(hour: int, minute: int, form: str, natural: bool) -> str:
    tail = (" e meia" if minute == 30 and natural else f" e {cardinal(minute, 'pt')}") if minute else ""
    if hour == 0 or (natural and hour == 12 and minute in (0, 30)):
        words = ("meio-dia" if hour else "meia-noite") + tail
        return ("ao " if hour else "à ") + words if form == "at" else words
    if natural and minute == 45 and 0 < hour < 12:
        following = hour + 1
        before = "o meio-dia" if following == 12 else f"as {cardinal(following, 'pt', 'f')}"
        words = f"quinze para {before}"
        return f"às {words}" if form == "at" else words
    hours = cardinal(hour, "pt", "f")
    if not minute or hour > 12:
        hours += " hora" if hour == 1 else " horas"
    if form != "at":
        return hours + tail
    return f"{'à' if hour == 1 else 'às'} {hours}{tail}"


def _contract_pt(words: str, start: bool) -> str:
    if words.startswith("meio"):
        return f"{'do' if start else 'ao'} {words}"
    singular = words.startswith(("uma ", "meia"))
    article = ("da" if start else "à") if singular else ("das" if start else "às")
    return f"{article} {words}"


def _nl(hour: int, minute: int, form: str, natural: bool) -> str:
    at = _AT["nl"] if form == "at" else ""
    if natural and 0 < hour <= 12 and minute in (15, 30, 45):
        this, following = (cardinal((value - 1) % 12 + 1, "nl") for value in (hour, hour + 1))
        return at + {15: f"kwart over {this}", 30: f"half {following}", 45: f"kwart voor {following}"}[minute]
    if hour == 0 and minute == 0 and natural:
        return f"{at}middernacht"
    return f"{at}{cardinal(hour, 'nl')} uur{' ' + cardinal(minute, 'nl') if minute else ''}"


_SAY = {"en": _en, "es": _es, "fr": _fr, "it": _it, "de": _de, "ru": _ru, "pt": _pt, "nl": _nl}
