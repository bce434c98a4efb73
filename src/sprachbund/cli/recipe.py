"""`sprachbund recipe NAME --data DIR --out DIR`: one of the published systems beside its baselines, data to table."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, print_json, say, size, table
from sprachbund.cli.recipe_code_switch import tell_code_switch
from sprachbund.cli.recipe_discrete_units import tell_discrete_units
from sprachbund.cli.recipe_dual_scale import tell_dual_scale
from sprachbund.cli.recipe_encoder_transfer import tell_encoder_transfer

RECIPES = {
    "gradient_sharing": "GradientSharingRecipe",
    "dual_scale": "DualScaleRecipe",
    "discrete_units": "DiscreteUnitsRecipe",
    "encoder_transfer": "EncoderTransferRecipe",
    "code_switch": "CodeSwitchRecipe",
}
"""Name of a module of `sprachbund.recipes` to its options."""
SIZES = ("tiny", "small", "paper")
CHECKED = "paper"
"""The published shape; it goes on from a checkpoint."""
_CHECKPOINT = "a published checkpoint: name it with --set start=DIR (or a Hugging Face id)"
_CHECKPOINTS = {
    "discrete_units": "a published speech encoder: name one that is on disk with --set units.encoder=DIR",
    "code_switch": "a published language model: name it with --set llm=DIR (or a Hugging Face id)",
    "encoder_transfer": "published checkpoints: name them with --set pretrained.ml.checkpoint=DIR and "
    "--set pretrained.en.checkpoint=DIR",
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Run one of the published systems beside its baselines.")(recipe)


def recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(RECIPES)}.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Corpus with train, dev and test, as `data make` writes it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the runs; the table is in it.")
    ] = None,
    chosen: Annotated[str, typer.Option("--size", metavar="SIZE", help=f"{', '.join(SIZES)}.")] = "small",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what the size needs and whether its plans fit; run nothing.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Run a recipe over its arms and seeds; the same command again goes on where it stopped."""
    with as_usage():
        for what, value, known in (("recipe", name, tuple(RECIPES)), ("size", chosen, SIZES)):
            if value not in known:
                raise UsageError(f"no {what} {value!r}; there are {', '.join(known)}")
        from sprachbund.recipes import sizes
        from sprachbund.recipes.options import read_recipe

        with Bar("starting"):
            module: Any = import_module(f"sprachbund.recipes.{name}")
        path = Path(sizes.__file__).parent / f"{name}.{chosen}.toml"
        given = [f'data="{data}"'] if data is not None else []
        values = read_recipe(getattr(module, RECIPES[name]), path, [*given, *(overrides or ())])
    if check or (chosen == CHECKED and values.start is None):
        with as_usage(), Bar("building the shapes"):
            needed = module.needs(values)
        print_json(needed.model_dump()) if as_json else _TELLERS[name](needed, chosen)
        if not check:
            raise UsageError(
                f"size {chosen} goes on from {_CHECKPOINTS.get(name, _CHECKPOINT)}, or take --size small to run from "
                "nothing, or --check to ask for no more"
            )
        return
    if data is None or out is None:
        raise UsageError("a recipe needs --data and --out; with --check it runs nothing and needs neither")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        found = module.run(values, out, report=say)
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"the same command goes on from what is finished in {out}")
        raise
    _print(found, as_json)


def _print(path: Path, as_json: bool) -> None:
    from sprachbund.evaluation.tables import read_rows

    rows = read_rows(path, advice="delete it, and the same command writes it again")
    if as_json:
        return print_json({"table": str(path), "rows": rows})
    header = list(rows[0])
    cells = [
        [f"{v:.2f}" if isinstance(v, float) else str(v) for v in (row[key] for key in header)] for row in rows
    ]
    typer.echo(table(cells, header))
    say(f"the table is in {path}")


def _tell_gradient_sharing(needed: Any, chosen: str) -> None:
    times = "once" if needed.seeds == 1 else f"{needed.seeds} times"
    typer.echo(f"{chosen}: {needed.model}; {' '.join(needed.languages)}; everything {times}\n")
    head = ["training", "inner widths", "parameters", "trained", "weights", "moments", "kept", "in all"]
    rows = [
        [
            one.name,
            "; ".join(" + ".join(f"{width:,}" for width in widths) for widths in one.split.values()) or "-",
            f"{one.parameters:,}",
            f"{one.trained:,}",
            *map(size, (one.weights_bytes, one.moments_bytes, one.kept_bytes, one.bytes)),
        ]
        for one in needed.trainings
    ]
    typer.echo(table(rows, head))
    found = needed.collecting
    split = ", ".join(sorted({module for one in needed.trainings for module in one.split}))
    typer.echo(f"\nevery plan fits; split: {split or 'nothing'}")
    if needed.worst_case and split:
        typer.echo(
            "arms that go by gradients: most groups, largest shared branch; gradients will ask for less"
        )
    typer.echo(
        f"analysis: {found.passes} passes over {len(found.modules)} modules ({found.coordinates:,} parameters), "
        f"{size(found.gradients_bytes)} for gradients; a dense projection, never made, would take "
        f"{size(found.dense_bytes)}"
    )
    typer.echo(
        "moments: of AdamW, and gradients; kept: by the longest batch for its backward pass, in 32 bits"
    )


_TELLERS = {
    "gradient_sharing": _tell_gradient_sharing,
    "dual_scale": tell_dual_scale,
    "discrete_units": tell_discrete_units,
    "encoder_transfer": tell_encoder_transfer,
    "code_switch": tell_code_switch,
}
"""Name of a recipe to what prints its needs."""
