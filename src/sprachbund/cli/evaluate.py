"""Verbs that measure: `evaluate`, `compare`, `score`, `latency`, `report`, `router`, `replay`.

The options that several verbs share come first, then one section for each verb.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    listed,
    print_json,
    resumable,
    say,
    set_threads,
    table,
    threads_of_each,
)
from sprachbund.cli.models import fetch
from sprachbund.cli.options import Panel, with_options
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.options import (
    CalibrationOptions,
    CompareOptions,
    EvaluationOptions,
    ScoreOptions,
)
from sprachbund.util.computing import Computing

if TYPE_CHECKING:
    import numpy as np

    from sprachbund.data.manifest import Utterance
    from sprachbund.evaluation.figures import LabelledSpan, RouterPicture
    from sprachbund.evaluation.manifest import ResultManifest
    from sprachbund.evaluation.run import EvaluationResult


# Options that several verbs share, so that each has one name and one help text.

Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Manifest = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Write the numbers as a manifest that `replay` reads."),
]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="Where a corpus is now; may be repeated."),
]


# `sprachbund evaluate DATA…`: quality of a model on corpora, and its failures.

_OFFERED = (
    "targets",
    "sources",
    "limit",
    "batch_size",
    "decoding.beam_size",
    "decoding.allowed_languages",
    "decoding.digits",
    "decoding.punctuate",
    "decoding.tempos",
    "decoding.guard.enabled",
    "decoding.guard.max_out_of_domain",
    "no_speech_per_kind",
    "engine",
    "device",
    "right_context",
    "comet",
    "seed",
)


def evaluate(
    data: Annotated[list[Path], typer.Argument(metavar="DATA", help="Corpora, each a directory.")],
    model: Model = "bundled",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for hypotheses, texts by pair and scores.json."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a report to look at.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--speed-against", metavar="MODEL", help="Time both models side by side, on the first corpus."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that are in the folder already.")
    ] = False,
    offline: Offline = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Threads to compute with, in each process."),
    ] = None,
    as_json: Json = False,
    *,
    options: Annotated[
        EvaluationOptions, Panel("Measurement", only=_OFFERED, nested={"decoding": "Decoding"})
    ],
    computing: Annotated[Computing, Panel("Processes", without=("threads",))],
) -> None:
    """Measure how good a model is on corpora, and how it fails."""
    with as_usage():
        with Bar("starting"):
            from sprachbund.engines.choice import check_choice
            from sprachbund.evaluation import run
            from sprachbund.evaluation.manifest import MANIFEST_FILE
            from sprachbund.text.languages import UnknownLanguageError
        check_choice(options.engine, threads, options.device)
    if computing.is_alone and computing.block != Computing.block:
        raise UsageError(
            f"--block {computing.block} is for several processes, and there is one; leave it out, or give --workers"
        )
    if options.seed != EvaluationOptions.seed and not options.no_speech_per_kind:
        raise UsageError(
            f"--seed {options.seed} is of the sounds without speech, and --no-speech 0 makes none; leave it out"
        )
    if overwrite and out is None:
        raise UsageError(
            "--overwrite is for the results of --out, which is not given; add it, or leave both out"
        )
    if out is not None and (out / MANIFEST_FILE).exists() and not overwrite:
        raise SprachbundError(
            f"{out} holds results already; --overwrite replaces them, --out writes elsewhere"
        )
    _check_written(report, "--report", ".html", data)
    set_threads(threads)
    computing = replace(computing, threads=threads or threads_of_each(computing.workers))
    directory = fetch(model, offline=offline)
    if against is not None and fetch(against, offline=offline) == directory:
        raise UsageError(f"--speed-against names the model itself, {against}; name another one")
    with as_usage(UnknownLanguageError), ExitStack() as stack, Bar("evaluating") as bar:
        if out is not None and not computing.is_alone:
            stack.enter_context(resumable(out))
        folder = out
        if report is not None and out is None:  # the report reads the hypotheses from a file
            folder = Path(stack.enter_context(TemporaryDirectory()))

        def progress(what: str, done: int, total: int) -> None:
            bar.update(done, total, what)

        if against is not None:  # refused now, not after hours; loaded anew later, so that nothing is held
            progress("loading both models", 0, 0)
            run.check_race(data[0], [against, model], options, offline=offline)
        result = run.evaluate(
            data,
            model,
            options,
            out=folder,
            computing=computing,
            offline=offline,
            progress=progress,
        )
        if against is not None:
            result.manifest.race = run.race_models(
                data[0], [against, model], options, offline=offline, progress=progress
            )
            if out is not None:
                result.manifest.write(out / MANIFEST_FILE)
        _write_report(result, report)
    _print_result(result.manifest, out, as_json=as_json)


def _write_report(result: "EvaluationResult", path: Path | None) -> None:
    from sprachbund.evaluation.report import write_report

    if path is not None:
        write_report(result.lines(), result.manifest, path)


def _print_result(manifest: "ResultManifest", out: Path | None, *, as_json: bool) -> None:
    from sprachbund.evaluation import tables as present

    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    typer.echo(present.as_text(manifest))
    if out is not None:
        typer.echo(f"hypotheses, texts by pair and scores.json are in {out}")


# `sprachbund calibrate DATA… --model DIR`: what a model does not understand; or when a speaker has finished.


def calibrate(
    *,
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DATA",
            help="Corpora of speech that the model understands, and of sound that it does not; without any, --test "
            "measures the calibration that the model has.",
        ),
    ] = None,
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="Directory of the model.")],
    test: Annotated[
        list[Path] | None,
        typer.Option("--test", metavar="DIR", help="Corpus to measure the threshold on; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the tables of what --test measures."),
    ] = None,
    turns: Annotated[
        bool,
        typer.Option(
            "--turns", help="Find out instead when a speaker has finished, from sentences whole and cut off."
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to compute with.")
    ] = None,
    as_json: Json = False,
    options: Annotated[CalibrationOptions, Panel("Calibration")],
) -> None:
    """Write into a model's directory how it finds out what it does not understand."""
    if not data and (turns or not test):
        raise UsageError("DATA is missing: name corpora to calibrate with")
    if turns and (test or out is not None):
        raise UsageError("--test and --out are for what is not understood; leave them out with --turns")
    if turns and options.right_context is not None:
        raise UsageError("--tier is for what is not understood; leave it out with --turns")
    with as_usage(), Bar("starting"):
        from sprachbund.data.manifest import check_apart

        check_apart(data or [], test or [])
    if turns:
        set_threads(threads)
        return _calibrate_turns(data or [], model, options, as_json=as_json)
    with as_usage(), Bar("starting"):
        from sprachbund.engines.choice import engine_for
        from sprachbund.evaluation import calibration
        from sprachbund.models.base import use_tier
        from sprachbund.models.io import load, locate
    for option, value in (("--out", out), ("--tier", options.right_context)):
        if value is not None and not test:
            raise UsageError(f"{option} is for what --test measures; give --test too")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    directory = _to_write_into(model) if data else locate(model, offline=True)
    set_threads(threads)
    with Bar("calibrating") as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.update(done, total, what)

        family = engine_for(load(directory, offline=True), "auto", directory=directory).family
        if options.right_context is not None:
            use_tier(family, options.right_context)
        domain = family.calibration.domain
        if data:
            domain = calibration.fit(
                calibration.collect(family, data, options, vary=True, progress=progress), options
            )
        if domain is None:
            raise UsageError(f"{model} was not calibrated; name corpora to calibrate it with")
        measured = {}
        if test:
            tested = calibration.collect(
                family, test, options, vary=False, layers=domain.layers, progress=progress
            )
            measured = calibration.measure(tested, domain)
        if data:
            domain.write(directory)
    if out is not None:
        origin = calibration.provenance(directory, data or [], test or [], options)
        calibration.write_tables(out, measured, origin)
    if as_json:
        print_json({"threshold": domain.threshold, **measured})
        return
    typer.echo(
        f"texts with a probability above {domain.threshold:g} are dropped{' from now on' if data else ''}"
    )
    for rows in measured.values():
        heads = list(rows[0])
        cells = [[f"{row[head]}" for head in heads] for row in rows]
        typer.echo(table(cells, [head.replace("_", " ") for head in heads]))


def _to_write_into(model: Path) -> Path:
    """The directory of a model, which a name is not: nobody looks for a calibration where the model does not lie."""
    from sprachbund.models.io import locate

    if model.is_dir():
        return model
    raise UsageError(
        f"a calibration is written into the directory of a model, and {model} is the name of one; copy "
        f"{locate(model, offline=True)}, and give the copy"
    )


def _calibrate_turns(data: list[Path], model: Path, options: CalibrationOptions, *, as_json: bool) -> None:
    with as_usage(), Bar("starting"):
        from itertools import chain

        from sprachbund.engines.choice import engine_for
        from sprachbund.evaluation import turns
        from sprachbund.models.io import load
    directory = _to_write_into(model)
    family = engine_for(load(directory, offline=True), "auto", directory=directory).family
    sentences = chain.from_iterable(turns.read_sentences(corpus, options.limit) for corpus in data)
    with Bar("calibrating") as bar:
        total = options.limit * len(data)
        states, finished = turns.collect(
            family, sentences, options, lambda done: bar.update(done, total, "sentences")
        )
        turns.fit(states, finished).write(directory)
    counts = {"finished": int(finished.sum()), "cut_off": int((~finished).sum())}
    if as_json:
        print_json(counts)
        return
    typer.echo(
        f"live sessions may end turns by sentences from now on (--turn-end sentence): learned from "
        f"{counts['finished']} sentences and {counts['cut_off']} cut off"
    )


# `sprachbund compare A B…`: systems with confidence intervals and significance.


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH",
            help="Folders that `evaluate --out` wrote, or text files; NAME=A,B are runs of different seeds.",
        ),
    ],
    out: Manifest = None,
    as_json: Json = False,
    *,
    options: Annotated[CompareOptions, Panel("Comparison")],
) -> None:
    """Compare systems with intervals and significance; the first is the baseline."""
    from sprachbund.evaluation import compare as comparing

    with as_usage(), Bar("comparing") as bar:
        named = replace(options, language=_tag_of(options.language))
        reference = None if options.reference is None else Path(options.reference)
        parsed = [comparing.parse_system(spec, reference) for spec in systems]
        if options.language and reference is None:
            raise SprachbundError(
                f"--language {options.language} is that of text files, beside --reference; folders say theirs"
            )
        comparing.check_names([name for name, _ in parsed])
        runs = {name: list(map(str, paths)) for name, paths in parsed}
        inputs = [path for _, paths in parsed for path in paths]
        _check_written(out, "--out", ".json", [*inputs, *([reference] if reference else [])])
        compared = comparing.ComparedFiles(systems=runs, **vars(named))
        comparison = comparing.compare_files(
            compared, progress=lambda what, done: bar.update(done, label=what)
        )
    if out is not None:
        comparing.manifest_of_comparison(compared, comparison).write(out)
    if as_json:
        print_json(comparing.comparison_values(comparison))
        return
    for shown in comparing.tables(comparison):
        typer.echo(shown.text())
    for name, scorer in comparison.metrics.items():
        typer.echo(f"{name}: {scorer.signature}")
    typer.echo("\n" + "\n".join(comparing.claims(comparison)))


def _tag_of(language: str) -> str:
    """The tag of what was typed as `--language`; "" where nothing was."""
    from sprachbund.text.languages import tag_of

    return tag_of(language, "--language") if language else ""


def _check_written(path: Path | None, option: str, suffix: str, inputs: Sequence[Path]) -> None:
    """See that a file to be written is named as one, and replaces nothing that is read.

    Args:
        path: the file, if any.
        option: option that names it.
        suffix: end of its name.
        inputs: files and folders that the command reads.

    Raises:
        UsageError: it has another end, or is an input or a file of one.
    """
    if path is None:
        return
    if path.suffix != suffix:
        raise UsageError(f"{option} {path} does not end in {suffix}; name a file that does")
    resolved = path.resolve()
    for given in inputs:
        if given.resolve() in (resolved, resolved.parent) and path.exists():
            raise UsageError(f"{option} {path} would replace what is read from {given}; name another file")


# `sprachbund score HYPOTHESES REFERENCES`: scores of text files, or of a folder that `evaluate` wrote.


def score(
    hypotheses: Annotated[
        Path,
        typer.Argument(
            metavar="HYPOTHESES", help="One text per line, UTF-8; or a folder that `evaluate --out` wrote."
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Argument(metavar="REFERENCES", help="One text per line, UTF-8; not with a folder."),
    ] = None,
    out: Manifest = None,
    as_json: Json = False,
    *,
    options: Annotated[ScoreOptions, Panel("Scoring")],
) -> None:
    """Score a file of texts against a file of references, raw and normalized; or the hypotheses in a folder of
    results, as `evaluate` does, without the model."""
    _check_written(out, "--out", ".json", [hypotheses, *([references] if references else [])])
    if references is None:
        for_files = {"--language": options.language, "--metrics": options.metrics, "--ids": options.ids}
        given_too = [name for name, value in for_files.items() if value]
        _score_folder(hypotheses, given_too, out, as_json=as_json)
        return
    from sprachbund.evaluation import compare as comparing
    from sprachbund.evaluation.metrics import METRICS

    with as_usage():
        metrics = options.metrics or tuple(METRICS)
        named = replace(options, language=_tag_of(options.language), metrics=metrics)
        scored = comparing.ScoredFiles(hypotheses=str(hypotheses), references=str(references), **vars(named))
        rows, count = comparing.score_files(scored)
    if out is not None:
        comparing.manifest_of_scores(scored, rows).write(out)
    if as_json:
        print_json(rows)
        return
    cells = [
        [row["metric"], f"{row['raw']:.2f}", f"{row['normalized']:.2f}", row["signature"]] for row in rows
    ]
    typer.echo(table(cells, ["metric", "raw", "normalized", "signature"]))
    typer.echo(f"{count} texts")


def _score_folder(folder: Path, given_too: list[str], out: Path | None, *, as_json: bool) -> None:
    """Score the written hypotheses again, and say whether the written scores are theirs."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of results; give a file of references too")
    if given_too:
        raise UsageError(
            f"{', '.join(given_too)} go with text files; a folder's scores are those of `evaluate`"
        )
    with Bar("scoring") as bar:
        from sprachbund.evaluation import tables as present
        from sprachbund.evaluation.manifest import MANIFEST_FILE, differences, read_manifest
        from sprachbund.evaluation.run import rescore

        written = read_manifest(folder)
        scored = rescore(folder, written, progress=lambda done: bar.update(done))
    different = differences(written, scored)
    if out is not None:
        scored.write(out)
    if as_json:
        print_json({**scored.model_dump(mode="json"), "different": list(different)})
        return
    typer.echo(present.as_text(scored))
    count = len(written.numbers) + len(written.failures)
    verdict = f"{len(different)} of {count} numbers differ from" if different else "the same as"
    if written.configuration.get("comet"):
        say("COMET was not scored again, which takes its model; its numbers are those that were written")
    typer.echo("\n".join([f"{verdict} {folder / MANIFEST_FILE}", *(f"  {line}" for line in different[:20])]))


# `sprachbund latency LOG… --references REFS`: latency of live translation.


def latency(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG", help="What was written when; a JSON object a line."),
    ],
    references: Annotated[
        Path,
        typer.Option(
            "--references", metavar="FILE", help="Lines with talk, target, start_s, end_s and text."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Score logs of live translation against the segments of their talks, by the ideal clock and with
    computation."""
    from sprachbund.evaluation.emissions import read_logs, read_references
    from sprachbund.evaluation.latency import latency_table, means, score_talk

    wanted = read_references(references)
    emission_logs, talks = read_logs(logs), []
    with Bar("scoring", len(emission_logs)) as bar:
        for number, log in enumerate(emission_logs, start=1):
            talks.append(score_talk(log, wanted.get((log.talk, log.target), [])))
            bar.update(number)
    over_talks = means(talks)
    without_log = sorted(wanted.keys() - {(talk.talk, talk.target) for talk in talks})
    if as_json:
        print_json(
            {
                "talks": [talk.to_dict() for talk in talks],
                "means": [mean.to_dict() for mean in over_talks],
                "without_log": [{"talk": talk, "target": target} for talk, target in without_log],
            }
        )
    else:
        typer.echo(latency_table(talks, over_talks).text(), nl=False)
    _print_talks("not scored, as no log has them", without_log)
    silent = [(talk.talk, talk.target) for talk in talks if not talk.num_units]
    _print_talks("nothing was written, so there is no latency and means are without", silent)


def _print_talks(what: str, talks: Sequence[tuple[str, str]]) -> None:
    """Print a line with the talks, unless there are none."""
    if talks:
        say(f"{what}: {', '.join(f'{talk} into {target}' for talk, target in talks)}")


# `sprachbund report RESULTS --out FILE.html`: an evaluation as an HTML page.


def report(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `evaluate --out` wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page.")] = Path("report.html"),
    data: Data = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, help="Worst and random examples each.")
    ] = 12,
) -> None:
    """Write what an evaluation found as one HTML page, with sound."""
    _check_written(out, "--out", ".html", [])
    with Bar("drawing"):
        from sprachbund.evaluation.lines import HYPOTHESES_FILE, read_lines
        from sprachbund.evaluation.manifest import read_manifest
        from sprachbund.evaluation.report import write_report

        manifest = read_manifest(results)
        lines = read_lines(results / HYPOTHESES_FILE)
        write_report(lines, manifest, out, data=data or None, num_examples=examples)
    say(f"the report is in {out}")


# `sprachbund router FILE`: a figure of the experts that a model with experts by language chose over time.

_FORMATS = (".png", ".svg", ".pdf")


def router(
    audio: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recording; or a corpus, with --utterance.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A speech LLM: its directory.")],
    utterance: Annotated[
        str | None,
        typer.Option("--utterance", metavar="ID", help="Of the corpus; its words stand under the picture."),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--languages", metavar="LANG,…", help="That may be spoken; all if not given."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="LANG", help="Language of the words under a recording.")
    ] = "transcribe",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: png, svg or pdf.")] = Path(
        "router.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the spans as a JSON object.")] = False,
) -> None:
    """Draw groups by frames, with the words under them."""
    from sprachbund.evaluation.figures import draw_router

    with as_usage():
        if out.suffix.lower() not in _FORMATS:
            raise SprachbundError(f"--out {out} is no picture; end it with {', '.join(_FORMATS)}")
        samples, texts, title = _read_recording(audio, utterance)
    with Bar(f"loading {model}"):
        picture = _routing_figure(model, samples, texts, title, listed(languages), to)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_router(picture, out)
    rows = [[f"{s.start_s:.2f}", f"{s.end_s:.2f}", s.language] for s in picture.heard]
    if as_json:
        spans = [{"start_s": s.start_s, "end_s": s.end_s, "language": s.language} for s in picture.heard]
        return print_json({"picture": str(out), "spans": spans})
    typer.echo(table(rows, ["from", "to", "heard"]))
    say(f"the picture is in {out}")


def _read_recording(audio: Path, utterance: str | None) -> "tuple[np.ndarray, list[LabelledSpan], str]":
    """Samples (N,) at 16 kHz, spans of text with their times (empty if unknown), and a title."""
    from sprachbund.audio.load import open_audio
    from sprachbund.data.manifest import Manifest

    if not audio.is_dir():
        if utterance is not None:
            raise SprachbundError(
                f"--utterance {utterance} is of a corpus, and {audio} is none; leave it out"
            )
        import numpy as np

        return np.concatenate(list(open_audio(str(audio)).blocks())), [], audio.name
    manifest = Manifest(audio)
    if utterance is None:
        raise SprachbundError(
            f"{audio} is a corpus; name one of its {len(manifest)} with --utterance, as {manifest[0].id}"
        )
    index = next((i for i in range(len(manifest)) if manifest[i].id == utterance), None)
    if index is None:
        raise SprachbundError(
            f"{audio} has no utterance {utterance!r}; `sprachbund data show {audio}` lists some"
        )
    return manifest.samples(index), _labelled_spans(manifest[index]), utterance


def _labelled_spans(utterance: "Utterance") -> "list[LabelledSpan]":
    """The spans of an utterance with their words; the whole where it has none."""
    from sprachbund.data.language_spans import timed_spans
    from sprachbund.evaluation.figures import LabelledSpan

    spans: list[dict[str, Any]] = list(utterance.custom.get("spans") or [])
    if not timed_spans(utterance):
        return [
            LabelledSpan(
                start_s=0.0, end_s=utterance.duration_s, language=utterance.language, text=utterance.text
            )
        ]
    return [
        LabelledSpan(start_s=s["start_s"], end_s=s["end_s"], language=s["language"], text=s.get("text", ""))
        for s in spans
    ]


def _routing_figure(
    name: str, samples: "np.ndarray", texts: "list[LabelledSpan]", title: str, languages: list[str], to: str
) -> "RouterPicture":
    import torch

    from sprachbund.api import load
    from sprachbund.audio.constants import SAMPLE_RATE
    from sprachbund.decoding.encoding import encode
    from sprachbund.decoding.languages import read_request
    from sprachbund.evaluation.figures import LabelledSpan, RouterPicture
    from sprachbund.models.speech_llm import RoutedMemory, SpeechLLM

    model = load(name, engine="torch")
    family = model.family
    if not isinstance(family, SpeechLLM):
        raise SprachbundError(
            f"{name} is of the family {family.name!r}, which has no experts by language; name a speech LLM"
        )
    duration_s = len(samples) / SAMPLE_RATE
    request = read_request(family, source=None, targets=[to], allowed=languages or None)
    with torch.inference_mode():
        memory = encode(family, family.features([samples]), [None], [request.allowed])
    assert isinstance(memory, RoutedMemory)
    if not texts:
        translation = model.translate(samples, to, languages=languages or None, sample_rate=SAMPLE_RATE)
        texts = [
            LabelledSpan(start_s=s.start_s, end_s=s.end_s, language=s.target_language, text=s.text)
            for s in translation.segments
        ]
    heard = [
        LabelledSpan(start_s=a, end_s=b, language=tag) for a, b, tag in family.spans(memory, [duration_s])[0]
    ]
    return RouterPicture(
        mass=memory.group_probs[0].float().numpy(),
        groups=["+".join(tags) for tags in family.config.projector.groups],
        frame_s=family.frame_s,
        duration_s=duration_s,
        heard=heard,
        texts=texts,
        title=title,
    )


# `sprachbund replay MANIFEST`: measure a result manifest again and compare the numbers.


def replay(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="scores.json, or the folder it is in.")
    ],
    data: Data = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Where the model is now.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure a result manifest again, and say whether it came out the same; exit code 1 when not."""
    with Bar("starting") as bar:
        from sprachbund.evaluation.replay import replay as run

        result = run(
            manifest,
            data=data or (),
            model=model,
            offline=offline,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    if as_json:
        print_json(
            {"same": result.same, "different": list(result.different), "changed": list(result.changed)}
        )
    else:
        typer.echo(result.in_words())
    if not result.same:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the verbs of evaluation."""
    app.command()(with_options(evaluate))
    app.command()(with_options(calibrate))
    app.command()(with_options(compare))
    app.command()(with_options(score))
    app.command()(latency)
    app.command()(report)
    app.command()(router)
    app.command()(replay)
