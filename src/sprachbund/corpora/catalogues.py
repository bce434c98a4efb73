"""Sentences from the message catalogues of free programs: the same text in many languages, by people.

A catalogue is a wheel, an archive or a folder with gettext files (`.../de/LC_MESSAGES/django.po`) or JSON
(`.../translations/de.json`). Its texts are written for the eye. Kept are those that can be spoken as they stand:
no placeholders, markup, digits, abbreviations or names of products. They come out as the other corpora have them,
words without punctuation, capitals only where a word has one anywhere.

The result is a table with a key and a column per language, `train.tsv` and `dev.tsv`. The key is a hash of the
English text and decides the part. What a test holds is left out by `without`. `sources.json` names the programs and
their licences, for the card of a model.
"""

import csv
import email
import hashlib
import io
import json
import random
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from babel import Locale

from sprachbund.corpora.wording import compose_sentence
from sprachbund.errors import SprachbundError
from sprachbund.util.files import write_json, write_text

Texts = Mapping[str, str]
"""Language to text."""

SOURCES_FILE = "sources.json"
MAX_WORDS = 16
LEAST_LANGUAGES = 4
_DEV_PERCENT = 3
_JSON = re.compile(r"(?P<before>(?:.*/)?)translations/(?P<tag>[a-z]{2})(?:-[0-9a-f]{32})?\.json")
# "fr" and "fr_FR" are the same language here, "fr_CA" is none of ours.
_GETTEXT = re.compile(
    r"(?P<before>(?:.*/)?)(?P<tag>[a-z]{2})(?:_(?i:(?P=tag)))?/LC_MESSAGES/(?P<name>.*)\.po"
)


@dataclass(frozen=True, kw_only=True)
class SentenceTable:
    """Sentences in several languages, by key.

    Attributes:
        path: path of the table.
        rows: key to texts, in the order of the file.
    """

    path: Path
    rows: Mapping[str, Texts]

    @classmethod
    def read(cls, path: Path) -> "SentenceTable":
        """Read a table of tabs: `key`, and a column for each language. Raises SprachbundError if it is none."""
        if not path.exists():
            raise SprachbundError(f"there is no table {path}; make one with `sprachbund data make sentences`")
        with path.open(encoding="utf-8", newline="") as file:
            rows = {
                row.pop("key"): {tag: text for tag, text in row.items() if text}
                for row in csv.DictReader(file, delimiter="\t")
                if row.get("key")
            }
        if not rows:
            raise SprachbundError(f"{path} has no row with a key; its first line is: key, then languages")
        return cls(path=path, rows=rows)


def make_sentences(
    sources: Sequence[Path],
    languages: Sequence[str],
    out: Path,
    *,
    composed: int = 0,
    seed: int = 0,
    without: Iterable[str] = (),
) -> dict[str, int]:
    """Write the spoken sentences of catalogues and composed ones as `out/train.tsv` and `out/dev.tsv`; their numbers.

    Args:
        sources: wheels, archives and folders.
        languages: columns of the table; English has to be among them.
        out: folder of the tables.
        composed: drawings of `sprachbund.corpora.wording`; what was drawn before does not count.
        seed: seed of these draws.
        without: English texts that no sentence may equal, contain or be contained in (four words and more).

    Raises:
        SprachbundError: no English among the languages, a source that cannot be read, or nothing that can be spoken.
    """
    if "en" not in languages:
        raise SprachbundError(
            f"the languages {', '.join(languages)} lack en, by which sentences are found; add it"
        )
    raw = [texts for source in sources for texts in read_catalogue(source, languages)]
    sentences = spoken_sentences(raw)
    rng = random.Random(seed)
    for _ in range(composed):
        said = compose_sentence(rng)
        sentences.setdefault(_key(said["en"]), {tag: said[tag] for tag in languages if tag in said})
    forbidden = Forbidden(without)
    parts: dict[str, dict[str, Texts]] = {"train": {}, "dev": {}}
    for key, texts in sentences.items():
        if not forbidden.holds(texts["en"]):
            parts[part_of(key)][key] = texts
    if not parts["train"]:
        raise SprachbundError(
            f"{', '.join(map(str, sources))} has no texts that can be spoken in {', '.join(languages)}; "
            "give wheels or folders with translations"
        )
    for part, rows in parts.items():
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
        writer.writerow(["key", *languages])
        writer.writerows([key, *(texts.get(tag, "") for tag in languages)] for key, texts in rows.items())
        write_text(out / f"{part}.tsv", buffer.getvalue())
    write_json(out / SOURCES_FILE, dict(map(licence_of, sources)))
    return {part: len(rows) for part, rows in parts.items()}


def _key(english: str) -> str:
    return hashlib.sha256(english.lower().encode()).hexdigest()[:16]


def part_of(key: str) -> Literal["train", "dev"]:
    """The part of a sentence, by its key."""
    return "dev" if int(key[:8], 16) % 100 < _DEV_PERCENT else "train"


class Forbidden:
    """English texts that must not be learned, as they are or within a longer sentence.

    Args:
        texts: forbidden texts, in any case; of those shorter than four words only the whole text counts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.whole = {" ".join(text.lower().split()) for text in texts}
        self.long = [f" {text} " for text in self.whole if len(text.split()) >= 4]

    def holds(self, text: str) -> bool:
        """Whether a text equals one of them, contains it, or is part of it."""
        text = text.lower()
        if text in self.whole:
            return True
        padded = f" {text} "
        return any(other in padded or (len(text.split()) >= 4 and padded in other) for other in self.long)


# Reading: every text of a catalogue with its translations, as written.


def read_catalogue(source: Path, languages: Sequence[str]) -> Iterator[Texts]:
    """The texts of a wheel, an archive or a folder in all of the languages that it has.

    Args:
        source: `.whl`, `.zip` or a folder.
        languages: BCP-47 tags; "en" has to be one.

    Raises:
        SprachbundError: the source or a catalogue in it cannot be read.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for name, content in _files(source):
        match = _JSON.fullmatch(name)
        gettext = _GETTEXT.fullmatch(name)
        if match and match["tag"] in languages:
            groups[match["before"], "json"][match["tag"]] = _read(_json_texts, content, source, name)
        elif gettext and gettext["tag"] in languages:
            texts = _read(_messages, content, source, name)
            group = groups[gettext["before"], gettext["name"]]
            group["en"] = group.get("en", {}) | {english: english for english in texts}
            group[gettext["tag"]] = texts
    for group in groups.values():
        for key, english in group.get("en", {}).items():
            if isinstance(english, str):
                yield {tag: texts[key] for tag, texts in group.items() if texts.get(key)}


def _read(read: Callable[[bytes], dict[str, str]], content: bytes, source: Path, name: str) -> dict[str, str]:
    """The texts of a catalogue. Raises SprachbundError, naming it, for what is none."""
    from babel import UnknownLocaleError
    from babel.messages.pofile import PoFileError

    try:
        return read(content)
    except (ValueError, LookupError, RecursionError, PoFileError, UnknownLocaleError) as error:
        raise SprachbundError(
            f"{source}: {name} cannot be read ({error}); mend it, or leave it out"
        ) from error


def _json_texts(content: bytes) -> dict[str, str]:
    return dict(_flat(json.loads(content)))


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix in (".json", ".po"):
                yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".json", ".po")):
                    yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise SprachbundError(
            f"{source} cannot be read ({error}); give a wheel, a zip file or a folder"
        ) from error


def licence_of(source: Path) -> tuple[str, str]:
    """Name with version, and licence, as a wheel states them; the file's name and nothing for other sources."""
    if source.suffix != ".whl":
        return source.name, ""
    with zipfile.ZipFile(source) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    licence = metadata["License-Expression"] or metadata["License"] or ""
    return f"{metadata['Name']} {metadata['Version']}", licence.strip().partition("\n")[0]


def _flat(value: object, before: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield before, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{before}/{key}")


def _messages(content: bytes) -> dict[str, str]:
    """English to translation; what is marked as doubtful, and what has plural forms, is left out."""
    from babel.messages.pofile import read_po

    with redirect_stdout(io.StringIO()):  # where it prints what it finds odd
        catalogue = read_po(io.BytesIO(content))
    return {
        message.id: message.string
        for message in catalogue
        if isinstance(message.id, str)
        and isinstance(message.string, str)
        and message.id
        and not message.fuzzy
    }


# Cleaning: what can be spoken, in the words that are spoken.

_APOSTROPHES = str.maketrans({"’": "'", "ʼ": "'", "\u00a0": " ", "\u202f": " ", "\u200b": "", "\u00ad": ""})
_NOT_SPOKEN = re.compile(
    r"[{}<>%$@#*\\|_=+/&\[\]`~^°€£©®™→←·•×0-9\n\t]|\w\.\w|[A-ZА-Я]{2}|[a-zа-я][A-ZА-Я]|\(s\)|\be\.g|\bi\.e|\betc\b|\bz\.\s?B"
)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_LETTERS = {
    "en": r"[a-z'-]+",
    "de": r"[a-zäöüß'-]+",
    "es": r"[a-záéíóúüñ'-]+",
    "fr": r"[a-zàâæçéèêëîïôœùûüÿ'-]+",
    "it": r"[a-zàèéìíîòóùú'-]+",
    "ru": r"[а-яё-]+",
}


def spoken_sentences(raw: Iterable[Texts]) -> dict[str, Texts]:
    """Of texts as written, those that can be spoken, as words; by a hash of the English ones.

    Args:
        raw: texts in several languages, with punctuation.
    """
    split = [{tag: words for tag, text in texts.items() if (words := _words(text, tag))} for texts in raw]
    case = {tag: _Case(tag, [words[tag] for words in split if tag in words]) for tag in _LETTERS}
    sentences: dict[str, Texts] = {}
    for by_language in split:
        if "en" not in by_language:
            continue
        texts = {tag: text for tag, own in by_language.items() if (text := case[tag].apply(own))}
        english = texts.get("en", "")
        if _has_name(texts):
            continue
        same = {tag for tag, text in texts.items() if tag != "en" and text.lower() == english.lower()}
        if english and len(english.split()) > 1:
            texts = {tag: text for tag, text in texts.items() if tag not in same}
        lengths = [len(text) for text in texts.values()]
        if not english or len(texts) < LEAST_LANGUAGES or max(lengths) > 20 + 2.2 * min(lengths):
            continue
        sentences.setdefault(_key(english), texts)
    return sentences


def _has_name(texts: Texts) -> bool:
    """Whether a long word is the same in all languages of Latin letters, as names of products are."""
    latin = [set(text.lower().split()) for tag, text in texts.items() if tag != "ru"]
    return len(latin) > 2 and any(len(word) > 3 for word in set.intersection(*latin))


def _words(text: str, language: str) -> list[list[str]] | None:
    """The words of a text by sentence; None where not all of it can be spoken."""
    text = text.translate(_APOSTROPHES).strip()
    if not text or language not in _LETTERS or _NOT_SPOKEN.search(text):
        return None
    sentences = [_WORD.findall(part) for part in re.split(r"(?<=[.!?:;…])\s+", text)]
    sentences = [words for words in sentences if words]
    words = [word for sentence in sentences for word in sentence]
    if not words or len(words) > MAX_WORDS:
        return None
    known = re.compile(_LETTERS[language])
    return sentences if all(known.fullmatch(word.lower()) for word in words) else None


class _Case:
    """Counts of words with a capital inside of a sentence, from the sentences of a language.

    Args:
        language: BCP-47 tag.
        texts: words by sentence.
    """

    def __init__(self, language: str, texts: Iterable[list[list[str]]]) -> None:
        self.language = language
        self.capital: Counter[str] = Counter()
        self.small: Counter[str] = Counter()
        for text in texts:
            for words in text:
                if _is_title(words):
                    continue
                for word in words[1:]:
                    (self.capital if word[0].isupper() else self.small)[word.lower()] += 1
        self.kept = _kept_capitals(language)

    def apply(self, text: list[list[str]]) -> str | None:
        """The words in one line; None if one looks like the name of something."""
        spoken: list[str] = []
        for words in text:
            title = self.language != "de" and _is_title(words)
            for number, word in enumerate(words):
                mended = self._mend(word, first=number == 0 or title)
                if mended is None:
                    return None
                spoken.append(mended)
        return " ".join(spoken)

    def _mend(self, word: str, *, first: bool) -> str | None:
        lower = word.lower()
        if lower in self.kept:
            return self.kept[lower]
        if word == lower:
            return word
        named = self.capital[lower] > 2 * self.small[lower]
        if self.language == "de":  # nouns are most of the capitals, so a name cannot be told from them
            return lower if first and not named and self.small[lower] else word
        if named and self.capital[lower] > 1:
            return None
        return lower if first or self.small[lower] else None


def _is_title(words: Sequence[str]) -> bool:
    """Whether Every Word Has A Capital, so that capitals say nothing."""
    long = [word for word in words if len(word) > 3]
    return len(words) > 1 and len(long) > 1 and all(word[0].isupper() for word in long)


def _kept_capitals(language: str) -> dict[str, str]:
    """Words with a capital that are no names of products: English weekdays, months, languages, "I"."""
    if language != "en":
        return {}
    locale = Locale("en")
    days, months = locale.days["format"]["wide"], locale.months["format"]["wide"]
    names = [*days.values(), *months.values(), *(locale.languages[tag] for tag in _LETTERS)]
    kept = {name.lower(): name for name in names if name not in ("March", "May")}
    return kept | {word.lower(): word for word in ("I", "I'm", "I'd", "I'll", "I've")}
