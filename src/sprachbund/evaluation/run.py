"""One evaluation from beginning to end: corpora and a model in, hypotheses, text files and a result manifest out."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import hashes
from sprachbund.evaluation.failures import FailureJudge
from sprachbund.evaluation.hypotheses import BATCH_SIZE, Decoder, Plan, make_plan, translate_plan
from sprachbund.evaluation.lines import HYPOTHESES_FILE, Evidence, Line, LineWriter, by_pair, read_lines
from sprachbund.evaluation.manifest import (
    MANIFEST_FILE,
    DataUsed,
    FailureRate,
    ModelUsed,
    Number,
    ResultManifest,
)
from sprachbund.evaluation.no_speech import PER_KIND, SEED, Sound, no_speech_set
from sprachbund.evaluation.quality import Score, pair_name, score_lines
from sprachbund.evaluation.speed import Speed, Stopwatch
from sprachbund.models.card import Card
from sprachbund.models.directory import load
from sprachbund.models.family import Family

NO_SPEECH = "no-speech"
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is evaluated and how.

    Attributes:
        targets: languages wanted; None takes every language with references.
        limit: most utterances of each corpus, spread evenly over it; None takes all.
        batch_size: utterances in a batch; does not change the result.
        decoding: how to decode; its guard is applied to what is scored.
        no_speech_per_kind: sounds of each kind in the no-speech set; 0 leaves it out.
        seed: of the no-speech set.
    """

    targets: tuple[str, ...] | None = None
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    no_speech_per_kind: int = PER_KIND
    seed: int = SEED


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation: its lines, and its result manifest."""

    lines: tuple[Line, ...]
    manifest: ResultManifest


def evaluate(
    directories: Sequence[str | Path],
    model: str | Path,
    options: EvaluationOptions | None = None,
    *,
    out: Path | None = None,
    offline: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Evaluate a model on corpora.

    Args:
        directories: of the corpora, each as `sprachbund data` writes it.
        model: "bundled", a directory, or a Hugging Face id.
        options: what and how.
        out: where to write hypotheses, texts by pair and the result manifest; None writes nothing.
        offline: never use the network.
        progress: told of the work as it goes on.

    Raises:
        SprachbundError: for models, corpora and languages that cannot be, before any decoding.
    """
    options = options or EvaluationOptions()
    manifests = [Manifest(directory) for directory in _distinct(directories)]
    family = load(model, offline=offline)
    plans = [make_plan(family, m, options.targets, options.limit) for m in manifests]
    total = sum(plan.num_lines for plan in plans)
    watch, lines = Stopwatch(), []
    with LineWriter((out or Path()) / HYPOTHESES_FILE) if out else _Nowhere() as writer:
        for manifest, plan in zip(manifests, plans, strict=True):
            work = translate_plan(family, manifest, plan, options.decoding, options.batch_size)
            for line in watch.watch(work):
                writer.write(line)
                lines.append(line)
                progress("decoding", len(lines), total)
        speed = watch.speed()
        for line in translate_no_speech(family, options):
            writer.write(line)
            lines.append(line)
    progress("scoring", 0, 1)
    used = [_data_used(m, plan) for m, plan in zip(manifests, plans, strict=True)]
    result = summarise(lines, _model_used(model, offline), used, options, speed)
    progress("scoring", 1, 1)
    if out:
        write_texts(lines, out)
        result.write(out / MANIFEST_FILE)
    return Evaluation(lines=tuple(lines), manifest=result)


def translate_no_speech(model: Family, options: EvaluationOptions) -> Iterator[Line]:
    """Decode the no-speech set into every target language, or, where the model hears a language from which it
    does not know them all, into that language."""
    if not options.no_speech_per_kind:
        return
    decoder = Decoder(model, options.decoding)
    known = {target for _, target in model.pairs()}
    everywhere = all((s, t) in model.pairs() for s in model.source_languages for t in known)
    targets = tuple(sorted(set(options.targets or known) & known)) if everywhere else ("",)
    sounds = no_speech_set(options.seed, options.no_speech_per_kind)
    for start in range(0, len(sounds), options.batch_size):
        batch = sounds[start : start + options.batch_size]
        found = decoder.decode([s.samples for s in batch], [targets] * len(batch), [None] * len(batch))
        for sound, row in zip(batch, found, strict=True):
            for target, (text, evidence) in zip(targets, row, strict=True):
                yield _no_speech_line(sound, target or evidence.language or "und", text, evidence)


def _no_speech_line(sound: Sound, target: str, text: str, evidence: Evidence) -> Line:
    return Line(
        id=sound.id,
        source="",
        target=target,
        hypothesis=text,
        reference="",
        evidence=evidence,
        corpus=NO_SPEECH,
        kind=sound.kind,
        duration_s=round(sound.duration_s, 4),
    )


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
    numbers = [_number(s, guarded) for text in ("raw", "normalized") for s in score_lines(behind, text=text)]
    if guarded:
        numbers += [_number(s, False) for s in score_lines(lines)]
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


def configuration(options: EvaluationOptions) -> dict[str, Any]:
    """Options as plain values, with what decides numbers from outside: threads and precision."""
    return {**asdict(options), "num_threads": torch.get_num_threads(), "precision": "float32"}


def options_from(values: dict[str, Any]) -> EvaluationOptions:
    """The inverse of `configuration`. Raises SprachbundError for fields this version does not know."""
    from sprachbund.audio.spans import SpanOptions

    rest = {key: value for key, value in values.items() if key not in {"num_threads", "precision"}}
    try:
        decoding = dict(rest.pop("decoding"))
        guard, spans = GuardOptions(**decoding.pop("guard")), SpanOptions(**decoding.pop("spans"))
        allowed = decoding.pop("allowed_languages")
        return EvaluationOptions(
            **{**rest, "targets": _tuple(rest["targets"])},
            decoding=DecodingOptions(
                **decoding, allowed_languages=_tuple(allowed), guard=guard, spans=spans
            ),
        )
    except (TypeError, KeyError) as error:
        known = ", ".join(f.name for f in fields(EvaluationOptions))
        raise SprachbundError(
            f"the configuration does not fit this version ({error}); it knows {known}"
        ) from error


def write_texts(lines: Sequence[Line], out: Path) -> None:
    """Write `texts/<pair>.hyp.txt` and `.ref.txt`, one text per line, for any other scorer to read."""
    for pair, found in by_pair(line.behind_guard() for line in lines if line.source).items():
        for name, texts in (
            ("hyp", [line.hypothesis for line in found]),
            ("ref", [line.reference for line in found]),
        ):
            path = out / "texts" / f"{pair_name(pair)}.{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", newline="\n")


def rescore(out: Path, manifest: ResultManifest) -> ResultManifest:
    """Score the hypotheses in a directory of results again, without the model."""
    lines = list(read_lines(out / HYPOTHESES_FILE))
    return summarise(lines, manifest.model, manifest.data, options_from(manifest.configuration))


class _Nowhere:
    """Stands in for a writer when nothing is to be written."""

    def write(self, line: Line) -> None:
        """Forget it."""

    def __enter__(self) -> "_Nowhere":
        return self

    def __exit__(self, *_: object) -> None:
        pass


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


def _model_used(model: str | Path, offline: bool) -> ModelUsed:
    directory = hashes.model_directory(model, offline=offline)
    card = Card.read(directory)
    return ModelUsed(
        path=str(model), name=card.name if card else directory.name, sha256=hashes.model_hash(directory)
    )


def _data_used(manifest: Manifest, plan: Plan) -> DataUsed:
    return DataUsed(
        path=str(manifest.directory),
        name=_corpus_name(manifest.directory),
        sha256=hashes.data_hash(manifest.directory),
        utterances=len(manifest),
        scored_utterances=len(plan.jobs),
        without_reference={pair_name(p): n for p, n in sorted(plan.without_reference.items())},
        unknown_pairs={pair_name(p): n for p, n in sorted(plan.unknown_pairs.items())},
        without_speech=plan.without_speech,
        too_long=plan.too_long,
        over_limit=plan.over_limit,
    )


def _corpus_name(directory: Path) -> str:
    try:
        return str(json.loads((directory / "dataset.json").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return directory.name


def _distinct(directories: Sequence[str | Path]) -> list[Path]:
    paths = [Path(directory) for directory in directories]
    twice = {str(path) for path in paths if paths.count(path) > 1}
    if twice or not paths:
        what = f"{', '.join(sorted(twice))} named twice" if twice else "no corpus named"
        raise SprachbundError(f"{what}; name each corpus directory once")
    return paths


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)

