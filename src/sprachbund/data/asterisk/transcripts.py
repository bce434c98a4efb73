"""Cleans the transcripts of the recorded prompts by written rules, and counts what each rule did.

A rule is a small function of (language, name, text) that returns the mended text, or None to drop the prompt.
The order of ``RULES`` is the order in which they are applied. Convention of the result, as everywhere in this
project: words as spoken, numbers in words, apostrophes and hyphens inside words only, lexical case, single
spaces.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sprachbund.data.asterisk import wordlists

MAX_WRITTEN_NUMBER = 99
Rule = Callable[[str, str, str], str | None]


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What the documentation says is spoken in one recording, before and after cleaning."""

    name: str
    language: str
    raw_text: str
    text: str


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Key and text of every line of a transcript file (plain or gzip) but comments."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    pairs: list[tuple[str, str]] = []
    for line in data.decode("utf-8-sig").splitlines():
        key, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            pairs.append((key.strip(), text.strip()))
    return pairs


def drop_no_speech(language: str, name: str, text: str) -> str | None:
    """Tones, silence, screams: dropped by name, or when the text is nothing but one remark in brackets."""
    if name in wordlists.NO_SPEECH or name.startswith("silence/"):
        return None
    return None if re.fullmatch(r"\[[^]]*\]|\([^)]*\)|<[^>]*>", text) else text


def drop_empty(language: str, name: str, text: str) -> str | None:
    """No transcript at all."""
    return text or None


def drop_unusable(language: str, name: str, text: str) -> str | None:
    """Listed by hand: foreign text, no translation, or nobody can know the words."""
    return None if (language, name) in wordlists.UNUSABLE else text


def replace_wrong_text(language: str, name: str, text: str) -> str | None:
    """Listed by hand: the text of a neighbouring recording stands there."""
    return wordlists.WRONG_TEXTS.get((language, name), text)


def cut_names(language: str, name: str, text: str) -> str | None:
    """The prompt's own name at the start is removed; another prompt's ``name:`` inside ends the text."""
    text = re.sub(rf"^{re.escape(name)}:\s*", "", text)
    return re.split(r"\s*(?:vm|conf|confbridge)-[a-z-]+:", text)[0].strip()


def drop_doubtful(language: str, name: str, text: str) -> str | None:
    """Words in square brackets or alternatives with a slash may or may not be spoken; so may addresses."""
    if re.search(r"\[[^]]*\w{2}[^]]*\]|\w ?/ ?\w|www\.", text):
        return None
    return text


def remove_notes(language: str, name: str, text: str) -> str | None:
    """Remarks in brackets: ``(note: does not say "2")``, ``[@]``."""
    return re.sub(r"\s+", " ", re.sub(r"\([^)]*\)|\[[^]]*\]|<[^>]*>", " ", text)).strip() or None


def restore_letters(language: str, name: str, text: str) -> str | None:
    """Italian letters lost in a conversion (``pu?``, ``E'``) and Latin look-alikes inside Russian words."""
    if language == "it":
        for pattern, repair in wordlists.ITALIAN_LOST_LETTERS:
            text = re.sub(pattern, repair, text)
    if language == "ru":
        swap = str.maketrans("aceopxyACEOPX", "асеорхуАСЕОРХ")
        text = re.sub(r"\w*[а-яА-Я]\w*", lambda word: word[0].translate(swap), text)
    return text


def unify_apostrophes(language: str, name: str, text: str) -> str | None:
    """One apostrophe for all."""
    return re.sub(r"(?<=\w)[’`](?=\w)", "'", text)


def mend_spelling(language: str, name: str, text: str) -> str | None:
    """Typing mistakes, by a table per language."""
    for pattern, repair in wordlists.SPELLING[language]:
        text = re.sub(pattern, repair, text, flags=re.IGNORECASE)
    return text


def restore_accents(language: str, name: str, text: str) -> str | None:
    """Spanish accents, by a table of the words that occur."""
    if language != "es":
        return text
    for pattern, repair in wordlists.SPANISH_ACCENT_PHRASES:
        text = re.sub(pattern, repair, text, flags=re.IGNORECASE)
    table = wordlists.SPANISH_ACCENTS
    return re.sub(r"\w+", lambda word: table.get(word[0].lower(), word[0]), text)


def speak_signs(language: str, name: str, text: str) -> str | None:
    """The keys ``*`` and ``#`` in words."""
    for sign, words in wordlists.SIGNS.items():
        text = text.replace(sign, f" {words[language]} ")
    return text


def speak_numbers(language: str, name: str, text: str) -> str | None:
    """Numbers up to 99 in words; prompts with others are dropped: whose reading is not known."""
    from num2words import num2words

    numbers = re.findall(r"\d+", text)
    if any(int(number) > MAX_WRITTEN_NUMBER for number in numbers) or re.search(
        r"\d[.,]\d|[^\W\d]\d|\d[^\W\d]", text
    ):
        return None
    return re.sub(r"\d+", lambda number: f" {num2words(int(number[0]), lang=language)} ", text)


def strip_punctuation(language: str, name: str, text: str) -> str | None:
    """Only letters, and apostrophes and hyphens between letters, stay."""
    text = re.sub(r"(?<=[A-Z])\.(?=[A-Z]\.)", " ", text)
    text = re.sub(r"[^\w'\-]|_|(?<!\w)['\-]+|['\-]+(?!\w)", " ", text)
    return re.sub(r"\s+", " ", text).strip() or None


def lexical_case(language: str, name: str, text: str) -> str | None:
    """Small letters, except proper names and, in English, ``I``, weekdays and months."""
    table = wordlists.PROPER | (wordlists.ENGLISH_PROPER if language == "en" else {})
    words = text.split()
    if all(len(word) == 1 for word in words):  # spelled letters: "M I S D N"
        return text.lower()
    return " ".join(table.get(word.lower(), word.lower()) for word in words)


RULES: tuple[Rule, ...] = (
    drop_no_speech,
    drop_empty,
    drop_unusable,
    replace_wrong_text,
    cut_names,
    drop_doubtful,
    remove_notes,
    restore_letters,
    unify_apostrophes,
    mend_spelling,
    restore_accents,
    speak_signs,
    speak_numbers,
    strip_punctuation,
    lexical_case,
)


def clean(language: str, name: str, raw_text: str, counts: Counter[str] | None = None) -> str | None:
    """The cleaned text or None when a rule drops it; ``counts`` gains one for each rule that acted."""
    text = raw_text
    for rule in RULES:
        mended = rule(language, name, text)
        if mended != text and counts is not None:
            counts[rule.__name__] += 1
        if mended is None:
            return None
        text = mended
    return text


def read_transcripts(path: Path, language: str) -> tuple[dict[str, Transcript], Counter[str]]:
    """All usable transcripts of a language by name (small letters), and how often each rule acted."""
    counts: Counter[str] = Counter()
    found: dict[str, Transcript] = {}
    for key, raw_text in read_lines(path):
        counts["lines"] += 1
        name = wordlists.WRONG_KEYS.get((language, key, raw_text), key).lower()
        counts["move_wrong_key"] += name != key.lower()
        text = clean(language, name, raw_text, counts)
        if text is not None:
            found[name] = Transcript(name=name, language=language, raw_text=raw_text, text=text)
    counts["kept"] = len(found)
    return found, counts
