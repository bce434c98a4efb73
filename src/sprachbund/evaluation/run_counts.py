"""The counts of a run's lines, which stand for its texts when systems are compared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import Line, by_pair, in_chunks
from sprachbund.evaluation.metrics import Counts, Metric, metric


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Of N lines of one pair.

    Attributes:
        keys: (corpus, id) to row.
        references: a hash of each row's reference, N.
        counts: metric to counts (N, K).
    """

    keys: Mapping[tuple[str, str], int]
    references: Sequence[int]
    counts: Mapping[str, Counts]


RunCounts = Mapping[tuple[str, str], PairCounts]
"""(source, target) to its counts, in the order of the tags."""


def read_counts(
    lines: Iterable[Line], metrics: Sequence[str], progress: Callable[[int], None] = lambda done: None
) -> RunCounts:
    """Go through a run once. Raises SprachbundError when there is no line of speech in it."""
    pairs: dict[tuple[str, str], _Growing] = {}
    done = 0
    for some in in_chunks(lines):
        for pair, found in by_pair(some).items():
            if pair not in pairs:
                pairs[pair] = _Growing([metric(name, pair[1]) for name in metrics])
            pairs[pair].add(found)
        done += len(some)
        progress(done)
    if not pairs:
        raise SprachbundError("a run holds no hypotheses of speech to compare; evaluate it on a corpus")
    return {pair: growing.whole() for pair, growing in sorted(pairs.items())}


def aligned(first: RunCounts, other: RunCounts, name: str) -> RunCounts:
    """The counts of another run in the order of the first one's rows.

    Raises:
        SprachbundError: when they are not of the same texts, naming one that differs.
    """
    wanted = {(*key, target) for (_, target), pair in first.items() for key in pair.keys}
    there = {(*key, target) for (_, target), pair in other.items() for key in pair.keys}
    if missing := wanted ^ there:
        corpus, line_id, target = min(missing)
        which = "lacks" if (corpus, line_id, target) in wanted else "alone has"
        raise SprachbundError(
            f"{name} {which} {line_id!r} of {corpus!r} into {target!r}, and {len(missing) - 1} more lines "
            "differ; evaluate all systems on the same data and languages"
        )
    return {pair: _in_order(counts, other.get(pair), pair, name) for pair, counts in first.items()}


def _in_order(wanted: PairCounts, there: PairCounts | None, pair: tuple[str, str], name: str) -> PairCounts:
    if there is None or there.keys.keys() != wanted.keys.keys():
        raise SprachbundError(
            f"{name} has other languages spoken than the first system for texts into {pair[1]}; same data?"
        )
    rows = [there.keys[key] for key in wanted.keys]
    for key, row in zip(wanted.keys, rows, strict=True):
        if there.references[row] != wanted.references[wanted.keys[key]]:
            raise SprachbundError(
                f"{name}: the reference of {key[1]!r} differs from the first system's; same data?"
            )
    return PairCounts(
        keys=wanted.keys,
        references=wanted.references,
        counts={metric_name: counts[rows] for metric_name, counts in there.counts.items()},
    )


class _Growing:
    """Counts of a pair while its lines come."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._keys: dict[tuple[str, str], int] = {}
        self._references: list[int] = []
        self._counts: dict[str, list[Counts]] = {scorer.name: [] for scorer in metrics}

    def add(self, lines: Sequence[Line]) -> None:
        hypotheses, references = [x.hypothesis for x in lines], [x.reference for x in lines]
        for line in lines:
            self._keys[line.corpus, line.id] = len(self._keys)
        self._references += map(hash, references)
        for scorer in self._metrics:
            self._counts[scorer.name].append(scorer.statistics(hypotheses, references))

    def whole(self) -> PairCounts:
        counts = {name: np.concatenate(parts) for name, parts in self._counts.items()}
        return PairCounts(keys=self._keys, references=self._references, counts=counts)
