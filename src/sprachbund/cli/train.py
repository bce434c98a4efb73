"""`sprachbund train` trains a model by a recipe; `sprachbund recipe` runs a published system and its baselines."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    in_one_process,
    live_bar,
    print_json,
    say,
    set_device,
    set_threads,
    show,
    size,
    table,
)
from sprachbund.cli.options import OWN_PANEL, Panel, with_options
from sprachbund.errors import SprachbundError
from sprachbund.training.options import CheckOptions, RunOptions, of_path, read_recipe

# `sprachbund train RECIPE.toml --out DIR`: run a recipe, or resume it where it stopped.


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the run; DIR/model is the result.")
    ],
    *,
    asked: Annotated[RunOptions, Panel(OWN_PANEL)],
    cluster: Annotated[CheckOptions, Panel("Check")],
) -> None:
    """Train a model by a recipe; the same command again goes on where it stopped."""
    with as_usage():
        with Bar("starting"):
            kind, run = _recipe_of(recipe)
        values = read_recipe(kind, recipe, asked.overrides)
    set_threads(asked.threads)
    with as_usage():
        set_device(asked.device)
    if cluster.check:
        return _check(run, values, out, asked, cluster)
    try:
        with live_bar("preparing") as bar:
            run(
                values,
                out,
                report=show,
                stop_after=asked.stop_after,
                on_step=lambda done, total: bar.update(done, total, "steps"),
                accept_changes=asked.accept_changes,
            )
    except KeyboardInterrupt as interruption:
        from sprachbund.training.checkpoint import holds_checkpoint

        note = f"the same command goes on from the last checkpoint in {out}"
        interruption.add_note(
            note if holds_checkpoint(out) else "no step was saved; the same command begins anew"
        )
        raise
    from sprachbund.util.distributed import is_first_rank

    if is_first_rank():
        say(f"the model is in {out / 'model'}")


def _check(run: Callable[..., Any], values: Any, out: Path, asked: RunOptions, cluster: CheckOptions) -> None:
    """Print what each GPU of a cluster would hold, by strategy."""
    in_one_process("train --check")
    from sprachbund.training.check import check_shape

    def show_strategies(model: Any, corpus: Any, options: Any) -> None:
        show(_strategies_text(check_shape(model, corpus, options), cluster))

    with live_bar("measuring"):
        run(values, out, report=show, accept_changes=asked.accept_changes, check=show_strategies)


def _strategies_text(shape: Any, cluster: CheckOptions) -> str:
    """The ways to train on a cluster, with memory and time, and which one to take."""
    from sprachbund.training.check import HEAD, gib, rows_of, time_note, verdict

    strategies = shape.strategies(cluster.gpus, cluster.memory)
    rows = table(rows_of(strategies, cluster.memory, cluster.flops_per_s), HEAD)
    return (
        f"each of {cluster.gpus} GPUs, with {gib(cluster.memory)}:\n\n{rows}\n\n{time_note(cluster.gpu_tflops)}\n"
        f"{verdict(strategies, cluster.memory)}"
    )


def _strategies_json(name: str, shape: Any, cluster: CheckOptions) -> dict[str, Any]:
    """The same for programs; `name` is of the arm."""
    strategies = shape.strategies(cluster.gpus, cluster.memory)
    rows = [
        {
            **asdict(one),
            "settings": one.settings,
            "fits": one.total <= cluster.memory,
            "hours": round(one.flops / cluster.flops_per_s / 3600, 3),
        }
        for one in strategies
    ]
    return {"arm": name, "gpus": cluster.gpus, "gpu_bytes": cluster.memory, "strategies": rows}


def _fits_json(needed: Any, cluster: CheckOptions) -> dict[str, Any]:
    """With which `training.accumulate` each training of one process fits, and its hours; None where nothing fits."""
    rows = [
        {
            "training": one.name,
            "accumulate": one.accumulate(cluster.memory),
            "hours": round(one.flops / (cluster.gpu_tflops * 1e12) / 3600, 3),
        }
        for one in needed.of_trainings
    ]
    return {"gpu_bytes": cluster.memory, "fits": rows}


def _fits_text(needed: Any, cluster: CheckOptions) -> str:
    """The same for people."""
    from sprachbund.training.check import gib, hours_of, time_note

    rows = []
    for one in _fits_json(needed, cluster)["fits"]:
        kinds = {None: "does not fit", 1: "the settings as they are"}
        fits = kinds.get(one["accumulate"], f"accumulate = {one['accumulate']}")
        rows.append([one["training"], fits, hours_of(one["hours"])])
    head = ["training", f"fits into {gib(cluster.memory)} with", "hours"]
    return (
        f"\n{table(rows, head)}\n\none GPU for each training: this recipe starts processes of its own\n"
        f"{time_note(cluster.gpu_tflops)}; batches are of the longest utterances"
    )


def _recipe_of(path: Path) -> tuple[Any, Callable[..., Any]]:
    """The kind of recipe that a file holds, and what runs it; one that cannot be read is refused by the reader."""
    from sprachbund.util.files import read_toml

    keys: Collection[str] = ()
    with suppress(SprachbundError):
        keys = read_toml(path).keys()
    if "units" in keys:
        from sprachbund.training import unit_translator

        return unit_translator.UnitTranslatorRecipe, unit_translator.run
    if "draft" in keys:
        from sprachbund.training import draft_recipe as draft

        return draft.DraftRecipe, draft.run
    from sprachbund.training import recipe, translator

    return recipe.TranslatorRecipe, translator.run


# What `recipe NAME --check` prints, one function for each recipe.


def _print_code_switch(needed: Any, chosen: str) -> None:
    """Print parameters and memory."""
    typer.echo(f"{chosen}: {needed.model}; {' '.join(needed.languages)}\n")
    head = ["arm", "projector", "active", "adapters", "all parameters", "16-bit weights", "training"]
    rows = [
        [
            one.name,
            *(f"{count:,}" for count in (one.projector, one.active, one.adapters, one.total)),
            *(size(round(gib * 2**30)) for gib in (one.weights_gib, one.training_gib)),
        ]
        for one in needed.arms
    ]
    typer.echo(table(rows, head))
    typer.echo(
        f"\nencoder {needed.encoder:,}, language model {needed.llm:,} parameters; {needed.stages} stages of "
        f"{needed.steps:,} steps together\ntraining: frozen weights in 16 bits; weight, gradient and AdamW's moments "
        "in 32 of what is trained; activations come on top, as below"
    )


def _print_discrete_units(needed: Any, chosen: str) -> None:
    """Print parameters and memory of every head."""
    typer.echo(
        f"{chosen}: {needed.trainings} trainings; {' '.join(needed.languages)}; {needed.vocabulary:,} ids are read, "
        f"{needed.written:,} may be written\n"
    )
    head = ["head", "parameters", "of them encoder", "weights and moments", "kept by one", "its logits"]
    rows = [
        [
            one.head,
            f"{one.parameters:,}",
            f"{one.parts['encoder']:,}",
            *map(size, (one.fixed_bytes, one.kept_bytes, one.logits_bytes)),
        ]
        for one in needed.heads
    ]
    typer.echo(table(rows, head))
    typer.echo(
        f"\nmoments: of AdamW, and gradients; kept: for the backward pass, by a sentence of {needed.source_tokens} "
        f"source and {needed.target_tokens} target tokens, in 32 bits and without recomputing"
    )
    if needed.mbart is not None:
        _print_mbart(needed.mbart)


def _print_mbart(mbart: Any) -> None:
    typer.echo(
        f"\ntext start from mBART-50 (mbart = ...): {mbart.whole:,} parameters with its {mbart.tokens:,} tokens; with "
        f"{mbart.kept:,} of them and {mbart.units:,} new rows {mbart.parameters:,}, "
        f"{size(mbart.fixed_bytes)} of weights and moments"
    )


def _print_dual_scale(needed: Any, chosen: str) -> None:
    """Print parameters and memory."""
    times = "once" if needed.seeds == 1 else f"{needed.seeds} times"
    typer.echo(f"{chosen}: {needed.model}; {' '.join(needed.languages)}; every arm {times}\n")
    head = [
        "training",
        "translator",
        "draft network",
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
            f"{one.draft_network:,}" if one.draft_network else "-",
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


def _print_encoder_transfer(needed: Any, chosen: str) -> None:
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


def _print_gradient_sharing(needed: Any, chosen: str) -> None:
    """Print splits, parameters and memory of every training."""
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
    collecting = needed.collecting
    split = ", ".join(sorted({module for one in needed.trainings for module in one.split}))
    typer.echo(f"\nevery plan fits; split: {split or 'nothing'}")
    if needed.worst_case and split:
        typer.echo(
            "arms that go by gradients: most groups, largest shared branch; gradients will ask for less"
        )
    typer.echo(
        f"analysis: {collecting.passes} passes over {len(collecting.modules)} modules "
        f"({collecting.coordinates:,} parameters), {size(collecting.gradients_bytes)} for gradients; "
        f"a dense projection, never made, would take {size(collecting.dense_bytes)}"
    )
    typer.echo(
        "moments: of AdamW, and gradients; kept: by the longest batch for its backward pass, in 32 bits"
    )


_PRINT_ESTIMATE = {
    "gradient_sharing": _print_gradient_sharing,
    "dual_scale": _print_dual_scale,
    "discrete_units": _print_discrete_units,
    "encoder_transfer": _print_encoder_transfer,
    "code_switch": _print_code_switch,
}
"""Name of a recipe to the function that prints its parameters and memory."""


# `sprachbund recipe NAME --data DIR --out DIR`: a published system and its baselines, from data to table.

RECIPES = {
    "gradient_sharing": "GradientSharingRecipe",
    "dual_scale": "DualScaleRecipe",
    "discrete_units": "DiscreteUnitsRecipe",
    "encoder_transfer": "EncoderTransferRecipe",
    "code_switch": "CodeSwitchRecipe",
}
"""Name of a package of `sprachbund.research` to its options."""
SIZES = ("tiny", "small", "paper")
_OF_SEVERAL_PROCESSES = ("code_switch",)
"""Recipes whose trainings torchrun may start; the others start processes of their own."""
CHECKED = "paper"
"""The published shape; it goes on from a checkpoint."""
_CHECKPOINT = "a published checkpoint: name it with --set start=DIR (or a Hugging Face id)"
_CHECKPOINTS = {
    "discrete_units": "a published speech encoder: name one that is on disk with --set units.encoder=DIR",
    "code_switch": "a published language model: name it with --set llm=DIR (or a Hugging Face id)",
    "encoder_transfer": "published checkpoints: name them with --set pretrained.ml.checkpoint=DIR and "
    "--set pretrained.en.checkpoint=DIR",
}


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
    chosen: Annotated[
        str, typer.Option("--size", metavar="SIZE", help=f"{', '.join(SIZES)}, or a TOML file of your own.")
    ] = "small",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    *,
    asked: Annotated[RunOptions, Panel(OWN_PANEL, only=("overrides", "threads", "device"))],
    cluster: Annotated[CheckOptions, Panel("Check")],
) -> None:
    """Run a recipe over its arms and seeds; the same command again goes on where it stopped."""
    check = cluster.check
    with as_usage():
        if name not in RECIPES:
            raise UsageError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
        toml = _settings(name, chosen)
        if name not in _OF_SEVERAL_PROCESSES or check:
            in_one_process(f"sprachbund recipe {name}{' --check' if check else ''}")
        with Bar("starting"):
            module: Any = import_module(f"sprachbund.research.{name}.recipe")
        given = [of_path("data", data)] if data is not None else []
        values = read_recipe(getattr(module, RECIPES[name]), toml, [*given, *asked.overrides])
        set_device(asked.device)
    if check or (chosen == CHECKED and values.start is None):
        with as_usage(), Bar("building the shapes"):
            needed = module.estimate_memory(values)
            shapes = module.training_shape(values) if name in _OF_SEVERAL_PROCESSES else None
        if as_json:
            more = _strategies_json(shapes[0], shapes[1], cluster) if shapes else _fits_json(needed, cluster)
            print_json(needed.model_dump() | more)
        else:
            _PRINT_ESTIMATE[name](needed, chosen)
            typer.echo(
                f"\n{shapes[0]}, the largest arm; {_strategies_text(shapes[1], cluster)}"
                if shapes
                else _fits_text(needed, cluster)
            )
        if not check:
            raise UsageError(
                f"size {chosen} goes on from {_CHECKPOINTS.get(name, _CHECKPOINT)}, or take --size small to run from "
                "nothing, or --check to ask for no more"
            )
        return
    if data is None or out is None:
        raise UsageError("a recipe needs --data and --out; with --check it runs nothing and needs neither")
    set_threads(asked.threads)
    try:
        with live_bar(f"recipe {name}"):
            path = module.run(values, out, report=say)
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"the same command goes on from what is finished in {out}")
        raise
    if path != out:  # of several processes, which only train
        _print(path, as_json)


def _settings(name: str, size: str) -> Path:
    """The file with the settings of a recipe."""
    from sprachbund.research import size_file

    if Path(size).suffix == ".toml":
        return Path(size)
    if size not in SIZES:
        raise UsageError(f"no size {size!r}; there are {', '.join(SIZES)}, or name a file that ends in .toml")
    return size_file(name, size)


def _print(path: Path, as_json: bool) -> None:
    from sprachbund.evaluation.tables import read_rows

    rows = read_rows(path, advice="delete it, and the same command writes it again")
    if as_json:
        return print_json({"table": str(path), "rows": rows})
    header = list(rows[0])
    typer.echo(table([[_cell(row[key]) for key in header] for row in rows], header))
    say(f"the table is in {path}")


def _cell(value: object) -> str:
    """Numbers with two digits after the point, or two that count, so that small hours and p-values are not 0.00."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:z.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def register(app: typer.Typer) -> None:
    """Add the verbs that train."""
    app.command()(with_options(train))
    app.command()(with_options(recipe))
