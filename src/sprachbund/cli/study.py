"""`sprachbund study`: what a start, an amount of data, a latency and a number of bits are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, say
from sprachbund.cli.study_run import check_hours, one_of, report, resume, run
from sprachbund.cli.study_telling import tell
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.studies.results import ReadOptions


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    study = typer.Typer(
        help="Study what a start, hours of data, latency and bits are worth.",
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
    from sprachbund.studies import analysis, power_law
    from sprachbund.studies import figure as drawing
    from sprachbund.studies.report import as_values
    from sprachbund.studies.results import read_results

    with as_usage():
        options = _read_options(metric, better, arms, where, ignore, uneven_seeds=uneven_seeds)
        how: Any = one_of("--by", by, get_args(power_law.By))
        if figure is not None:
            drawing.check_name(figure)
        check_hours(at)
    grid = read_results(results, options)
    with Bar("fitting"):
        found = analysis.analyse(grid, by=how, draws=draws, seed=seed)
        if figure is not None:
            drawing.draw(found, figure)
    if as_json:
        print_json(as_values(found, at or ()))
    else:
        tell(found, at or [])
    if figure is not None:
        say(f"{figure} is drawn")
    if found.fitted.law is None:
        raise SprachbundError("; ".join(found.fitted.doubts))


def _read_options(
    metric: str,
    better: str,
    arms: str | None,
    where: list[str] | None,
    ignore: list[str] | None,
    *,
    uneven_seeds: bool,
) -> "ReadOptions":
    from sprachbund.studies.results import Better, ReadOptions

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
