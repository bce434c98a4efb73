"""What every way of compressing prints and writes: the model before and after on the same data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sprachbund.cli.console import Bar, listed, print_json, say, size, table
from sprachbund.util.files import write_json

if TYPE_CHECKING:
    from sprachbund.recipes.before_after import Measured, Measurement
    from sprachbund.recipes.tasks_kept import Verdict

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes; a new folder.")]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="Corpus to measure both models on; may be repeated."),
]
To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="LANG,…", help="Languages to measure; all with references by default."),
]
Limit = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, help="Most utterances of a corpus, spread over it.")
]
NoSpeech = Annotated[
    int, typer.Option("--no-speech", metavar="N", min=0, help="Sounds of each kind without speech.")
]
Rounds = Annotated[
    int, typer.Option("--rounds", metavar="N", min=0, help="In which both are timed in turn; 0 for none.")
]
Engine = Annotated[
    Literal["auto", "native", "torch"], typer.Option("--engine", help="What computes the models.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to compute with.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LIMIT, NO_SPEECH, ROUNDS = 200, 4, 3


def set_threads(threads: int | None) -> None:
    """Compute with so many threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def measure_and_tell(
    before: str | Path,
    after: Path,
    data: Sequence[Path] | None,
    *,
    what: dict[str, Any],
    to: Sequence[str] | None,
    limit: int,
    no_speech: int,
    rounds: int,
    engine: Any,
    offline: bool,
    as_json: bool,
) -> None:
    """Measure both models, write `compression.json` into the new one's directory, and print it.

    Args:
        before: the model that there was.
        after: directory of what was made of it.
        data: corpora.
        what: was done, as JSON values.
        to: languages wanted.
        limit: utterances of a corpus.
        no_speech: sounds of each kind.
        rounds: of timing.
        engine: that computes both.
        offline: never use the network.
        as_json: print JSON.
    """
    from sprachbund.evaluation import hashes
    from sprachbund.recipes.before_after import MeasureOptions, measure_both
    from sprachbund.recipes.tasks_kept import judge_tasks

    options = MeasureOptions(
        targets=tuple(listed(to)) or None,
        limit=limit,
        no_speech_per_kind=no_speech,
        rounds=rounds,
        engine=engine,
    )
    with Bar("measuring") as bar:
        found = measure_both(
            before,
            after,
            data or [],
            options,
            offline=offline,
            progress=lambda stage, done, total: bar.update(done, total, f"measuring {stage}"),
        )
    verdict = judge_tasks(found)
    where = {"machine": hashes.machine(), "versions": hashes.versions(), "commit": hashes.commit()}
    values = {**what, **found.model_dump(mode="json"), "tasks": verdict.model_dump(mode="json"), **where}
    path = after / hashes.COMPRESSION_FILE
    write_json(path, values)
    if as_json:
        return print_json(values)
    typer.echo(as_text(found, verdict))
    say(f"the model is in {after}; these numbers are in {path.name} there")


def as_text(found: "Measurement", verdict: "Verdict") -> str:
    """All numbers of both models, and what became of the tasks."""
    parts = [_sizes(found)]
    if found.data:
        parts += [_scores(found), _failures(found)]
    named = {"lost": verdict.lost, "worse": verdict.worse, "not measured": verdict.not_measured}
    lines = [f"{label}: {task}" for label, tasks in named.items() for task in tasks]
    if found.data and not verdict.lost and not verdict.worse:
        lines.insert(0, "no task that was measured is lost or worse")
    return "\n\n".join([*parts, "\n".join(lines)]).rstrip()


def _sizes(found: "Measurement") -> str:
    before, after = found.before, found.after
    rows = [
        [
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            _ratio(before, after, "parameters"),
        ],
        [
            "weights on disk",
            size(before.bytes_on_disk),
            size(after.bytes_on_disk),
            _ratio(before, after, "bytes_on_disk"),
        ],
        ["bits of a matrix", str(before.bits or "mixed"), str(after.bits or "mixed"), ""],
    ]
    text = table(rows, ["", "before", "after", "of before"])
    if not found.speed:
        return text
    old, new = found.speed
    conditions = found.conditions
    return (
        f"{text}\ntime of the same work: {new['time_ratio']} of before ({new['lowest_ratio']} to "
        f"{new['highest_ratio']} in {conditions['rounds']} rounds, in turn); {old['tokens_per_s']} tokens/s before, "
        f"{new['tokens_per_s']} after; engine {conditions['engine']}, batch {conditions['batch_size']}, "
        f"{conditions['threads']} thread{'s' * (conditions['threads'] != 1)}"
    )


def _ratio(before: "Measured", after: "Measured", name: str) -> str:
    return f"{100 * getattr(after, name) / max(1, getattr(before, name)):.0f} %"


def _scores(found: "Measurement") -> str:
    from sprachbund.recipes.tasks_kept import pair_metric

    before, after = found.before.scores, found.after.scores
    rows = []
    for pair in sorted(before, key=lambda pair: (pair_metric(before[pair]), pair)):
        metric = pair_metric(before[pair])
        new = after.get(pair, {}).get(metric)
        change = "lost" if new is None else f"{new - before[pair][metric]:+.1f}"
        rows.append(
            [pair, metric, f"{before[pair][metric]:.1f}", "-" if new is None else f"{new:.1f}", change]
        )
    told = found.after.languages
    for tag, old in found.before.languages.items():
        now = told.get(tag)
        change = "lost" if now is None else f"{now.percent - old.percent:+.1f}"
        rows.append(
            [tag, "told right %", f"{old.percent:.1f}", "-" if now is None else f"{now.percent:.1f}", change]
        )
    return table(rows, ["pair", "metric", "before", "after", "change"]) + _times(found)


def _times(found: "Measurement") -> str:
    old, new = found.before.times, found.after.times
    if old is None:
        return ""
    now = "none" if new is None else f"{new.ended} of {new.judged} rows, {new.end_error_s:.2f} s off"
    return f"\ntimestamps at the end: {old.ended} of {old.judged} rows, {old.end_error_s:.2f} s off before; {now} after"


def _failures(found: "Measurement") -> str:
    after = {rate.failure: rate for rate in found.after.failures}
    rows = [
        [
            rate.failure,
            f"{rate.percent:.1f} %",
            f"{after[rate.failure].percent:.1f} %" if rate.failure in after else "-",
            str(rate.judged),
        ]
        for rate in found.before.failures
    ]
    return table(rows, ["failure", "before", "after", "of lines"])
