"""What benchmarks do with their results: a file for the documentation that names the machine, a table for whoever runs
them."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sprachbund.engines.extension import instruction_sets
from sprachbund.util import provenance
from sprachbund.util.files import write_json


def machine() -> dict[str, str | int]:
    """The machine of a measurement: processor, cores, memory and system, the kernels' instruction set, versions."""
    return {
        **provenance.machine(),
        "instruction_set": next(iter(instruction_sets()), "no native kernels"),
        **{library: version(library) for library in ("torch", "sprachbund")},
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write what was found to a file, and the `machine` that it was found on."""
    write_json(path, {"machine": machine(), **result})


def keep(path: Path, result: Mapping[str, Any], title: str | None = None) -> None:
    """Write what was found to a file, and print the `rows` of it."""
    write(path, result)
    show(result["rows"], title)


def show(rows: list[dict[str, Any]], title: str | None = None) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
