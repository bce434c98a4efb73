"""Everyday sentences composed of verbs, things, people, times and frames, in six languages.

Wishes, questions, offers, duties, refusals ("could you please forward the invoice tomorrow") are frames around a verb
with its object; statements about things have no verb of their own; countries, cities, languages, currencies and units
by their names in CLDR stand where a sentence speaks of a word. The tables beside this file hold the parts with
the forms that agreement needs; `classes` say which objects a verb takes and which times a frame. There are some
hundred thousand sentences.
"""

import csv
import random
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from babel import Locale
from babel.numbers import get_currency_name

from sprachbund.text import numbers

LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
_VOWELS = "aeiouyhéèêàâîïôœ"
_TIME_SHARE = 0.5
_STATEMENT_SHARE = 0.15
_NAME_SHARE = 0.1
_MAX_WORDS_OF_NAME = 4
_LATIN = re.compile("[A-Za-z]")
_AS_SPOKEN = str.maketrans({"\u00a0": " ", "’": "'", "_": " "})
_NAME = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*(?: [^\W\d_]+(?:['-][^\W\d_]+)*)*")
_TIMES_OF = {"open": ("open", "future", "any"), "past": ("any",), "plain": ()}
_DE_ARTICLES = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das")}


@cache
def _table(name: str) -> tuple[Mapping[str, str], ...]:
    path = resources.files("sprachbund.corpora.wording") / f"{name}.tsv"
    with path.open(encoding="utf-8") as file:
        return tuple(csv.DictReader(file, delimiter="\t"))


def compose_sentence(rng: random.Random) -> dict[str, str]:
    """A sentence in all of `LANGUAGES`.

    Args:
        rng: source of all random choices.
    """
    choice = rng.random()
    if choice < _NAME_SHARE:
        return _speaking_of(rng)
    return _statement(rng) if choice < _NAME_SHARE + _STATEMENT_SHARE else _wish(rng)


def _wish(rng: random.Random) -> dict[str, str]:
    frame, verb = rng.choice(_table("frames")), rng.choice(_table("verbs"))
    kinds = verb["class"].split()
    people = _table("people") if "person" in kinds else ()
    thing = rng.choice([*people, *(row for row in _table("objects") if row["class"] in kinds)])
    times = [row for row in _table("times") if row["when"] in _TIMES_OF[frame["when"]]]
    time = rng.choice(times) if times and rng.random() < _TIME_SHARE else dict.fromkeys(LANGUAGES, "")
    digit = rng.randint(0, 9)
    return {
        tag: frame[tag].format(
            **_verb_phrase(tag, verb[tag], _definite(thing, tag), time[tag]), digit=_digit(digit, tag)
        )
        for tag in LANGUAGES
    }


def _statement(rng: random.Random) -> dict[str, str]:
    frame, thing, state = (rng.choice(_table(name)) for name in ("nouns", "objects", "states"))
    sentences: dict[str, str] = {}
    for tag in LANGUAGES:
        forms = {"n": thing["en"], "def": _definite(thing, tag), "a": _agreeing(state[tag], thing[tag], tag)}
        if tag == "de":
            forms |= {"nom": _german(thing["de"], 0), "acc": _german(thing["de"], 1)}
        if tag == "ru":
            forms |= dict(zip(("nom", "acc", "gen"), _russian(thing["ru"]), strict=True))
        sentences[tag] = frame[tag].format(**forms)
    return sentences


def _speaking_of(rng: random.Random) -> dict[str, str]:
    frame, name = rng.choice(_table("words")), rng.choice(_names())
    return {tag: frame[tag].format(w=name[tag]) for tag in LANGUAGES}


@cache
def _names() -> tuple[Mapping[str, str], ...]:
    """Names that CLDR has in all of `LANGUAGES` and that are no longer than a few words."""
    by_language = {tag: _names_in(Locale(tag)) for tag in LANGUAGES}
    keys = [key for key in by_language["en"] if all(key in names for names in by_language.values())]
    names = [{tag: by_language[tag][key] for tag in LANGUAGES} for key in sorted(keys)]
    return tuple(
        name
        for name in names
        if all(_is_short(text) for text in name.values()) and not _LATIN.search(name["ru"])
    )


def _names_in(locale: Locale) -> dict[str, str]:
    names = {f"country/{key}": str(name) for key, name in locale.territories.items() if key.isalpha()}
    names |= {f"language/{key}": str(name) for key, name in locale.languages.items()}
    names |= {
        f"currency/{code}": get_currency_name(code, count=1, locale=locale)
        for code in map(str, locale.currencies)
    }
    units = locale.unit_display_names
    names |= {f"unit/{key}": by_length["long"] for key, by_length in units.items() if "long" in by_length}
    for key in map(str, Locale("ru").time_zones):
        # By CLDR's rule, the last part of the key is the name where there is none; Russian has them all.
        city = locale.time_zones.get(key, {}).get("city")
        names[f"city/{key}"] = city or key.rpartition("/")[2]
    return {key: name.translate(_AS_SPOKEN) for key, name in names.items()}


def _is_short(text: str) -> bool:
    """A few whole words; Russian shortens "island" to "о-в"."""
    short = bool(_NAME.fullmatch(text)) and len(text.split()) <= _MAX_WORDS_OF_NAME
    return short and "о-в" not in text


def _verb_phrase(language: str, verb: str, thing: str, time: str) -> dict[str, str]:
    """The phrase for each position in a frame: bare (`vp`), behind French "de", and three word orders of German."""
    if language == "de":
        bare, with_zu = verb.split("/")
        before = _joined(time, thing)
        return {"vp": f"{before} {bare}", "zu": f"{before} {with_zu}", "not": f"{before} nicht {bare}"}
    if language == "ru":
        return {"vp": _joined(time, verb, thing)}
    phrase = _joined(verb, thing, time)
    return {"vp": phrase, "de": f"d'{phrase}" if phrase[0] in _VOWELS else f"de {phrase}"}


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))


def _digit(value: int, language: str) -> str:
    words = numbers.cardinal(value, language)
    return words.capitalize() if language == "de" else words  # as a thing: "die Eins"


def _definite(thing: Mapping[str, str], language: str) -> str:
    """A thing with its article, as an object; people are written out in their table."""
    cell = thing[language]
    if "class" not in thing:
        return cell
    if language == "en":
        return f"the {cell}"
    if language == "de":
        return _german(cell, 1)
    if language == "ru":
        return _russian(cell)[1]
    gender, _, noun = cell.partition(" ")
    if language == "es":
        return f"{'el' if gender == 'm' else 'la'} {noun}"
    if noun[0] in _VOWELS:
        return f"l'{noun}"
    if language == "it" and gender == "m":
        hard = noun[0] == "z" or (noun[0] == "s" and noun[1] not in _VOWELS)
        return f"{'lo' if hard else 'il'} {noun}"
    article = "la" if gender == "f" else "le"
    return f"{article} {noun}"


def _german(cell: str, case: int) -> str:
    """Nominative (0) or accusative (1) with the article; a cell has both forms where they differ."""
    gender, _, noun = cell.partition(" ")
    return f"{_DE_ARTICLES[gender][case]} {noun.split('/')[-1 if case else 0]}"


def _russian(cell: str) -> tuple[str, str, str]:
    """Nominative, accusative, genitive, each of as many words as the others."""
    words = cell.split(" ")[1:]
    size = len(words) // 3
    nominative, accusative, genitive = (" ".join(words[n * size : (n + 1) * size]) for n in range(3))
    return nominative, accusative, genitive


def _agreeing(forms: str, cell: str, language: str) -> str:
    if language in ("en", "de"):
        return forms
    return forms.split(" ")[{"m": 0, "f": 1, "n": 2}[cell[0]]]
