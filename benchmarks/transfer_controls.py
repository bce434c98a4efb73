"""The gaps of the transfer study's controls, by the study's own code: a start that must be better, and one made again.

`recipes/research/transfer_controls.toml` says what was expected. The gap of each cell is that of a report whose two
starts are the pair.
Run: python -m benchmarks.transfer_controls runs/transfer --out docs/results/transfer_controls.json
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.rows import show

from sprachbund.research.encoder_transfer.analysis import CellGap
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.encoder_transfer.report import StudyReport, make_report, span
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import read_study

PAIRS = {
    "positive: has heard Dutch": ("more", "once"),
    "negative: made again": ("once", "again"),
}
"""Control to its two starts, of which the first is the one that could be better."""


def main() -> None:
    """Write the table of both controls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--out", type=Path, required=True, help="file with the table")
    given = parser.parse_args()
    recipe = EncoderTransferRecipe.model_validate(read_study(given.study))
    rows = []
    for control, starts in PAIRS.items():
        report = make_report(recipe.grid.model_copy(update={"starts": starts}), given.study)
        planted = planted_in(recipe, starts)
        rows += [row(control, cell, cell.language in planted) for cell in report.cells]
        rows += means(control, report)
    rows = [dict.fromkeys(rows[0], "") | each for each in rows]
    keep_table(given.out, recipe, {"rows": rows})
    show(rows)


def planted_in(recipe: EncoderTransferRecipe, starts: tuple[str, str]) -> set[str]:
    """The languages that the first of two starts has heard, and the second has not."""
    first, second = (set(recipe.pretrained[recipe.starts[start]].languages) for start in starts)
    return first - second


def row(control: str, cell: CellGap, planted: bool) -> dict[str, Any]:
    """The gap of a cell."""
    low, high = cell.interval
    return {
        "control": control,
        "language": cell.language,
        "planted": "yes" if planted else "no",
        "hours": cell.hours,
        "first": round(cell.values[0], 2),
        "second": round(cell.values[1], 2),
        "gap": round(cell.gap, 2),
        "95%": span(cell.interval),
        "beyond nought": "yes" if low > 0 or high < 0 else "no",
        "seeds": len(cell.seeds),
        "utterances": cell.utterances,
    }


def means(control: str, report: StudyReport) -> list[dict[str, Any]]:
    """The mean gap over languages, by hours."""
    rows = []
    for hours in report.grid.hours:
        cells = [cell for cell in report.cells if cell.hours == hours]
        values = {
            "first": mean(cell.values[0] for cell in cells),
            "second": mean(cell.values[1] for cell in cells),
            "gap": mean(cell.gap for cell in cells),
        }
        rows.append(
            {"control": control, "language": "mean", "hours": hours}
            | {name: round(value, 2) for name, value in values.items()}
        )
    return rows


if __name__ == "__main__":
    main()
