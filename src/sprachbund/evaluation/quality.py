"""Scores of lines in every grouping: pair, target, source, corpus, kind, speaker, and means over pairs.

A corpus score of a pair is taken over all its lines at once. Over several pairs there is no such thing as one
corpus: sums over languages would weigh them by their length, so groups get the plain mean over their pairs.

Every metric here is a function of summed counts, so lines are added up as they come and none is held.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from sprachbund.evaluation.lines import Line, by_pair, is_transcription
from sprachbund.evaluation.metrics import metric
from sprachbund.text.normalize import normalize

QUALITY = ("chrF", "chrF++", "BLEU", "TER", "exact")
COMET = "COMET"
ERROR_RATES = ("WER", "CER")
TRANSLATION, TRANSCRIPTION = "translation", "transcription"
ALL = "all"
SWITCHING, CODE_SWITCHED, MONOLINGUAL = "switching", "code-switched", "monolingual"


def task_of(source: str, target: str) -> str:
    """The task of a pair: "translation" or "transcription".

    Args:
        source: BCP-47 tag of the speech.
        target: BCP-47 tag of the text.
    """
    return TRANSCRIPTION if is_transcription(source, target) else TRANSLATION


def switching(line: Line) -> str:
    """Member of the grouping "switching"; what no corpus calls code-switched is monolingual."""
    return CODE_SWITCHED if line.switched else MONOLINGUAL


GROUPINGS: dict[str, Callable[[Line], str]] = {
    "target": lambda line: line.target,
    "source": lambda line: line.source,
    "corpus": lambda line: line.corpus,
    "kind": lambda line: line.kind,
    "speaker": lambda line: line.speaker,
    SWITCHING: switching,
}
_ONLY_IF_SEVERAL = {"corpus", "kind", "speaker"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score, or another measured number.

    Attributes:
        metric: name of the metric.
        value: value in percent or points.
        signature: everything that the score depends on, as one line; empty for means.
        group: lines that it is a score of: "pair", "mean" or one of `GROUPINGS`.
        member: member of the group: "en-de", "all", a corpus ...
        task: "translation" or "transcription".
        num_lines: hypotheses that went into it.
        text: "raw" or "normalized".
    """

    metric: str
    value: float
    signature: str
    group: str
    member: str
    task: str
    num_lines: int
    text: str = "raw"


def pair_name(pair: tuple[str, str]) -> str:
    """A pair as it is printed and as files are named: "en-de"."""
    return "-".join(filter(None, pair))


class Tally:
    """Adds up the counts of lines as they come; its memory grows with pairs and groups, not with lines.

    Args:
        text: "raw" scores texts as they are; "normalized" lower case without punctuation, on both sides.
        metrics: names of the metrics; None takes `QUALITY`, and `ERROR_RATES` for transcription.
        groupings: whether to score by target, source, corpus, kind and speaker as well, and, when any line is
            code-switched, by switching: those, the monolingual ones, and all.
    """

    def __init__(
        self, *, text: str = "raw", metrics: Sequence[str] | None = None, groupings: bool = True
    ) -> None:
        self._text, self._metrics = text, metrics
        self._groupings = GROUPINGS if groupings else {}
        self._pairs: dict[tuple[str, str], _PairSums] = {}

    def add(self, lines: Iterable[Line]) -> None:
        """Add lines of one system; sounds without speech are left to the failures. Some hundred at a time are
        faster than one by one."""
        for pair, of_pair in by_pair(line for line in lines if line.source).items():
            if pair not in self._pairs:
                self._pairs[pair] = _PairSums(pair, self._metrics)
            self._pairs[pair].add(of_pair, self._text, self._groupings)

    def mean(self, name: str, task: str = TRANSLATION) -> float | None:
        """The mean over pairs of one metric so far; None without lines of the task."""
        values = [pair.score(name) for pair in self._pairs.values() if pair.task == task]
        return mean(values) if values else None

    def scores(self) -> list[Score]:
        """All scores: every pair, the means over pairs, and the means within each grouping."""
        pairs = [pair for _, pair in sorted(self._pairs.items())]
        scores = [score for pair in pairs for score in pair.scores(self._text)]
        scores += _means(pairs, "mean", ALL, ALL, self._text)
        for grouping in self._groupings:
            members = sorted({member for pair in pairs for member in pair.members(grouping)} - {""})
            if grouping in _ONLY_IF_SEVERAL and len(members) < 2:
                continue
            if grouping == SWITCHING and CODE_SWITCHED not in members:
                continue
            for member in members:
                scores += _means(pairs, grouping, grouping, member, self._text)
            if grouping == SWITCHING:
                scores += _means(pairs, grouping, ALL, ALL, self._text)
        return scores


class _PairSums:
    """Sums of one pair's counts by every metric, over all its lines and over every member of a grouping."""

    def __init__(self, pair: tuple[str, str], names: Sequence[str] | None) -> None:
        self.pair = pair
        self.task = task_of(*pair)
        default = (*QUALITY, *ERROR_RATES) if self.task == TRANSCRIPTION else QUALITY
        self.metrics = [metric(name, pair[1]) for name in (default if names is None else names)]
        self._sums: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        self.num_lines: Counter[tuple[str, str]] = Counter()

    def add(self, lines: Sequence[Line], text: str, groupings: Mapping[str, Callable[[Line], str]]) -> None:
        """Add lines of this pair.

        Args:
            lines: lines of this pair.
            text: "raw" or "normalized".
            groupings: name to the function that gives a line's member.
        """
        hypotheses, references = texts(lines, self.pair[1], text)
        counts = [scorer.statistics(hypotheses, references) for scorer in self.metrics]
        rows: dict[tuple[str, str], list[int]] = {(ALL, ALL): list(range(len(lines)))}
        for row, line in enumerate(lines):
            for grouping, key in groupings.items():
                rows.setdefault((grouping, key(line)), []).append(row)
        for group, of_group in rows.items():
            new = [of_metric[of_group].sum(0) for of_metric in counts]
            old = self._sums.get(group)
            self._sums[group] = [a + b for a, b in zip(old, new, strict=True)] if old else new
            self.num_lines[group] += len(of_group)

    def members(self, grouping: str) -> list[str]:
        """Members of a grouping that this pair has lines of."""
        return [member for group, member in self._sums if group == grouping]

    def values(self, group: tuple[str, str]) -> dict[str, float]:
        """Metric to score of a member's lines; empty without any."""
        sums = self._sums.get(group, [])
        return {m.name: float(m.score(total)) for m, total in zip(self.metrics, sums, strict=False)}

    def score(self, name: str) -> float:
        """One metric over all lines."""
        return self.values((ALL, ALL))[name]

    def scores(self, text: str) -> list[Score]:
        """Every metric over all lines."""
        values = self.values((ALL, ALL))
        return [
            Score(
                metric=scorer.name,
                value=values[scorer.name],
                signature=scorer.signature,
                group="pair",
                member=pair_name(self.pair),
                task=self.task,
                num_lines=self.num_lines[ALL, ALL],
                text=text,
            )
            for scorer in self.metrics
        ]


def texts(lines: Sequence[Line], target: str, text: str = "raw") -> tuple[list[str], list[str]]:
    """Hypotheses and references, as they are or normalized.

    Args:
        lines: N lines of one target language.
        target: BCP-47 tag, which decides the normalization.
        text: "raw" or "normalized".
    """
    if text == "raw":
        return [line.hypothesis for line in lines], [line.reference for line in lines]
    both = [(normalize(line.hypothesis, target), normalize(line.reference, target)) for line in lines]
    # A reference of nothing but punctuation would leave nothing to compare with; it stays as it is.
    kept = [
        (h, r) if r else (line.hypothesis, line.reference) for (h, r), line in zip(both, lines, strict=True)
    ]
    return [h for h, _ in kept], [r for _, r in kept]


def _means(pairs: Sequence[_PairSums], group: str, grouping: str, member: str, text: str) -> list[Score]:
    """Plain means over pairs of a member's lines, as numbers of `group`."""
    values: dict[tuple[str, str], list[float]] = {}
    num_lines: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        for name, value in pair.values((grouping, member)).items():
            values.setdefault((pair.task, name), []).append(value)
            num_lines[pair.task, name] += pair.num_lines[grouping, member]
    return [
        Score(
            metric=name,
            value=mean(of_pairs),
            signature="",
            group=group,
            member=member,
            task=task,
            num_lines=num_lines[task, name],
            text=text,
        )
        for (task, name), of_pairs in values.items()
    ]
