"""`sprachbund replay MANIFEST`: measure it again, and say whether it came out the same."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, print_json


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Measure a result manifest again, and say whether it came out the same.")(replay)


def replay(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="scores.json, or the folder it is in.")
    ],
    data: given.Data = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Where the model is now.")
    ] = None,
    offline: given.Offline = False,
    as_json: given.Json = False,
) -> None:
    """Measure a result manifest again, and say whether it came out the same; exit code 1 when not."""
    with Bar("starting") as bar:
        from sprachbund.evaluation.replay import replay as run

        found = run(
            manifest,
            data=data or (),
            model=model,
            offline=offline,
            progress=lambda what, done, total: bar.update(done, total, what),
        )
    if as_json:
        print_json({"same": found.same, "different": list(found.different), "changed": list(found.changed)})
    else:
        typer.echo(found.in_words())
    if not found.same:
        raise typer.Exit(1)
