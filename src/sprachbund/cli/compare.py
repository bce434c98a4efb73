"""`sprachbund compare A B…`: is one system better than another, and what may be claimed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json

_TESTS = {
    "bs": "bootstrap",
    "ar": "randomization",
    "bootstrap": "bootstrap",
    "randomization": "randomization",
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Compare systems with intervals and significance; the first is the baseline.")(compare)


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH…",
            help="Folders that `evaluate --out` wrote, or text files; NAME=A,B are runs of different seeds.",
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FILE", help="References of text files.")
    ] = None,
    metrics: given.Metrics = None,
    test: Annotated[str, typer.Option("--test", help="bootstrap or randomization.")] = "bootstrap",
    draws: Annotated[int | None, typer.Option("--draws", metavar="N", min=10)] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draws.")] = 12345,
    out: given.Manifest = None,
    as_json: given.Json = False,
) -> None:
    """Compare systems with intervals and significance; the first is the baseline."""
    from sprachbund.evaluation import compare as comparing
    from sprachbund.evaluation import file_manifest as files

    if test not in _TESTS:
        raise UsageError(f"no test {test!r}; there are bootstrap and randomization")
    chosen: Any = _TESTS[test]
    with as_usage(), Bar("comparing") as bar:
        parsed = [comparing.parse_system(spec, reference) for spec in systems]
        comparing.check_names([name for name, _ in parsed])
        options = files.CompareOptions(
            systems={name: list(map(str, paths)) for name, paths in parsed},
            reference=None if reference is None else str(reference),
            metrics=listed(metrics) or ["chrF", "BLEU"],
            test=chosen,
            draws=draws,
            seed=seed,
        )
        found = files.compare_files(options, progress=lambda what, done: bar.update(done, label=what))
    if out is not None:
        files.manifest_of_comparison(options, found).write(out)
    if as_json:
        print_json(files.comparison_values(found))
        return
    for table in comparing.tables(found):
        typer.echo(table.text())
    for name, scorer in found.metrics.items():
        typer.echo(f"{name}: {scorer.signature}")
    typer.echo("\n" + "\n".join(comparing.claims(found)))
