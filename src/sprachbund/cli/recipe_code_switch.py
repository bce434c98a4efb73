"""What `recipe code_switch --check` prints."""

from typing import Any

import typer

from sprachbund.cli.console import size, table


def tell_code_switch(needed: Any, chosen: str) -> None:
    """Print parameters and memory."""
    typer.echo(f"{chosen}: {needed.model}; {' '.join(needed.languages)}\n")
    head = ["arm", "projector", "active", "adapters", "all parameters", "16-bit weights", "training"]
    rows = [
        [
            one.name,
            *(f"{count:,}" for count in (one.projector, one.active, one.adapters, one.total)),
            *(size(round(gib * 2**30)) for gib in (one.weights_gib, one.training_gib)),
        ]
        for one in needed.arms
    ]
    typer.echo(table(rows, head))
    typer.echo(
        f"\nencoder {needed.encoder:,}, language model {needed.llm:,} parameters; {needed.stages} stages of "
        f"{needed.steps:,} steps together\ntraining: frozen weights in 16 bits; weight, gradient and AdamW's moments "
        "in 32 of what is trained; activations come on top"
    )
