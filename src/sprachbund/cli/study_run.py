"""`sprachbund study run | resume | report`: a grid of trainings, from a file to a decision."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, print_json, resumable, say
from sprachbund.cli.study_telling import tell_study
from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_json

if TYPE_CHECKING:
    from sprachbund.recipes.encoder_transfer import EncoderTransferRecipe

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
    """Run a study: its grid of trainings, what tells most first; the same command again makes what is missing."""
    from sprachbund.recipes.options import read_recipe

    with as_usage(), Bar("starting"):
        from sprachbund.recipes.encoder_transfer import EncoderTransferRecipe

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
    from sprachbund.studies import power_law
    from sprachbund.studies.whole import make_report, write_report

    with as_usage():
        how: Any = one_of("--by", by, get_args(power_law.By))
        check_hours(at)
        recipe = _remembered(out)
    with Bar("fitting"):
        found = make_report(recipe.grid, out, by=how)
        path = write_report(found, out, at or ())
    if as_json:
        print_json(read_json(path))
    else:
        tell_study(found, at or ())
    say(f"tables, figure and report are in {out}")
    if found.analysis.fitted.law is None:
        raise SprachbundError("; ".join(found.analysis.fitted.doubts))


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
    from sprachbund.recipes.encoder_transfer import read

    return read(out)


def _go_on(recipe: "EncoderTransferRecipe", out: Path, workers: int | None, ray: str | None) -> None:
    from sprachbund.recipes.encoder_transfer import run_cells

    if workers is not None:
        recipe = recipe.model_copy(update={"workers": workers})
    with resumable(out):
        results = run_cells(recipe, out, ray_address=ray, report=say)
    say(f"results are in {results}; `sprachbund study report {out}` says what they mean")
