"""`sprachbund train RECIPE.toml --out DIR`: run a recipe, or take it up where it stopped."""

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import Bar, as_usage, say
from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_toml


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Train a model, or go on with training.")(train)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run; DIR/model is the result.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option("--stop-after", metavar="N", min=1, help="Stop, resumable, after N steps in all."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1)] = None,
) -> None:
    """Train a model by a recipe; the same command again goes on where it stopped."""
    with as_usage():
        from sprachbund.recipes.options import read_recipe

        with Bar("starting"):
            kind, run = _recipe_of(recipe)
        values = read_recipe(kind, recipe, overrides or ())
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        run(values, out, report=lambda line: typer.echo(line), stop_after=stop_after)
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"the same command goes on from the last checkpoint in {out}")
        raise
    from sprachbund.util.distributed import is_first_rank

    if is_first_rank():
        say(f"the model is in {out / 'model'}")


def _recipe_of(path: Path) -> tuple[Any, Callable[..., Any]]:
    """The kind of recipe that a file holds, and what runs it; one that cannot be read is refused by the reader."""
    keys: Collection[str] = ()
    with suppress(SprachbundError):
        keys = read_toml(path).keys()
    if "units" in keys:
        from sprachbund.recipes import unit_translator

        return unit_translator.UnitTranslatorRecipe, unit_translator.run
    if "draft" in keys:
        from sprachbund.recipes import draft

        return draft.DraftRecipe, draft.run
    from sprachbund.recipes import translator

    return translator.TranslatorRecipe, translator.run
