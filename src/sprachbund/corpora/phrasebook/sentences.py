"""Loads the sentence templates and fixed phrases, and compiles them once for fast rendering.

A template file in `templates/` holds tables, one per kind: `slots` (name to type), optional `weight`, and for
each language a list of wordings, the canonical one first. Phrase files in `phrases/` hold one phrase per
row, one column per language, wordings separated by " / ".
"""

import csv
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from babel import Locale

from sprachbund.text import numbers

# A language-neutral meaning: what is said, before any language says it; data sets are split by it.

Slot = int | str | tuple[int | str, ...]
Split = Literal["train", "dev", "test"]

LANGUAGES: tuple[str, ...] = ("en", "es", "fr", "it", "de", "ru", "pt", "nl")
PHRASE_KINDS: tuple[str, ...] = ("phrase",)
_HELD_OUT_PERCENT = 2


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One thing to say: a kind of sentence and the values that fill it."""

    kind: str
    slots: Mapping[str, Slot]

    @property
    def key(self) -> str:
        """A stable identifier, the same for equal meanings on every machine."""
        return json.dumps([self.kind, dict(self.slots)], sort_keys=True, ensure_ascii=False)

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> str:
        """Write as one line of JSON."""
        return json.dumps({"kind": self.kind, "slots": dict(self.slots)}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Meaning":
        """Read what `to_json` wrote; lists become tuples again."""
        value = json.loads(text)
        slots = {
            name: tuple(slot) if isinstance(slot, list) else slot for name, slot in value["slots"].items()
        }
        return cls(kind=value["kind"], slots=slots)


def split_of(meaning: Meaning) -> Split:
    """Say which part a meaning belongs to, by hash of its key: 2 % test, 2 % dev.

    Fixed phrases are always "train": holding out one of a few hundred wordings would measure unseen
    vocabulary, not the learning of sentences.
    """
    if meaning.kind in PHRASE_KINDS:
        return "train"
    bucket = int.from_bytes(hashlib.sha256(meaning.key.encode()).digest()[:4], "big") % 100
    if bucket < _HELD_OUT_PERCENT:
        return "test"
    return "dev" if bucket < 2 * _HELD_OUT_PERCENT else "train"


_ROOT = resources.files("sprachbund.corpora.phrasebook")
_PLACEHOLDER = re.compile(r"\{(\w+)(?::([\w.]+))?\}")

# A wording is a list of literal texts and (slot name, form) pairs.
Wording = tuple[str | tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Template:
    """One kind of sentence: its slots and its wordings in every language."""

    kind: str
    slots: dict[str, str]
    weight: float
    wordings: dict[str, tuple[Wording, ...]]


@cache
def templates() -> dict[str, Template]:
    """Load all templates, by kind, in a stable order."""
    by_name: dict[str, Template] = {}
    for file in sorted((_ROOT / "templates").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            for kind, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
                by_name[kind] = Template(
                    kind=kind,
                    slots=entry["slots"],
                    weight=entry.get("weight", 1.0),
                    wordings={tag: tuple(_compile(text) for text in entry[tag]) for tag in LANGUAGES},
                )
    return by_name


def _compile(text: str) -> Wording:
    parts: list[str | tuple[str, str]] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += [text[position : match.start()], (match[1], match[2] or "")]
        position = match.end()
    return tuple(part for part in [*parts, text[position:]] if part)


@cache
def phrases() -> dict[str, dict[str, tuple[str, ...]]]:
    """Load the fixed phrases: key to language to wordings."""
    by_name: dict[str, dict[str, tuple[str, ...]]] = {}
    for file in sorted((_ROOT / "phrases").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".tsv"):
            with file.open(encoding="utf-8") as lines:
                for row in csv.DictReader(lines, delimiter="\t"):
                    by_name[row["key"]] = {tag: tuple(row[tag].split(" / ")) for tag in LANGUAGES}
    return by_name


# Words with their forms, read from the tables in `lexicon/`: one row per word, one column per language.
#
# Forms within a cell are separated by ";". A cell with a single form has that form everywhere. The first
# column is the key that meanings carry, so keys must never change their sense.

_LEXICON_ROOT = resources.files("sprachbund.corpora.phrasebook") / "lexicon"
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
    with (_LEXICON_ROOT / f"{name}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["key"]: {tag: tuple(row[tag].split(";")) for tag in LANGUAGES} for row in rows}


@cache
def keys(name: str) -> tuple[str, ...]:
    """List the keys of a table in file order."""
    return LANGUAGE_KEYS if name == "language" else tuple(table(name))


@cache
def word(name: str, key: str, form: str, language: str) -> str:
    """Give a form of a word by its number in the cell, "" or "0" being the first.

    Args:
        name: name of the table.
        key: first column of the row.
        form: number of the form.
        language: BCP-47 tag.
    """
    forms = table(name)[key][language]
    return forms[int(form or 0) if len(forms) > 1 else 0]


@cache
def country(key: str, form: str, language: str) -> str:
    """Name a country: "" bare, or with the words for "in", "to", "from" it.

    Args:
        key: first column of the row.
        form: form named in the template.
        language: BCP-47 tag.
    """
    forms = table("country")[key][language]
    if len(forms) == 1:
        return _regular_place(forms[0], form, language)
    if len(forms) == 3:  # French and Italian say "in" and "to" alike
        forms = (forms[0], forms[1], *forms[1:])
    return forms[_PLACE_FORMS.index(form)]


@cache
def city(key: str, form: str, language: str) -> str:
    """Name a city: "" bare, or with the words for "in", "to", "from" it.

    Args:
        key: first column of the row.
        form: form named in the template.
        language: BCP-47 tag.
    """
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
    """Name a language for "speak X" (""), with article for "learn X" ("the"), or for "say it in X" ("in").

    Args:
        key: first column of the row.
        form: form named in the template.
        language: BCP-47 tag.
    """
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
    """Say a number with its noun in agreement; `case` is "", "acc" or "dat" (German, Russian accusative).

    Args:
        value: the number.
        key: first column of the noun.
        case: grammatical case.
        language: BCP-47 tag.
    """
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
