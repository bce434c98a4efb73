"""Loads the sentence templates and fixed phrases, and compiles them once for fast rendering.

A template file in `templates/` holds tables, one per kind: `slots` (name to type), optional `weight`, and for
each language a list of wordings, the canonical one first. Phrase files in `phrases/` hold one phrase per
row, one column per language, wordings separated by " / ".
"""

import csv
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sprachbund.data.phrasebook.meaning import LANGUAGES

_ROOT = resources.files("sprachbund.data.phrasebook")
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
    found: dict[str, Template] = {}
    for file in sorted((_ROOT / "templates").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            for kind, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
                found[kind] = Template(
                    kind=kind,
                    slots=entry["slots"],
                    weight=entry.get("weight", 1.0),
                    wordings={tag: tuple(_compile(text) for text in entry[tag]) for tag in LANGUAGES},
                )
    return found


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
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for file in sorted((_ROOT / "phrases").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".tsv"):
            with file.open(encoding="utf-8") as lines:
                for row in csv.DictReader(lines, delimiter="\t"):
                    found[row["key"]] = {tag: tuple(row[tag].split(" / ")) for tag in LANGUAGES}
    return found
