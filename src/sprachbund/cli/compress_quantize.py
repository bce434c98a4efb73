"""`sprachbund compress quantize MODEL --out DIR`: the same model in weights of 8 bits, or its encoder in 3 to 8."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sprachbund.cli import compress_measuring as shared
from sprachbund.cli.console import Bar, UsageError, as_usage


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    out: shared.Out,
    packed: Annotated[
        bool, typer.Option("--packed", help="Write what the native engine maps beside it: it starts at once.")
    ] = False,
    encoder_bits: Annotated[
        int | None,
        typer.Option(
            "--encoder-bits", metavar="BITS", help="Pack a streaming encoder in 8, 6, 5, 4 or 3; no more."
        ),
    ] = None,
    method: Annotated[
        Literal["k-quant", "round"], typer.Option("--method", help="How --encoder-bits chooses its numbers.")
    ] = "k-quant",
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="With --encoder-bits: no zero points are stored.")
    ] = False,
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
    """Write a model with a signed byte for every weight of a matrix and a scale for each of its rows; measure both.

    With --encoder-bits only the linear layers of a streaming encoder change: blocks of 32 weights share a scale, and
    the model computes from them as they are packed.
    """
    if encoder_bits is None and (symmetric or method != "k-quant"):
        raise UsageError("--method and --symmetric are for --encoder-bits; give it too")
    if encoder_bits is not None and packed:
        raise UsageError("--packed is for the native engine, which has no streaming encoders; leave it out")
    shared.set_threads(threads)
    with as_usage(), Bar("quantizing"):
        from sprachbund.models.directory import load, locate
        from sprachbund.recipes.smaller import check_new, copy_drafts

        check_new(out)
        source = locate(model, offline=offline)
        family: Any = load(source, offline=True)
        if encoder_bits is None:
            what = _eight_bits(family, source, out, packed=packed)
        else:
            what = _encoder_bits(family, source, out, encoder_bits, method, symmetric)
        copy_drafts(source, out)
        if packed:
            from sprachbund.compression.eight_bits import pack_beside

            pack_beside(load(out, offline=True), out)
    files = sorted(str(path.relative_to(out)) for path in Path(out).iterdir())
    shared.measure_and_tell(
        model,
        out,
        data,
        what={"verb": "quantize", **what, "files": files},
        to=to,
        limit=limit,
        no_speech=no_speech,
        rounds=rounds,
        engine=engine,
        offline=offline,
        as_json=as_json,
    )


def _eight_bits(family: Any, source: Path, out: Path, *, packed: bool) -> dict[str, Any]:
    """All matrices in 8 bits; nothing to add to what is told."""
    from sprachbund.compression.eight_bits import check_packable, check_quantizable
    from sprachbund.recipes.smaller import bits_of, save_smaller

    check_quantizable(family)
    if packed:
        check_packable(family)
    elif bits_of(source) == 8:
        raise UsageError(
            f"{source} has 8 bits already; with --packed a copy gets the native engine's file too"
        )
    save_smaller(family, source, out, 8, {"by": "quantize", "bits": 8})
    return {}


def _encoder_bits(
    family: Any, source: Path, out: Path, bits: int, method: Literal["k-quant", "round"], symmetric: bool
) -> dict[str, Any]:
    """The encoder's linear layers packed; what was done to them."""
    from sprachbund.compression.kquant import KQuantOptions, bits_per_weight, quantize_encoder
    from sprachbund.recipes.smaller import bits_of, save_smaller

    layers = quantize_encoder(family, KQuantOptions(bits=bits, method=method, symmetric=symmetric))
    told = {"encoder_bits": bits, "method": method, "symmetric": symmetric}
    save_smaller(family, source, out, bits_of(source), {"by": "quantize", **told})
    mean = sum(layer.weighted_error * layer.num_weights for layer in layers)
    num_weights = sum(layer.num_weights for layer in layers)
    return {
        **told,
        "layers": len(layers),
        "bits_per_weight": bits_per_weight(layers),
        "weighted_error": mean / num_weights,
    }
