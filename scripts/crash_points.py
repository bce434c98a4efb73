"""Kills every resumable command at every change of its output, runs it again, and compares; writes what came out.

Run from the root of the repository: `python -m scripts.crash_points [--most N] [--folder DIR] [COMMAND ...]`. All
points of all commands take hours; `--most` takes so many of each, spread evenly. Results of commands that are not named
stay.
"""

import argparse
import tempfile
from pathlib import Path

from tests.reliability.cases import CASES
from tests.reliability.crash_points import Machine, explore

from sprachbund.util.files import read_object, write_json
from sprachbund.util.provenance import commit, machine

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "crash_points.json"


def main() -> int:
    """The command; 1 where a rerun failed or left something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(CASES)}; all by default"
    )
    parser.add_argument("--most", type=int, help="points of each command")
    parser.add_argument("--folder", type=Path, help="to work in; a temporary one by default")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of one run of a command")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = read_object(options.out)["commands"] if options.out.exists() else {}
    faults = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        Machine(options.folder or Path(temporary), options.timeout) as runner,
    ):
        for name in options.commands or CASES:
            result = explore(CASES[name], runner, options.most, report=print)
            faults += len(result.faults)
            print(
                f"{name}: {result.kills} kills, {len(result.faults)} faults",
                *result.faults,
                sep="\n  ",
                flush=True,
            )
            known[name] = {**vars(result), "commit": commit(), "machine": machine()}
            del known[name]["command"]
            write_json(options.out, {"commands": known})
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main())
