"""`sprachbund transcribe FILE…`: text in the language spoken; its other options are those of `translate`."""

import inspect
from typing import Any

import typer

from sprachbund.cli.translate import translate

_NOT_HERE = ("to", "text", "texts")
"""Options of `translate` that this verb has not."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Write down recordings in the language spoken.")(transcribe)


def transcribe(**options: Any) -> None:
    """Write down recordings in the language spoken."""
    translate(to=["transcribe"], **options)


# typer reads a verb's options off its signature and its annotations.
_signature = inspect.signature(translate)
transcribe.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[p for name, p in _signature.parameters.items() if name not in _NOT_HERE]
)
transcribe.__annotations__ = {k: v for k, v in translate.__annotations__.items() if k not in _NOT_HERE}
