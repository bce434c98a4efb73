"""Jobs of several processes: a corpus packed by one process, by two, by four, and by four actors of a local Ray.

Every process writes down when it began and ended each file. The rate is that of the time in which all of them work:
from the end of the first file of the last to have one, until the first of them has no more; of a file at its borders,
the share of its time counts. The start is a column of its own: importing torch and starting Ray take seconds, which a
job of hours pays once. Rounds are in turn.

Run on an idle machine: pip install 'sprachbund[ray]'; python -m benchmarks.jobs
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.rows import keep
from benchmarks.shards import make_corpus

from sprachbund.data.manifest import Manifest
from sprachbund.data.shards import FOLDER, Packing
from sprachbund.util.files import files_sha256
from sprachbund.util.jobs import run

HERE = Path(__file__).parent
FORMS: dict[str, tuple[int, str | None]] = {
    "one process": (1, None),
    "two processes": (2, None),
    "four processes": (4, None),
    "Ray, four actors": (4, "local"),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file: who made it, when, and how many utterances it is of."""

    worker: int
    began_s: float
    ended_s: float
    utterances: int


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A job whose processes write down when they made which file."""

    job: Packing
    log: Path
    threads: int = 1
    gpus: int = 0

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        return self.job.files

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        make = self.job.prepare()

        def watched(number: int, progress: Callable[[int], None]) -> None:
            began_s = time.time()
            make(number, progress)
            made = {"worker": os.getpid(), "began_s": began_s, "ended_s": time.time()}
            (self.log / f"{number}.json").write_text(json.dumps(made))

        return watched

    def made(self) -> list[Made]:
        """All files."""
        return [
            Made(**json.loads((self.log / f"{number}.json").read_text()), utterances=count)
            for number, (_, count) in enumerate(self.files)
        ]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Seconds until all processes work, seconds in which they do, utterances a second then, and a checksum of all."""

    start_s: float
    window_s: float
    rate: float
    checksum: str


def rate_of(made: Sequence[Made], workers: int) -> tuple[float, float]:
    """Utterances a second while all processes work, and how many seconds they do.

    Args:
        made: all files.
        workers: number of processes.
    """
    of_worker: dict[int, list[Made]] = {}
    for file in sorted(made, key=lambda file: file.ended_s):
        of_worker.setdefault(file.worker, []).append(file)
    if len(of_worker) != workers:
        raise SystemExit(f"{len(of_worker)} of {workers} processes made a file; take more --utterances")
    begins_s = max(files[0].ended_s for files in of_worker.values())
    ends_s = min(files[-1].ended_s for files in of_worker.values())
    if ends_s <= begins_s:
        raise SystemExit(f"{workers} processes never worked all at once; take more --utterances")
    done = sum(
        file.utterances
        * max(0.0, min(file.ended_s, ends_s) - max(file.began_s, begins_s))
        / (file.ended_s - file.began_s)
        for file in made
    )
    return done / (ends_s - begins_s), ends_s - begins_s


def measure(source: Path, out: Path, workers: int, ray: str | None) -> Result:
    """Pack once into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    log = out / "log"
    log.mkdir(parents=True)
    job = Watched(
        job=Packing(source=source, out=out, count=len(Manifest(source)), shard_utterances=25), log=log
    )
    began_s = time.time()
    run(job, workers=workers, ray_address=ray)
    made = job.made()
    rate, window_s = rate_of(made, workers)
    first: dict[int, float] = {}
    for file in made:
        first[file.worker] = min(file.began_s, first.get(file.worker, file.began_s))
    return Result(
        start_s=max(first.values()) - began_s,
        window_s=window_s,
        rate=rate,
        checksum=files_sha256(sorted((out / FOLDER).iterdir())),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "jobs.json")
    parser.add_argument("--utterances", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, args.utterances, 1000)
        source = folder / "corpus"
        by_form: dict[str, list[Result]] = {form: [] for form in FORMS}
        for _ in range(args.rounds):
            for form, (workers, ray) in FORMS.items():
                by_form[form].append(measure(source, folder / "out", workers, ray))
    one = by_form["one process"]
    rows = []
    for form, results in by_form.items():
        ratios = sorted(b.rate / a.rate for a, b in zip(one, results, strict=True))
        rows.append(
            {
                "form": form,
                "start_s": round(median(r.start_s for r in results), 1),
                "all_work_s": round(median(r.window_s for r in results), 1),
                "utterances/s": round(median(r.rate for r in results)),
                "of_one_process": round(median(ratios), 2),
                "least": round(ratios[0], 2),
                "most": round(ratios[-1], 2),
                "same_bytes": all(r.checksum == one[0].checksum for r in results),
            }
        )
    keep(
        args.out,
        {"utterances": args.utterances, "rounds": args.rounds, "rows": rows},
        "jobs",
    )


if __name__ == "__main__":
    main()
