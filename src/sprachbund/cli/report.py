"""`sprachbund report RESULTS --out FILE.html`: what an evaluation found, as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli import scoring_options as given
from sprachbund.cli.console import Bar, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Write what an evaluation found as one HTML page.")(report)


def report(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `evaluate --out` wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page.")] = Path("report.html"),
    data: given.Data = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, help="Worst and random examples each.")
    ] = 12,
) -> None:
    """Write what an evaluation found as one HTML page, with sound."""
    with Bar("drawing"):
        from sprachbund.evaluation.lines import HYPOTHESES_FILE, read_lines
        from sprachbund.evaluation.manifest import read_manifest
        from sprachbund.evaluation.report import write_report

        manifest = read_manifest(results)
        lines = read_lines(results / HYPOTHESES_FILE)
        write_report(lines, manifest, out, data=data or None, num_examples=examples)
    say(f"the report is in {out}")
