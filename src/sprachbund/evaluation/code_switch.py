"""Scores of code-switched speech: what happens to the embedded words, and around the places of a switch.

A mean score hides it when a system simply leaves out the words of the other language. Here every embedded
span is followed into the output: translated, left as it was, or gone; and errors near a switch are set
against the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sprachbund.evaluation.failures import Rate
from sprachbund.evaluation.lines import Line
from sprachbund.text.normalize import normalize

WINDOW = 2  # words on either side of a switch that count as near


@dataclass(frozen=True, kw_only=True)
class EmbeddedSpan:
    """Words of the embedded language in an utterance.

    Attributes:
        said: the words, in the embedded language.
        language: BCP-47 tag of it.
        start: first word of their translation in the reference.
        end: behind the last word of their translation in the reference.
    """

    said: str
    language: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class SwitchedLine:
    """A line with its embedded spans, in the order of the reference."""

    line: Line
    spans: Sequence[EmbeddedSpan]


@dataclass(frozen=True, kw_only=True)
class SwitchScores:
    """Rates over lines.

    Attributes:
        recalled: words of the embedded spans' translations that the output has.
        near: reference words within two words of a switch that the output gets wrong.
        elsewhere: other reference words that the output gets wrong.
        untranslated: spans whose words stand in the output as they were said.
        dropped: spans of which the output has neither a translated nor a said word.
    """

    recalled: Rate
    near: Rate
    elsewhere: Rate
    untranslated: Rate
    dropped: Rate


def switch_scores(lines: Iterable[SwitchedLine]) -> SwitchScores:
    """Scores over lines; words are compared normalized."""
    sums: Counter[str] = Counter()
    for switched in lines:
        sums.update(_count(switched))
    return SwitchScores(
        recalled=Rate(failed=sums["found"], judged=sums["span words"]),
        near=Rate(failed=sums["near wrong"], judged=sums["near"]),
        elsewhere=Rate(failed=sums["elsewhere wrong"], judged=sums["elsewhere"]),
        untranslated=Rate(failed=sums["untranslated"], judged=sums["spans"]),
        dropped=Rate(failed=sums["dropped"], judged=sums["spans"]),
    )


def switch_points(spans: Sequence[EmbeddedSpan], num_words: int) -> list[int]:
    """Places between reference words where the language spoken changes; 0 and the end are none."""
    points = {place for span in spans for place in (span.start, span.end)}
    return sorted(place for place in points if 0 < place < num_words)


def _count(switched: SwitchedLine) -> Counter[str]:
    target = switched.line.target
    reference = _words(switched.line.reference, target)
    hypothesis = _words(switched.line.hypothesis, target)
    sums: Counter[str] = Counter()
    near = {
        place + offset
        for place in switch_points(switched.spans, len(reference))
        for offset in range(-WINDOW, WINDOW)
    }
    for place, right in enumerate(_right(reference, hypothesis)):
        where = "near" if place in near else "elsewhere"
        sums[where] += 1
        sums[f"{where} wrong"] += not right
    for span in switched.spans:
        sums.update(_follow(span, reference, hypothesis))
    return sums


def _follow(span: EmbeddedSpan, reference: Sequence[str], hypothesis: Sequence[str]) -> Counter[str]:
    """What became of one span in the output."""
    wanted = Counter(reference[span.start : span.end])
    found = (wanted & Counter(hypothesis)).total()
    # A word that both languages write alike is no sign that it was left untranslated.
    said = [word for word in _words(span.said, span.language) if word not in reference]
    left = sum(word in hypothesis for word in said)
    return Counter(
        {
            "spans": 1,
            "span words": wanted.total(),
            "found": found,
            "untranslated": int(bool(said) and left == len(said)),
            "dropped": int(found == 0 and left == 0),
        }
    )


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


def _words(text: str, language: str) -> list[str]:
    """Normalized words, one for each word of the text, so that places in it stay."""
    return [normalize(word, language).replace(" ", "-") or word for word in text.split()]
