"""Mutants of every format, at length: how many crash, hang, end in an error that is not ours, or fill the memory.

    python -m tests.fuzz.long --mutants 10000

Each format is read in a process of its own, which is started again after a mutant that ends it. Seeds are fixed.
Rows of other formats stay in the file.
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

from sprachbund.util.files import read_object, write_json
from sprachbund.util.provenance import machine, versions
from tests.audio.mutants import mutants
from tests.fuzz.formats import FORMATS

OUT = Path("docs/results/reliability/fuzz.json")
HANGS_S = 60.0


def read_mutants(name: str, content: bytes, count: int, first: int, to: Connection) -> None:
    """In a process: read the mutants from `first` on; tell each outcome, its seconds, and the growth of the memory."""
    with FORMATS[name].reader() as read:
        read(content)
        before_mib = _peak_mib()
        to.send(None)  # ready: a busy machine may take long to import what is needed, which is no hang
        for number, mutant in enumerate(mutants(content, count, number=[*FORMATS].index(name))):
            if number >= first:
                began = time.monotonic()
                result = read(mutant)
                to.send((result, time.monotonic() - began, _peak_mib() - before_mib))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, count: int) -> dict[str, Any]:
    """Counts for one format."""
    with tempfile.TemporaryDirectory() as folder:
        content = FORMATS[name].seed(Path(folder))
    outcomes: Counter[str] = Counter()
    others: list[str] = []
    slowest_s = grown_mib = 0.0
    done = 0
    context = multiprocessing.get_context("spawn")
    while done < count:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=read_mutants, args=(name, content, count, done, theirs))
        process.start()
        theirs.close()
        try:
            ours.recv()
            while done < count:
                if not ours.poll(HANGS_S):
                    outcomes["hang"] += 1
                    done += 1
                    break
                result, took_s, mib = ours.recv()
                known = result in ("read", "refused")
                outcomes["hang" if result == "no end" else result if known else "other error"] += 1
                others += [] if known else [result]
                slowest_s, grown_mib = max(slowest_s, took_s), max(grown_mib, mib)
                done += 1
        except EOFError:
            outcomes["crash"] += 1
            done += 1
        process.kill()
        process.join()
    return {
        "format": name,
        "mutants": count,
        **{kind: outcomes[kind] for kind in ("read", "refused", "other error", "crash", "hang")},
        "memory_mib": round(grown_mib),
        "slowest_s": round(slowest_s, 2),
        "other errors": sorted(set(others))[:10],
    }


def main() -> None:
    """Measure and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--mutants", type=int, default=200, help="of each format")
    options.add_argument("--formats", default=",".join(FORMATS), help="those, with commas")
    options.add_argument("--out", type=Path, default=OUT)
    given = options.parse_args()
    before = read_object(given.out)["rows"] if given.out.is_file() else []
    rows = {row["format"]: row for row in before if row["format"] in FORMATS}
    for name in given.formats.split(","):
        rows[name] = measure(name, given.mutants)
        print(rows[name], flush=True)
        result = {
            "machine": machine(),
            "versions": versions(),
            "rows": [rows[n] for n in FORMATS if n in rows],
        }
        write_json(given.out, result)  # as far as it has come


if __name__ == "__main__":
    main()
