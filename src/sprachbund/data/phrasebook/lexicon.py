"""Words with their forms, read from the tables in `lexicon/`: one row per word, one column per language.

Forms within a cell are separated by ";". A cell with a single form has that form everywhere. The first
column is the key that meanings carry, so keys must never change their sense.
"""

import csv
from functools import cache
from importlib import resources

from babel import Locale

from sprachbund.data.phrasebook.meaning import LANGUAGES
from sprachbund.text import numbers

_ROOT = resources.files("sprachbund.data.phrasebook") / "lexicon"
_PREPOSITIONS = {  # of names without article: in, to, from
    "en": ("in", "to", "from"),
    "es": ("en", "a", "de"),
    "fr": ("à", "à", "de"),
    "it": ("a", "a", "da"),
    "de": ("in", "nach", "aus"),
    "pt": ("em", "para", "de"),
    "nl": ("in", "naar", "uit"),
}
_PLACE_FORMS = ("", "in", "to", "from")
_VOWELS = "aeiouyéèêàâîïôAEIOUYÉÈÀ"

# Only languages whose Russian name ends in -ский or -цкий, since "по-..." exists for no others.
_OTHER_LANGUAGES = (
    "pl",
    "tr",
    "el",
    "ja",
    "zh",
    "ko",
    "ar",
    "sv",
    "da",
    "fi",
    "cs",
    "uk",
    "no",
    "hu",
    "ro",
    "bg",
)
LANGUAGE_KEYS = (*LANGUAGES, *_OTHER_LANGUAGES)


@cache
def table(name: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Load `lexicon/{name}.tsv`: key to language to forms."""
    with (_ROOT / f"{name}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["key"]: {tag: tuple(row[tag].split(";")) for tag in LANGUAGES} for row in rows}


@cache
def keys(name: str) -> tuple[str, ...]:
    """List the keys of a table in file order."""
    return LANGUAGE_KEYS if name == "language" else tuple(table(name))


@cache
def word(name: str, key: str, form: str, language: str) -> str:
    """Give a form of a word by its number in the cell, "" or "0" being the first."""
    forms = table(name)[key][language]
    return forms[int(form or 0) if len(forms) > 1 else 0]


@cache
def country(key: str, form: str, language: str) -> str:
    """Name a country: "" bare, or with the words for "in", "to", "from" it."""
    forms = table("country")[key][language]
    if len(forms) == 1:
        return _regular_place(forms[0], form, language)
    if len(forms) == 3:  # French and Italian say "in" and "to" alike
        forms = (forms[0], forms[1], *forms[1:])
    return forms[_PLACE_FORMS.index(form)]


@cache
def city(key: str, form: str, language: str) -> str:
    """Name a city: "" bare, or with the words for "in", "to", "from" it."""
    forms = table("city")[key][language]
    return _regular_place(forms[0], form, language) if len(forms) == 1 else forms[_PLACE_FORMS.index(form)]


def _regular_place(name: str, form: str, language: str) -> str:
    if not form:
        return name
    preposition = _PREPOSITIONS[language][_PLACE_FORMS.index(form) - 1]
    if language == "fr" and preposition == "de" and name[0] in _VOWELS:
        return f"d'{name}"
    return f"{preposition} {name}"


@cache
def spoken_language(key: str, form: str, language: str) -> str:
    """Name a language for "speak X" (""), with article for "learn X" ("the"), or for "say it in X" ("in")."""
    name = str(Locale(language).languages[key]).replace("\u00a0", " ")
    if language == "ru":
        return {"": "по-" + name[:-1], "the": name, "in": f"на {name[:-2]}ом"}[form]
    if not form:
        return name
    if form == "in":
        return {"en": "in", "es": "en", "fr": "en", "it": "in", "de": "auf", "pt": "em", "nl": "in het"}[
            language
        ] + f" {name}"
    return _with_article(name, language)


def _with_article(name: str, language: str) -> str:
    vowel = name[0] in _VOWELS and name[0] != "y"
    if language == "fr":
        return f"l'{name}" if vowel else f"le {name}"
    if language == "it":
        if vowel:
            return f"l'{name}"
        return f"lo {name}" if name[0] == "s" and name[1] not in _VOWELS else f"il {name}"
    return f"{'o ' if language == 'pt' else ''}{name}"


@cache
def counted(value: int, key: str, case: str, language: str) -> str:
    """Say a number with its noun in agreement; `case` is "", "acc" or "dat" (German, Russian accusative)."""
    forms = table("noun")[key][language]
    if language in ("en", "nl"):
        return f"{numbers.cardinal(value, language)} {forms[0 if abs(value) == 1 else -1]}"
    gender, *nouns = forms
    if language == "ru":
        return _counted_ru(value, gender, nouns, case)
    number = numbers.cardinal(value, language, _number_form(gender, case, language))
    if language == "de":
        return _counted_de(value, number, nouns, case)
    if language == "it":
        return _counted_it(value, number, nouns)
    noun = nouns[0] if value in (1, -1) or (language == "fr" and value in (0,)) else nouns[-1]
    return f"{number} {noun}"


def _number_form(gender: str, case: str, language: str) -> str:
    return f"{gender}.{case}" if language == "de" and case else gender


def _counted_de(value: int, number: str, nouns: list[str], case: str) -> str:
    if value in (1, -1):  # a cell may give the singular accusative and dative after an adjective
        return f"{number} {nouns[0]}"
    return f"{number} {nouns[2] if case == 'dat' and len(nouns) > 2 else nouns[1]}"


def _counted_it(value: int, number: str, nouns: list[str]) -> str:
    if value not in (1, -1):
        return f"{number} {nouns[-1]}"
    noun = nouns[0]
    if number == "una" and noun[0] in _VOWELS:
        return f"un'{noun}"
    if number == "un" and (noun[0] == "z" or (noun[0] == "s" and noun[1] not in _VOWELS) or noun[0] == "y"):
        return f"uno {noun}"
    return f"{number} {noun}"


def _counted_ru(value: int, gender: str, nouns: list[str], case: str) -> str:
    index = russian_plural(value)
    number = numbers.cardinal(value, "ru", f"{gender}.acc" if case == "acc" else gender)
    if index == 0 and case == "acc" and len(nouns) > 3:
        return f"{number} {nouns[3]}"
    if gender == "a" and case == "acc" and 2 <= value <= 4:
        return f"{number} {nouns[2]}"
    return f"{number} {nouns[min(index, len(nouns) - 1)]}"


def russian_plural(value: int) -> int:
    """Tell which form a Russian noun takes after a number: 0 for 1, 1 for 2-4, 2 for 5 and more."""
    tail, last = abs(value) % 100, abs(value) % 10
    if last == 1 and tail != 11:
        return 0
    return 1 if 2 <= last <= 4 and not 12 <= tail <= 14 else 2
