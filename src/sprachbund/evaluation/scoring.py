"""From lines to a result manifest: every score and failure rate, behind the guard and without it."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean

from sprachbund.evaluation.code_switch import switching_scores
from sprachbund.evaluation.comet import comet_scores, comet_signature
from sprachbund.evaluation.failures import FailureJudge
from sprachbund.evaluation.lines import Line, by_pair
from sprachbund.evaluation.manifest import DataUsed, FailureRate, ModelUsed, Number, ResultManifest
from sprachbund.evaluation.options import EvaluationOptions, configuration
from sprachbund.evaluation.quality import (
    CODE_SWITCHED,
    SWITCHING,
    TRANSLATION,
    Score,
    pair_name,
    score_lines,
    switching,
    texts,
)
from sprachbund.evaluation.speed import Speed


def summarise(
    lines: Sequence[Line],
    model: ModelUsed,
    data: list[DataUsed],
    options: EvaluationOptions,
    speed: Speed | None = None,
) -> ResultManifest:
    """Score lines: behind the guard, raw and normalized; before it, raw; failures before and after."""
    behind = [line.behind_guard() for line in lines]
    guarded = options.decoding.guard.enabled
    numbers = [_number(s, guarded) for s in score_lines(behind)]
    numbers += [_number(s, guarded) for s in score_lines(behind, text="normalized", groupings=False)]
    if guarded:
        numbers += [_number(s, False) for s in score_lines(lines, groupings=False)]
    numbers += [_number(s, guarded) for s in switching_scores(behind)]
    if guarded:
        numbers += [_number(s, False) for s in switching_scores(lines)]
    if options.comet:
        numbers += [_number(score, guarded) for score in comet_lines(behind, options.comet)]
    judge = FailureJudge({line.target for line in lines if line.source})
    failures = _failure_rates(judge, lines, guard=False)
    if guarded:
        failures += _failure_rates(judge, behind, guard=True)
    return ResultManifest(
        numbers=numbers,
        failures=failures,
        measured=speed.to_dict() if speed else {},
        data=data,
        model=model,
        configuration=configuration(options),
        seed=options.seed,
    )


def comet_lines(lines: Sequence[Line], model: str) -> list[Score]:
    """COMET of every pair and its mean; translation only, as transcripts serve as source texts."""
    signature, scores = comet_signature(model), []
    by_switching: dict[str, list[list[float]]] = {}
    pairs = by_pair(line for line in lines if line.source and line.source != line.target)
    for pair, found in pairs.items():
        values = comet_scores([x.transcript for x in found], *texts(found, pair[1]), model=model)
        scores.append(_comet_score(mean(values), signature, "pair", pair_name(pair), len(found)))
        for member in sorted(set(map(switching, found))):
            of_member = [v for v, line in zip(values, found, strict=True) if switching(line) == member]
            by_switching.setdefault(member, []).append(of_member)
        by_switching.setdefault("all", []).append(values)
    if scores:
        count = sum(score.num_lines for score in scores)
        scores.append(_comet_score(mean(s.value for s in scores), "", "mean", "all", count))
    for member, pairs_values in by_switching.items() if CODE_SWITCHED in by_switching else ():
        count = sum(map(len, pairs_values))
        scores.append(_comet_score(mean(map(mean, pairs_values)), "", SWITCHING, member, count))
    return scores


def _comet_score(value: float, signature: str, group: str, member: str, num_lines: int) -> Score:
    return Score(
        metric="COMET",
        value=value,
        signature=signature,
        group=group,
        member=member,
        task=TRANSLATION,
        num_lines=num_lines,
    )


def _failure_rates(judge: FailureJudge, lines: Sequence[Line], *, guard: bool) -> list[FailureRate]:
    groups: dict[str, list[Line]] = {"all": list(lines)}
    for line in lines:
        groups.setdefault(pair_name(line.pair) if line.source else line.kind, []).append(line)
    return [
        FailureRate(failure=name, member=member, failed=rate.failed, judged=rate.judged, guard=guard)
        for member, found in groups.items()
        for name, rate in judge.rates(found).items()
    ]


def _number(score: Score, guard: bool) -> Number:
    return Number(**asdict(score), guard=guard)
