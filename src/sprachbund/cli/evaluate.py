"""`sprachbund evaluate DATA…`: how good a model is on corpora, and how it fails."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, as_usage, listed, print_json
from sprachbund.cli.translate import Allowed, EngineName

if TYPE_CHECKING:
    from sprachbund.evaluation.manifest import ResultManifest
    from sprachbund.evaluation.run import Evaluation
    from sprachbund.runtime.engine import EngineChoice

_Data = Annotated[list[Path], typer.Argument(metavar="DATA", help="Corpora, each a directory.")]
_To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="LANG,…", help="Languages wanted; all that have references if not given."),
]
_Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Most utterances of a corpus, spread over it."),
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder for hypotheses, texts by pair and scores.json."),
]
_Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Write a report to look at.")
]
_Beam = Annotated[int, typer.Option("--beam", metavar="N", min=1, help="Hypotheses kept; 1 is greedy.")]
_BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Utterances at a time; changes no score.")
]
_NoGuard = Annotated[
    bool, typer.Option("--no-guard", help="Score all that the model writes, not what the guard lets pass.")
]
_NoSpeech = Annotated[
    int, typer.Option("--no-speech", metavar="N", min=0, help="Sounds of each kind in the no-speech set.")
]
_Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of the no-speech set.")]
_Comet = Annotated[
    str | None,
    typer.Option("--comet", metavar="MODEL", help="Score with COMET too: its model's directory, or a name."),
]
_Against = Annotated[
    str | None, typer.Option("--speed-against", metavar="MODEL", help="Time both models side by side.")
]
_Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to compute with.")
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Measure how good a model is on corpora, and how it fails.")(evaluate)


def evaluate(
    data: _Data,
    model: given.Model = "bundled",
    to: _To = None,
    languages: Allowed = None,
    limit: _Limit = None,
    out: _Out = None,
    report: _Report = None,
    beam: _Beam = 1,
    batch_size: _BatchSize = 16,
    no_guard: _NoGuard = False,
    no_speech: _NoSpeech = 12,
    seed: _Seed = 2024,
    engine: EngineName = "torch",
    comet: _Comet = None,
    against: _Against = None,
    offline: given.Offline = False,
    threads: _Threads = None,
    as_json: given.Json = False,
) -> None:
    """Measure how good a model is on corpora, and how it fails."""
    with as_usage():
        with Bar("starting"):
            import torch

            from sprachbund.decoding.options import DecodingOptions, GuardOptions
            from sprachbund.evaluation import options as opts
            from sprachbund.evaluation import run
            from sprachbund.evaluation.manifest import MANIFEST_FILE
            from sprachbund.models.directory import locate
            from sprachbund.runtime.engine import check_choice
        options = opts.EvaluationOptions(
            targets=tuple(listed(to)) or None,
            limit=limit,
            batch_size=batch_size,
            decoding=DecodingOptions(
                beam_size=beam,
                allowed_languages=tuple(listed(languages)) or None,
                guard=GuardOptions(enabled=not no_guard),
            ),
            no_speech_per_kind=no_speech,
            engine=cast("EngineChoice", engine),
            comet=comet,
            seed=seed,
        )
        check_choice(options.engine, threads)
    if threads is not None:
        torch.set_num_threads(threads)
    if against is not None:
        locate(against, offline=offline)  # one that is not there is told before the work
    with ExitStack() as stack, Bar("evaluating") as bar:
        folder = out
        if report is not None and out is None:  # the report reads the hypotheses from a file
            folder = Path(stack.enter_context(TemporaryDirectory()))
        result = run.evaluate(
            data,
            model,
            options,
            out=folder,
            offline=offline,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
        if against is not None:
            bar.update(0, None, "timing both models")
            result.manifest.race = run.race_models(data[0], [against, model], options, offline=offline)
            if out is not None:
                result.manifest.write(out / MANIFEST_FILE)
        _write_report(result, report)
    _print(result.manifest, out, as_json=as_json)


def _write_report(result: "Evaluation", path: Path | None) -> None:
    from sprachbund.evaluation.report import write_report

    if path is not None:
        write_report(result.lines(), result.manifest, path)


def _print(manifest: "ResultManifest", out: Path | None, *, as_json: bool) -> None:
    from sprachbund.evaluation import present

    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    typer.echo(present.as_text(manifest))
    if out is not None:
        typer.echo(f"hypotheses, texts by pair and scores.json are in {out}")
