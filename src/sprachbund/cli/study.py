"""`sprachbund study`: measurement of the effect of starts, amounts of data, latencies and numbers of bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprachbund.cli.console import Bar, as_usage, live_bar, print_json, resumable, say, table
from sprachbund.cli.options import OWN_PANEL, Panel, VerbApp, with_options
from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.study_options import AnalysisOptions, ReadOptions, StudyRunOptions
from sprachbund.training.options import RunOptions, of_path, read_recipe

if TYPE_CHECKING:
    from sprachbund.research.encoder_transfer.analysis import StudyAnalysis
    from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe
    from sprachbund.research.encoder_transfer.report import StudyReport, Table


# What `study fit` and `study report` print.


def print_analysis(analysis: "StudyAnalysis", at: Sequence[float]) -> None:
    """The report of a table as text, a paragraph for each question."""
    _print([*_findings(analysis), _decisions(analysis, at)])


def print_study(study: "StudyReport", at: Sequence[float]) -> None:
    """The report of a study: that of its table, and what its cells know."""
    from sprachbund.research.encoder_transfer import report as whole

    tables = [
        (
            f"{study.manifests[0].metric} of every start, mean over languages, seeds and tiers",
            whole.start_rows(study),
        ),
        ("gap of every cell; 95% over utterances", whole.cell_rows(study)),
        ("how soon runs were at their best", whole.sooner_rows(study)),
        ("learning rates of every start", whole.learning_rate_rows(study)),
    ]
    paragraphs = [f"{head}\n{_columns(whole.as_table(rows))}" for head, rows in tables if rows]
    _print(
        [study.missing, study.mixed, *_findings(study.analysis), *paragraphs, _decisions(study.analysis, at)]
    )


def _findings(analysis: "StudyAnalysis") -> list[str]:
    from sprachbund.research.encoder_transfer import report

    parts = [f"{report.heading(analysis)}\n{_columns(report.gap_table(analysis))}"]
    parts += report.hole_lines(analysis) + report.tier_lines(analysis)
    parts.append("\n".join(report.law_lines(analysis.fitted)))
    if analysis.by_tier and analysis.fitted.law:
        parts.append(_columns(report.tier_table(analysis)))
    parts.append(report.latency_line(analysis))
    if analysis.bit_costs:
        parts.append(_columns(report.bit_table(analysis)))
    return parts


def _decisions(analysis: "StudyAnalysis", at: Sequence[float]) -> str:
    from sprachbund.research.encoder_transfer import report

    return "\n".join(decision.sentence for decision in report.decisions(analysis, at))


def _columns(made: "Table") -> str:
    head, rows = made
    return table(rows, head)


def _print(parts: Sequence[str]) -> None:
    typer.echo("\n\n".join(part for part in parts if part))


# `sprachbund study run | resume | report`: a grid of trainings, from a file to a decision.

Out = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Running = Annotated[StudyRunOptions, Panel(OWN_PANEL)]


def run(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="GRID.toml", help="Options as those of `recipe encoder_transfer`, with a [grid]."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", help="Corpus with train, dev and test, as `data make` writes it."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the study.")],
    *,
    asked: Annotated[RunOptions, Panel(OWN_PANEL, only=("overrides",))],
    running: Running,
) -> None:
    """Run the grid of trainings of a study, the most informative first; the same command runs the missing ones."""
    with as_usage(), Bar("starting"):
        from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe

        recipe = read_recipe(EncoderTransferRecipe, file, [of_path("data", data), *asked.overrides])
    _go_on(recipe, out, running)


def resume(out: Out, *, running: Running) -> None:
    """Go on with a study that was broken off; it remembers what it is."""
    with as_usage():
        recipe = _remembered(out)
    _go_on(recipe, out, running)


def report(
    out: Out,
    as_json: Json = False,
    *,
    options: Annotated[AnalysisOptions, Panel(OWN_PANEL, only=("by", "hours"))],
) -> None:
    """Say what a study has found so far, and write tables, report and figure into its folder."""
    from sprachbund.research.encoder_transfer.report import make_report, write_report

    with as_usage():
        recipe = _remembered(out)
    with Bar("fitting"):
        study = make_report(recipe.grid, out, options)
        path = write_report(study, out, options.hours)
    if as_json:
        from sprachbund.util.files import read_json

        print_json(read_json(path))
    else:
        print_study(study, options.hours)
    if study.analysis.fitted.law is None:  # no error: a study that is not finished has few scales
        say("; ".join(study.analysis.fitted.doubts))
    say(f"tables, figure and report are in {out}")


def fit(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS.csv",
            help="Columns start and value, and any of language, hours, tier, bits, seed; missing ones are constant.",
        ),
    ],
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.png", help="Draw it; .svg and .pdf too.")
    ] = None,
    as_json: Json = False,
    *,
    reading: Annotated[ReadOptions, Panel("Results")],
    options: Annotated[AnalysisOptions, Panel("Analysis")],
) -> None:
    """Fit the law of a gap between two starts to a table of results, and say what to do."""
    from sprachbund.research.encoder_transfer import analysis
    from sprachbund.research.encoder_transfer import report as drawing
    from sprachbund.research.encoder_transfer.report import as_values
    from sprachbund.research.encoder_transfer.results import read_results

    if figure is not None:
        with as_usage():
            drawing.check_name(figure)
    grid = read_results(results, reading)
    with Bar("fitting"):
        fitted = analysis.analyse(grid, options)
        if figure is not None:
            drawing.draw(fitted, figure)
    if as_json:
        print_json(as_values(fitted, options.hours))
    else:
        print_analysis(fitted, options.hours)
    if figure is not None:
        say(f"{figure} is drawn")
    if fitted.fitted.law is None:
        raise SprachbundError("; ".join(fitted.fitted.doubts))


def _remembered(out: Path) -> "EncoderTransferRecipe":
    from sprachbund.research.encoder_transfer.recipe import read

    return read(out)


def _go_on(recipe: "EncoderTransferRecipe", out: Path, running: StudyRunOptions) -> None:
    from sprachbund.research.encoder_transfer.recipe import run_cells

    with resumable(out), live_bar("starts") as bar:
        results = run_cells(
            recipe,
            out,
            options=running,
            report=say,
            progress=lambda done, total: bar.update(done, total, "cells"),
        )
    say(f"results are in {results}; `sprachbund study report {out}` says what they mean")


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    study = VerbApp(
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command, text in (
        (run, "Run a study: its grid of trainings, or what is missing of it."),
        (resume, "Go on with a study that was broken off."),
        (report, "Say what a study has found so far."),
        (fit, "Fit the law of a gap between two starts to a table of results."),
    ):
        study.command(command.__name__, help=text)(with_options(command))
    app.add_typer(study, name="study")
