"""Writes results as txt, srt, vtt, json, jsonl and tsv; a file under its final name is always complete.

Segments are written to `NAME.partial` as they come. On success it is renamed to NAME; when the work is interrupted or
the disk is full, the finished segments stay in it, and the error names it. For srt and vtt, segments are cut into cues:
short lines, two at most, on screen long enough to read, never two cues at once.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from sprachbund.decoding.result import Segment, Translation, Word
from sprachbund.errors import SprachbundError
from sprachbund.text.segmentation import belongs_to_next
from sprachbund.util.files import PARTIAL, take_name, write_text

# Subtitle cues.

MAX_LINE_CHARACTERS = 42
"""Longest line of a cue, the usual limit of broadcasters."""

MAX_LINES = 2
"""Most lines of a cue."""

MIN_CUE_S = 1.0
"""A cue stays at least this long, unless the next one has to appear."""

LEAST_CUE_S = 0.1
"""A cue that had no room at all is given this much at the cost of the next one."""

_SENTENCE_END = re.compile(r"[.!?…。\uff01\uff1f]$")
_ARROW = re.compile("-{2,}>")
_CLAUSE_END = re.compile(r"[,;:、\uff0c\uff1b\uff1a]$")


@dataclass(frozen=True, kw_only=True)
class Cue:
    """One subtitle: when it is shown, and its lines."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


def cues_of(segment: Segment) -> list[Cue]:
    """Cut a segment into cues inside its time: at its words' times, or in proportion to characters.

    A segment without text has none. Cues follow each other without overlap.
    """
    chunks = _chunks(segment.text, segment.target_language)
    if not chunks:
        return []
    bounds = _proportional_bounds(segment, chunks)
    by_words = _word_bounds(segment.words, chunks)
    # Otherwise alignment has failed somewhere, or a translation says things in another order.
    if by_words and _in_order(by_words) and _shortest(by_words) >= min(MIN_CUE_S, _shortest(bounds)):
        bounds = by_words
    return [Cue(start_s=a, end_s=b, lines=c) for (a, b), c in zip(bounds, chunks, strict=True)]


def bilingual_cues(segment: Segment) -> list[Cue]:
    """Cues of a translation with what was said above it, one line each; as `cues_of` for a segment without that.

    Both texts are cut into as many parts, at words and in proportion, so that a cue shows about the same part of both;
    articles, prepositions and their like go to the part that they belong to.
    """
    said, written = (segment.source_text or "").split(), segment.text.split()
    if not said or not written:
        return cues_of(segment)
    both = [
        ([part for word in words for part in _broken(word)], language)
        for words, language in ((said, segment.source_language), (written, segment.target_language))
    ]
    count = max(len(_wrapped(words)) for words, _ in both)
    while any(len(part) > MAX_LINE_CHARACTERS for own in both for part in _parts(*own, count)):
        count += 1
    pairs = zip(*(_parts(*own, count) for own in both), strict=True)
    chunks = [tuple(line for line in pair if line) for pair in pairs]
    chunks = [chunk for chunk in chunks if chunk]
    bounds = _proportional_bounds(segment, chunks)
    return [Cue(start_s=a, end_s=b, lines=c) for (a, b), c in zip(bounds, chunks, strict=True)]


def _parts(words: list[str], language: str, count: int) -> list[str]:
    """Words in `count` parts of about as many characters; some are empty where there are fewer words."""
    ends = [*accumulate(len(word) + 1 for word in words)]
    parts: list[list[str]] = [[] for _ in range(count)]
    for word, end in zip(words, ends, strict=True):
        parts[(end - len(word) - 1) * count // ends[-1]].append(word)
    for part, following in pairwise(parts):
        while len(part) > 1 and following and belongs_to_next(part[-1], language):
            if len(" ".join([part[-1], *following])) > MAX_LINE_CHARACTERS:
                break
            following.insert(0, part.pop())
    return [" ".join(part) for part in parts]


def spaced_out(cues: Iterable[Cue]) -> Iterator[Cue]:
    """Lengthen short cues to `MIN_CUE_S` where the next one leaves room, and let none overlap the next.

    Reads one cue ahead, so that it can run while the recording is still being worked on.
    """
    held: Cue | None = None
    for cue in cues:
        if held is not None:
            start_s = max(cue.start_s, held.start_s + LEAST_CUE_S)
            yield _fitted(held, start_s)
            cue = replace(cue, start_s=start_s)
        held = cue
    if held is not None:
        yield _fitted(held, float("inf"))


def _fitted(cue: Cue, next_start_s: float) -> Cue:
    wanted_s = max(cue.end_s, cue.start_s + MIN_CUE_S)
    return replace(cue, end_s=min(wanted_s, next_start_s))


def _shortest(bounds: list[tuple[float, float]]) -> float:
    return min(end_s - start_s for start_s, end_s in bounds)


def _chunks(text: str, language: str) -> list[tuple[str, ...]]:
    """Lines of each cue; sentence ends close a cue that is at least half full.

    A full cue ends behind a clause, or else in front of the words that belong to the next one.
    """
    pieces = [part for word in text.split() for part in _broken(word)]
    chunks: list[list[str]] = []
    room = MAX_LINE_CHARACTERS * MAX_LINES
    current: list[str] = []
    for piece in pieces:
        if current and len(_wrapped([*current, piece])) > MAX_LINES:
            kept, rest = _at_clause(current)
            if not rest:
                kept, rest = _at_phrase(current, language)
            # Of words nearly as long as lines, what is left over may not fit with the next one.
            if len(_wrapped([*rest, piece])) > MAX_LINES:
                kept, rest = current, []
            chunks.append(kept)
            current = rest
        current.append(piece)
        if _SENTENCE_END.search(piece) and len(" ".join(current)) >= room // 2:
            chunks.append(current)
            current = []
    if current:
        chunks.append(current)
    return [_balanced(chunk, language) for chunk in chunks]


def _at_clause(words: list[str]) -> tuple[list[str], list[str]]:
    """Split after the last clause end in the second half of the words, or not at all."""
    for index in range(len(words) - 1, len(words) // 2, -1):
        if _CLAUSE_END.search(words[index - 1]) or _SENTENCE_END.search(words[index - 1]):
            return words[:index], words[index:]
    return words, []


def _at_phrase(words: list[str], language: str) -> tuple[list[str], list[str]]:
    """Split where neither the words before nor their first line end within a phrase, as long as half of them stay."""
    for index in range(len(words), len(words) // 2, -1):
        lines = _balanced(words[:index], language)
        if not any(belongs_to_next(line.split()[-1], language) for line in lines):
            return words[:index], words[index:]
    return words, []


def _broken(word: str) -> list[str]:
    """A word longer than a line (a script without spaces) in pieces that fit."""
    return [word[i : i + MAX_LINE_CHARACTERS] for i in range(0, len(word), MAX_LINE_CHARACTERS)]


def _wrapped(words: list[str], width: int = MAX_LINE_CHARACTERS) -> list[str]:
    lines = [""]
    for word in words:
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _balanced(words: list[str], language: str) -> tuple[str, ...]:
    """The words in one line, or in two as even as they get where the first ends with a phrase, if it can."""
    lines = _wrapped(words)
    if len(lines) != MAX_LINES:
        return tuple(lines)
    splits = [(" ".join(words[:n]), " ".join(words[n:]), words[n - 1]) for n in range(1, len(words))]
    fitting = [split for split in splits if max(map(len, split[:2])) <= MAX_LINE_CHARACTERS]
    first, second, _ = min(
        fitting, key=lambda s: (belongs_to_next(s[2], language), abs(len(s[0]) - len(s[1])))
    )
    return first, second


def _proportional_bounds(segment: Segment, chunks: list[tuple[str, ...]]) -> list[tuple[float, float]]:
    sizes = [sum(map(len, chunk)) for chunk in chunks]
    total, done = sum(sizes), 0
    length_s = max(0.0, segment.end_s - segment.start_s)
    bounds = []
    for size in sizes:
        start_s = segment.start_s + length_s * done / total
        done += size
        bounds.append((start_s, segment.start_s + length_s * done / total))
    return bounds


def _in_order(bounds: list[tuple[float, float]]) -> bool:
    return all(end_s <= start_s for (_, end_s), (start_s, _) in pairwise(bounds))


def _word_bounds(words: tuple[Word, ...], chunks: list[tuple[str, ...]]) -> list[tuple[float, float]] | None:
    """Times of the first and last word of every chunk; None when words and chunks do not match up."""
    spelt = ["".join(word.text.split()) for word in words]
    bounds, index = [], 0
    for chunk in chunks:
        missing, first = len("".join("".join(chunk).split())), index
        while missing > 0 and index < len(words):
            missing -= len(spelt[index])
            index += 1
        if missing != 0 or index == first:
            return None
        bounds.append((words[first].start_s, words[index - 1].end_s))
    return bounds if index == len(words) else None


# Files.


class _Layout(Protocol):
    """One format of results: its head, what each segment adds, its tail, or a finished file as a whole."""

    def head(self) -> str: ...

    def segment(self, segment: Segment) -> str: ...

    def tail(self) -> str: ...

    def whole(self, translation: Translation) -> str | None: ...


class _Lines:
    """Formats in which every segment is text of its own."""

    def __init__(self, line: Callable[[Segment], str], head: str = "", *, with_dropped: bool = False) -> None:
        self._line, self._head, self._with_dropped = line, head, with_dropped

    def head(self) -> str:
        return self._head

    def segment(self, segment: Segment) -> str:
        return self._line(segment) if self._with_dropped or segment.dropped is None else ""

    def tail(self) -> str:
        return ""

    def whole(self, translation: Translation) -> str | None:
        return None


class _Json(_Lines):
    """One object per recording; lines of segments until it is finished, since half an object can be read by
    nobody."""

    def __init__(self) -> None:
        super().__init__(_json_line, with_dropped=True)

    def whole(self, translation: Translation) -> str | None:
        return translation.to_json(indent=2) + "\n"


class _Subtitles:
    """Numbered cues. The last is held back until its end is known, which the next one decides."""

    def __init__(self, head: str, point: str, *, both: bool = False) -> None:
        self._head, self._point = head, point
        self._cues_of = bilingual_cues if both else cues_of
        self._held: list[Cue] = []
        self._number = 0

    def head(self) -> str:
        return self._head

    def segment(self, segment: Segment) -> str:
        if segment.dropped is not None:
            return ""
        new = self._cues_of(segment)
        if segment.speaker is not None and new:  # of the first cue; the others go on as it began
            first, *others = new[0].lines
            new[0] = replace(new[0], lines=(f"{segment.speaker}: {first}", *others))
        cues = [*spaced_out([*self._held, *new])]
        self._held = cues[-1:]
        return "".join(self._cue(cue) for cue in cues[:-1])

    def tail(self) -> str:
        held, self._held = self._held, []
        return "".join(self._cue(cue) for cue in held)

    def whole(self, translation: Translation) -> str | None:
        return None

    def _cue(self, cue: Cue) -> str:
        self._number += 1
        start, end = (_clock(second, self._point) for second in (cue.start_s, cue.end_s))
        lines = "\n".join(self._escaped(line) for line in cue.lines)
        return f"{self._number}\n{start} --> {end}\n{lines}\n\n"

    def _escaped(self, line: str) -> str:
        if self._point == ",":
            return _ARROW.sub("->", line)  # SubRip has no way to escape its arrow
        return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _json_line(segment: Segment) -> str:
    return json.dumps(segment.to_dict(), ensure_ascii=False) + "\n"


def _tsv_line(segment: Segment) -> str:
    text = " ".join(segment.text.split())
    times = f"{segment.start_s:.3f}\t{segment.end_s:.3f}"
    return f"{times}\t{segment.source_language}\t{segment.target_language}\t{text}\n"


def _txt_line(segment: Segment) -> str:
    return segment.labelled_text + "\n"


def _clock(second: float, point: str) -> str:
    milliseconds = round(second * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


_LAYOUTS: dict[str, Callable[[], _Layout]] = {
    "txt": lambda: _Lines(_txt_line),
    "srt": lambda: _Subtitles("", ","),
    "vtt": lambda: _Subtitles("WEBVTT\n\n", "."),
    "json": _Json,
    "jsonl": lambda: _Lines(_json_line, with_dropped=True),
    "tsv": lambda: _Lines(_tsv_line, "start_s\tend_s\tsource_language\ttarget_language\ttext\n"),
}

_BILINGUAL: dict[str, Callable[[], _Layout]] = {
    "srt": lambda: _Subtitles("", ",", both=True),
    "vtt": lambda: _Subtitles("WEBVTT\n\n", ".", both=True),
}

FORMATS = tuple(_LAYOUTS)
"""Names of the formats; also the endings of their files."""
WITH_WORDS = ("srt", "vtt", "json", "jsonl")
"""Formats that times of words are seen in; cues begin and end by them."""
WITH_ALTERNATIVES = ("json", "jsonl")
"""Formats that have the next best texts."""


def check_format(name: str, *, both: bool = False) -> str:
    """`name` itself, if it is a format.

    Args:
        name: as it was given.
        both: whether it is to carry both languages.

    Raises:
        SprachbundError: it is none, or has no place for both; with the list.
    """
    if both and name not in _BILINGUAL:
        raise SprachbundError(
            f"format {name!r} does not show both languages; choose from {', '.join(_BILINGUAL)}"
        )
    if name not in _LAYOUTS:
        raise SprachbundError(f"format {name!r} is not known; choose from {', '.join(FORMATS)}")
    return name


def _layout(name: str, *, both: bool) -> _Layout:
    return (_BILINGUAL if both else _LAYOUTS)[check_format(name, both=both)]()


def render(translation: Translation, format_name: str, *, both: bool = False) -> str:
    """A finished translation as text of a format.

    Args:
        translation: translation to be written.
        format_name: one of `FORMATS`.
        both: subtitles show what was said above the translation, where segments know it.
    """
    layout = _layout(format_name, both=both)
    whole = layout.whole(translation)
    if whole is not None:
        return whole
    segments = sorted([*translation.segments, *translation.dropped], key=lambda s: (s.start_s, s.end_s))
    return layout.head() + "".join(layout.segment(s) for s in segments) + layout.tail()


class SegmentWriter:
    """Writes one file of one format; use it in a `with` statement and call `finish` at the end.

    Leaving the `with` statement without `finish`, by an error or Ctrl-C, keeps the finished segments in the
    partial file and adds its name as a note to the exception.

    Args:
        path: the file to appear when all is done; an existing one is replaced only then.
        format_name: one of `FORMATS`.
        both: see `render`.

    Raises:
        SprachbundError: unknown format; a folder that is missing or may not be written; a full disk.
    """

    def __init__(self, path: str | os.PathLike[str], format_name: str, *, both: bool = False) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self._layout = _layout(format_name, both=both)
        self._size = 0
        if self.path.is_dir():
            raise SprachbundError(f"{self.path} is a directory; name a file to write")
        try:
            self._file: IO[bytes] = open(self.partial, "wb", buffering=0)  # noqa: SIM115 - closed by finish or keep
        except OSError as error:
            raise SprachbundError(
                f"{self.partial} cannot be written ({error.strerror}); choose another folder"
            ) from error
        self._put(self._layout.head())
        self._head_size = self._size

    def write(self, segment: Segment) -> None:
        """Add a segment; it is on disk when this returns (subtitles hold back one cue).

        Dropped segments are left out, except by json and jsonl, which write them with their reason.
        """
        self._put(self._layout.segment(segment))

    def finish(self, translation: Translation) -> Path:
        """Complete the file and give it its name.

        Args:
            translation: the whole, of which json writes one object; its segments are those written.
        """
        whole = self._layout.whole(translation)
        try:
            if whole is None:
                self._put(self._layout.tail())
                self._file.close()
                take_name(self.partial, self.path)
            else:
                write_text(self.path, whole)  # a file of its own, so that a full disk loses neither
                self._file.close()
                self.partial.unlink()
        except OSError as error:
            raise self._failed(error) from error
        return self.path

    def keep(self) -> Path | None:
        """Stop here: close the partial file and give its name; None, and no file, when it holds no segment."""
        if not self._file.closed:
            with suppress(SprachbundError):  # a full disk: what stands in the file is whole all the same
                self._put(self._layout.tail())
            self._file.close()
        if self._size > self._head_size:
            return self.partial
        self.partial.unlink(missing_ok=True)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file.closed and not self.partial.exists():
            return
        kept = self.keep()
        if error is not None and kept is not None:
            error.add_note(f"finished segments are kept in {kept}")

    def _put(self, text: str) -> None:
        """Write all of `text` or none of it."""
        data = text.encode()
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
            self._size += len(data)
        except OSError as error:
            self._file.seek(self._size)
            self._file.truncate()
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SprachbundError:
        return SprachbundError(f"{self.path} could not be written ({error.strerror}); free some space")
