"""`sprachbund compress`: prune, quantize, pseudo-label, distil. Every smaller model is measured against its original.

Shared options and the printed comparison come first, then one section for each command.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    listed,
    live_bar,
    print_json,
    resumable,
    say,
    set_device,
    set_threads,
    show,
    size,
    table,
)
from sprachbund.cli.models import fetch
from sprachbund.cli.options import OWN_PANEL, Panel, VerbApp, with_options
from sprachbund.compression.options import (
    DistillationOptions,
    KQuantOptions,
    LabelOptions,
    MeasureOptions,
    QuantizeOptions,
    StudentTraining,
    TeacherOptions,
)
from sprachbund.training.options import RunOptions
from sprachbund.util.computing import Computing

if TYPE_CHECKING:
    from sprachbund.compression.before_after import MeasuredModel, Measurement, Verdict
    from sprachbund.compression.distillation import DistilRecipe
    from sprachbund.compression.pseudo_labels import LabelResult, LabelSource, LabelTeacher


# Options, measurement and printing that the commands share.

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes; a new folder.")]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="Corpus to measure both models on; may be repeated."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to compute with.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Teacher = Annotated[
    str, typer.Argument(metavar="TEACHER", help="bundled, a model directory, or a Hugging Face id.")
]
Speech = Annotated[
    list[Path],
    typer.Argument(metavar="DATA", help="Corpora, folders of recordings, recordings; texts are not needed."),
]
Measuring = Annotated[MeasureOptions, Panel(OWN_PANEL)]
MeasuringAfterTraining = Annotated[MeasureOptions, Panel(OWN_PANEL, without=("targets",))]
"""`--to` of `distil` says what is learned, and is measured with it."""


class MeasuredPair(NamedTuple):
    """Both models measured, the verdict on every task, and the values of `compression.json`."""

    measurement: "Measurement"
    verdict: "Verdict"
    values: dict[str, Any]


def measure(
    before: str | Path,
    after: Path,
    data: Sequence[Path] | None,
    *,
    what: dict[str, Any],
    options: MeasureOptions,
    offline: bool,
    final: Path | None = None,
) -> MeasuredPair:
    """Measure both models, and write `compression.json` into the new one's directory.

    Args:
        before: the original model.
        after: directory of the smaller one.
        data: corpora.
        what: the verb and its settings, as JSON values.
        options: amount of data that is measured.
        offline: never use the network.
        final: the directory that `after` is renamed to; None where it is not.
    """
    from sprachbund.compression.before_after import compare_tasks, measure_both
    from sprachbund.util import provenance
    from sprachbund.util.files import write_json

    with Bar("measuring") as bar:
        both = measure_both(
            before,
            after,
            data or [],
            options,
            offline=offline,
            progress=lambda stage, done, total: bar.update(done, total, f"measuring {stage}"),
        )
    model = both.after.model.model_copy(update={"path": str(final or after)})
    both = both.model_copy(update={"after": both.after.model_copy(update={"model": model})})
    verdict = compare_tasks(both)
    made_with = {
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    values = {**what, **both.model_dump(mode="json"), "tasks": verdict.model_dump(mode="json"), **made_with}
    write_json(after / provenance.COMPRESSION_FILE, values)
    return MeasuredPair(both, verdict, values)


def print_comparison(compared: MeasuredPair, after: Path, *, as_json: bool) -> None:
    """Print the measurement of the model in the directory `after`, as text or as one JSON object (`as_json`).

    Args:
        compared: as `measure` returns it.
        after: directory of the smaller model.
        as_json: print the values of `compression.json` instead of tables.
    """
    from sprachbund.util.provenance import COMPRESSION_FILE

    if as_json:
        return print_json(compared.values)
    typer.echo(as_text(compared.measurement, compared.verdict))
    say(f"the model is in {after}; these numbers are in {COMPRESSION_FILE} there")


def as_text(both: "Measurement", verdict: "Verdict") -> str:
    """All numbers of both models, and what became of the tasks."""
    parts = [_sizes(both)]
    if both.data:
        parts += [_scores(both), _failures(both)]
    named = {"lost": verdict.lost, "worse": verdict.worse, "not measured": verdict.not_measured}
    lines = [f"{label}: {task}" for label, tasks in named.items() for task in tasks]
    if both.data and not verdict.lost and not verdict.worse:
        lines.insert(0, "no task that was measured is lost or worse")
    return "\n\n".join([*parts, "\n".join(lines)]).rstrip()


def _sizes(both: "Measurement") -> str:
    before, after = both.before, both.after
    rows = [
        [
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            _ratio(before, after, "parameters"),
        ],
        [
            "weights on disk",
            size(before.bytes_on_disk),
            size(after.bytes_on_disk),
            _ratio(before, after, "bytes_on_disk"),
        ],
        ["bits of a matrix", str(before.bits or "mixed"), str(after.bits or "mixed"), ""],
    ]
    text = table(rows, ["", "before", "after", "of before"])
    if not both.speed:
        return text
    old, new = both.speed
    conditions = both.conditions
    return (
        f"{text}\ntime of the same work: {new['time_ratio']} of before ({new['lowest_ratio']} to "
        f"{new['highest_ratio']} in {conditions['rounds']} rounds, in turn); {old['tokens_per_s']} tokens/s before, "
        f"{new['tokens_per_s']} after; engine {conditions['engine']}, batch {conditions['batch_size']}, "
        f"{conditions['threads']} thread{'s' * (conditions['threads'] != 1)}"
    )


def _ratio(before: "MeasuredModel", after: "MeasuredModel", name: str) -> str:
    return f"{100 * getattr(after, name) / max(1, getattr(before, name)):.0f} %"


def _scores(both: "Measurement") -> str:
    from sprachbund.compression.before_after import pair_metric

    before, after = both.before.scores, both.after.scores
    rows = []
    for pair in sorted(before, key=lambda pair: (pair_metric(before[pair]), pair)):
        metric = pair_metric(before[pair])
        new = after.get(pair, {}).get(metric)
        change = "lost" if new is None else f"{new - before[pair][metric]:+.1f}"
        rows.append(
            [pair, metric, f"{before[pair][metric]:.1f}", "-" if new is None else f"{new:.1f}", change]
        )
    after_languages = both.after.languages
    for tag, old in both.before.languages.items():
        now = after_languages.get(tag)
        change = "lost" if now is None else f"{now.percent - old.percent:+.1f}"
        rows.append(
            [tag, "LID accuracy", f"{old.percent:.1f}", "-" if now is None else f"{now.percent:.1f}", change]
        )
    return table(rows, ["pair", "metric", "before", "after", "change"]) + _times(both)


def _times(both: "Measurement") -> str:
    old, new = both.before.times, both.after.times
    if old is None:
        return ""
    now = "none" if new is None else f"{new.ended} of {new.evaluated} rows, {new.end_error_s:.2f} s off"
    before = f"{old.ended} of {old.evaluated} rows, {old.end_error_s:.2f} s off"
    return f"\ntimestamps at the end: {before} before; {now} after"


def _failures(both: "Measurement") -> str:
    after = {rate.failure: rate for rate in both.after.failures}
    rows = [
        [
            rate.failure,
            f"{rate.percent:.1f} %",
            f"{after[rate.failure].percent:.1f} %" if rate.failure in after else "-",
            str(rate.evaluated),
        ]
        for rate in both.before.failures
    ]
    return table(rows, ["failure", "before", "after", "of lines"])


# `sprachbund compress prune MODEL --out DIR`: fewer layers.

_Kept = Annotated[
    int | None,
    typer.Option("--decoder", metavar="K", help="Decoder layers that stay: first, last, and evenly between."),
]
_EncoderKept = Annotated[int | None, typer.Option("--encoder", metavar="K", help="Encoder layers that stay.")]
_Named = Annotated[
    list[str] | None,
    typer.Option("--decoder-layers", metavar="N,…", help="Decoder layers that stay, from 0, by name."),
]
_EncoderNamed = Annotated[
    list[str] | None,
    typer.Option("--encoder-layers", metavar="N,…", help="Encoder layers that stay, from 0, by name."),
]


def prune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    out: Out,
    decoder: _Kept = None,
    encoder: _EncoderKept = None,
    decoder_layers: _Named = None,
    encoder_layers: _EncoderNamed = None,
    data: Data = None,
    *,
    measuring: Measuring,
    threads: Threads = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write a model of some of another's layers, and measure both; what stays has the bits that it had."""
    set_threads(threads)
    with as_usage(), Bar("pruning"):
        from sprachbund.compression.smaller import bits_of, check_new, new_directory, save_smaller
        from sprachbund.models.io import load
        from sprachbund.models.pruning import kept_layers, num_layers, with_layers

        check_new(out)
        if not any(x is not None for x in (decoder, encoder)) and not (decoder_layers or encoder_layers):
            raise UsageError("say what stays: --decoder K, --encoder K, --decoder-layers or --encoder-layers")
        source = fetch(model, offline=offline)
        family: Any = load(source, offline=True)
        kept = {
            side: _layers(side, count, named, num_layers(family, side), kept_layers)  # type: ignore[arg-type]
            for side, count, named in (
                ("encoder", encoder, encoder_layers),
                ("decoder", decoder, decoder_layers),
            )
        }
        smaller = with_layers(family, **kept)
        how = {"by": "prune", **{side: list(layers) for side, layers in kept.items() if layers is not None}}
    with new_directory(
        out
    ) as draft:  # with its numbers: what was killed or failed before them leaves nothing
        save_smaller(smaller, source, draft, bits_of(source), how, name=out.name, model=model)
        _warn_of_drafts(family)
        _warn_of_calibrations(model, source, draft, out)
        compared = measure(
            model,
            draft,
            data,
            what={"verb": "prune", "layers": {k: v for k, v in how.items() if k != "by"}},
            options=measuring,
            offline=offline,
            final=out,
        )
    print_comparison(compared, out, as_json=as_json)


def _layers(side: str, count: int | None, named: list[str] | None, total: int, rule: Any) -> Any:
    """Layers of a side that stay; None for all."""
    if count is not None and named:
        raise UsageError(f"give --{side} or --{side}-layers, not both")
    if named:
        numbers = listed(named)
        if wrong := [number for number in numbers if not number.isdecimal()]:
            raise UsageError(f"--{side}-layers takes numbers from 0 to {total - 1}, not {wrong[0]!r}")
        return tuple(int(number) for number in numbers)
    return None if count is None else rule(total, count)


def _warn_of_drafts(family: Any) -> None:
    if family.drafts:
        say(f"left behind, since drafts fit one depth only: {', '.join(family.drafts)}; train them anew")


def _warn_of_calibrations(model: str, source: Path, draft: Path, out: Path) -> None:
    from sprachbund.models.calibration import lost_calibrations

    for line in lost_calibrations(model, source, draft, out):
        say(line)


# `sprachbund compress quantize MODEL --out DIR`: weights of 8 bits, or an encoder of 3 to 8.


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    out: Out,
    data: Data = None,
    *,
    options: Annotated[QuantizeOptions, Panel(OWN_PANEL)],
    measuring: Measuring,
    threads: Threads = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write a model with a signed byte for every weight of a matrix and a scale for each of its rows; measure both.

    With --encoder-bits only the linear layers of a streaming encoder change: blocks of 32 weights share a scale, and
    the model computes from them as they are packed.
    """
    set_threads(threads)
    with as_usage(), Bar("quantizing"):
        from sprachbund.compression.smaller import (
            bits_of,
            check_new,
            copy_calibrations,
            copy_drafts,
            new_directory,
        )
        from sprachbund.models.io import load

        check_new(out)
        source = fetch(model, offline=offline)
        family: Any = load(source, offline=True)
    with new_directory(
        out
    ) as draft:  # with its numbers: what was killed or failed before them leaves nothing
        with as_usage(), Bar("quantizing"):
            if options.packed:
                from sprachbund.compression.quantization import check_packable, write_packed

                check_packable(family)
            if options.encoder is None:
                what = _eight_bits(family, model, source, draft, out.name, packed=options.packed)
            else:
                what = _encoder_bits(family, model, source, draft, out.name, options.encoder)
            copy_drafts(source, draft)
            if options.encoder is None and bits_of(source) == 8:
                copy_calibrations(source, draft)
            if options.packed:
                write_packed(load(draft, offline=True), draft)
        _warn_of_calibrations(model, source, draft, out)
        files = sorted(str(path.relative_to(draft)) for path in draft.iterdir())
        compared = measure(
            model,
            draft,
            data,
            what={"verb": "quantize", **what, "files": files},
            options=measuring,
            offline=offline,
            final=out,
        )
    print_comparison(compared, out, as_json=as_json)


def _eight_bits(
    family: Any, model: str, source: Path, draft: Path, name: str, *, packed: bool
) -> dict[str, Any]:
    """Write all matrices in 8 bits. Returns no further values for the report."""
    from sprachbund.compression.quantization import check_quantizable
    from sprachbund.compression.smaller import bits_of, save_smaller

    check_quantizable(family)
    if bits_of(source) == 8 and not packed:
        raise UsageError(
            f"{source} has 8 bits already; with --packed a copy gets the native engine's file too"
        )
    save_smaller(family, source, draft, 8, {"by": "quantize", "bits": 8}, name=name, model=model)
    return {}


def _encoder_bits(
    family: Any,
    model: str,
    source: Path,
    draft: Path,
    name: str,
    options: KQuantOptions,
) -> dict[str, Any]:
    """Write the encoder's linear layers packed. Returns the values for the report."""
    from sprachbund.compression.quantization import bits_per_weight, quantize_encoder
    from sprachbund.compression.smaller import bits_of, save_smaller

    layers = quantize_encoder(family, options)
    settings = {"encoder_bits": options.bits, "method": options.method, "symmetric": options.symmetric}
    how = {"by": "quantize", **settings}
    save_smaller(family, source, draft, bits_of(source), how, name=name, model=model)
    mean = sum(layer.weighted_error * layer.num_weights for layer in layers)
    num_weights = sum(layer.num_weights for layer in layers)
    return {
        **settings,
        "layers": len(layers),
        "bits_per_weight": bits_per_weight(layers),
        "weighted_error": mean / num_weights,
    }


# `sprachbund compress pseudo-label TEACHER DATA…`: a corpus with the texts that a model writes.

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The corpus, as `train` reads it.")]


def pseudo_label(
    teacher: Teacher,
    data: Speech,
    out: _Out,
    threads: Threads = None,
    offline: Offline = False,
    as_json: Json = False,
    *,
    labels: Annotated[
        LabelOptions,
        Panel(OWN_PANEL, without=("filters.guard.enabled",), nested={"filters": "Labels that are kept"}),
    ],
    teacher_options: Annotated[TeacherOptions, Panel(OWN_PANEL)],
    computing: Annotated[Computing, Panel("Processes", only=("workers", "ray"))],
) -> None:
    """Label speech; doubtful labels are dropped and counted by reason. The same command goes on where it stopped."""
    set_threads(threads)
    guard = labels.filters.guard
    # One limit of the mean: a label below it is dropped at once, where a caption needs a second sign.
    guard = replace(guard, hopeless_mean_log_probability=guard.min_mean_log_probability)
    options = replace(labels, filters=replace(labels.filters, guard=guard))
    computing = replace(computing, threads=threads or computing.threads)
    done = run_labels(teacher, data, out, options, teacher_options, computing, offline=offline)
    if as_json:
        return print_json({**asdict(done), "out": str(out)})
    typer.echo(corpus_as_text(done))
    say(f"the corpus is in {out}; labels.*.json there lists what was dropped")


def run_labels(
    teacher: str,
    data: Sequence[Path],
    out: Path,
    options: LabelOptions,
    teacher_options: TeacherOptions,
    computing: Computing | None = None,
    *,
    offline: bool = False,
) -> "LabelResult":
    """Label speech into a corpus; see `sprachbund.compression.pseudo_labels`.

    Args:
        teacher: name or directory of a model.
        data: corpora, folders of recordings, or recordings.
        out: folder of the new corpus.
        options: targets, filters and batch size.
        teacher_options: language of the recordings, width of the search, engine, device.
        computing: processes; one if None.
        offline: never use the network.
    """
    from sprachbund.compression.pseudo_labels import LIMIT, check_outside, check_targets, pseudo_label
    from sprachbund.decoding.guard import max_out_of_domain
    from sprachbund.decoding.options import NONE, DecodingOptions, GuardOptions, check_guard
    from sprachbund.models.card import Card
    from sprachbund.text.languages import parse_language
    from sprachbund.util.jobs import gpus_of
    from sprachbund.util.provenance import model_hash

    with as_usage(), Bar("loading the teacher"):
        check_outside(out, data)
        directory = fetch(teacher, offline=offline)
        family = _load_teacher(directory, teacher_options)
        check_guard(family, options.filters.guard)
        written = {target for _, target in family.pairs()}
        options = replace(options, targets=tuple(parse_language(t, written) for t in options.targets))
        spoken = teacher_options.spoken
        language = None if spoken is None else parse_language(spoken, family.source_languages)
        open_sources = partial(_open_sources, tuple(data), language, family.max_window_s)
        check_targets(family, open_sources(), options.targets)
    # Named as they are served: a teacher without timestamps is not said to have been asked for them.
    timed = family.capabilities.timestamps is not None
    decoding = DecodingOptions(
        beam_size=teacher_options.beam_size, draft=NONE, timestamps=timed, guard=GuardOptions(enabled=False)
    )
    card = Card.read(directory)
    computing = computing or Computing()
    alone = computing.is_alone
    with resumable(out), Bar("labelling", unit="seconds") as bar:
        return pseudo_label(
            partial(
                _open_teacher,
                directory,
                teacher_options,
                decoding,
                options.targets,
                family if alone else None,
            ),
            open_sources,
            out,
            options,
            name=card.name if card else directory.name,
            settings={
                "teacher": model_hash(directory),
                "spoken": language,
                "beam": teacher_options.beam_size,
                "engine": teacher_options.engine,
                "decoding": asdict(decoding),
                LIMIT: max_out_of_domain(family, options.filters.guard),
            },
            computing=computing,
            gpus=gpus_of(teacher_options.device),
            progress=bar.update,
        )


def _load_teacher(directory: Path, teacher_options: TeacherOptions) -> Any:
    from sprachbund.engines.choice import engine_for
    from sprachbund.models.io import load

    model = load(directory, offline=True, device=teacher_options.device)
    return engine_for(model, teacher_options.engine, directory=directory).family


def _open_teacher(
    directory: Path, teacher_options: TeacherOptions, decoding: Any, targets: tuple[str, ...], family: Any
) -> "LabelTeacher":
    """The teacher of a process; `family` is the model where it is loaded already."""
    from sprachbund.compression.pseudo_labels import LabelTeacher
    from sprachbund.evaluation.failures import identifier_for
    from sprachbund.evaluation.hypotheses import BatchDecoder

    family = _load_teacher(directory, teacher_options) if family is None else family
    identifier = identifier_for({*targets, *family.source_languages})
    return LabelTeacher(family=family, labeller=BatchDecoder(family, decoding), identifier=identifier)


def _open_sources(data: tuple[Path, ...], language: str | None, max_s: float) -> "list[LabelSource]":
    from sprachbund.compression.pseudo_labels import open_source

    return [open_source(path, language, max_s) for path in data]


def corpus_as_text(done: "LabelResult") -> str:
    """A row for each language: number of labels kept, and number dropped by reason."""
    from sprachbund.compression.pseudo_labels import KEPT

    kinds = sorted({kind for counts in done.counts.values() for kind in counts} - {KEPT})
    rows = [
        [tag, *(str(counts.get(kind, 0)) for kind in (KEPT, *kinds))] for tag, counts in done.counts.items()
    ]
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(done.left_out.items()))
    parts = [
        table(rows, ["language", KEPT, *kinds]),
        f"{done.utterances} utterances in the corpus; left out: {left_out or 'none'}",
    ]
    return "\n".join(parts)


# `sprachbund compress distil TEACHER DATA… --student MODEL --out DIR`: train a student on its teacher.

LABELS = "labels"
"""Folder of the teacher's texts in that of a run."""


_Student = Annotated[
    str, typer.Option("--student", metavar="MODEL", help="What learns; `compress prune` makes one.")
]
_StudentOut = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder of the run; DIR/model is the result.")
]
_Texts = Annotated[
    Literal["teacher", "data"],
    typer.Option("--texts", help="What is learned: the teacher's, or those in the corpora as they stand."),
]
_Dev = Annotated[
    list[Path] | None,
    typer.Option("--dev", metavar="DIR", help="Corpus that ranks the checkpoints; may be repeated."),
]
_Measured = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Corpus to measure both models on; what was learned from if not given.",
    ),
]


def distil(
    teacher: Teacher,
    data: Speech,
    student: _Student,
    out: _StudentOut,
    texts: _Texts = "teacher",
    dev: _Dev = None,
    measured: _Measured = None,
    offline: Offline = False,
    as_json: Json = False,
    *,
    labels: Annotated[LabelOptions, Panel(OWN_PANEL, only=("targets",))],
    teacher_options: Annotated[TeacherOptions, Panel(OWN_PANEL, only=("spoken",))],
    objective: Annotated[DistillationOptions, Panel("Training")],
    training: Annotated[StudentTraining, Panel("Training")],
    asked: Annotated[RunOptions, Panel("Training")],
    measuring: MeasuringAfterTraining,
) -> None:
    """Teach a student by its teacher's texts and by KL, from speech alone; both are then measured side by side."""
    set_threads(asked.threads)
    with as_usage():
        set_device(asked.device)
    learned = [out / LABELS] if texts == "teacher" else data
    values: dict[str, Any] = {
        "teacher": teacher,
        "student": student,
        "languages": labels.targets,
        "train": [{"path": path} for path in learned],
        "dev": [{"path": path} for path in dev or ()],
        "objective": objective.model_dump(),
        "training": {
            "steps": training.steps,
            "learning_rate": training.learning_rate,
            "warmup_steps": min(500, training.steps // 10),
        },
    }
    with as_usage(), Bar("starting"):
        from sprachbund.compression import distillation as recipes
        from sprachbund.training.options import make_recipe

        recipe = make_recipe(recipes.DistilRecipe, values, asked.overrides)
        _check_out(out)
        recipes.check_models(recipe, offline=offline)
        _check_corpora(dev or (), measured or ())
    if texts == "teacher":
        labelled = run_labels(
            teacher,
            data,
            out / LABELS,
            replace(labels, replace=True),
            replace(teacher_options, engine=measuring.engine, device=asked.device or TeacherOptions.device),
            offline=offline,
        )
        typer.echo(corpus_as_text(labelled), err=as_json)
    recipe = _with_spoken(recipe)
    with resumable(out), live_bar("preparing") as bar:
        model = recipes.run(
            recipe,
            out,
            report=partial(show, err=as_json),
            stop_after=asked.stop_after,
            on_step=lambda done, total: bar.update(done, total, "steps"),
            accept_changes=asked.accept_changes,
            offline=offline,
        )
    if asked.stop_after is not None and asked.stop_after < recipe.training.steps:
        return say(f"stopped at step {asked.stop_after}; the same command without --stop-after goes on")
    if not measured and texts == "teacher":
        say("measured on the teacher's own texts, by which it is faultless; name a corpus with --data")
    compared = measure(
        teacher,
        model,
        measured or learned,
        what={"verb": "distil", "recipe": recipe.model_dump(mode="json")},
        options=replace(measuring, targets=labels.targets),
        offline=offline,
    )
    print_comparison(compared, model, as_json=as_json)


def _check_out(out: Path) -> None:
    from sprachbund.compression.smaller import check_new
    from sprachbund.training.checkpoint import RECIPE_FILE

    if not ((out / RECIPE_FILE).exists() or (out / LABELS).exists()):
        check_new(out)


def _check_corpora(dev: Sequence[Path], measured: Sequence[Path]) -> None:
    """Open corpora that are read behind hours of work."""
    from sprachbund.data.manifest import Manifest
    from sprachbund.evaluation.run import open_corpus

    for path in dev:
        Manifest(path)
    for path in measured:
        open_corpus(path)


def _with_spoken(recipe: "DistilRecipe") -> "DistilRecipe":
    """The recipe with the languages that are spoken in what is learned."""
    from sprachbund.data.manifest import Manifest

    spoken: Sequence[str] = [
        tag for part in recipe.train for tag in sorted(set(Manifest(part.path).languages.tolist())) if tag
    ]
    return recipe.model_copy(update={"languages": tuple(dict.fromkeys([*recipe.languages, *spoken]))})


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    options: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
    compress = VerbApp(**options)
    compress.command("pseudo-label", help="Let a model label speech, as a corpus to train on.")(
        with_options(pseudo_label)
    )
    compress.command("prune", help="Drop layers of a model.")(with_options(prune))
    compress.command("distil", help="Train a small model on the outputs of a large one.")(
        with_options(distil)
    )
    compress.command("quantize", help="Store a model in 8 bits, or a streaming encoder in 3 to 8.")(
        with_options(quantize)
    )
    app.add_typer(compress, name="compress")
