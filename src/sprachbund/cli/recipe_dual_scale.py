"""What `recipe dual_scale --check` prints."""

from typing import Any

import typer

from sprachbund.cli.console import size, table


def tell_dual_scale(needed: Any, chosen: str) -> None:
    """Print parameters and memory."""
    times = "once" if needed.seeds == 1 else f"{needed.seeds} times"
    typer.echo(f"{chosen}: {needed.model}; {' '.join(needed.languages)}; the main arm {times}\n")
    head = [
        "training",
        "translator",
        "guesser",
        "trained",
        "weights",
        "moments",
        "kept by one",
        "batch",
        "in all",
    ]
    rows = [
        [
            one.name,
            f"{one.translation:,}",
            f"{one.guesser:,}" if one.guesser else "-",
            f"{one.trained:,}",
            *map(size, (one.weights_bytes, one.moments_bytes, one.kept_bytes)),
            str(one.utterances),
            size(one.bytes),
        ]
        for one in needed.trainings
    ]
    typer.echo(table(rows, head))
    typer.echo(
        "\n" + table([[part, f"{count:,}"] for part, count in needed.parts.items()], ["part", "parameters"])
    )
    typer.echo(
        "\ntranslator: without fixed positions; moments: of AdamW, and gradients; kept: for the backward pass, by the "
        f"longest utterance with rows of {needed.tokens} tokens, in 32 bits and without recomputing; several processes "
        "share the batch"
    )
