"""`sprachbund recipe NAME --data DIR --out DIR`: one of the published systems beside its baselines, data to table."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, print_json, say, table

RECIPES = {"gradient_sharing": "GradientSharingRecipe"}
"""Name of a module of `sprachbund.recipes` to its options."""
SIZES = ("tiny", "small")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Run one of the published systems beside its baselines.")(recipe)


def recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(RECIPES)}.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", help="Corpus with train, dev and test, as `data make` writes it."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the runs; the table is in it.")
    ],
    size: Annotated[str, typer.Option("--size", help=f"{', '.join(SIZES)}.")] = "small",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Run a recipe over its arms and seeds; the same command again goes on where it stopped."""
    with as_usage():
        for what, value, known in (("recipe", name, tuple(RECIPES)), ("size", size, SIZES)):
            if value not in known:
                raise UsageError(f"no {what} {value!r}; there are {', '.join(known)}")
        from sprachbund.recipes import sizes
        from sprachbund.recipes.options import read_recipe

        with Bar("starting"):
            module: Any = import_module(f"sprachbund.recipes.{name}")
        path = Path(sizes.__file__).parent / f"{name}.{size}.toml"
        values = read_recipe(getattr(module, RECIPES[name]), path, [f'data="{data}"', *(overrides or ())])
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
    import json

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    if as_json:
        return print_json({"table": str(path), "rows": rows})
    header = list(rows[0])
    cells = [
        [f"{v:.2f}" if isinstance(v, float) else str(v) for v in (row[key] for key in header)] for row in rows
    ]
    typer.echo(table(cells, header))
    say(f"the table is in {path}")
