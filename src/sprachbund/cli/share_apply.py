"""`sprachbund share apply MODEL PLAN --out DIR`: a plan carried out, as a model directory to train on from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, in_one_process, print_json, say, table

if TYPE_CHECKING:
    from sprachbund.models.sharing_plan import SharingPlan
    from sprachbund.sharing.surgery import Importance


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("apply", help="Split a model as a plan says; training goes on from there.")(apply)


def apply(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="As `share plan` writes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Corpus to measure hidden units on, for the start neuron; repeatable.",
        ),
    ] = None,
    start: Annotated[
        Literal["neuron", "svd", "random"] | None,
        typer.Option("--start", help="First weights of the branches; what the plan says if not given."),
    ] = None,
    utterances: Annotated[
        int, typer.Option("--utterances", metavar="N", min=1, help="Of each language, to measure on.")
    ] = 64,
    bits: Annotated[
        Literal["8", "16", "32"], typer.Option("--bits", help="Of the weights written, where a family can.")
    ] = "32",
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Apply a plan that was made for another model.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Split a model's feed-forwards by language; every language's branch is written into the model directory."""
    in_one_process("sprachbund share apply")
    with as_usage(), Bar("loading the model"):
        from sprachbund.models.directory import load, locate
        from sprachbund.models.sharing_plan import SharingPlan
        from sprachbund.sharing.surgery import apply_plan

        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is there already; choose another --out")
        wanted = _started(SharingPlan.read(plan), start)
        source = locate(model, offline=offline)
        _check(wanted, plan, source, data or [], any_model)
        family: Any = load(source, offline=True)
        before = _num_parameters(family)
    importance = _importance(family, wanted, data or [], utterances)
    apply_plan(family, wanted, importance=importance)
    _save(family, source, out, int(bits))
    done = {**_described(family, wanted), "parameters_before": before, "model": str(out)}
    print_json(done) if as_json else _tell(done)


def _started(plan: "SharingPlan", start: Any) -> "SharingPlan":
    if start is None:
        return plan
    splits = tuple(split.model_copy(update={"start": start}) for split in plan.splits)
    return plan.model_copy(update={"splits": splits})


def _check(plan: "SharingPlan", path: Path, source: Path, data: list[Path], any_model: bool) -> None:
    from sprachbund.evaluation.hashes import model_hash

    if not plan.splits:
        raise UsageError(f"{path} splits nothing; plan again with other thresholds, or name a module in it")
    if not any_model and plan.model_hash not in (None, model_hash(source)):
        raise UsageError(
            f"{path} was made from the gradients of another model than {source}; "
            "analyse this one, or apply it all the same with --any-model"
        )
    if not data and any(split.start == "neuron" for split in plan.splits):
        raise UsageError(
            "the start neuron measures hidden units on data; name some with --data, or take --start svd"
        )


def _importance(family: Any, plan: "SharingPlan", data: list[Path], utterances: int) -> "Importance":
    """Of the hidden units of every module that starts by neuron, for each of its languages or pairs."""
    from sprachbund.data.manifest import Manifest
    from sprachbund.sharing.measuring import measure_importance

    if not any(split.start == "neuron" for split in plan.splits):
        return {}
    manifests = [Manifest(path) for path in data]
    with Bar("measuring hidden units", 1) as bar:
        return measure_importance(family, plan, manifests, utterances, progress=bar.update)


def _save(family: Any, source: Path, out: Path, bits: int) -> None:
    from sprachbund.models.directory import save

    if family.name == "conformer":
        from sprachbund.models.card import Card

        card = Card.read(source)
        # What was measured, was measured before.
        save(family, out, bits=bits, card=card and card.model_copy(update={"scores": []}))
    elif bits == 32:
        save(family, out)
    else:
        raise UsageError(f"the family {family.name} is written in the bits it has; leave out --bits")


def _described(family: Any, plan: "SharingPlan") -> dict[str, Any]:
    from sprachbund.models.splitting import target_languages

    splits = []
    for split in plan.splits:
        module = family.get_submodule(split.module)
        sides = {"source": family.source_languages, "target": target_languages(family), "pair": ()}
        grouped = {tag for group in split.groups for tag in group}
        splits.append(
            {
                "module": split.module,
                "side": split.side,
                "start": split.start,
                "groups": [list(group) for group in split.groups],
                "shared_width": module.shared.expand.out_features,
                "private_widths": [branch.expand.out_features for branch in module.private],
                "without_group": sorted(set(sides[split.side]) - grouped),
            }
        )
    return {"splits": splits, "parameters": _num_parameters(family)}


def _num_parameters(family: Any) -> int:
    return sum(parameter.numel() for parameter in family.parameters())


def _tell(done: dict[str, Any]) -> None:
    rows = [
        [
            split["module"],
            split["side"],
            split["start"],
            str(split["shared_width"]),
            ", ".join(
                f"{w} {'+'.join(g)}" for w, g in zip(split["private_widths"], split["groups"], strict=True)
            ),
        ]
        for split in done["splits"]
    ]
    typer.echo(table(rows, ["module", "by", "start", "shared", "private"]))
    typer.echo(f"parameters  {done['parameters_before']:,} before, {done['parameters']:,} now")
    for split in done["splits"]:
        if split["without_group"]:
            tags = ", ".join(split["without_group"])
            say(f"{split['module']} has no group for {tags}, so the model refuses them; add them to the plan")
    say(
        f'the model is in {done["model"]}; train it on from there with `start = "{done["model"]}"` in a recipe'
    )
