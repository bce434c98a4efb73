"""What `recipe encoder_transfer --check` prints."""

from typing import Any

import typer

from sprachbund.cli.console import size, table


def tell_encoder_transfer(needed: Any, chosen: str) -> None:
    """Print the grid, parameters and memory."""
    typer.echo(
        f"{chosen}: {needed.trainings} trainings ({' '.join(needed.starts)}; {' '.join(needed.languages)}), "
        f"each scored {needed.scored} times; {needed.pretrainings} models are trained before them\n"
    )
    rows = [[part, f"{count:,}"] for part, count in needed.parts.items()]
    typer.echo(table([*rows, ["in all", f"{needed.parameters:,}"]], ["part", "parameters"]))
    head = ["weights", "moments", "kept by one", "its logits", "batch", "in all"]
    sizes = (needed.weights_bytes, needed.moments_bytes, needed.kept_bytes, needed.logits_bytes)
    typer.echo("\n" + table([[*map(size, sizes), str(needed.utterances), size(needed.bytes)]], head))
    widths = [[str(bits), size(count)] for bits, count in needed.encoder_bytes.items()]
    typer.echo("\n" + table(widths, ["bits", "encoder's linear layers"]))
    typer.echo(
        "\nmoments: of AdamW, and gradients; kept: for the backward pass, by the longest utterance in 32 bits and "
        "without recomputing; several processes share the batch"
    )
