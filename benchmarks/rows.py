"""What benchmarks do with their rows: a file for the documentation, a table for whoever runs them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def keep(path: Path, result: Mapping[str, Any], title: str | None = None) -> None:
    """Write what was found to a file, and print the `rows` of it."""
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = result["rows"]
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
