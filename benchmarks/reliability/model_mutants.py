"""What becomes of damaged model directories: every family, every kind of damage, loaded under limits.

`python -m benchmarks.reliability.model_mutants` writes docs/results/reliability/model_mutants.json. See
`tests.models.mutants` for what is damaged and how it is evaluated. Named families are added to what is there.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rows import write
from tests.models.mutants import FAMILIES, MEMORY_BYTES, OWN, TIME_S, MutantResults, try_all

_OUT = Path(__file__).parents[2] / "docs/results/reliability/model_mutants.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="of " + ", ".join(FAMILIES))
    parser.add_argument("--count", type=int, help="mutants of each family; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=_OUT)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    if options.families and options.out.exists():
        rows = json.loads(options.out.read_text(encoding="utf-8"))["families"]
    with tempfile.TemporaryDirectory() as work:
        for family in options.families or FAMILIES:
            results = try_all(family, options.seed, options.count, Path(work))
            rows[family] = _row(results)
            print(family, json.dumps(rows[family]), file=sys.stderr)
            for fault in results.faults:
                print(f"  {fault}", file=sys.stderr)
            _write(options.out, options.seed, rows)


def _write(path: Path, seed: int, rows: dict[str, Any]) -> None:
    total = {key: sum(row[key] for row in rows.values()) for key in rows[next(iter(rows))]}
    total["largest_memory_mib"] = max(row["largest_memory_mib"] for row in rows.values())
    report = {
        "seed": seed,
        "limits": {"address_space_gib": MEMORY_BYTES / 2**30, "seconds": TIME_S},
        "with_checksums": [family for family in rows if family in OWN],
        "total": total,
        "families": rows,
    }
    write(path, report)


def _row(results: MutantResults) -> dict[str, int]:
    seen = results.outcomes
    return {
        "mutants": results.num_mutants,
        "refused": seen["refused"],
        "loaded": seen["loaded"],
        "loaded_with_other_weights": seen["silent"],
        "raw_errors": seen["raw"],
        "errors_of_many_lines": seen["many lines"],
        "crashes": seen["crash"],
        "hangs": seen["hang"],
        "largest_memory_mib": round(results.memory_bytes / 2**20),
    }


if __name__ == "__main__":
    main()
