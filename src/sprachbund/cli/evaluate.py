"""`sprachbund evaluate DATA…`: how good a model is on corpora, and how it fails."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.console import Bar, as_usage, listed, print_json, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Measure how good a model is on corpora, and how it fails.")(evaluate)


def evaluate(
    data: Annotated[list[Path], typer.Argument(metavar="DATA", help="Corpora, each a directory.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="bundled, a model directory, or a Hugging Face id."),
    ] = "bundled",
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="LANG,…", help="Languages wanted; all that have references if not given."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Most utterances of a corpus, spread over it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for hypotheses, texts by pair and scores.json."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a report to look at.")
    ] = None,
    beam: Annotated[int, typer.Option("--beam", metavar="N", help="Hypotheses kept; 1 is greedy.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1)] = 16,
    no_guard: Annotated[
        bool,
        typer.Option("--no-guard", help="Score all that the model writes, not what the guard lets pass."),
    ] = False,
    no_speech: Annotated[
        int, typer.Option("--no-speech", metavar="N", min=0, help="Sounds of each kind in the no-speech set.")
    ] = 12,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the no-speech set.")] = 2024,
    comet: Annotated[
        str | None, typer.Option("--comet", metavar="MODEL", help="Score with COMET too, if it is installed.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--speed-against", metavar="MODEL", help="Time both models side by side.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to compute with.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result manifest, a JSON object.")
    ] = False,
) -> None:
    """Measure how good a model is on corpora, and how it fails."""
    with as_usage():
        with Bar("starting"):
            import torch

            from sprachbund.decoding.options import DecodingOptions, GuardOptions
            from sprachbund.evaluation import options as opts
            from sprachbund.evaluation import present, run
            from sprachbund.evaluation.report import write_report
        options = opts.EvaluationOptions(
            targets=tuple(listed(to)) or None,
            limit=limit,
            batch_size=batch_size,
            decoding=DecodingOptions(beam_size=beam, guard=GuardOptions(enabled=not no_guard)),
            no_speech_per_kind=no_speech,
            comet=comet,
            seed=seed,
        )
    if threads is not None:
        torch.set_num_threads(threads)
    with Bar("evaluating") as bar:
        result = run.evaluate(
            data,
            model,
            options,
            out=out,
            offline=offline,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    if report is not None:
        write_report(result.lines, result.manifest, report)
    rows = []
    if against is not None:
        with Bar("timing both models"):
            rows = run.race_models(data[0], [against, model], options, offline=offline)
    if as_json:
        plain = result.manifest.model_dump(mode="json")
        print_json({**plain, "race": rows} if rows else plain)
        return
    typer.echo(present.as_text(result.manifest))
    if rows:
        typer.echo("\n" + table([[str(v) for v in row.values()] for row in rows], list(rows[0])))
    if out is not None:
        typer.echo(f"hypotheses, texts by pair and scores.json are in {out}")
