"""What `recipe discrete_units --check` prints."""

from typing import Any

import typer

from sprachbund.cli.console import size, table


def tell_discrete_units(needed: Any, chosen: str) -> None:
    """Print parameters and memory of every head."""
    typer.echo(
        f"{chosen}: {needed.trainings} trainings; {' '.join(needed.languages)}; {needed.vocabulary:,} ids are read, "
        f"{needed.written:,} may be written\n"
    )
    head = ["head", "parameters", "of them encoder", "weights and moments", "kept by one", "its logits"]
    rows = [
        [
            one.head,
            f"{one.parameters:,}",
            f"{one.parts['encoder']:,}",
            *map(size, (one.fixed_bytes, one.kept_bytes, one.logits_bytes)),
        ]
        for one in needed.heads
    ]
    typer.echo(table(rows, head))
    typer.echo(
        f"\nmoments: of AdamW, and gradients; kept: for the backward pass, by a sentence of {needed.source_tokens} "
        f"source and {needed.target_tokens} target tokens, in 32 bits and without recomputing"
    )
    if needed.mbart is not None:
        _tell_mbart(needed.mbart)


def _tell_mbart(mbart: Any) -> None:
    typer.echo(
        f"\ntext start from mBART-50 (mbart = ...): {mbart.whole:,} parameters with its {mbart.tokens:,} tokens; with "
        f"{mbart.kept:,} of them and {mbart.units:,} new rows {mbart.parameters:,}, "
        f"{size(mbart.fixed_bytes)} of weights and moments"
    )
