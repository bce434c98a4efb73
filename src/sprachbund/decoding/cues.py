"""From segments to subtitle cues: short lines, two at most, on screen long enough to read, never two at
once."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sprachbund.decoding.result import Segment, Word

MAX_LINE_CHARACTERS = 42
"""Longest line of a cue, the usual limit of broadcasters."""

MAX_LINES = 2
"""Most lines of a cue."""

MIN_CUE_S = 1.0
"""A cue stays at least this long, unless the next one has to appear."""

LEAST_CUE_S = 0.1
"""A cue that had no room at all is given this much at the cost of the next one."""

_SENTENCE_END = re.compile(r"[.!?…。!?]$")
_CLAUSE_END = re.compile(r"[,;:、,;]$")


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
    chunks = _chunks(segment.text)
    if not chunks:
        return []
    bounds = _proportional_bounds(segment, chunks)
    by_words = _word_bounds(segment.words, chunks)
    if by_words and _shortest(by_words) >= min(MIN_CUE_S, _shortest(bounds)):
        bounds = by_words  # else alignment has failed somewhere: nobody could read those cues
    return [Cue(start_s=a, end_s=b, lines=c) for (a, b), c in zip(bounds, chunks, strict=True)]


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


def _chunks(text: str) -> list[tuple[str, ...]]:
    """Lines of each cue; sentence ends close a cue that is at least half full."""
    pieces = [part for word in text.split() for part in _broken(word)]
    chunks: list[list[str]] = []
    room = MAX_LINE_CHARACTERS * MAX_LINES
    current: list[str] = []
    for piece in pieces:
        if current and len(_wrapped([*current, piece])) > MAX_LINES:
            kept, rest = _at_clause(current)
            chunks.append(kept)
            current = rest
        current.append(piece)
        if _SENTENCE_END.search(piece) and len(" ".join(current)) >= room // 2:
            chunks.append(current)
            current = []
    if current:
        chunks.append(current)
    return [_balanced(chunk) for chunk in chunks]


def _at_clause(words: list[str]) -> tuple[list[str], list[str]]:
    """Split after the last clause end in the second half of the words, or not at all."""
    for index in range(len(words) - 1, len(words) // 2, -1):
        if _CLAUSE_END.search(words[index - 1]) or _SENTENCE_END.search(words[index - 1]):
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


def _balanced(words: list[str]) -> tuple[str, ...]:
    """The lines as even as they get without needing more of them."""
    lines = _wrapped(words)
    for width in range(max(map(len, words)), MAX_LINE_CHARACTERS):
        narrower = _wrapped(words, width)
        if len(narrower) == len(lines):
            return tuple(narrower)
    return tuple(lines)


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
