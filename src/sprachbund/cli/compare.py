"""`sprachbund compare A B…`: is one system better than another, and what may be claimed."""

from dataclasses import asdict
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
    as_json: given.Json = False,
) -> None:
    """Compare systems with intervals and significance; the first is the baseline."""
    from sprachbund.evaluation import compare as comparing

    if test not in _TESTS:
        raise UsageError(f"no test {test!r}; there are bootstrap and randomization")
    chosen: Any = _TESTS[test]
    names = listed(metrics) or ("chrF", "BLEU")
    with as_usage(), Bar("comparing") as bar:
        read = [comparing.read_system(spec, reference) for spec in systems]
        found = comparing.compare(
            read,
            names,
            test=chosen,
            draws=draws,
            seed=seed,
            progress=lambda what, done: bar.update(done, label=what),
        )
    if as_json:
        print_json(_plain(found))
        return
    for table in comparing.tables(found):
        typer.echo(table.text())
    for name, scorer in found.metrics.items():
        typer.echo(f"{name}: {scorer.signature}")
    typer.echo("\n" + "\n".join(comparing.claims(found)))


def _plain(found: Any) -> dict[str, Any]:
    from sprachbund.evaluation.compare import claims

    return {
        "systems": list(found.names),
        "num_lines": found.num_lines,
        "test": found.test,
        "draws": found.draws,
        "seed": found.seed,
        "signatures": {name: scorer.signature for name, scorer in found.metrics.items()},
        "means": [{"metric": m, "system": s, **asdict(v)} for (m, s), v in found.means.items()],
        "pairs": [
            {"metric": m, "pair": pair, "system": name, **asdict(value), "interval": _finite(value.interval)}
            for (m, pair), values in found.by_pair.items()
            for name, value in zip(found.names, values, strict=True)
        ],
        "claims": claims(found),
    }


def _finite(interval: tuple[float, float]) -> list[float] | None:
    return None if interval[0] != interval[0] else list(interval)
