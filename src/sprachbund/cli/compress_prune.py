"""`sprachbund compress prune MODEL --out DIR`: a model with fewer layers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli import compress_measuring as shared
from sprachbund.cli.console import Bar, UsageError, as_usage, listed, say

_Kept = Annotated[
    int | None,
    typer.Option("--decoder", metavar="K", help="Decoder layers that stay: first, last, and evenly between."),
]
_EncoderKept = Annotated[int | None, typer.Option("--encoder", metavar="K", help="Encoder layers that stay.")]
_Named = Annotated[
    list[str] | None,
    typer.Option("--decoder-layers", metavar="N,…", help="Decoder layers that stay, from 0, by name."),
]
_EncoderNamed = Annotated[
    list[str] | None,
    typer.Option("--encoder-layers", metavar="N,…", help="Encoder layers that stay, from 0, by name."),
]


def prune(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    out: shared.Out,
    decoder: _Kept = None,
    encoder: _EncoderKept = None,
    decoder_layers: _Named = None,
    encoder_layers: _EncoderNamed = None,
    data: shared.Data = None,
    to: shared.To = None,
    limit: shared.Limit = shared.LIMIT,
    no_speech: shared.NoSpeech = shared.NO_SPEECH,
    rounds: shared.Rounds = shared.ROUNDS,
    engine: shared.Engine = "torch",
    threads: shared.Threads = None,
    offline: shared.Offline = False,
    as_json: shared.Json = False,
) -> None:
    """Write a model of some of another's layers, and measure both; what stays has the bits that it had."""
    shared.set_threads(threads)
    with as_usage(), Bar("pruning"):
        from sprachbund.models.directory import load, locate
        from sprachbund.models.pruning import kept_layers, num_layers, with_layers
        from sprachbund.recipes.smaller import bits_of, check_new, save_smaller

        check_new(out)
        if not any(x is not None for x in (decoder, encoder)) and not (decoder_layers or encoder_layers):
            raise UsageError("say what stays: --decoder K, --encoder K, --decoder-layers or --encoder-layers")
        source = locate(model, offline=offline)
        family: Any = load(source, offline=True)
        kept = {
            side: _layers(side, count, named, num_layers(family, side), kept_layers)  # type: ignore[arg-type]
            for side, count, named in (
                ("encoder", encoder, encoder_layers),
                ("decoder", decoder, decoder_layers),
            )
        }
        smaller = with_layers(family, **kept)
        how = {"by": "prune", **{side: list(layers) for side, layers in kept.items() if layers is not None}}
        save_smaller(smaller, source, out, bits_of(source), how)
    _tell_left_behind(family)
    shared.measure_and_tell(
        model,
        out,
        data,
        what={"verb": "prune", "layers": {k: v for k, v in how.items() if k != "by"}},
        to=to,
        limit=limit,
        no_speech=no_speech,
        rounds=rounds,
        engine=engine,
        offline=offline,
        as_json=as_json,
    )


def _layers(side: str, count: int | None, named: list[str] | None, total: int, rule: Any) -> Any:
    """Layers of a side that stay; None for all."""
    if count is not None and named:
        raise UsageError(f"give --{side} or --{side}-layers, not both")
    if named:
        numbers = listed(named)
        if wrong := [number for number in numbers if not number.isdecimal()]:
            raise UsageError(f"--{side}-layers takes numbers from 0 to {total - 1}, not {wrong[0]!r}")
        return tuple(int(number) for number in numbers)
    return None if count is None else rule(total, count)


def _tell_left_behind(family: Any) -> None:
    drafts: dict[str, Path] = getattr(family, "drafts", {})
    if drafts:
        say(f"left behind, since drafts fit one depth only: {', '.join(drafts)}; train them anew")
