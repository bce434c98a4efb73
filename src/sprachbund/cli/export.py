"""`sprachbund export MODEL --out DIR`: a streaming transducer as ONNX graphs with their state going in and out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import Bar, as_usage, print_json, say, size, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Write a streaming model as ONNX graphs.")(export)


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model directory with a streaming encoder and transducer."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the graphs go; a new folder.")],
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write encoder, prediction network and joint network as graphs; packed layers of 4 or 8 bits stay packed."""
    with as_usage(), Bar("exporting"):
        from sprachbund.compression.onnx_export import check_exportable
        from sprachbund.compression.onnx_export import export as write
        from sprachbund.models.directory import load, locate
        from sprachbund.models.streaming_onnx.description import read_description
        from sprachbund.recipes.smaller import card_of, check_new, write_whole

        check_new(out)
        source = locate(model, offline=offline)
        family: Any = load(source, offline=True)
        check_exportable(family)
        card = card_of(family, source, out.name, {"by": "export"})
        write_whole(out, lambda draft: write(family, draft, card))
        told = read_description(out)
    if as_json:
        return print_json({"out": str(out), **told.model_dump(mode="json")})
    files = [out / graph.file for graph in told.graphs.values()]
    typer.echo(table([[path.name, size(path.stat().st_size)] for path in files], ["graph", "size"]))
    tiers = ", ".join(f"{tier.right_context} ({tier.latency_ms} ms)" for tier in told.tiers)
    say(f"frames ahead: {tiers}; what goes in and out is in {out / 'config.json'}")
