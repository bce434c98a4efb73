"""Scores of code-switched speech: what happens to the embedded words, and around a switch.

A mean score hides it when a system simply leaves out the words of the other language. Here every embedded
span is followed into the output: translated, left as it was, or gone; and errors near a switch are set
against the others. Each score is of the spans and lines that have what it needs (the column "needs"), and
the rest is counted beside it as left out:

| score | of | needs |
|---|---|---|
| span recall | words that translate embedded spans | the span's word range in the reference |
| errors near a switch, errors elsewhere | words of references | the word ranges of all spans of the line |
| spans untranslated | spans in another language than the target's | its words, one of them not in the reference |
| spans dropped | spans | its word range, and its words unless the reference is the transcript |
| wrong language | outputs | nothing but the texts; as failures define it, translation only |
| router accuracy | spans of any language, embedded ones, seconds | their times, and routes (see `router`) |
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sprachbund.data.language_spans import split_words
from sprachbund.evaluation.failures import WRONG_LANGUAGE, Rate
from sprachbund.evaluation.lines import EmbeddedSpan, Line, same_language
from sprachbund.evaluation.quality import (
    ALL,
    CODE_SWITCHED,
    MONOLINGUAL,
    SWITCHING,
    TRANSCRIPTION,
    TRANSLATION,
    Score,
    pair_name,
    switching,
    task_of,
)
from sprachbund.evaluation.router import RouteCounts
from sprachbund.text.languages import writes_spaces

WINDOW = 2  # words on either side of a switch that count as near
NUM_EVALUATED, LEFT_OUT = ": evaluated", ": left out"
"""Names of a score's counts, behind the score's own name."""


@dataclass(frozen=True, kw_only=True)
class SwitchScores:
    """Rates over lines, and what could not be evaluated for want of words or word ranges.

    Attributes:
        recalled: words of the embedded spans' translations that the output has.
        near: reference words within two words of a switch that the output gets wrong.
        elsewhere: other reference words that the output gets wrong.
        untranslated: spans whose words stand in the output as they were said.
        dropped: spans of which the output has neither a translated nor a said word.
        left_out: name of a rate to spans (lines, for near and elsewhere) that it leaves out.
    """

    recalled: Rate
    near: Rate
    elsewhere: Rate
    untranslated: Rate
    dropped: Rate
    left_out: dict[str, int]


MEASURES = {
    "recalled": "span recall",
    "near": "errors near a switch",
    "elsewhere": "errors elsewhere",
    "untranslated": "spans untranslated",
    "dropped": "spans dropped",
}
"""Rate to the name of its number."""


class SwitchCounts:
    """Adds up what becomes of code-switched lines as they come; words are compared normalized."""

    def __init__(self) -> None:
        self._failed, self._evaluated, self._left_out = Counter[str](), Counter[str](), Counter[str]()
        self.num_lines = 0

    def add(self, line: Line) -> None:
        """Add one code-switched line."""
        self.num_lines += 1
        reference, hypothesis = (split_words(t, line.target) for t in (line.reference, line.hypothesis))
        for span in line.embedded:
            for name, rate in _follow(line, span, reference, hypothesis).items():
                self._count(name, rate, left_out=not rate.evaluated)
        unknown = _switches(line.embedded, len(reference)) is None
        for name, rate in _around(line.embedded, reference, hypothesis).items():
            self._count(name, rate, left_out=unknown)

    def scores(self) -> SwitchScores:
        """Scores of the lines so far."""
        rates = {name: Rate(failed=self._failed[name], evaluated=self._evaluated[name]) for name in MEASURES}
        return SwitchScores(**rates, left_out={name: self._left_out[name] for name in MEASURES})

    def _count(self, name: str, rate: Rate, *, left_out: bool) -> None:
        self._failed[name] += rate.failed
        self._evaluated[name] += rate.evaluated
        self._left_out[name] += left_out


def switch_scores(lines: Iterable[Line]) -> SwitchScores:
    """Scores over code-switched lines."""
    counts = SwitchCounts()
    for line in lines:
        counts.add(line)
    return counts.scores()


class SwitchTally:
    """All of these scores as numbers of the grouping "switching", added up as lines come. Each
    task is scored as a whole, as the member "code-switched", and by pair where there are several. A router is
    evaluated on monolingual speech and on all as well.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], SwitchCounts] = {}
        self._wrong: Counter[tuple[str, bool | None]] = Counter()
        self._routed: dict[tuple[str, str], RouteCounts] = {}

    def add(self, line: Line, wrong_language: bool | None) -> None:
        """Add a line of speech, and whether its output counts as in the wrong language."""
        task = task_of(line.source, line.target)
        if task == TRANSLATION:
            self._wrong[switching(line), wrong_language] += 1
        for member in (switching(line), ALL, *([pair_name(line.pair)] if line.switched else [])):
            self._routed.setdefault((task, member), RouteCounts()).add(line)
        if line.switched:
            for member in (CODE_SWITCHED, pair_name(line.pair)):
                self._counts.setdefault((task, member), SwitchCounts()).add(line)

    def scores(self) -> list[Score]:
        """Scores of each task and then of each pair; empty when no line was code-switched or routed."""
        scores: list[Score] = []
        pairs = sorted({member for _, member in self._counts} - {CODE_SWITCHED})
        for member in [CODE_SWITCHED, *(pairs if len(pairs) > 1 else [])]:
            for task in (TRANSLATION, TRANSCRIPTION):
                if counts := self._counts.get((task, member)):
                    scores += _rates(counts, member, task)
                    scores += self._confusion() if (task, member) == (TRANSLATION, CODE_SWITCHED) else []
                if counts or member == CODE_SWITCHED:
                    scores += self._routing(task, member)
        return scores

    def _routing(self, task: str, member: str) -> list[Score]:
        """The router's accuracy; of the member "code-switched" beside monolingual speech and all."""
        if not any(counts.any_routes for counts in self._routed.values()):
            return []
        scores = []
        for of in (CODE_SWITCHED, MONOLINGUAL, ALL) if member == CODE_SWITCHED else (member,):
            if counts := self._routed.get((task, of)):
                for name, accuracy in counts.scores():
                    numbers = (accuracy.percent, accuracy.evaluated, accuracy.left_out)
                    scores += _numbers(name, *numbers, of, task, counts.num_lines)
        return scores

    def _confusion(self) -> list[Score]:
        """The rate of outputs in another language than the one asked for."""
        scores = []
        for member in (CODE_SWITCHED, MONOLINGUAL):
            failed, passed, left_out = (self._wrong[member, outcome] for outcome in (True, False, None))
            if num_lines := failed + passed + left_out:
                rate = Rate(failed=failed, evaluated=failed + passed)
                numbers = (rate.percent, rate.evaluated, left_out)
                scores += _numbers(WRONG_LANGUAGE, *numbers, member, TRANSLATION, num_lines)
        return scores


def _rates(counts: SwitchCounts, member: str, task: str) -> list[Score]:
    switch_scores, scores = counts.scores(), []
    for field, name in MEASURES.items():
        rate: Rate = getattr(switch_scores, field)
        numbers = (rate.percent, rate.evaluated, switch_scores.left_out[field])
        scores += _numbers(name, *numbers, member, task, counts.num_lines)
    return scores


def switch_points(spans: Iterable[EmbeddedSpan], num_words: int) -> list[int]:
    """Boundaries between reference words where the language spoken changes; 0 and the end are none."""
    points = {position for span in spans for position in span.word_range or ()}
    return sorted(position for position in points if 0 < position < num_words)


def _numbers(
    name: str, percent: float, num_evaluated: float, left_out: int, member: str, task: str, num_lines: int
) -> list[Score]:
    """A rate and its counts; no rate where nothing could be evaluated, as 0 would praise it."""
    values = {name: percent} if num_evaluated else {}
    values |= {name + NUM_EVALUATED: float(num_evaluated), name + LEFT_OUT: float(left_out)}
    return [
        Score(
            metric=metric,
            value=value,
            signature="",
            group=SWITCHING,
            member=member,
            task=task,
            num_lines=num_lines,
            text="normalized",
        )
        for metric, value in values.items()
    ]


def _switches(spans: Sequence[EmbeddedSpan], num_words: int) -> list[int] | None:
    """The switch points, None when they are not all known."""
    return switch_points(spans, num_words) if spans and all(span.word_range for span in spans) else None


def _around(
    spans: Sequence[EmbeddedSpan], reference: Sequence[str], hypothesis: Sequence[str]
) -> dict[str, Rate]:
    """Wrong words near the switches and elsewhere."""
    switches = _switches(spans, len(reference))
    near = {position + offset for position in switches or () for offset in range(-WINDOW, WINDOW)}
    wrong, counted = Counter[str](), Counter[str]()
    for position, right in enumerate(_right(reference, hypothesis) if switches is not None else ()):
        # A mark that stands alone, as French has them, is no word.
        if any(c.isalnum() for c in reference[position]):
            where = "near" if position in near else "elsewhere"
            counted[where] += 1
            wrong[where] += not right
    return {where: Rate(failed=wrong[where], evaluated=counted[where]) for where in ("near", "elsewhere")}


def _follow(
    line: Line, span: EmbeddedSpan, reference: Sequence[str], hypothesis: Sequence[str]
) -> dict[str, Rate]:
    """The rates of one span in the output; rates of nothing where they are not known."""
    wanted = Counter(reference[slice(*span.word_range)] if span.word_range else ())
    num_recalled = (wanted & Counter(hypothesis)).total()
    # A word that both languages write alike is no sign that it was left untranslated.
    is_embedded = not same_language(span.language, line.target)
    said = [
        word for word in split_words(span.said if is_embedded else "", span.language) if word not in reference
    ]
    unspaced = not (writes_spaces(line.target) and writes_spaces(span.language))
    written = "".join(hypothesis) if unspaced else hypothesis
    left = sum(word in written for word in said)
    followed = span.word_range is not None and bool(span.said or line.is_transcript)
    return {
        "recalled": Rate(failed=num_recalled, evaluated=wanted.total()),
        "untranslated": Rate(failed=int(bool(said) and left == len(said)), evaluated=int(bool(said))),
        "dropped": Rate(failed=int(followed and not num_recalled and not left), evaluated=int(followed)),
    }


def _right(reference: Sequence[str], hypothesis: Sequence[str]) -> list[bool]:
    """For each reference word, whether the cheapest alignment has it in the output."""
    import jiwer

    right = [False] * len(reference)
    if reference and hypothesis:
        for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
            if chunk.type == "equal":
                right[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (
                    chunk.ref_end_idx - chunk.ref_start_idx
                )
    return right
