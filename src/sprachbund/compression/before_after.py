"""A model before and after compression, measured on the same data in one run.

Measured are scores by pair, failures, detected languages, timestamps, size, and the time that both take in turn. The
verdict names the tasks that the smaller model has lost, does worse, or could not be measured on: compression must not
lose a task unseen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity, iter_speech_spans
from sprachbund.compression.options import MeasureOptions
from sprachbund.compression.quantization import stored_size
from sprachbund.data.manifest import Utterances
from sprachbund.decoding.encoding import encode
from sprachbund.decoding.languages import UNDETERMINED, identify
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.engines.choice import engine_for
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import (
    DecodingJob,
    Plan,
    make_plan,
    translate_no_speech,
    translate_plan,
    translate_plans,
)
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.manifest import DataUsed, FailureRate, ModelUsed, ResultManifest
from sprachbund.evaluation.quality import ERROR_RATES
from sprachbund.evaluation.run import data_used, model_used, open_corpus
from sprachbund.evaluation.scoring import Scoring
from sprachbund.evaluation.speed import race, race_rows
from sprachbund.models.base import Family, Target, TimestampTokens
from sprachbund.models.io import load, locate
from sprachbund.nn.quantized import num_weights
from sprachbund.util.progress import Progress, StageProgress

# Timestamps: the one task that no text score shows.

_MOST = 32  # utterances that are looked at


class TimesWritten(BaseModel):
    """Timestamps in rows that were asked for them.

    Attributes:
        evaluated: rows.
        ended: rows that end in a timestamp.
        end_error_s: mean distance of that from the end of speech, as voice activity hears it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    evaluated: int
    ended: int
    end_error_s: float


def times_written(family: Family, manifest: Utterances, jobs: Sequence[DecodingJob]) -> TimesWritten | None:
    """Ask for transcripts, or the first target, with timestamps; None for a family that writes none.

    Args:
        family: the model.
        manifest: speech with texts.
        jobs: utterances and their targets, of which some are taken evenly.
    """
    times = family.capabilities.timestamps
    if times is None:
        return None
    chosen = jobs[:: -(-len(jobs) // _MOST)]
    errors = [_error_s(family, manifest, job, times) for job in chosen]
    ended = [error for error in errors if error is not None]
    return TimesWritten(
        evaluated=len(chosen), ended=len(ended), end_error_s=round(float(np.mean(ended)), 3) if ended else 0.0
    )


@torch.inference_mode()
def _error_s(family: Family, manifest: Utterances, job: DecodingJob, times: TimestampTokens) -> float | None:
    samples = manifest.samples(job.index)
    target = job.source if (job.source, job.source) in family.pairs() else job.targets[0]
    memory = encode(family, family.features([samples]), [job.source])
    asked = Target(language=target, source=job.source, timestamps=True)
    ((result,),) = search(
        family, memory, [[asked]], DecodingOptions(draft=NONE), [len(samples) / SAMPLE_RATE]
    )
    last = result.tokens[-1] if result.tokens else 0
    return abs(times.seconds(last) - _end_of_speech_s(samples)) if last in times else None


def _end_of_speech_s(samples: np.ndarray) -> float:
    """End of the last span of speech; of the sound where none is heard."""
    options = SpanOptions()
    spans = [span for span, _ in iter_speech_spans([samples], options, activity=VoiceActivity())]
    whole_s = len(samples) / SAMPLE_RATE
    return min(whole_s, spans[-1].end_s - options.padding_s) if spans else whole_s


CHRF = "chrF"
BEFORE, AFTER = "before", "after"
_TIMED = 48  # utterances that are timed; more would only take longer


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LanguageAccuracy(_Values):
    """Accuracy of the identified language: `right` of `evaluated` utterances."""

    right: int
    evaluated: int

    @property
    def percent(self) -> float:
        """Right ones in a hundred."""
        return 100.0 * self.right / max(1, self.evaluated)


class MeasuredModel(_Values):
    """A model and what was measured of it.

    Attributes:
        model: path and hash of the model.
        parameters: number of weights.
        bytes_on_disk: bytes on disk of its weights.
        bits: bits of a stored matrix.
        pairs: "en-de" for each pair it can be asked for.
        scores: pair to metric to score: chrF, and an error rate of transcripts. Behind the guard.
        failures: failures behind the guard, over all pairs.
        languages: language to how often it was detected; empty for a model that does not detect languages.
        times: accuracy of timestamps; None for a model without.
    """

    model: ModelUsed
    parameters: int
    bytes_on_disk: int
    bits: int | None
    pairs: tuple[str, ...]
    scores: dict[str, dict[str, float]] = {}
    failures: tuple[FailureRate, ...] = ()
    languages: dict[str, LanguageAccuracy] = {}
    times: TimesWritten | None = None


class Measurement(_Values):
    """Both models, on what, and how long they took in turn; the first row is the model before, whose time is 1."""

    before: MeasuredModel
    after: MeasuredModel
    data: tuple[DataUsed, ...] = ()
    speed: tuple[dict[str, str | float], ...] = ()
    conditions: dict[str, Any] = {}


def measure_both(
    before: str | Path,
    after: Path,
    data: Sequence[Path],
    options: MeasureOptions,
    *,
    offline: bool = False,
    progress: StageProgress = lambda what, done, total: None,
) -> Measurement:
    """Measure two models on the same corpora; without any, only their sizes.

    Args:
        before: name or directory of the model before.
        after: directory of the model after.
        data: directories of corpora.
        options: amount of data that is measured.
        offline: never use the network.
        progress: takes what is done, how much of it is done, and the total.

    Raises:
        SprachbundError: corpora or languages that cannot be.
    """
    manifests = [open_corpus(path) for path in data]
    paths: dict[str, str | Path] = {BEFORE: before, AFTER: after}
    families = {name: _family(path_or_id, options.engine, offline) for name, path_or_id in paths.items()}
    measured, plans = {}, {}
    for name, family in families.items():
        plans[name] = [make_plan(family, m, options.targets, options.limit) for m in manifests]
        scores = _measured(family, manifests, plans[name], options, partial(progress, name))
        # The native modules of an engine hide the weights.
        whole = family if options.engine == "torch" else load(paths[name], offline=offline)
        measured[name] = _described(paths[name], whole, offline).model_copy(update=scores)
    speed = _race(families, manifests[0], plans, options, progress) if manifests and options.rounds else ()
    return Measurement(
        before=measured[BEFORE],
        after=measured[AFTER],
        data=tuple(data_used(m, plan) for m, plan in zip(manifests, plans[BEFORE], strict=True)),
        speed=tuple(speed),
        conditions=_conditions(options, bool(manifests)),
    )


def _family(path_or_id: str | Path, engine: EngineChoice, offline: bool) -> Family:
    directory = locate(path_or_id, offline=offline)
    return engine_for(load(directory, offline=True), engine, directory=directory).family


def _described(path_or_id: str | Path, family: Any, offline: bool) -> MeasuredModel:
    size = stored_size(locate(path_or_id, offline=offline))
    return MeasuredModel(
        model=model_used(path_or_id, offline),
        parameters=num_weights(family),
        bytes_on_disk=size.bytes_on_disk,
        bits=size.bits,
        pairs=tuple(sorted("-".join(pair) for pair in family.pairs())),
    )


def _measured(
    family: Family,
    manifests: Sequence[Utterances],
    plans: Sequence[Plan],
    options: MeasureOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Fields of `MeasuredModel` that need decoding."""
    if not manifests:
        return {}
    targets = {target for plan in plans for job in plan.jobs for target in job.targets}
    asked = options.evaluation(tuple(sorted(targets)))
    scoring, counts = Scoring(targets, asked), Counter[tuple[str, bool]]()
    total, detects = sum(plan.num_lines for plan in plans), _detects_languages(family)
    for done, line in enumerate(translate_plans(family, manifests, plans, asked), start=1):
        scoring.add(line)
        if detects:
            counts[line.source, line.evidence.language == line.source] += 1
        progress(done, total)
    for line in translate_no_speech(family, asked):
        scoring.add(line)
    result = scoring.manifest(ModelUsed(path="", name="", sha256=""), [])
    return {
        "scores": _scores(result),
        "failures": tuple(rate for rate in result.failures if rate.guard and rate.member == "all"),
        "languages": {
            tag: LanguageAccuracy(right=counts[tag, True], evaluated=counts[tag, True] + counts[tag, False])
            for tag in sorted({tag for tag, _ in counts})
        },
        "times": times_written(family, manifests[0], plans[0].jobs),
    }


def _detects_languages(family: Family) -> bool:
    """Whether the model has learned to detect languages; to one that has not, all are equal."""
    import numpy as np
    import torch

    with torch.inference_mode():
        memory = family.encode(family.features([np.zeros(SAMPLE_RATE, np.float32)]))
        log_probs = family.language_log_probs(memory)
    alone = identify(log_probs, family.source_languages, None)
    return len(family.source_languages) > 1 and alone.language != UNDETERMINED


def _scores(result: ResultManifest) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for number in result.numbers:
        wanted = {CHRF, *(ERROR_RATES if number.task == "transcription" else ())}
        if number.group == "pair" and number.text == "raw" and number.guard and number.metric in wanted:
            scores.setdefault(number.member, {})[number.metric] = round(number.value, 3)
    return scores


def _race(
    families: dict[str, Family],
    manifest: Utterances,
    plans: dict[str, list[Plan]],
    options: MeasureOptions,
    progress: StageProgress,
) -> list[dict[str, str | float]]:
    """Both models on what both can do, in turn."""
    after = {job.index: set(job.targets) for job in plans[AFTER][0].jobs}
    jobs = [
        DecodingJob(index=job.index, duration_s=job.duration_s, source=job.source, targets=shared)
        for job in plans[BEFORE][0].jobs
        if (shared := tuple(t for t in job.targets if t in after.get(job.index, ())))
    ]
    if not jobs:
        raise SprachbundError(
            f"{manifest.directory} holds nothing that both models can do; choose other languages with --to"
        )
    step = -(-len(jobs) // _TIMED)
    shared_plan, decoding = Plan(jobs=tuple(jobs[::step])), options.evaluation(None).decoding
    done = 0

    def work(family: Family) -> Iterator[Line]:
        nonlocal done
        progress("timing both in turn", done, 2 * (options.rounds + 1))
        done += 1
        return translate_plan(family, manifest, shared_plan, decoding, options.batch_size)

    return race_rows(race(families, work, options.rounds))


def _conditions(options: MeasureOptions, measured: bool) -> dict[str, Any]:
    import torch

    if not measured:
        return {}
    return {
        "engine": options.engine,
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "limit": options.limit,
    }


# The verdict.

TOLERANCE = 1.0
"""Points (of chrF, of an error rate, of a share in percent) that do not count as worse."""
TIME_TOLERANCE_S = 0.1


class Verdict(BaseModel):
    """Tasks in words, each with what was seen.

    Attributes:
        lost: tasks that the model could do before, and cannot do now.
        worse: tasks that are worse by more than `TOLERANCE`, or `TIME_TOLERANCE_S`.
        not_measured: tasks that both can do but the data do not test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lost: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()


def compare_tasks(measurement: Measurement) -> Verdict:
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
    """The metric that a pair is evaluated by: an error rate where there is one, which only transcripts have."""
    return next((name for name in ERROR_RATES if name in scores), CHRF)


def _lost(before: MeasuredModel, after: MeasuredModel) -> Iterator[str]:
    for pair in sorted(set(before.pairs) - set(after.pairs)):
        yield f"pair {pair}"
    if before.languages and not after.languages:
        yield "identifying the language spoken"
    if before.times is not None and after.times is None:
        yield "timestamps"


def _worse(before: MeasuredModel, after: MeasuredModel) -> Iterator[str]:
    for pair in sorted(set(before.scores) & set(after.scores)):
        metric = pair_metric(before.scores[pair])
        old, new = before.scores[pair][metric], after.scores[pair][metric]
        if (old - new if metric == CHRF else new - old) > TOLERANCE:
            yield f"{pair}: {metric} {old:.1f} before, {new:.1f} after"
    for tag in sorted(set(before.languages) & set(after.languages)):
        old, new = before.languages[tag].percent, after.languages[tag].percent
        if old - new > TOLERANCE:
            yield f"identifying {tag}: {old:.1f} % right before, {new:.1f} % after"
    rates = {rate.failure: rate for rate in before.failures}
    for rate in after.failures:
        old = _percent(rates.get(rate.failure))
        if rate.percent - old > TOLERANCE:
            yield f"{rate.failure}: {old:.1f} % of lines before, {rate.percent:.1f} % after"
    yield from _worse_times(before, after)


def _worse_times(before: MeasuredModel, after: MeasuredModel) -> Iterator[str]:
    old, new = before.times, after.times
    if old is None or new is None:
        return
    if 100 * (old.ended / old.evaluated - new.ended / new.evaluated) > TOLERANCE:
        yield f"timestamps: {old.ended} of {old.evaluated} rows ended in one before, {new.ended} after"
    if new.end_error_s - old.end_error_s > TIME_TOLERANCE_S:
        yield f"timestamps: {old.end_error_s:.2f} s from the end of speech before, {new.end_error_s:.2f} s after"


def _percent(rate: FailureRate | None) -> float:
    return 0.0 if rate is None else rate.percent


def _first(pairs: list[str]) -> str:
    return ", ".join(pairs[:6]) + (", …" if len(pairs) > 6 else "")
