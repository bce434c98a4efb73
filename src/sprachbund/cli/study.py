"""`sprachbund study`: what a start, an amount of data, a latency and a number of bits are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

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
    table,
)
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.research.encoder_transfer.analysis import StudyAnalysis
    from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe
    from sprachbund.research.encoder_transfer.report import StudyReport, Table
    from sprachbund.research.encoder_transfer.results import ReadOptions


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
    ]
    paragraphs = [f"{head}\n{_columns(whole.as_table(rows))}" for head, rows in tables if rows]
    _print([study.missing, *_findings(study.analysis), *paragraphs, _decisions(study.analysis, at)])


def _findings(analysis: "StudyAnalysis") -> list[str]:
    from sprachbund.research.encoder_transfer import report

    parts = [f"{report.heading(analysis)}\n{_columns(report.gap_table(analysis))}"]
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
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Trainings at a time, one thread each.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Of a Ray cluster that shares the folders; local for one here."
    ),
]
At = Annotated[list[float] | None, typer.Option("--at", metavar="HOURS", help="Decide for so much data.")]
By = Annotated[
    str,
    typer.Option("--by", help="Least squares of: log, ln(gap) as published; gaps, which bears more noise."),
]


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
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the file; may be repeated."),
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
) -> None:
    """Run the grid of trainings of a study, the most informative first; the same command runs the missing ones."""
    from sprachbund.training.options import read_recipe

    with as_usage(), Bar("starting"):
        from sprachbund.research.encoder_transfer.recipe import EncoderTransferRecipe

        recipe = read_recipe(EncoderTransferRecipe, file, [f'data="{data}"', *(overrides or ())])
    _go_on(recipe, out, workers, ray)


def resume(out: Out, workers: Workers = None, ray: Ray = None) -> None:
    """Go on with a study that was broken off; it remembers what it is."""
    with as_usage():
        recipe = _remembered(out)
    _go_on(recipe, out, workers, ray)


def report(
    out: Out,
    at: At = None,
    by: By = "log",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Say what a study has found so far, and write tables, report and figure into its folder."""
    from sprachbund.research.encoder_transfer import power_law
    from sprachbund.research.encoder_transfer.report import make_report, write_report

    with as_usage():
        how: Any = one_of("--by", by, get_args(power_law.By))
        check_hours(at)
        recipe = _remembered(out)
    with Bar("fitting"):
        study = make_report(recipe.grid, out, by=how)
        path = write_report(study, out, at or ())
    if as_json:
        from sprachbund.util.files import read_json

        print_json(read_json(path))
    else:
        print_study(study, at or ())
    say(f"tables, figure and report are in {out}")
    if study.analysis.fitted.law is None:
        raise SprachbundError("; ".join(study.analysis.fitted.doubts))


def one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    """The value of an option. Raises UsageError for one that is not known."""
    if value not in known:
        raise UsageError(f"{option} is {value!r}; give {' or '.join(known)}")
    return value


def check_hours(at: list[float] | None) -> None:
    """See that hours are hours. Raises UsageError."""
    for hours in at or ():
        if not 0 < hours < float("inf"):
            raise UsageError(f"--at is {hours:g}; give hours above 0")


def _remembered(out: Path) -> "EncoderTransferRecipe":
    from sprachbund.research.encoder_transfer.recipe import read

    return read(out)


def _go_on(recipe: "EncoderTransferRecipe", out: Path, workers: int | None, ray: str | None) -> None:
    from sprachbund.research.encoder_transfer.recipe import run_cells

    if workers is not None:
        recipe = recipe.model_copy(update={"workers": workers})
    with resumable(out), live_bar("starts") as bar:
        results = run_cells(
            recipe,
            out,
            ray_address=ray,
            report=say,
            progress=lambda done, total: bar.update(done, total, "cells"),
        )
    say(f"results are in {results}; `sprachbund study report {out}` says what they mean")


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    study = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    study.command("run", help="Run a study: its grid of trainings, or what is missing of it.")(run)
    study.command("resume", help="Go on with a study that was broken off.")(resume)
    study.command("report", help="Say what a study has found so far.")(report)
    study.command("fit", help="Fit the law of a gap between two starts to a table of results.")(fit)
    app.add_typer(study, name="study")


def fit(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS.csv",
            help="Columns start and value, and any of language, hours, tier, bits, seed; missing ones are constant.",
        ),
    ],
    metric: Annotated[str, typer.Option("--metric", metavar="COLUMN", help="The scores.")] = "value",
    better: Annotated[str, typer.Option("--better", help="Which scores are: lower or higher.")] = "lower",
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="A,B", help="Two starts; the gap is how much better A is."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=VALUE", help="Read only such rows; may be repeated."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="COLUMN,…", help="Columns that are not to be looked at."),
    ] = None,
    uneven_seeds: Annotated[
        bool, typer.Option("--uneven-seeds", help="Cells may have different seeds.")
    ] = False,
    by: Annotated[
        str,
        typer.Option(
            "--by", help="Least squares of: log, ln(gap) as published; gaps, which bears more noise."
        ),
    ] = "log",
    at: Annotated[
        list[float] | None, typer.Option("--at", metavar="HOURS", help="Decide for so much data.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", min=100, help="Of languages.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")] = 12345,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.png", help="Draw it; .svg and .pdf too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Fit the law of a gap between two starts to a table of results, and say what to do."""
    from sprachbund.research.encoder_transfer import analysis, power_law
    from sprachbund.research.encoder_transfer import report as drawing
    from sprachbund.research.encoder_transfer.report import as_values
    from sprachbund.research.encoder_transfer.results import read_results

    with as_usage():
        options = _read_options(metric, better, arms, where, ignore, uneven_seeds=uneven_seeds)
        how: Any = one_of("--by", by, get_args(power_law.By))
        if figure is not None:
            drawing.check_name(figure)
        check_hours(at)
    grid = read_results(results, options)
    with Bar("fitting"):
        fitted = analysis.analyse(grid, by=how, draws=draws, seed=seed)
        if figure is not None:
            drawing.draw(fitted, figure)
    if as_json:
        print_json(as_values(fitted, at or ()))
    else:
        print_analysis(fitted, at or [])
    if figure is not None:
        say(f"{figure} is drawn")
    if fitted.fitted.law is None:
        raise SprachbundError("; ".join(fitted.fitted.doubts))


def _read_options(
    metric: str,
    better: str,
    arms: str | None,
    where: list[str] | None,
    ignore: list[str] | None,
    *,
    uneven_seeds: bool,
) -> "ReadOptions":
    from sprachbund.research.encoder_transfer.results import Better, ReadOptions

    direction: Any = one_of("--better", better, get_args(Better))
    two = listed([arms]) if arms else []
    if arms and len(two) != 2:
        raise UsageError(f"--arms is {arms!r}; give two different starts, A,B")
    pairs = [part.partition("=") for part in where or ()]
    for column, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--where is {column!r}; give COLUMN=VALUE")
    return ReadOptions(
        metric=metric,
        better=direction,
        arms=(two[0], two[1]) if two else None,
        where=tuple((column.strip(), value.strip()) for column, _, value in pairs),
        ignore=tuple(listed(ignore)),
        uneven_seeds=uneven_seeds,
    )
