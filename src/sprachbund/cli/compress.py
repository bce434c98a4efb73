"""`sprachbund compress`: smaller models of larger ones, each measured beside the one it was made from."""

from typing import Any

import typer

from sprachbund.cli.compress_distil import distil
from sprachbund.cli.compress_prune import prune
from sprachbund.cli.compress_pseudo_label import pseudo_label
from sprachbund.cli.compress_quantize import quantize


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    options: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
    compress = typer.Typer(
        help="Make models smaller, and measure what that costs on the same data.", **options
    )
    compress.command("pseudo-label", help="Let a model label speech, as a corpus to train on.")(pseudo_label)
    compress.command("prune", help="Drop layers of a model.")(prune)
    compress.command("distil", help="Teach a small model what a large one does.")(distil)
    compress.command("quantize", help="Store a model in 8 bits, or a streaming encoder in 3 to 8.")(quantize)
    app.add_typer(compress, name="compress")
