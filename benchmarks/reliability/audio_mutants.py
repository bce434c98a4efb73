"""Recordings with damaged heads: how many crash, hang, end in an error that is not ours, or fill the memory.

python -m benchmarks.reliability.audio_mutants --count 500 --confined 50

Run from the root of the repository. Each kind is read by a process of its own, which is started again after a mutant
that ends it. The first mutants of each kind are also read by confined children, and have to come to the same.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import soundfile
from benchmarks.rows import write
from tests.audio.mutants import KINDS, mutants, outcome, seed

OUT = Path("docs/results/reliability/audio_mutants.json")
HANGS_S = 60.0


def read_mutants(kind: str, content: bytes, count: int, first: int, confined: int, to: Connection) -> None:
    """In a process: read the mutants from `first` on and print each outcome with its seconds and the peak memory."""
    for number, mutant in enumerate(mutants(content, count, number=KINDS.index(kind))):
        if number < first:
            continue
        began = time.monotonic()
        result = outcome(mutant)
        took_s = time.monotonic() - began
        alike = number >= confined or outcome(mutant, untrusted=True) == result
        to.send((result, took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, alike))


def measure(kind: str, count: int, confined: int) -> dict[str, Any]:
    """Counts for one kind."""
    with tempfile.TemporaryDirectory() as folder:
        content = seed(kind, Path(folder))
    outcomes: Counter[str] = Counter()
    others: list[str] = []
    slowest_s = peak_mib = 0.0
    done = unlike = 0
    context = multiprocessing.get_context("spawn")
    while done < count:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=read_mutants, args=(kind, content, count, done, confined, theirs))
        process.start()
        theirs.close()
        try:
            while done < count:
                if not ours.poll(HANGS_S):
                    outcomes["hang"] += 1
                    done += 1
                    break
                result, took_s, mib, alike = ours.recv()
                outcomes[result if result in ("read", "refused") else "other error"] += 1
                others += [result] * (result not in ("read", "refused"))
                slowest_s, peak_mib, unlike = max(slowest_s, took_s), max(peak_mib, mib), unlike + (not alike)
                done += 1
        except EOFError:
            outcomes["crash"] += 1
            done += 1
        process.kill()
        process.join()
    return {
        "kind": kind,
        "mutants": count,
        **{name: outcomes[name] for name in ("read", "refused", "other error", "crash", "hang")},
        "other errors": sorted(set(others))[:10],
        "slowest_s": round(slowest_s, 2),
        "peak_mib": round(peak_mib),
        "confined": confined,
        "confined, another outcome": unlike,
    }


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--count", type=int, default=500, help="mutants of each kind")
    options.add_argument(
        "--confined", type=int, default=0, help="so many of each kind in confined children, too"
    )
    options.add_argument("--out", type=Path, default=OUT)
    given = options.parse_args()
    rows = []
    for kind in KINDS:
        rows.append(measure(kind, given.count, min(given.count, given.confined)))
        print(rows[-1], flush=True)
    counted = (
        "mutants",
        "read",
        "refused",
        "other error",
        "crash",
        "hang",
        "confined",
        "confined, another outcome",
    )
    totals = {name: sum(row[name] for row in rows) for name in counted}
    libraries = {"av": av.__version__, "soundfile": soundfile.__version__}
    libraries["libsndfile"] = soundfile.__libsndfile_version__
    largest = {
        "peak_mib": max(row["peak_mib"] for row in rows),
        "slowest_s": max(row["slowest_s"] for row in rows),
    }
    write(given.out, {"libraries": libraries, "totals": totals | largest, "kinds": rows})


if __name__ == "__main__":
    main()
