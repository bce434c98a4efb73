"""The report of a study that was run: what `fit` says of its table, and what only its cells know.

It can be made before all cells are there: of the scales that are whole by then, and it says what is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.studies.analysis import Analysis, analyse
from sprachbund.studies.bootstrap import DRAWS
from sprachbund.studies.cells import CellManifest, finished_cells
from sprachbund.studies.convergence import Sooner, convergence
from sprachbund.studies.figure import draw
from sprachbund.studies.grid import StudyGrid
from sprachbund.studies.per_cell import CellGap, cell_gaps
from sprachbund.studies.power_law import By
from sprachbund.studies.report import Table, as_values, span
from sprachbund.studies.results import Better, ReadOptions, read_results
from sprachbund.studies.run import write_results
from sprachbund.util.files import write_json

REPORT_FILE, FIGURE_FILE, TABLES = "report.json", "study.png", "tables"


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """All that a study says.

    Attributes:
        grid: as it was asked for.
        manifests: of the cells that are finished.
        analysis: of the scales that are whole.
        left_out: scales that are not.
        cells: the gap of every language and scale with its interval over utterances.
        sooner: how soon the two starts converged.
    """

    grid: StudyGrid
    manifests: tuple[CellManifest, ...]
    analysis: Analysis
    left_out: tuple[float, ...]
    cells: tuple[CellGap, ...]
    sooner: tuple[Sooner, ...]

    @property
    def missing(self) -> str:
        """What is not there yet, as a sentence; empty when all is."""
        total = len(self.grid.cells())
        if len(self.manifests) == total:
            return ""
        scales = ", ".join(f"{h:g} h" for h in self.left_out)
        told = f"; not whole yet and left out: {scales}" if scales else ""
        return f"{len(self.manifests)} of {total} cells are finished{told}"


def make_report(grid: StudyGrid, out: Path, *, by: By = "log", draws: int = DRAWS) -> StudyReport:
    """The report of what is finished.

    Args:
        grid: of the study.
        out: its folder.
        by: see `fit_power_law`.
        draws: of languages.

    Raises:
        SprachbundError: when no scale is whole, or the table is not one that can be compared.
    """
    results, manifests = write_results(grid, out), finished_cells(grid, out)
    there = [one.cell for one in manifests]
    arms = (grid.starts[0], grid.starts[1])
    wanted = {(start, language) for start in arms for language in grid.languages}
    whole = [
        h for h in grid.hours if wanted <= {(cell.start, cell.language) for cell in there if cell.hours == h}
    ]
    if not whole:
        raise SprachbundError(
            f"{out}: {len(manifests)} of {len(grid.cells())} cells are finished, and no scale has both {arms[0]} and "
            f"{arms[1]} in all {len(grid.languages)} languages; go on with `sprachbund study resume {out}`"
        )
    better: Better = "higher" if manifests[0].better == "higher" else "lower"
    options = ReadOptions(
        arms=arms, better=better, where=tuple(("hours", f"{h!r}") for h in whole), uneven_seeds=True
    )
    table = replace(read_results(results, options), metric=manifests[0].metric)
    return StudyReport(
        grid=grid,
        manifests=tuple(manifests),
        analysis=analyse(table, by=by, draws=draws),
        left_out=tuple(h for h in grid.hours if h not in whole),
        cells=tuple(cell_gaps(grid, manifests, out, bits=max(grid.bits))),
        sooner=tuple(convergence(grid, manifests)),
    )


def write_report(report: StudyReport, out: Path, hours: Sequence[float] = ()) -> Path:
    """Write report, tables and figure into the study's folder; the path of the report."""
    tables = {
        "gaps": gap_rows(report),
        "starts": start_rows(report),
        "cells": cell_rows(report),
        "bits": bit_rows(report),
        "convergence": sooner_rows(report),
    }
    for name, rows in tables.items():
        if rows:
            write_json(out / TABLES / f"{name}.json", {"study": str(out.name), "rows": rows})
    values = as_values(report.analysis, hours) | {
        "missing": report.missing,
        **{name: tables[name] for name in ("starts", "cells", "convergence")},
        "signature": report.manifests[0].signature,
        "machines": _distinct(one.machine for one in report.manifests),
        "commits": _distinct(one.commit for one in report.manifests),
        "took_h": round(sum(one.took_s for one in report.manifests) / 3600, 2),
    }
    write_json(out / REPORT_FILE, values)
    draw(report.analysis, out / FIGURE_FILE)
    return out / REPORT_FILE


def gap_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Gap of every scale, over languages, and at each tier."""
    found = report.analysis
    return [
        {
            "hours": hours,
            "gap": round(mean.value, 2),
            "95%": span(mean.interval),
            **{tier.tiers[0]: round(tier.means[at].value, 2) for tier in found.by_tier},
        }
        for at, (hours, mean) in enumerate(zip(found.grid.hours, found.fitted.means, strict=True))
    ]


def start_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Mean score of every start by hours, over languages, seeds and tiers, at the most bits."""
    grid, rows = report.grid, []
    for hours in grid.hours:
        row: dict[str, Any] = {"hours": hours}
        for start in grid.starts:
            own = [one for one in report.manifests if (one.cell.start, one.cell.hours) == (start, hours)]
            values = [_over_tiers(grid, one) for one in own]
            whole = {one.cell.language for one in own} == set(grid.languages)
            row[start] = round(float(np.mean(values)), 2) if whole else "-"
        rows.append(row)
    return rows


def cell_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Gap of every cell with its interval over utterances."""
    first, second = report.grid.starts[:2]
    return [
        {
            "language": cell.language,
            "hours": cell.hours,
            first: round(cell.values[0], 2),
            second: round(cell.values[1], 2),
            "gap": round(cell.gap.value, 2),
            "95%": span(cell.gap.interval),
            "seeds": len(cell.seeds),
            "utterances": cell.utterances,
        }
        for cell in report.cells
    ]


def bit_rows(report: StudyReport) -> list[dict[str, Any]]:
    """What fewer bits cost: pooled mean and median over all cells and both starts."""
    first, second = report.grid.starts[:2]
    return [
        {
            "bits": cost.bits,
            "cost": round(cost.mean.value, 2),
            "95%": span(cost.mean.interval),
            "median": round(cost.median, 2),
            f"{second} less {first}": round(cost.difference.value, 2),
            "95% of it": span(cost.difference.interval),
        }
        for cost in report.analysis.bit_costs
    ]


def sooner_rows(report: StudyReport) -> list[dict[str, Any]]:
    """How soon runs converged, by scale."""
    first, second = report.grid.starts[:2]
    return [
        {
            "hours": one.hours,
            f"best epoch of {first}": round(one.epochs[0], 1),
            f"best epoch of {second}": round(one.epochs[1], 1),
            f"{first} as good as {second}'s best": f"{one.reached} of {one.runs}",
            "at epoch": "-" if one.at_epoch is None else round(one.at_epoch, 1),
            "epochs sooner": "-" if one.sooner is None else round(one.sooner, 1),
        }
        for one in report.sooner
    ]


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows as text."""
    return list(rows[0]), [[_shown(*item) for item in row.items()] for row in rows]


def _shown(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if name == "hours" else f"{value:z.2f}"


def _over_tiers(grid: StudyGrid, one: CellManifest) -> float:
    values = [one.value(tier, max(grid.bits)) for tier in grid.tiers]
    return float(np.mean([value for value in values if value is not None]))


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
