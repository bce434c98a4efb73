"""From lines to a result manifest: every score and failure rate, behind the guard and without it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from sprachbund.evaluation.code_switch import SwitchTally
from sprachbund.evaluation.failures import WRONG_LANGUAGE, FailureClassifier, RateCounts
from sprachbund.evaluation.lines import CHUNK, Line, by_pair
from sprachbund.evaluation.manifest import DataUsed, FailureRate, ModelUsed, Number, ResultManifest
from sprachbund.evaluation.metrics import Comet
from sprachbund.evaluation.options import EvaluationOptions, configuration
from sprachbund.evaluation.quality import (
    ALL,
    CODE_SWITCHED,
    COMET,
    SWITCHING,
    TRANSLATION,
    Score,
    Tally,
    pair_name,
    switching,
    texts,
)
from sprachbund.evaluation.speed import DecodingCost


class Scoring:
    """Sums of all scores, added up as lines come: behind the guard, raw and normalized; before it, raw; failures before
    and behind. It holds one chunk of lines at a time, with COMET all translations.

    Args:
        targets: all target languages to come.
        options: options of the evaluation.
        offline: never use the network, even for a COMET model that is not on disk.

    Attributes:
        so_far: the mean chrF of translations scored so far, in words; empty without any.
    """

    def __init__(self, targets: Iterable[str], options: EvaluationOptions, *, offline: bool = False) -> None:
        self._options, self._guarded = options, options.decoding.guard.enabled
        self._classifier = FailureClassifier(targets)
        self._waiting: list[Line] = []
        self.so_far = ""
        self._raw, self._normalized = Tally(), Tally(text="normalized", groupings=False)
        self._unguarded = Tally(groupings=False)
        self._behind, self._before = RateCounts(), RateCounts()
        self._switching = {guard: SwitchTally() for guard in (True, False)}
        self._comet = CometTally(options.comet, offline=offline) if options.comet else None

    def add(self, line: Line) -> None:
        """Add a line, of speech or not."""
        self._waiting.append(line)
        if len(self._waiting) == CHUNK:
            self._score_waiting()

    def manifest(
        self, model: ModelUsed, data: list[DataUsed], speed: DecodingCost | None = None
    ) -> ResultManifest:
        """All numbers, with what they were measured on and with.

        Args:
            model: as `model_used` returns it.
            data: corpora, as `data_used` returns them.
            speed: speed of decoding; None if not measured.
        """
        self._score_waiting()
        guarded = self._guarded
        numbers = [_number(s, guarded) for s in (*self._raw.scores(), *self._normalized.scores())]
        numbers += [_number(s, False) for s in self._unguarded.scores()]
        numbers += [_number(s, guarded) for s in self._switching[guarded].scores()]
        if guarded:
            numbers += [_number(s, False) for s in self._switching[False].scores()]
        if self._comet:
            numbers += [_number(s, guarded) for s in self._comet.scores()]
        return ResultManifest(
            identifier=self._classifier.identifier,
            numbers=numbers,
            failures=[*_failure_rates(self._before, guard=False), *_failure_rates(self._behind, guard=True)],
            measured=speed.to_dict() if speed else {},
            data=data,
            model=model,
            configuration=configuration(self._options),
            seed=self._options.seed,
        )

    def _score_waiting(self) -> None:
        lines, self._waiting = self._waiting, []
        # Without the guard, too, a text without a letter is not shown.
        behind = [line.behind_guard() for line in lines]
        for line, seen in zip(lines, behind, strict=True):
            before = self._classifier.classify(line)
            self._count(line, before, self._before, guard=False)
            if self._guarded:
                same = seen.hypothesis == line.hypothesis
                self._count(
                    seen, before if same else self._classifier.classify(seen), self._behind, guard=True
                )
        self._raw.add(behind)
        self._normalized.add(behind)
        if self._guarded:
            self._unguarded.add(lines)
        if self._comet:
            self._comet.add(behind)
        if (mean_chrf := self._raw.mean("chrF")) is not None:
            self.so_far = f"chrF {mean_chrf:.1f} so far"

    def _count(self, line: Line, outcomes: Mapping[str, bool], rates: RateCounts, *, guard: bool) -> None:
        for group in (ALL, pair_name(line.pair) if line.source else line.kind):
            rates.add(group, outcomes)
        if line.source:
            self._switching[guard].add(line, outcomes.get(WRONG_LANGUAGE))


class CometTally:
    """COMET of every pair; translation only, as transcripts serve as source texts. Lines are held to the end, as
    COMET gives a pair's texts the same scores only when it is given them all at once.

    Args:
        model: as of `Comet`; loaded at once, so that what is wrong with it is said before the work.
        offline: as of `Comet`.
    """

    def __init__(self, model: str, *, offline: bool = False) -> None:
        self._comet = Comet(model, offline=offline)
        self._lines: list[Line] = []

    def add(self, lines: Iterable[Line]) -> None:
        """Add lines; those that are no translations are passed over."""
        self._lines += [line for line in lines if line.source and not line.is_transcript]

    def scores(self) -> list[Score]:
        """Every pair and the mean over pairs, and where there are code-switched lines the means of those."""
        pairs: dict[tuple[str, str], tuple[int, float]] = {}
        by_switching: dict[tuple[str, tuple[str, str]], tuple[int, float]] = {}
        for pair, lines in by_pair(self._lines).items():
            values = self._comet.scores([x.transcript for x in lines], *texts(lines, pair[1]))
            for line, value in zip(lines, values, strict=True):
                _sum_up(pairs, pair, value)
                for member in (switching(line), ALL):
                    _sum_up(by_switching, (member, pair), value)
        of_pairs = sorted(pairs.items())
        signature = self._comet.signature
        scores = [
            _comet_score(total / count, signature, "pair", pair_name(pair), count)
            for pair, (count, total) in of_pairs
        ]
        if scores:
            scores.append(self._mean("mean", ALL, [sums for _, sums in of_pairs]))
        members = sorted({member for member, _ in by_switching})
        for member in members if CODE_SWITCHED in members else ():
            sums = [sums for (of, _), sums in sorted(by_switching.items()) if of == member]
            scores.append(self._mean(SWITCHING, member, sums))
        return scores

    def _mean(self, group: str, member: str, sums: Sequence[tuple[int, float]]) -> Score:
        value = mean(total / count for count, total in sums)
        return _comet_score(value, "", group, member, sum(count for count, _ in sums))


def _sum_up(sums: dict[Any, tuple[int, float]], key: Any, value: float) -> None:
    count, total = sums.get(key, (0, 0.0))
    sums[key] = (count + 1, total + value)


def _comet_score(value: float, signature: str, group: str, member: str, num_lines: int) -> Score:
    return Score(
        metric=COMET,
        value=value,
        signature=signature,
        group=group,
        member=member,
        task=TRANSLATION,
        num_lines=num_lines,
    )


def _failure_rates(counts: RateCounts, *, guard: bool) -> list[FailureRate]:
    return [
        FailureRate(failure=name, member=member, failed=rate.failed, evaluated=rate.evaluated, guard=guard)
        for member in counts.groups
        for name, rate in counts.rates(member).items()
    ]


def _number(score: Score, guard: bool) -> Number:
    return Number(**asdict(score), guard=guard)
