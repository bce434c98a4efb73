"""`sprachbund bench`: how fast a model is on this machine, with each engine, and how fast it could be."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, say, table
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.runtime.measure import Speed, SpeedJob

BUNDLED = "bundled"
_LEGEND = """\
Milliseconds, medians; encoder, prompt and token are of the long call. The bound of the encoder is the time for as many
operations on 8 bits, out of the cache. The bound of a token is the time to read from memory all that it needs; models
small enough for the processor's cache can be faster than that."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Measure how fast a model is on this machine.")(bench)


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="bundled (the default), a directory, or a Hugging Face id."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", metavar="NAME", help="Whisper of this size with random weights: tiny, base, small…"
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", metavar="NAME,…", help="native, torch-int8, torch-bf16, torch; all by default."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Threads to compute with.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Measurements, of which medians count.")
    ] = 5,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Time whole calls and their parts; every engine runs in a process of its own, one after another."""
    with as_usage():
        jobs = _jobs(model, shape, listed(engines), threads, repeats, offline)
    if model := jobs[0].model:
        _check_model(model, offline=offline)
    speeds = []
    with Bar("measuring", len(jobs)) as bar:
        for i, job in enumerate(jobs):
            bar.update(i, label=f"measuring {job.engine}")
            if (speed := _measured(job, optional=not engines)) is not None:
                speeds.append(speed)
    if as_json:
        what = {"model": jobs[0].model, "shape": shape, "threads": jobs[0].threads}
        print_json({**what, "engines": [speed.as_dict() for speed in speeds]})
    else:
        typer.echo(_text(jobs[0], speeds))


def _jobs(
    model: str | None, shape: str | None, engines: list[str], threads: int | None, repeats: int, offline: bool
) -> "list[SpeedJob]":
    from sprachbund.runtime.engine import choose_threads
    from sprachbund.runtime.measure import ENGINES, SpeedJob

    if shape == BUNDLED:
        shape = None
    if model is None and shape is None:
        model = BUNDLED
    more: dict[str, Any] = {"threads": choose_threads(threads), "repeats": repeats, "offline": offline}
    return [SpeedJob(engine=engine, model=model, shape=shape, **more) for engine in engines or ENGINES]  # type: ignore[arg-type]


def _check_model(model: str, *, offline: bool) -> None:
    """Find it, or fetch it, before any engine is told to: what is wrong with a name is wrong for all."""
    from sprachbund.models.directory import locate

    with Bar(f"looking for {model}"):
        locate(model, offline=offline)


def _measured(job: "SpeedJob", *, optional: bool) -> "Speed | None":
    """A job's result; None, and a line, where an engine that nobody named cannot run the model."""
    from sprachbund.runtime.measure import measure_speed

    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            return process.submit(measure_speed, job).result()
    except SprachbundError as error:
        if job.engine != "native" or not optional or isinstance(error, UsageError):
            raise
        say(f"note: {error}")
        return None


def _text(job: "SpeedJob", speeds: "list[Speed]") -> str:
    what = f"Whisper {job.shape} with random weights" if job.shape else str(job.model)
    read = max(speed.read_gb_per_s for speed in speeds)
    head = (
        "engine",
        "encoder",
        "bound",
        "of bound",
        "prompt",
        "token",
        "bound",
        "of bound",
        *_calls(job),
        "peak",
    )
    rows = [_row(speed) for speed in speeds]
    lines = [f"{speed.engine}: {speed.why}" for speed in speeds]
    title = f"{what}, {job.threads} thread{'s' * (job.threads != 1)}; memory is read at {read:.1f} GB/s"
    if known := [speed.int8_gops_per_s for speed in speeds if speed.int8_gops_per_s]:
        title += f", {max(known):.0f} billion operations on 8 bits a second"
    return "\n".join([title, *lines, "", table(rows, head), "", _LEGEND])


def _calls(job: "SpeedJob") -> tuple[str, str]:
    return (
        f"{job.window_s:g} s, {job.window_tokens} tokens",
        f"{job.clip_s:g} s, {job.clip_tokens} tokens",
    )


def _row(speed: "Speed") -> list[str]:
    window, clip = speed.window, speed.clip
    return [
        speed.engine,
        f"{window.encoder_ms:.0f}",
        *_bound(speed.encoder_bound_ms, window.encoder_ms),
        f"{window.prompt_ms:.1f}",
        f"{window.token_ms:.2f}",
        *_bound(speed.bound_ms, window.token_ms),
        f"{window.whole_ms:.0f} ±{window.spread_ms / 2:.0f}",
        f"{clip.whole_ms:.0f} ±{clip.spread_ms / 2:.0f}",
        f"{speed.peak_mib:.0f} MiB",
    ]


def _bound(bound_ms: float | None, measured_ms: float) -> tuple[str, str]:
    """A bound, and how much of it is reached."""
    return ("-", "-") if bound_ms is None else (f"{bound_ms:.2f}", f"{100 * bound_ms / measured_ms:.0f} %")
