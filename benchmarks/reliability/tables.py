"""Rows of the tables in docs/security.md and docs/reliability.md, out of what the scripts of this folder measured.

    python -m benchmarks.reliability.tables

Reads docs/results/reliability/*.json and writes docs/results/reliability/tables/*.json. Then
`python -m sprachbund.evaluation.tables docs/security.md docs/reliability.md` fills the pages.
"""

from pathlib import Path
from typing import Any

from sprachbund.util.files import read_object, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "reliability"
TABLES = RESULTS / "tables"
_ADVICE = "run the script of that name in benchmarks/reliability"


def mutants() -> list[dict[str, Any]]:
    """One row for each harness: what became of damaged input."""
    audio = _read("audio_mutants")["totals"]
    models = _read("model_mutants")["total"]
    files = _read("file_mutants")["total"]
    return [
        {
            "damaged": "recordings",
            "mutants": audio["mutants"],
            "refused in one line": audio["refused"],
            "read": audio["read"],
            "other errors": audio["other error"],
            "crashes": audio["crash"],
            "hangs": audio["hang"],
            "most memory, MiB": audio["peak_mib"],
        },
        {
            "damaged": "model directories",
            "mutants": models["mutants"],
            "refused in one line": models["refused"],
            "read": models["loaded"],
            "other errors": models["raw_errors"]
            + models["errors_of_many_lines"]
            + models["loaded_with_other_weights"],
            "crashes": models["crashes"],
            "hangs": models["hangs"],
            "most memory, MiB": models["largest_memory_mib"],
        },
        {
            "damaged": "corpora, results, plans, recipes, runs",
            "mutants": files["mutants"],
            "refused in one line": files["refused"],
            "read": files["read"],
            "other errors": files["raw_errors"],
            "crashes": 0,  # they are read in one process, which would have ended
            "hangs": files["hangs"],
            "most memory, MiB": files["memory_mib"],
        },
    ]


def fuzz() -> list[dict[str, Any]]:
    """One row for each format of `tests/fuzz`."""
    return [
        {
            "format": row["format"],
            "mutants": row["mutants"],
            "refused in one line": row["refused"],
            "read": row["read"],
            "other errors": row["other error"],
            "crashes": row["crash"],
            "hangs": row["hang"],
            "memory grown, MiB": row["memory_mib"],
            "slowest, s": row["slowest_s"],
        }
        for row in _read("fuzz")["rows"]
    ]


def restarts() -> list[dict[str, Any]]:
    """One row: a service that is killed, and started again by a loop."""
    rows: list[dict[str, Any]] = _read("restarts")["rows"]
    return rows


def network() -> list[dict[str, Any]]:
    """One row for each verb: what it did to the network and to the disk."""
    return [
        {
            "verb": verb,
            "hosts": len(seen["hosts"]),
            "names": len(seen["names"]),
            "loopback": ", ".join(seen["listening"]) or "none",
            "files elsewhere": len(seen["written"]) + len(seen["in_home"]),
        }
        for verb, seen in _read("network")["verbs"].items()
    ]


def service() -> list[dict[str, Any]]:
    """One row: how good clients fare beside hostile ones."""
    service = _read("service")
    good, answer_s = service["good"], service["good"]["answer_s"]
    return [
        {
            "seconds": round(service["seconds"]),
            "hostile clients": sum(kind["clients"] for kind in service["hostile"].values()),
            "good requests": good["requests"],
            "answered": good["answered"],
            "asked to retry": sum(good["refused"].values()),
            "lost": good["lost"],
            "answer p50, s": float(answer_s["p50"]),
            "answer p95, s": float(answer_s["p95"]),
            "most memory, MiB": service["memory_mib"]["largest"],
            "tracebacks": service["log"]["tracebacks"],
            "processor": service["machine"]["processor"],
        }
    ]


def crash_points() -> list[dict[str, Any]]:
    """One row for each command: where it was killed, and what was left after the same command ran again."""
    return [
        {
            "command": name,
            "changes of the output": result["changes"],
            "kills": result["kills"],
            "reruns that failed": len(result["failed"]),
            "reruns with other bytes": len(result["different"]),
            "names before content": len(result["unflushed"]),
            "processor": result["machine"]["processor"],
        }
        for name, result in _read("crash_points")["commands"].items()
    ]


def _read(name: str) -> dict[str, Any]:
    return read_object(RESULTS / f"{name}.json", advice=_ADVICE)


def main() -> None:
    """Write all of them."""
    for make in (mutants, fuzz, restarts, network, service, crash_points):
        write_json(TABLES / f"{make.__name__}.json", {"rows": make()})


if __name__ == "__main__":
    main()
