"""`sprachbund share`: choice of the parameters that languages share, by their gradients."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    in_one_process,
    print_json,
    resumable,
    say,
    size,
    table,
    threads_of_each,
)
from sprachbund.cli.models import fetch
from sprachbund.cli.options import OWN_PANEL, Panel, VerbApp, with_options
from sprachbund.errors import SprachbundError
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.research.gradient_sharing.headroom_options import HeadroomOptions
from sprachbund.research.gradient_sharing.plan_options import SharingPlanOptions
from sprachbund.util.computing import Computing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sprachbund.models.sharing_plan import SharingPlan
    from sprachbund.research.gradient_sharing.collect import Collection, CollectJob
    from sprachbund.research.gradient_sharing.headroom import Headroom
    from sprachbund.research.gradient_sharing.report import Block
    from sprachbund.research.gradient_sharing.surgery import Importance


# `sprachbund share analyse MODEL DATA… --out FILE.npz`: the gradients of every language.

PARTS = ".parts"
"""Added to the file's name: the folder that keeps finished vectors until all are there."""


def register_analyse(app: typer.Typer) -> None:
    """Add the command."""
    app.command("analyse", help="Collect the gradients of every language, for `share plan`.")(
        with_options(analyse)
    )


def analyse(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    data: Annotated[list[Path], typer.Argument(metavar="DATA", help="Corpora, each a directory.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where the gradients go.")],
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of each process.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1 …")
    ] = "cpu",
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    *,
    options: Annotated[CollectOptions, Panel("Gradients")],
    computing: Annotated[Computing, Panel("Processes", only=("workers", "ray"))],
) -> None:
    """Collect the gradients of every language; the same command again goes on where it stopped."""
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} has to end in .npz")
    with as_usage(), Bar("starting"):
        options.check_vectors()
        computing = replace(computing, threads=threads or threads_of_each(computing.workers))
        job = _job(model, data, options, out, device=device, offline=offline, threads=computing.threads)
    done = _collect(job, model, out, computing)
    if done is not None:
        print_json(done) if as_json else _print_collection(done)


def _job(
    model: str,
    data: list[Path],
    options: CollectOptions,
    out: Path,
    *,
    device: str,
    offline: bool,
    threads: int,
) -> "CollectJob":
    from sprachbund.data.manifest import Manifest
    from sprachbund.models.io import family_of
    from sprachbund.research.gradient_sharing.collect import CollectJob
    from sprachbund.util.provenance import model_hash

    directory = fetch(model, offline=offline)
    family_of(directory)  # an error that names what is wrong with a directory that holds no model
    return CollectJob(
        model=str(directory),
        data=tuple(data),
        options=options,
        parts=out.with_name(out.name + PARTS),
        identity={
            "model_hash": model_hash(directory),
            "data": [Manifest(path).content_hash() for path in data],
        },
        device=device,
        threads=threads,
    )


def _collect(job: "CollectJob", model: str, out: Path, computing: Computing) -> dict[str, Any] | None:
    """Name, size and settings of the file of sketches; None in a process that leaves the printing to the first one."""
    from sprachbund.research.gradient_sharing.collect import run_job, shared
    from sprachbund.research.gradient_sharing.sketches import write_sketches

    with resumable(job.parts), shared() as process:
        with Bar("preparing"):
            collection = job.prepare()
        collection.check_languages()
        if process.rank == 0:
            _announce(collection, computing.workers * process.count)
        with Bar("collecting", collection.passes, enabled=process.rank == 0) as bar:
            if computing.is_alone:
                collection.run((process.rank, process.count), progress=bar.update)
            else:
                run_job(job, collection, computing, bar.update, share=(process.rank, process.count))
        process.wait()
        if process.rank > 0:
            return None
        sketches = collection.sketches({"model": model})
        write_sketches(out, sketches)
    shutil.rmtree(job.parts)
    return {"file": str(out), "bytes": out.stat().st_size, **sketches.info}


def _announce(collection: "Collection", processes: int) -> None:
    """The cost, before it is incurred."""
    with Bar("timing a pass"):
        cost = collection.cost()
    if passed := ", ".join(f"{key} {count}" for key, count in collection.passed_over.items() if count):
        say(f"passed over, having no text or being longer than the model takes: {passed}")
    there = cost.passes - cost.passes_left
    again = f", {there} of them made before" if there else ""
    by_processes = f" by {processes} processes" if processes > 1 else ""
    say(
        f"{len(collection.rows)} languages x {collection.options.vectors} vectors of {len(collection.modules)} modules "
        f"({cost.parameters / 1e6:.2f} M parameters): {cost.passes} passes{again}, about "
        f"{_time(cost.seconds / processes)}{by_processes}; {size(cost.memory_bytes)} for gradients, "
        f"{size(cost.file_bytes)} on disk"
    )


def _print_collection(done: dict[str, Any]) -> None:
    from sprachbund.research.gradient_sharing.gradients import cosine_error

    cost = done["cost"]
    counts = ", ".join(f"{key} {count}" for key, count in done["num_utterances"].items())
    typer.echo(f"utterances: {counts}")
    typer.echo(f"languages written: {', '.join(done['targets'])}")
    typer.echo(
        f"{cost['passes']} passes in {_time(cost['seconds'])} of one process; cosines within "
        f"{cosine_error(done['dimensions']):.3f} of the exact ones (one standard deviation)"
    )
    typer.echo(f"{done['file']}: {size(done['bytes'])}; next: sprachbund share plan {done['file']}")


def _time(seconds: float) -> str:
    """Roughly: 15 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# `sprachbund share headroom MODEL DATA… --dev DIR`: what a split could gain at most.


def register_headroom(app: typer.Typer) -> None:
    """Add the command."""
    app.command("headroom", help="Measure what a split could gain at most, before any is made.")(
        with_options(headroom)
    )


def headroom(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
    ],
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA", help="Corpora to train on, each a directory.")
    ],
    dev: Annotated[
        list[Path], typer.Option("--dev", metavar="DIR", help="Corpus to measure on; repeatable.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Where the figures go.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1 …")
    ] = "cpu",
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    *,
    options: Annotated[HeadroomOptions, Panel(OWN_PANEL)],
) -> None:
    """Train the last layers with all languages together and with each alone, and compare on utterances held out."""
    in_one_process("sprachbund share headroom")
    with as_usage(), Bar("loading the model"):
        from dataclasses import asdict

        from sprachbund.data.manifest import Manifest, check_apart
        from sprachbund.models.io import family_of, load
        from sprachbund.research.gradient_sharing.headroom import measure_headroom
        from sprachbund.util.devices import find_device
        from sprachbund.util.files import write_json
        from sprachbund.util.provenance import machine, model_hash

        # before minutes of computing
        if out is not None and out.is_dir():
            raise UsageError(f"--out {out} is a folder; name a file in it")
        check_apart(data, dev)
        directory = fetch(model, offline=offline)
        family_of(directory)  # an error that names what is wrong with a directory that holds no model
        family: Any = load(directory, offline=True)
        family.to(find_device(device))
        train_on, measure_on = [Manifest(path) for path in data], [Manifest(path) for path in dev]
    with Bar("training") as bar:
        measured = measure_headroom(family, train_on, measure_on, options, progress=bar.update)
    done = {
        "model_hash": model_hash(directory),
        "machine": machine(),
        "options": asdict(options),
        **asdict(measured),
    }
    if out is not None:
        write_json(out, done)
    print_json(done) if as_json else _print_headroom(measured)
    if measured.warning:
        say(measured.warning)


def _print_headroom(measured: "Headroom") -> None:
    from sprachbund.research.gradient_sharing.headroom import ALL

    typer.echo(f"trained: {', '.join(measured.modules)}; nats for each token of utterances held out\n")
    arms = list(measured.gains)
    rows = [
        [
            language,
            f"{measured.before[language]:.3f}",
            f"{measured.together[language]:.3f}",
            *(_gain(measured.gains[arm][language]) for arm in arms),
        ]
        for language in measured.together
    ]
    rows.append([ALL, "", "", *(_gain(measured.gains[arm][ALL]) for arm in arms)])
    typer.echo(table(rows, ["language", "before", "together", *(f"gain {arm}" for arm in arms)]))
    gain = measured.gains["alone"][ALL]
    low, high = gain.interval
    if low > 0:
        typer.echo(
            f"\nThere is headroom: weights of its own gain a language {gain.gain:.3f} nats a token; see which "
            "languages with share analyse."
        )
    else:
        typer.echo(
            f"\nNo headroom is seen: weights of its own gain a language {gain.gain:.3f} nats a token ({low:.3f} to "
            f"{high:.3f}). {_of_control(measured)}"
        )


def _of_control(measured: "Headroom") -> str:
    """What the control says of a measurement without a gain."""
    if measured.control_gain is None:
        return "They take fewer steps than common ones; the control, left out here, shows whether there were enough."
    value, (low, high) = measured.control_gain
    numbers = f"{value:.3f} ({low:.3f} to {high:.3f})"
    if measured.long_enough:
        return (
            f"In the control, with words exchanged in half of the texts, they gain {numbers} on the other half, so the "
            "training can see a gain."
        )
    return (
        f"Nor do they in the control, with words exchanged in half of the texts: {numbers} on the other half. So the "
        "training is too short to conclude anything; raise --epochs."
    )


def _gain(gain: Any) -> str:
    return f"{gain.gain:+.3f} ({gain.interval[0]:+.3f} to {gain.interval[1]:+.3f})"


# `sprachbund share apply MODEL PLAN --out DIR`: a split model, to go on training from.


def register_apply(app: typer.Typer) -> None:
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
        from sprachbund.compression.quantization import check_quantizable
        from sprachbund.models.io import family_of, load
        from sprachbund.models.sharing_plan import SharingPlan
        from sprachbund.research.gradient_sharing.surgery import apply_plan

        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is there already; choose another --out")
        wanted = _started(SharingPlan.read(plan), start)
        source = fetch(model, offline=offline)
        family_of(source)  # an error that names what is wrong with a directory that holds no model
        _check(wanted, plan, source, data or [], any_model)
        family: Any = load(source, offline=True)
        if bits == "8":
            check_quantizable(family)
        before = _num_parameters(family)
    importance = _importance(family, wanted, data or [], utterances)
    apply_plan(family, wanted, importance=importance)
    _save(family, source, out, int(bits))
    done = {**_described(family, wanted), "parameters_before": before, "model": str(out)}
    print_json(done) if as_json else _print_applied(done)


def _started(plan: "SharingPlan", start: Any) -> "SharingPlan":
    if start is None:
        return plan
    splits = tuple(split.model_copy(update={"start": start}) for split in plan.splits)
    return plan.model_copy(update={"splits": splits})


def _check(plan: "SharingPlan", path: Path, source: Path, data: list[Path], any_model: bool) -> None:
    from sprachbund.util.provenance import model_hash

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
    from sprachbund.research.gradient_sharing.surgery import measure_importance

    if not any(split.start == "neuron" for split in plan.splits):
        return {}
    manifests = [Manifest(path) for path in data]
    with Bar("measuring hidden units", 1) as bar:
        return measure_importance(family, plan, manifests, utterances, progress=bar.update)


def _save(family: Any, source: Path, out: Path, bits: int) -> None:
    from sprachbund.models.io import save

    if family.name == "conformer":
        from sprachbund.models.card import Card

        card = Card.read(source)
        # What was measured, was measured before.
        save(family, out, bits=bits, card=card and card.model_copy(update={"scores": []}))
    else:
        save(family, out, bits=bits)


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


def _print_applied(done: dict[str, Any]) -> None:
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


GRADIENTS, PLAN = ".npz", ".json"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    share = VerbApp(
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    register_analyse(share)
    share.command("plan", help="Decide from gradients what to split, for which groups, how wide.")(
        with_options(plan)
    )
    share.command("show", help="Say and draw which languages fight, where, and how sure that is.")(show)
    register_headroom(share)
    register_apply(share)
    share.command("diff", help="Say what differs between two plans.")(diff)
    app.add_typer(share, name="share")


GradientsFile = Annotated[
    Path,
    typer.Argument(metavar="FILE.npz", help="Gradients, as `share analyse` or numpy.savez writes them."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Where the plan goes.")]


def plan(
    file: GradientsFile,
    *,
    options: Annotated[SharingPlanOptions, Panel(OWN_PANEL)],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Decide what to split; without --out, only print the plan."""
    in_one_process("sprachbund share plan")
    from sprachbund.research.gradient_sharing.report import numbers, plan_blocks

    # A model directory has a plan of its own if it is split, and is refused with one if it is not.
    if out is not None and (out.is_dir() or out.suffix != PLAN):
        raise UsageError(f"--out is {out}; name a {PLAN} file")
    made = _plan(file, options)
    if out is not None:
        made.write(out)
    if as_json:
        print_json(numbers(made))
    else:
        _print_blocks(plan_blocks(made))
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
    from sprachbund.research.gradient_sharing.page import check_ending, write_report
    from sprachbund.research.gradient_sharing.report import changes, numbers, show_blocks

    if out is not None:
        with as_usage():
            check_ending(out)
    shown = _plan(file)
    other = _plan(against) if against is not None else None
    for path, plan in ((file, shown), (against, other)):
        if other is not None and plan is not None and not plan.modules:
            raise SprachbundError(
                f"{path} holds no evidence to compare; name gradients, or a plan made of some"
            )
    if as_json:
        changed = {"changes": changes(shown.modules, other.modules)} if other else {}
        print_json({**numbers(shown), **changed})
    else:
        _print_blocks(show_blocks(shown, other))
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
    from sprachbund.research.gradient_sharing.report import compare, diff_lines

    difference = compare(SharingPlan.read(one), SharingPlan.read(other))
    if as_json:
        return print_json(difference)
    _print_blocks(diff_lines(difference, str(one), str(other)))


def _plan(file: Path, options: SharingPlanOptions | None = None) -> "SharingPlan":
    """Plan in a file: one as it stands, or one made of gradients."""
    from sprachbund.models.sharing_plan import SharingPlan

    if options is None and file.suffix != GRADIENTS:
        return SharingPlan.read(file)
    with Bar("reading gradients") as bar:
        from sprachbund.research.gradient_sharing.planning import make_plan
        from sprachbund.research.gradient_sharing.sketches import read_sketches

        sketches = read_sketches(file)
        return make_plan(
            sketches, options, progress=lambda done, total: bar.update(done, total, "comparing gradients")
        )


def _print_blocks(blocks: "Sequence[Block]") -> None:
    for block in blocks:
        typer.echo(block if isinstance(block, str) else table(block.rows, block.head))
