"""CHAT transcripts (.cha) of TalkBank: utterances with times, a language for each word, and a translation
below.

A main line is `*MAR:`, tab, words, and `start_end` in milliseconds between two control characters; long
lines go on in lines that begin with a tab. `[- spa]` says that an utterance is in another language than
the first of `@Languages`, `palabra@s:spa` that a word is; `%eng:` is a translation.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprachbund.data.corpora.tables import read_lines
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

UNTRANSCRIBED = "www"
_BULLET = re.compile(r"\x15(\d+)_(\d+)\x15")
_PRECODE = re.compile(r"\[-\s*([a-z]{3})\]")
_CODES = re.compile(r"\[[^\]]*\]")
_PAUSES = re.compile(r"\(\.+\)")
_UNINTELLIGIBLE = frozenset({"xxx", "yyy", "www"})
_UNDETERMINED = "&"
_ENDINGS = frozenset(".?!,")


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and its language (three letters); None where the transcript leaves it open."""

    text: str
    language: str | None


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A main line of a transcript.

    Attributes:
        where: file and line.
        number: which main line of the file it is, from 0.
        speaker: three letters.
        words: what is said, in order, punctuation apart.
        times_s: start and end in seconds; None where the line has none.
        language: of the utterance, three letters.
        translation: the line below in the language asked for; empty without one.
        transcribed: whether its words are written down.
    """

    where: str
    number: int
    speaker: str
    words: Sequence[Word]
    times_s: tuple[float, float] | None
    language: str
    translation: str
    transcribed: bool

    @property
    def text(self) -> str:
        """The words as a line of text."""
        return joined(self.words)


def joined(words: Iterable[Word]) -> str:
    """Words as a line of text, punctuation behind the word before it."""
    return clean_text(re.sub(r" ([.?!,])", r"\1", " ".join(word.text for word in words)))


def read_chat(path: Path, translation: str) -> Iterator[Utterance]:
    """Utterances of a transcript, with the translations of one tier ("eng").

    Raises:
        SprachbundError: no languages in the head, or a main line without a speaker.
    """
    first, number, main, below = "", -1, ("", ""), ""
    for where, line in _joined(path):
        if line.startswith("@Languages:"):
            first = line.partition(":")[2].split(",")[0].strip()
        elif line.startswith("*") or line.startswith("@End"):
            if number >= 0:
                yield _utterance(*main, number, first, below)
            main, below, number = (where, line), "", number + 1
        elif line.startswith(f"%{translation}:"):
            below = line.partition(":")[2]
        if line.startswith("*") and not first:
            raise SprachbundError(f"{where}: no @Languages before it; copy the transcript again")
    if main[1].startswith("*"):
        yield _utterance(*main, number, first, below)


def clean_tier(text: str) -> str:
    """A translation without codes."""
    return clean_text(_PAUSES.sub("", _CODES.sub("", text)).replace("xxx", "").replace("_", " "))


def _joined(path: Path) -> Iterator[tuple[str, str]]:
    """Lines with those that go on brought together, and the place where they begin."""
    begun, whole = 0, ""
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("\t") and whole:
            whole += " " + line.strip()
            continue
        if whole:
            yield f"{path}:{begun}", whole
        begun, whole = number, line
    if whole:
        yield f"{path}:{begun}", whole


def _utterance(where: str, line: str, number: int, first: str, below: str) -> Utterance:
    speaker, colon, said = line[1:].partition(":")
    if not colon:
        raise SprachbundError(f"{where}: {line[:40]!r} has no speaker; copy the transcript again")
    bullet, precode = _BULLET.search(said), _PRECODE.search(said)
    language = precode[1] if precode else first
    tokens = _CODES.sub(" ", _PAUSES.sub(" ", _BULLET.sub(" ", said))).split()
    words = [word for token in tokens if (word := _word(token, language)) is not None]
    return Utterance(
        where=where,
        number=number,
        speaker=speaker.strip(),
        words=words,
        times_s=(int(bullet[1]) / 1000, int(bullet[2]) / 1000) if bullet else None,
        language=language,
        translation=clean_tier(below),
        transcribed=UNTRANSCRIBED not in tokens and any(w.text not in _ENDINGS for w in words),
    )


def _word(token: str, language: str) -> Word | None:
    """A word, or None for what is no word: linkers, laughter, beginnings of words, what nobody understood."""
    if token in _ENDINGS:
        return Word(text=token, language=None)
    if token.lstrip("<")[:1] in ("+", "&", "") or token.strip("<>") in _UNINTELLIGIBLE:
        return None
    text, _, code = token.partition("@s:")
    text = re.sub(r"[<>()\"“”:^]", "", text).replace("_", " ").split("@")[0]
    if not text or not any(c.isalnum() for c in text):
        return None
    code = re.match(r"[a-z&+]*", code)[0]  # type: ignore[index]
    if not code:
        return Word(text=text, language=language)
    return Word(text=text, language=None if _UNDETERMINED in code else code.split("+")[0])
