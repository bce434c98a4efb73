"""Which tasks a smaller model has lost, does worse, or was not measured on, beside the one that it was made from."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from sprachbund.evaluation.manifest import FailureRate
from sprachbund.recipes.before_after import CHRF, ERROR_RATES, Measured, Measurement

TOLERANCE = 1.0
"""Points (of chrF, of an error rate, of a share in percent) that do not count as worse."""
TIME_TOLERANCE_S = 0.1


class Verdict(BaseModel):
    """Tasks in words, each with what was seen.

    Attributes:
        lost: what could be asked for before, and cannot be now.
        worse: what is worse by more than `TOLERANCE`, or `TIME_TOLERANCE_S`.
        not_measured: what both can be asked for but the data say nothing about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lost: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()


def judge_tasks(measurement: Measurement) -> Verdict:
    """Compare two models that were measured together."""
    before, after = measurement.before, measurement.after
    measured = bool(measurement.data)
    unmeasured = sorted(set(before.pairs) & set(after.pairs) - set(before.scores))
    silent = [] if measured else ["every task: no data were given"]
    if measured and unmeasured:
        silent.append(f"{len(unmeasured)} pairs, not asked for or without references: {_first(unmeasured)}")
    return Verdict(
        lost=tuple(_lost(before, after)),
        worse=tuple(_worse(before, after)) if measured else (),
        not_measured=tuple(silent),
    )


def pair_metric(scores: dict[str, float]) -> str:
    """The metric that a pair is judged by: an error rate where there is one, which only transcripts have."""
    return next((name for name in ERROR_RATES if name in scores), CHRF)


def _lost(before: Measured, after: Measured) -> Iterator[str]:
    for pair in sorted(set(before.pairs) - set(after.pairs)):
        yield f"pair {pair}"
    if before.languages and not after.languages:
        yield "telling the language spoken"
    if before.times is not None and after.times is None:
        yield "timestamps"


def _worse(before: Measured, after: Measured) -> Iterator[str]:
    for pair in sorted(set(before.scores) & set(after.scores)):
        metric = pair_metric(before.scores[pair])
        old, new = before.scores[pair][metric], after.scores[pair][metric]
        if (old - new if metric == CHRF else new - old) > TOLERANCE:
            yield f"{pair}: {metric} {old:.1f} before, {new:.1f} after"
    for tag in sorted(set(before.languages) & set(after.languages)):
        old, new = before.languages[tag].percent, after.languages[tag].percent
        if old - new > TOLERANCE:
            yield f"telling {tag}: {old:.1f} % right before, {new:.1f} % after"
    rates = {rate.failure: rate for rate in before.failures}
    for rate in after.failures:
        old = _percent(rates.get(rate.failure))
        if rate.percent - old > TOLERANCE:
            yield f"{rate.failure}: {old:.1f} % of lines before, {rate.percent:.1f} % after"
    yield from _worse_times(before, after)


def _worse_times(before: Measured, after: Measured) -> Iterator[str]:
    old, new = before.times, after.times
    if old is None or new is None:
        return
    if 100 * (old.ended / old.judged - new.ended / new.judged) > TOLERANCE:
        yield f"timestamps: {old.ended} of {old.judged} rows ended in one before, {new.ended} after"
    if new.end_error_s - old.end_error_s > TIME_TOLERANCE_S:
        yield f"timestamps: {old.end_error_s:.2f} s from the end of speech before, {new.end_error_s:.2f} s after"


def _percent(rate: FailureRate | None) -> float:
    return 0.0 if rate is None else rate.percent


def _first(pairs: list[str]) -> str:
    return ", ".join(pairs[:6]) + (", …" if len(pairs) > 6 else "")
