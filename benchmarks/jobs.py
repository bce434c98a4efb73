"""Jobs of several processes: a corpus packed by one process, by two, by four, and by four actors of a local Ray.

The start, until the first utterance is done, is a column of its own: importing torch and starting Ray take seconds,
which a job of hours pays once. Rounds are in turn.

Run: pip install 'sprachbund[ray]'; python -m benchmarks.jobs
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.rows import keep
from benchmarks.shards import make_corpus

from sprachbund.data.manifest import Manifest
from sprachbund.data.shards import FOLDER, Packing
from sprachbund.util.files import files_sha256
from sprachbund.util.jobs import run
from sprachbund.util.provenance import machine

HERE = Path(__file__).parent
FORMS: dict[str, tuple[int, str | None]] = {
    "one process": (1, None),
    "two processes": (2, None),
    "four processes": (4, None),
    "Ray, four actors": (4, "local"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Seconds until the first utterances are done, utterances a second from there on, and the checksum of all files."""

    start_s: float
    rate: float
    checksum: str


def measure(source: Path, out: Path, workers: int, ray: str | None) -> Result:
    """Pack once into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    job = Packing(source=source, out=out, count=len(Manifest(source)), shard_utterances=50)
    began, seen = time.perf_counter(), list[tuple[float, int]]()
    run(
        job,
        workers=workers,
        ray_address=ray,
        progress=lambda done, total: seen.append((time.perf_counter(), done)),
    )
    (first, before), (last, after) = seen[0], seen[-1]
    return Result(
        start_s=first - began,
        rate=(after - before) / (last - first),
        checksum=files_sha256(sorted((out / FOLDER).iterdir())),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "jobs.json")
    parser.add_argument("--utterances", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, args.utterances, 1000)
        source = folder / "corpus"
        found: dict[str, list[Result]] = {form: [] for form in FORMS}
        for _ in range(args.rounds):
            for form, (workers, ray) in FORMS.items():
                found[form].append(measure(source, folder / "out", workers, ray))
    one = found["one process"]
    rows = [
        {
            "form": form,
            "start_s": round(median(r.start_s for r in results), 1),
            "then_utterances/s": round(median(r.rate for r in results)),
            "of_one_process": round(median(b.rate / a.rate for a, b in zip(one, results, strict=True)), 2),
            "same_bytes": all(r.checksum == one[0].checksum for r in results),
        }
        for form, results in found.items()
    ]
    keep(args.out, {"machine": machine(), "utterances": args.utterances, "rows": rows}, "jobs")


if __name__ == "__main__":
    main()
