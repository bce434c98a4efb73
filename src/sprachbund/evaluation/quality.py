"""Scores of lines in every grouping: pair, target, source, corpus, kind, speaker, and means over pairs.

A corpus score of a pair is taken over all its lines at once. Over several pairs there is no such thing as one
corpus: sums over languages would weigh them by their length, so groups get the plain mean over their pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from sprachbund.evaluation.lines import Line, by_pair
from sprachbund.evaluation.metrics import Counts, Metric, metric
from sprachbund.text.normalize import normalize

QUALITY = ("chrF", "chrF++", "BLEU", "TER", "exact")
ERROR_RATES = ("WER", "CER")
TRANSLATION, TRANSCRIPTION = "translation", "transcription"
SWITCHING, CODE_SWITCHED, MONOLINGUAL = "switching", "code-switched", "monolingual"


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
    """One number.

    Attributes:
        metric: its name.
        value: in percent or points.
        signature: all that decides it; empty for means.
        group: of which lines: "pair", "mean" or one of `GROUPINGS`.
        member: which one: "en-de", "all", a corpus ...
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


@dataclass(frozen=True, kw_only=True)
class _PairCounts:
    """Counts of one pair's lines by every metric, so that no part of them is scored twice."""

    pair: tuple[str, str]
    lines: Sequence[Line]
    metrics: Sequence[tuple[Metric, Counts]]

    @property
    def task(self) -> str:
        return TRANSCRIPTION if self.pair[0] == self.pair[1] else TRANSLATION


def score_lines(
    lines: Sequence[Line],
    *,
    text: str = "raw",
    metrics: Sequence[str] | None = None,
    groupings: bool = True,
) -> list[Score]:
    """All scores of lines of speech: every pair, the means over pairs, and the means within each grouping.

    Args:
        lines: of one system; sounds without speech are left to the failures.
        text: "raw" scores texts as they are; "normalized" lower case without punctuation, on both sides.
        metrics: names of the metrics; None takes `QUALITY`, and `ERROR_RATES` for transcription.
        groupings: whether to score by target, source, corpus, kind and speaker as well, and, when any line is
            code-switched, by switching: those, the monolingual ones, and all.
    """
    pairs = [_count(pair, found, text, metrics) for pair, found in by_pair(_spoken(lines)).items()]
    scores = [score for counted in pairs for score in _pair_scores(counted, text)]
    scores += _means(pairs, "mean", "all", text)
    for grouping, key in GROUPINGS.items() if groupings else ():
        members = sorted({key(line) for counted in pairs for line in counted.lines} - {""})
        if grouping in _ONLY_IF_SEVERAL and len(members) < 2:
            continue
        if grouping == SWITCHING and CODE_SWITCHED not in members:
            continue
        for member in members:
            scores += _means(pairs, grouping, member, text, key)
        if grouping == SWITCHING:
            scores += _means(pairs, grouping, "all", text)
    return scores


def texts(lines: Sequence[Line], target: str, text: str = "raw") -> tuple[list[str], list[str]]:
    """Hypotheses and references, as they are or normalized."""
    if text == "raw":
        return [line.hypothesis for line in lines], [line.reference for line in lines]
    both = [(normalize(line.hypothesis, target), normalize(line.reference, target)) for line in lines]
    # A reference of nothing but punctuation would leave nothing to compare with; it stays as it is.
    kept = [
        (h, r) if r else (line.hypothesis, line.reference) for (h, r), line in zip(both, lines, strict=True)
    ]
    return [h for h, _ in kept], [r for _, r in kept]


def find_score(scores: Iterable[Score], name: str, member: str, **wanted: str) -> float | None:
    """The value of one score, None when it is not there; `wanted` are further fields."""
    for score in scores:
        same = all(getattr(score, key) == value for key, value in wanted.items())
        if score.metric == name and score.member == member and same:
            return score.value
    return None


def _spoken(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if line.source]


def _count(
    pair: tuple[str, str], lines: Sequence[Line], text: str, names: Sequence[str] | None
) -> _PairCounts:
    source, target = pair
    if names is None:
        names = (*QUALITY, *ERROR_RATES) if source == target else QUALITY
    hypotheses, references = texts(lines, target, text)
    chosen = [metric(name, target) for name in names]
    counts = [(scorer, scorer.statistics(hypotheses, references)) for scorer in chosen]
    return _PairCounts(pair=pair, lines=lines, metrics=counts)


def _pair_scores(counted: _PairCounts, text: str) -> list[Score]:
    return [
        Score(
            metric=scorer.name,
            value=float(scorer.score(counts.sum(0))),
            signature=scorer.signature,
            group="pair",
            member=pair_name(counted.pair),
            task=counted.task,
            num_lines=len(counted.lines),
            text=text,
        )
        for scorer, counts in counted.metrics
    ]


def _means(
    pairs: Sequence[_PairCounts],
    group: str,
    member: str,
    text: str,
    key: Callable[[Line], str] | None = None,
) -> list[Score]:
    """Plain means over pairs, of their lines for which `key` gives `member`."""
    values: dict[tuple[str, str], list[float]] = {}
    num_lines: dict[tuple[str, str], int] = {}
    for counted in pairs:
        rows = [i for i, line in enumerate(counted.lines) if key is None or key(line) == member]
        for scorer, counts in counted.metrics if rows else ():
            place = (counted.task, scorer.name)
            values.setdefault(place, []).append(float(scorer.score(counts[rows].sum(0))))
            num_lines[place] = num_lines.get(place, 0) + len(rows)
    return [
        Score(
            metric=name,
            value=mean(found),
            signature="",
            group=group,
            member=member,
            task=task,
            num_lines=num_lines[task, name],
            text=text,
        )
        for (task, name), found in values.items()
    ]
