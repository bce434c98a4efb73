"""`sprachbund share`: what languages should share inside a model, decided by their gradients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprachbund.cli import share_analyse, share_apply
from sprachbund.cli.console import Bar, UsageError, as_usage, in_one_process, listed, print_json, say, table
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sprachbund.models.sharing_plan import SharingPlan
    from sprachbund.sharing.planning import PlanOptions
    from sprachbund.sharing.report import Block

GRADIENTS, PLAN = ".npz", ".json"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    share = typer.Typer(
        help="Measure the conflict between languages inside a model, and split where it hurts.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    share_analyse.register(share)
    share.command("plan", help="Decide from gradients what to split, for which groups, how wide.")(plan)
    share.command("show", help="Say and draw which languages fight, where, and how sure that is.")(show)
    share_apply.register(share)
    share.command("diff", help="Say what differs between two plans.")(diff)
    app.add_typer(share, name="share")


GradientsFile = Annotated[
    Path,
    typer.Argument(metavar="FILE.npz", help="Gradients, as `share analyse` or numpy.savez writes them."),
]
Modules = Annotated[int, typer.Option("--modules", metavar="N", help="Modules to split.")]
Groups = Annotated[
    int | None, typer.Option("--groups", metavar="K", help="Groups of languages; found if not given.")
]
Cluster = Annotated[str, typer.Option("--cluster", help="ward or kmeans.")]
ChooseBy = Annotated[str, typer.Option("--choose-by", help="purity, as published, or separation.")]
Thresholds = Annotated[
    str, typer.Option("--thresholds", metavar="X,…", help="Of the conflict, between the ratios.")
]
Ratios = Annotated[
    str, typer.Option("--ratios", metavar="X,…", help="Shared part, for a conflict below each threshold.")
]
Rho = Annotated[float | None, typer.Option("--rho", metavar="X", help="Shared part, whatever the conflict.")]
PrivateWidths = Annotated[
    str, typer.Option("--private-widths", help="equal, or energy for more where gradients are larger.")
]
Start = Annotated[str, typer.Option("--start", help="First weights: neuron, svd or random.")]
Veto = Annotated[
    float, typer.Option("--veto", metavar="X", help="Groups more similar than this are one; 1 for never.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything drawn.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Where the plan goes.")]


def plan(
    file: GradientsFile,
    modules: Modules = 1,
    groups: Groups = None,
    cluster: Cluster = "ward",
    choose_by: ChooseBy = "purity",
    thresholds: Thresholds = "0.05,0.15",
    ratios: Ratios = "0.75,0.5,0.25",
    rho: Rho = None,
    private_widths: PrivateWidths = "equal",
    start: Start = "neuron",
    veto: Veto = 0.9,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Decide what to split; without --out, only tell."""
    in_one_process("sprachbund share plan")
    from sprachbund.sharing.planning import PlanOptions
    from sprachbund.sharing.report import numbers, plan_blocks

    if out is not None and not out.is_dir() and out.suffix != PLAN:
        raise UsageError(f"--out is {out}; name a {PLAN} file, or a model directory to keep the plan in")
    with as_usage():
        options = PlanOptions(
            num_modules=modules,
            num_groups=groups,
            clustering=cluster,  # type: ignore[arg-type]
            choose_by=choose_by,  # type: ignore[arg-type]
            thresholds=_floats("--thresholds", thresholds),
            ratios=_floats("--ratios", ratios),
            shared_ratio=rho,
            private_widths=private_widths,  # type: ignore[arg-type]
            start=start,  # type: ignore[arg-type]
            veto=veto,
            seed=seed,
        )
    made = _plan(file, options)
    if out is not None:
        made.write(out)
    if as_json:
        print_json(numbers(made))
    else:
        _tell(plan_blocks(made))
    if out is not None:
        say(f"the plan is in {out}")


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Gradients (.npz), or a plan.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="OTHER", help="The same of an earlier checkpoint: what changed."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.html|.png", help="Draw it, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which languages fight, where, how sure that is, and how it changed; draw it."""
    from sprachbund.sharing.page import check_ending, write_report
    from sprachbund.sharing.report import changes, numbers, show_blocks

    if out is not None:
        with as_usage():
            check_ending(out)
    shown = _plan(file)
    other = _plan(against) if against is not None else None
    for path, found in ((file, shown), (against, other)):
        if other is not None and found is not None and not found.modules:
            raise SprachbundError(
                f"{path} holds no evidence to compare; name gradients, or a plan made of some"
            )
    if as_json:
        changed = {"changes": changes(shown.modules, other.modules)} if other else {}
        print_json({**numbers(shown), **changed})
    else:
        _tell(show_blocks(shown, other))
    if out is not None:
        with Bar("drawing"):
            write_report(shown, out, other)
        say(f"the report is in {out}")


def diff(
    one: Annotated[Path, typer.Argument(metavar="A.json", help="A plan, or a model directory with one.")],
    other: Annotated[Path, typer.Argument(metavar="B.json", help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two plans."""
    from sprachbund.models.sharing_plan import SharingPlan
    from sprachbund.sharing.diff import compare, diff_lines

    difference = compare(SharingPlan.read(one), SharingPlan.read(other))
    if as_json:
        return print_json(difference)
    _tell(diff_lines(difference, str(one), str(other)))


def _plan(file: Path, options: "PlanOptions | None" = None) -> "SharingPlan":
    """What a file says: a plan as it stands, or one made of gradients."""
    from sprachbund.models.sharing_plan import SharingPlan

    if options is None and file.suffix != GRADIENTS:
        return SharingPlan.read(file)
    with Bar("reading gradients") as bar:
        from sprachbund.sharing.planning import make_plan
        from sprachbund.sharing.sketches import read_sketches

        sketches = read_sketches(file)
        return make_plan(
            sketches, options, progress=lambda done, total: bar.update(done, total, "comparing gradients")
        )


def _floats(option: str, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in listed([value]))
    except ValueError as error:
        raise UsageError(
            f"{option} is {value!r}; write numbers with commas between, as in 0.05,0.15"
        ) from error


def _tell(blocks: "Sequence[Block]") -> None:
    for block in blocks:
        typer.echo(block if isinstance(block, str) else table(block.rows, block.head))
