"""Bangor Miami: conversations of people who speak Spanish and English, every word marked with its language.

The source holds the transcripts (`beta/*.cha` of the repository) and a recording of the same name for
each, wav or mp3, in any folder. The corpus has no splits; with the list of the code-switching experiments
(`miami_mapping.csv`) its train and test are the parts, and the rest is `other`, without it all is `all`.

An utterance with Spanish words counts as Spanish speech, translated into English; `custom` says whether
it is mixed. Times are known for utterances. In a mixed one, spans share its time among runs of one
language by their letters; `spans_estimated` says so. A span has its words and their range in the
transcript, and its range in the translation where the English words around it stand there too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from sprachbund.corpora.public.items import CorpusOptions, Cut, Entry, Item, LeftOut, Part, Published
from sprachbund.corpora.public.preparation import Preparation
from sprachbund.corpora.public.tables import find_files, read_lines, read_table, tag, whole_number
from sprachbund.data.language_spans import ranges_between, ranges_of_pieces
from sprachbund.data.own import clean_text
from sprachbund.errors import SprachbundError

# CHAT transcripts (.cha) of TalkBank: utterances with times, a language for each word, and a translation
# below.
#
# A main line is `*MAR:`, tab, words, and `start_end` in milliseconds between two control characters; long
# lines go on in lines that begin with a tab. `[- spa]` says that an utterance is in another language than
# the first of `@Languages`, `palabra@s:spa` that a word is; `%eng:` is a translation.

UNTRANSCRIBED = "www"
_BULLET = re.compile(r"\x15(\d+)_(\d+)\x15")
_PRECODE = re.compile(r"\[-\s*([a-z]{3})\]")
_CODES = re.compile(r"\[[^\]]*\]")
_PAUSES = re.compile(r"\(\.+\)")
_UNINTELLIGIBLE = frozenset({"xxx", "yyy", "www"})
_UNDETERMINED = "&"
_ENDINGS = frozenset(".?!,")


@dataclass(frozen=True, kw_only=True)
class TranscriptWord:
    """A word and its language (three letters); None where the transcript leaves it open."""

    text: str
    language: str | None


@dataclass(frozen=True, kw_only=True)
class TranscriptLine:
    """A main line of a transcript.

    Attributes:
        where: file and line.
        number: number of the main line in the file, from 0.
        speaker: three letters.
        words: words said, in order, without punctuation.
        times_s: start and end in seconds; None where the line has none.
        language: language of the utterance, three letters.
        translation: the line below in the language asked for; empty without one.
        transcribed: whether its words are written down.
    """

    where: str
    number: int
    speaker: str
    words: Sequence[TranscriptWord]
    times_s: tuple[float, float] | None
    language: str
    translation: str
    transcribed: bool

    @property
    def text(self) -> str:
        """The words as a line of text."""
        return joined(self.words)


def joined(words: Iterable[TranscriptWord]) -> str:
    """Words as a line of text, punctuation behind the word before it."""
    return clean_text(re.sub(r" ([.?!,])", r"\1", " ".join(word.text for word in words)))


def read_chat(path: Path, translation: str) -> Iterator[TranscriptLine]:
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
    """Lines with those that go on brought together, and the line where they begin."""
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


def _utterance(where: str, line: str, number: int, first: str, below: str) -> TranscriptLine:
    speaker, colon, said = line[1:].partition(":")
    if not colon:
        raise SprachbundError(f"{where}: {line[:40]!r} has no speaker; copy the transcript again")
    bullet, precode = _BULLET.search(said), _PRECODE.search(said)
    language = precode[1] if precode else first
    tokens = _CODES.sub(" ", _PAUSES.sub(" ", _BULLET.sub(" ", said))).split()
    words = [word for token in tokens if (word := _word(token, language)) is not None]
    return TranscriptLine(
        where=where,
        number=number,
        speaker=speaker.strip(),
        words=words,
        times_s=(int(bullet[1]) / 1000, int(bullet[2]) / 1000) if bullet else None,
        language=language,
        translation=clean_tier(below),
        transcribed=UNTRANSCRIBED not in tokens and any(w.text not in _ENDINGS for w in words),
    )


def _word(token: str, language: str) -> TranscriptWord | None:
    """A word, or None for what is no word: linkers, laughter, beginnings of words, what nobody understood."""
    if token in _ENDINGS:
        return TranscriptWord(text=token, language=None)
    if token.lstrip("<")[:1] in ("+", "&", "") or token.strip("<>") in _UNINTELLIGIBLE:
        return None
    text, _, code = token.partition("@s:")
    text = re.sub(r"[<>()\"“”:^]", "", text).replace("_", " ").split("@")[0]
    if not text or not any(c.isalnum() for c in text):
        return None
    code = re.match(r"[a-z&+]*", code)[0]  # type: ignore[index]
    if not code:
        return TranscriptWord(text=text, language=language)
    return TranscriptWord(text=text, language=None if _UNDETERMINED in code else code.split("+")[0])


HOMEPAGE = "http://bangortalk.org.uk/speakers.php?c=miami"
REPOSITORY = "https://github.com/donnekgit/miami"
INDEX_LIST = "https://github.com/apple/ml-code-switched-speech-translation"
SPANISH, ENGLISH = "es", "en"
_SOUND = (".wav", ".mp3", ".flac")
_OTHER, _ALL = "other", "all"
_Index = Mapping[tuple[str, int], tuple[str, str]]


def read(source: Path, options: CorpusOptions) -> Sequence[Part]:
    """The parts train, test and other, or all."""
    if not options.takes_target(ENGLISH):
        return []
    transcripts = _transcripts(source)
    sound = _recordings(source)
    index = _index(source)
    names = sorted({split for split, _ in index.values()} | {_OTHER}) if index else [_ALL]
    parts = []
    for name in names:
        entries = partial(_entries, name, transcripts, sound, index, options)
        parts.append(Part(name=name, total=sum(1 for _ in entries()), entries=entries))
    return parts


def _transcripts(source: Path) -> Sequence[Path]:
    files = find_files(source, "*.cha")
    newest = [path for path in files if path.parent.name == "beta"] or files
    if not newest:
        raise SprachbundError(f"{source} holds no *.cha (transcripts); get them from {REPOSITORY}")
    return newest


def _recordings(source: Path) -> Mapping[str, Path]:
    by_stem = {p.stem: p for suffix in reversed(_SOUND) for p in source.rglob(f"*{suffix}")}
    if not by_stem:
        raise SprachbundError(f"{source} holds no recordings (maria1.mp3 ...); get them from {HOMEPAGE}")
    return by_stem


def _index(source: Path) -> _Index:
    """Split and kind ("cs", "mono") by file and main line; only what the experiments use."""
    index: dict[tuple[str, int], tuple[str, str]] = {}
    for path in find_files(source, "miami_mapping.csv"):
        for where, row in read_table(path, ["file", "file_line_num", "split", "cs_type"], delimiter=","):
            if row["split"] != "n/a":
                number = whole_number(row["file_line_num"], where)
                index[row["file"], number] = (row["split"], row["cs_type"])
    return index


def _entries(
    name: str,
    transcripts: Sequence[Path],
    sound: Mapping[str, Path],
    index: _Index,
    options: CorpusOptions,
) -> Iterator[Entry]:
    for path in transcripts:
        for said in read_chat(path, "eng"):
            split, kind = index.get((path.stem, said.number), (_OTHER if index else _ALL, ""))
            if split == name:
                entry = _entry(said, path.stem, sound, kind)
                if isinstance(entry, LeftOut) or options.takes(entry.language):
                    yield entry


def _entry(said: TranscriptLine, stem: str, sound: Mapping[str, Path], kind: str) -> Entry:
    if not said.transcribed:
        return LeftOut(where=said.where, reason="not transcribed (a third party, or no words)")
    if said.times_s is None:
        return LeftOut(where=said.where, reason="no times")
    start_s, end_s = said.times_s
    if end_s <= start_s:
        return LeftOut(where=said.where, reason="segment of no length")
    languages = {tag(word.language, said.where) for word in said.words if word.language}
    languages = languages or {tag(said.language, said.where)}
    language = next((code for code in sorted(languages) if code != ENGLISH), ENGLISH)
    translated = said.translation if language != ENGLISH else ""
    custom: dict[str, Any] = {
        "code_switched": len(languages) > 1,
        "languages": sorted(languages),
        "main_language": tag(said.language, said.where),
        "spans": spans(said, end_s - start_s, language, translated),
        "spans_estimated": len(languages) > 1,
    }
    return Item(
        where=said.where,
        utterance_id=f"{stem}-{said.number:05d}",
        sound=Cut(path=sound.get(stem, Path(f"{stem}.wav")), start_s=start_s, duration_s=end_s - start_s),
        language=language,
        text=said.text,
        speaker=f"{stem}-{said.speaker}",
        translations={ENGLISH: translated} if translated else {},
        custom={**custom, "experiment": kind} if kind else custom,
    )


def runs(words: Sequence[TranscriptWord], language: str) -> list[tuple[str, list[TranscriptWord]]]:
    """Runs of one language (three letters); words left open go with the word before."""
    marked: list[tuple[str, TranscriptWord]] = []
    current = next((word.language for word in words if word.language), language)
    for word in words:
        current = word.language or current
        marked.append((current, word))
    return [(code, [word for _, word in some]) for code, some in groupby(marked, key=lambda run: run[0])]


def spans(said: TranscriptLine, duration_s: float, language: str, translation: str) -> list[dict[str, Any]]:
    """Runs of one language: their words, their share of the time by letters, their word ranges in the transcript
    (in `language`) and, where English words on both sides allow it, in the English translation.

    Args:
        said: words with their languages.
        duration_s: seconds of the utterance.
        language: BCP-47 tag of the transcript.
        translation: English text.
    """
    pieces = runs(said.words, said.language)
    texts = [(tag(code, said.where), joined(words)) for code, words in pieces]
    letters = [sum(c.isalnum() for word in words for c in word.text) for _, words in pieces]
    ranges = {language: ranges_of_pieces([text for _, text in texts], said.text, language)}
    ranges |= {ENGLISH: ranges_between(texts, translation, ENGLISH)} if language != ENGLISH else {}
    result, begun_s = [], 0.0
    for number, ((code, text), count) in enumerate(zip(texts, letters, strict=True)):
        end_s = begun_s + duration_s * count / max(1, sum(letters))
        span = {"start_s": round(begun_s, 3), "end_s": round(end_s, 3), "language": code, "text": text}
        known = {
            tag: list(word_range) for tag, of in ranges.items() if (word_range := of[number] if of else None)
        }
        result.append({**span, "word_ranges": known} if known else span)
        begun_s = end_s
    return result


_SIZES = f"miami_mapping.csv of {INDEX_LIST}"

PREPARATION = Preparation(
    name="bangor-miami",
    summary="conversations in Spanish and English mixed, words marked with their language",
    licence="GPL-3.0-or-later",
    homepage=HOMEPAGE,
    read=read,
    published=[
        Published(part="train", utterances=6489, source=_SIZES),
        Published(part="test", utterances=9786, source=_SIZES),
    ],
)
