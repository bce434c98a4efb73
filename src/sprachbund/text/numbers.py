"""Numbers in spoken words, because num2words alone does not know gender, apocope, case or spoken years.

num2words does the arithmetic; this module mends its output: no commas, no digits, agreement with the counted
noun, ordinals inflected, years as people say them. `pt` is Brazilian, as in CLDR.
"""

from functools import lru_cache

from num2words import num2words

from sprachbund.errors import SprachbundError

_NUM2WORDS_TAG = {"pt": "pt_BR"}
_POINT = {
    "en": "point",
    "es": "coma",
    "fr": "virgule",
    "it": "virgola",
    "de": "Komma",
    "ru": "целых",
    "pt": "vírgula",
    "nl": "komma",
}
_MINUS = {
    "en": "minus",
    "es": "menos",
    "fr": "moins",
    "it": "meno",
    "de": "minus",
    "ru": "минус",
    "pt": "menos",
    "nl": "min",
}
_ES_ORDINAL_MENDED = {11: "undécimo", 12: "duodécimo"}
_RU_FEMININE = {"один": "одна", "два": "две"}
_RU_ANIMATE = {"два": "двух", "три": "трёх", "четыре": "четырёх"}
_RU_ENDINGS = {  # hard and soft endings of adjectives, by form: gender then case
    "m": ("", ""),
    "f": ("ая", "ья"),
    "n": ("ое", "ье"),
    "gen": ("ого", "ьего"),
    "facc": ("ую", "ью"),
    "prep": ("ом", "ьем"),
    "fobl": ("ой", "ьей"),
}
_GERMAN_ONE = {
    "m": "ein",
    "f": "eine",
    "n": "ein",
    "m.acc": "einen",
    "f.acc": "eine",
    "n.acc": "ein",
    "m.dat": "einem",
    "f.dat": "einer",
    "n.dat": "einem",
}
MAX_VALUE = 999_999


@lru_cache(maxsize=20_000)
def cardinal(value: int, language: str, form: str = "") -> str:
    """Spell a whole number.

    `form` is empty for counting ("eins", "uno"), or the gender of the noun that follows ("m", "f", "n"), for
    German with a case ("m.acc", "f.dat"; nominative without), for Russian also "a" (masculine animate),
    and with ".acc" for the accusative.

    Args:
        value: the number.
        language: BCP-47 tag.
        form: grammatical form, as above.

    Raises SprachbundError when the number is outside -999999..999999.
    """
    if abs(value) > MAX_VALUE:
        raise SprachbundError(f"number {value} is outside -{MAX_VALUE}..{MAX_VALUE}; use a smaller one")
    if value < 0:
        return f"{_MINUS[language]} {cardinal(-value, language, form)}"
    words = _plain_cardinal(value, language)
    return _agree(words, value, language, form) if form else words


def _plain_cardinal(value: int, language: str) -> str:
    words = str(num2words(value, lang=_NUM2WORDS_TAG.get(language, language))).replace(",", "")
    if language == "es":  # num2words writes "veintiuno mil"; before mil the short forms are said
        words = words.replace("veintiuno mil", "veintiún mil").replace(" uno mil", " un mil")
    return words


def _agree(words: str, value: int, language: str, form: str) -> str:
    gender = form[0]
    if language == "de":
        if value == 1:
            return _GERMAN_ONE[form]
        return words[:-1] if words.endswith("eins") else words  # "hundertein Euro" in every case
    if language == "es":
        return _agree_es(words, gender)
    if language == "ru":
        return _agree_ru(words, form)
    if language == "pt" and gender == "f":
        return _last_word(words.replace("entos", "entas"), {"um": "uma", "dois": "duas"})
    if language == "fr" and gender == "f":
        return words[:-2] + "une" if words == "un" or words.endswith((" un", "-un")) else words
    if language == "it" and value == 1:
        return "una" if gender == "f" else "un"
    return words


def _agree_es(words: str, gender: str) -> str:
    if gender == "f":
        head, mil, tail = words.rpartition("mil")
        tail = tail.replace("cientos", "cientas").replace("quinientos", "quinientas")
        words = head.replace("cientos", "cientas").replace("quinientos", "quinientas") + mil + tail
        return words[:-1] + "a" if words.endswith("uno") else words
    if words.endswith("veintiuno"):
        return words[:-9] + "veintiún"
    return words[:-1] if words.endswith("uno") else words


def _agree_ru(words: str, form: str) -> str:
    if form == "f.acc" and words.endswith("один"):
        return words[:-4] + "одну"
    if form == "a.acc":  # 22 people keep the nominative, 21 do not
        return words[:-4] + "одного" if words.endswith("один") else _RU_ANIMATE.get(words, words)
    if form[0] == "f":
        return _last_word(words, _RU_FEMININE)
    return words[:-4] + "одно" if form[0] == "n" and words.endswith("один") else words


def _last_word(words: str, table: dict[str, str]) -> str:
    head, space, last = words.rpartition(" ")
    return head + space + table.get(last, last)


@lru_cache(maxsize=4_000)
def ordinal(value: int, language: str, form: str = "m") -> str:
    """Spell an ordinal number.

    `form`: "m", "f", "n"; Spanish also "short" ("primer"); German also "n" weak -n ending ("ersten");
    Russian also "gen", "prep" (masculine), "facc", "fobl" (feminine). Languages without the form ignore it.

    Args:
        value: the number.
        language: BCP-47 tag.
        form: grammatical form, as above.
    """
    words = str(num2words(value, lang=_NUM2WORDS_TAG.get(language, language), to="ordinal")).replace(",", "")
    if language == "fr":
        words = words.replace("quatre-vingtsième", "quatre-vingtième")
        return "première" if words == "premier" and form == "f" else words
    if language == "de":
        return words + "n" if form == "n" else words
    if language == "es":
        return _ordinal_es(value, words, form)
    if language in ("it", "pt") and form == "f":
        return " ".join(word[:-1] + "a" for word in words.split())
    return _inflect_ru(words, form) if language == "ru" else words


def _ordinal_es(value: int, words: str, form: str) -> str:
    words = _ES_ORDINAL_MENDED.get(value, words.replace("décimo ", "decimo"))
    if form == "f":
        return " ".join(word[:-1] + "a" for word in words.split())
    return words[:-1] if form == "short" and words.endswith(("primero", "tercero")) else words


def _inflect_ru(words: str, form: str) -> str:
    hard, soft = _RU_ENDINGS[form]
    if not hard:
        return words
    return words[:-2] + (soft if words.endswith("третий") else hard)


def digits(text: str, language: str) -> str:
    """Spell a digit string digit by digit, as telephone numbers are said; `text` holds only 0-9."""
    return " ".join(cardinal(int(digit), language) for digit in text)


@lru_cache(maxsize=4_000)
def decimal(whole: int, fraction: str, language: str) -> str:
    """Spell a decimal; `fraction` is one or two digits without trailing zero ("5", "25", "05").

    Args:
        whole: the integer part.
        fraction: its digits.
        language: BCP-47 tag.
    """
    if language == "ru":
        return _decimal_ru(whole, fraction)
    tail = digits(fraction, language)
    if language in ("es", "fr", "it", "pt") and len(fraction) == 2 and fraction[0] != "0":
        tail = cardinal(int(fraction), language)
    return f"{cardinal(whole, language)} {_POINT[language]} {tail}"


def _decimal_ru(whole: int, fraction: str) -> str:
    part = int(fraction)
    unit = ("десятая", "десятых") if len(fraction) == 1 else ("сотая", "сотых")
    head = f"{cardinal(whole, 'ru', 'f')} {'целая' if _ends_in_one(whole) else 'целых'}"
    return f"{head} {cardinal(part, 'ru', 'f')} {unit[0] if _ends_in_one(part) else unit[1]}"


def _ends_in_one(value: int) -> bool:
    return value % 10 == 1 and value % 100 != 11


@lru_cache(maxsize=4_000)
def year(value: int, language: str, form: str = "") -> str:
    """Spell a calendar year 1100..2099; `form` "gen" gives the Russian genitive ordinal used in dates.

    Args:
        value: the year.
        language: BCP-47 tag.
        form: grammatical form; only Russian has one.
    """
    if language == "en":
        return _year_en(value)
    if language == "ru":
        return _year_ru(value, form or "m")
    if language in ("de", "nl") and 1100 <= value < 2000:
        high, low = divmod(value, 100)
        return _hundreds(high, low, language)
    return cardinal(value, language)


def _hundreds(high: int, low: int, language: str) -> str:
    hundred = "hundert" if language == "de" else "honderd"
    return cardinal(high, language) + hundred + (cardinal(low, language) if low else "")


def _year_en(value: int) -> str:
    high, low = divmod(value, 100)
    if 2000 <= value < 2010:
        return f"two thousand {cardinal(low, 'en')}" if low else "two thousand"
    tail = "hundred" if not low else cardinal(low, "en") if low > 9 else f"oh {cardinal(low, 'en')}"
    return f"{cardinal(high, 'en')} {tail}"


def _year_ru(value: int, form: str) -> str:
    words = ordinal(value, "ru", form) if value % 1000 else cardinal(value, "ru")
    if value == 2000:
        words = _inflect_ru("двухтысячный", form)
    return words.removeprefix("одна ")
