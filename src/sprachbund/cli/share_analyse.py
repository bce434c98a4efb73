"""`sprachbund share analyse MODEL DATA… --out FILE.npz`: what every language asks of a model's weights."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli.console import (
    Bar,
    UsageError,
    as_usage,
    listed,
    print_json,
    resumable,
    say,
    size,
)

if TYPE_CHECKING:
    from sprachbund.sharing.collect import Collection
    from sprachbund.sharing.processes import Job

PARTS = ".parts"
"""Added to the file's name: the folder that keeps finished vectors until all are there."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("analyse", help="Collect the gradients of every language, for `share plan`.")(analyse)


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="bundled, a model directory, or a Hugging Face id.")
]
Data = Annotated[list[Path], typer.Argument(metavar="DATA…", help="Corpora, each a directory.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Where the gradients go.")]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--modules",
        metavar="PATTERN",
        help="Names of modules, * for anything between dots; may be repeated. "
        "If not given: the second feed-forward of every encoder layer.",
    ),
]
WholeLayers = Annotated[bool, typer.Option("--whole-layers", help="Whole layers instead.")]
By = Annotated[
    Literal["source", "target", "pair"],
    typer.Option("--by", help="Compare languages spoken, languages written (in the decoder), or pairs."),
]
Languages = Annotated[
    list[str] | None,
    typer.Option("--languages", metavar="LANG,…", help="Compare only these (pairs as de>fr)."),
]
To = Annotated[
    list[str] | None, typer.Option("--to", metavar="LANG,…", help="Languages written; all if not given.")
]
Utterances = Annotated[int, typer.Option("--utterances", metavar="N", help="Of each language.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Utterances of a pass.")]
Accumulate = Annotated[int, typer.Option("--accumulate", metavar="N", help="Passes of a vector.")]
Dimensions = Annotated[int, typer.Option("--dimensions", metavar="N", help="Of a sketch.")]
Projection = Annotated[
    Literal["count", "gaussian"],
    typer.Option("--projection", help="How gradients are made short; count is much faster."),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Of the utterances chosen and the projection.")
]
Workers = Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads of each process.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1 …")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def analyse(
    model: Model,
    data: Data,
    out: Out,
    modules: Modules = None,
    whole_layers: WholeLayers = False,
    by: By = "source",
    languages: Languages = None,
    to: To = None,
    utterances: Utterances = 800,
    batch: Batch = 4,
    accumulate: Accumulate = 4,
    dimensions: Dimensions = 128,
    projection: Projection = "count",
    seed: Seed = 0,
    workers: Workers = 1,
    threads: Threads = None,
    device: Device = "cpu",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Collect the gradients of every language; the same command again goes on where it stopped."""
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} has to end in .npz")
    with as_usage(), Bar("starting"):
        from sprachbund.sharing.collect_options import CollectOptions

        options = CollectOptions(
            modules=tuple(modules or ()),
            whole_layers=whole_layers,
            by=by,
            languages=tuple(listed(languages)),
            targets=tuple(listed(to)),
            utterances=utterances,
            batch=batch,
            accumulate=accumulate,
            dimensions=dimensions,
            projection=projection,
            seed=seed,
        )
        job = _job(
            model, data, options, out, device=device, offline=offline, threads=threads, workers=workers
        )
    done = _collect(job, model, out, workers)
    if done is not None:
        print_json(done) if as_json else _tell(done)


def _job(
    model: str,
    data: list[Path],
    options: Any,
    out: Path,
    *,
    device: str,
    offline: bool,
    threads: int | None,
    workers: int,
) -> "Job":
    import torch

    from sprachbund.evaluation.hashes import model_hash
    from sprachbund.models.directory import locate
    from sprachbund.sharing.processes import Job

    directory = locate(model, offline=offline)
    return Job(
        model=str(directory),
        data=tuple(data),
        options=options,
        parts=out.with_name(out.name + PARTS),
        identity={"model_hash": model_hash(directory)},
        device=device,
        threads=threads or max(1, torch.get_num_threads() // workers),
    )


def _collect(job: "Job", model: str, out: Path, workers: int) -> dict[str, Any] | None:
    """What was done; None in a process that leaves the telling to the first one."""
    from sprachbund.sharing.processes import run_job, shared
    from sprachbund.sharing.sketches import write_sketches

    with resumable(job.parts), shared() as share:
        with Bar("preparing"):
            collection = job.prepare()
        if share.rank == 0:
            _announce(collection, workers * share.count)
        with Bar("collecting", collection.passes, enabled=share.rank == 0) as bar:
            if workers > 1:
                run_job(job, collection, workers, bar.update, share=(share.rank, share.count))
            else:
                collection.run((share.rank, share.count), progress=bar.update)
        share.wait()
        if share.rank > 0:
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


def _tell(done: dict[str, Any]) -> None:
    from sprachbund.sharing.projection import cosine_error

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
