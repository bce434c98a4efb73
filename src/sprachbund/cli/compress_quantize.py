"""`sprachbund compress quantize MODEL --out DIR`: the same model in weights of 8 bits."""

from pathlib import Path
from typing import Annotated, Any

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
    """Write a model with a signed byte for every weight of a matrix and a scale for each of its rows; measure both."""
    shared.set_threads(threads)
    with as_usage(), Bar("quantizing"):
        from sprachbund.compression.eight_bits import check_packable, check_quantizable, pack_beside
        from sprachbund.models.directory import load, locate
        from sprachbund.recipes.smaller import bits_of, check_new, copy_drafts, save_smaller

        check_new(out)
        source = locate(model, offline=offline)
        family: Any = load(source, offline=True)
        check_quantizable(family)
        if packed:
            check_packable(family)
        elif bits_of(source) == 8:
            raise UsageError(
                f"{model} has 8 bits already; with --packed a copy gets the native engine's file too"
            )
        save_smaller(family, source, out, 8, {"by": "quantize", "bits": 8})
        copy_drafts(source, out)
        if packed:
            pack_beside(load(out, offline=True), out)
    files = sorted(str(path.relative_to(out)) for path in Path(out).iterdir())
    shared.measure_and_tell(
        model,
        out,
        data,
        what={"verb": "quantize", "files": files},
        to=to,
        limit=limit,
        no_speech=no_speech,
        rounds=rounds,
        engine=engine,
        offline=offline,
        as_json=as_json,
    )
