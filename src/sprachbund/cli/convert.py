"""`sprachbund convert CHECKPOINT --out DIR --language TAG`: a public streaming checkpoint as a model directory."""

from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Make a model of a public streaming checkpoint.")(convert)


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A .nemo file, or a nemotron_asr_streaming directory or hub id."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes; a new folder.")],
    language: Annotated[
        list[str],
        typer.Option("--language", metavar="LANG,…", help="What it hears and writes; may be repeated."),
    ],
    licence: Annotated[
        str, typer.Option("--licence", metavar="NAME", help="Of the weights, for the model's card.")
    ] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a cache-aware FastConformer transducer and write it in our form; nothing in the file is run."""
    with as_usage(), Bar("converting"):
        from sprachbund.nn.block_linear import num_weights
        from sprachbund.recipes.converted import convert as convert_checkpoint

        tags = [_tag(value) for value in listed(language)]
        model = convert_checkpoint(checkpoint, out, tags, licence=licence, offline=offline)
        streaming = model.config.streaming
        assert streaming is not None
        told = {
            "out": str(out),
            "parameters": num_weights(model),
            "languages": tags,
            "right_contexts": list(streaming.right_contexts),
        }
    if as_json:
        return print_json(told)
    contexts = ", ".join(str(right) for right in streaming.right_contexts)
    say(f"{told['parameters']:,} weights; frames ahead it was trained for: {contexts}; the model is in {out}")


def _tag(value: str) -> str:
    """A BCP-47 tag in its usual spelling. Raises UsageError for what is none."""
    import langcodes

    if not langcodes.tag_is_valid(value):
        raise UsageError(f"{value!r} is no language tag; give BCP-47, such as en or pt-BR")
    return langcodes.standardize_tag(value)
