"""Running a study: its cells in their most informative order, by processes of this machine or of a Ray cluster.

Only files are kept: a cell is finished when its manifest exists, and a cell that was half made resumes its own
training. The table of results is made anew from manifests whenever a cell is finished.
"""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.grid import Cell, StudyGrid
from sprachbund.research.encoder_transfer.results import (
    CELL_FILE,
    CellScores,
    finished_cells,
    is_whole,
    read_cell,
    rows_of,
    write_cell,
)
from sprachbund.research.tasks import Tasks, run_tasks
from sprachbund.util import jobs as work
from sprachbund.util.files import write_text
from sprachbund.util.progress import Progress, Report, nothing

RESULTS_FILE = "results.csv"
FAILED_FILE = "failed.txt"
"""File in a cell's folder that states in one line why the cell failed."""
_NAMED = 3
CellFunction = Callable[[Cell, Path], CellScores]
"""Makes a cell in its folder, where it finds what it left there before; has to be picklable."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid and what makes its cells.

    Attributes:
        grid: combinations of starts, languages and scales.
        make: makes one.
        out: folder of the study.
    """

    grid: StudyGrid
    make: CellFunction
    out: Path

    def run(
        self,
        *,
        workers: int = 1,
        ray_address: str | None = None,
        gpus: int = 0,
        report: Report = print,
        progress: Progress = nothing,
    ) -> Path:
        """Make the cells that are missing; the table of results.

        Args:
            workers: cells at a time, each with one thread.
            ray_address: address of a Ray cluster that shares the folder, "local" for one here; None for plain
                processes.
            gpus: GPUs of each cell, which sees no others.
            report: called whenever a cell is finished.
            progress: called with cells finished and in all.

        Raises:
            SprachbundError: cells that failed or that processes died over, when all others are finished; what is wrong
                with a manifest.
        """
        cells = self.grid.cells()
        for cell in cells:
            self._forget_if_not_whole(cell)
            (cell.folder(self.out) / FAILED_FILE).unlink(missing_ok=True)
        tasks = Tasks(
            paths=tuple(cell.folder(self.out) / CELL_FILE for cell in cells), make=self._make, gpus=gpus
        )
        run_tasks(
            tasks,
            "cells",
            self.write_results,
            workers=workers,
            ray_address=ray_address,
            report=report,
            progress=progress,
            give_up=self._note_failure,
        )
        results = self.write_results()
        self._refuse_failed(cells)
        return results

    def write_results(self) -> Path:
        """The table of all that is finished."""
        return write_results(self.grid, self.out)

    def _make(self, number: int) -> None:
        cell = self.grid.cells()[number]
        folder, began = cell.folder(self.out), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            scores = self.make(cell, folder)
        except Exception as error:  # of any kind: the other cells do not depend on this one
            self._note_failure(number, work.line_of(error))
            return
        write_cell(folder, cell, self.grid, scores, time.monotonic() - began)

    def _note_failure(self, number: int, why: str) -> None:
        """Leave the reason in the cell's folder, in one line."""
        write_text(self.grid.cells()[number].folder(self.out) / FAILED_FILE, why + "\n")

    def _refuse_failed(self, cells: Sequence[Cell]) -> None:
        """Raise SprachbundError when cells failed, with the reasons."""
        failed = {cell: path for cell in cells if (path := cell.folder(self.out) / FAILED_FILE).exists()}
        if not failed:
            return
        reasons = [f"{cell}: {path.read_text('utf-8').strip()}" for cell, path in failed.items()]
        more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
        raise SprachbundError(
            f"{len(failed)} of {len(cells)} cells failed, all others are finished "
            f"({'; '.join(reasons[:_NAMED])}{more}); `sprachbund study resume {self.out}` tries them again"
        )

    def _forget_if_not_whole(self, cell: Cell) -> None:
        """A cell without a tier or a bit width that the grid has by now is scored again."""
        folder = cell.folder(self.out)
        manifest = read_cell(folder)
        if manifest is not None and not is_whole(manifest, self.grid):
            (folder / CELL_FILE).unlink()


def write_results(grid: StudyGrid, out: Path) -> Path:
    """Write the table of a study's finished cells, as `read_results` reads it."""
    rows = rows_of(finished_cells(grid, out), grid)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(out / RESULTS_FILE, text.getvalue())
    return out / RESULTS_FILE
