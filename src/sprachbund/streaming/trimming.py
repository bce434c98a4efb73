"""Keeps the speech under way short when nobody pauses: it is cut where all languages have been written.

What an attempt costs is bounded by `LiveOptions.max_open_s`, however long a speaker goes on.
"""

from collections.abc import Sequence
from dataclasses import replace

from sprachbund.decoding.words import align, split_words
from sprachbund.models.family import Family, Memory
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.policies import words_behind
from sprachbund.streaming.writing import Job, Row, write

_KEPT_S = 1.0
"""The newest audio is never cut off, for its words may not be complete."""


def trim(family: Family, memory: Memory, job: Job, rows: list[Row]) -> list[tuple[Row, LiveText | None]]:
    """Cut the stretch behind its committed text.

    A language that has less than half of the audio written gets its words up to there committed as they are: else one
    that can never agree with itself would keep all of it open.

    Args:
        family: the model.
        memory: of the stretch alone.
        job: the stretch, attempted and written.
        rows: of its targets, as they were before `unfinished_text` moved the prefixes.

    Returns:
        What had to be committed for it.
    """
    duration_s = job.stretch.duration_s
    tokens = [[*row.asked.prefix, *row.hypothesis.tokens] for row in rows]
    asked = [replace(row.asked, prefix=()) for row in rows]
    aligned = align(family, memory, [asked], [tokens], [duration_s])[0]
    out: list[tuple[Row, LiveText | None]] = []
    ends_s = []
    for row, whole, times in zip(rows, tokens, aligned, strict=True):
        line = job.stretch.lines[row.target]
        out.append((row, _commit_half(family, job, row, whole, times.starts_s)))
        written = len(line.prefix)
        ends_s.append(times.starts_s[written] if written < len(whole) else duration_s)
    cut_s = min(max(min(ends_s), duration_s / 2 - _KEPT_S), duration_s - _KEPT_S)
    for row, times in zip(rows, aligned, strict=True):
        line = job.stretch.lines[row.target]
        line.prefix = line.prefix[
            _num_before(family, line.prefix, times.starts_s, cut_s, row.asked.language) :
        ]
    job.session.cut(job.stretch, cut_s)
    return out


def _commit_half(
    family: Family, job: Job, row: Row, tokens: Sequence[int], starts_s: Sequence[float]
) -> LiveText | None:
    """Commit the words that begin in the first half, where text is shown for them."""
    line, half_s = job.stretch.lines[row.target], job.stretch.duration_s / 2
    if not line.tentative:
        return None
    rest = tokens[len(line.prefix) :]
    words, place, num_words = words_behind(family, line.prefix, rest, row.asked.language), len(line.prefix), 0
    for _, count in words:
        if starts_s[place] >= half_s:
            break
        place, num_words = place + count, num_words + 1
    return write(family, job, row, rest, words, num_words)


def _num_before(
    family: Family, tokens: Sequence[int], starts_s: Sequence[float], cut_s: float, language: str
) -> int:
    """How many of the tokens belong to words that begin before the cut."""
    place = 0
    for _, count in split_words(family, list(tokens), language):
        if starts_s[place] >= cut_s:
            break
        place += count
    return place
