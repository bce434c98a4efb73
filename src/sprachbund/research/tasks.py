"""Running a study: its cells in their most informative order, by processes of this machine or of a Ray cluster.

Only files are kept: a cell is finished when its manifest exists, so a study that was killed goes on with
what is missing, and a cell that was half made resumes its own training. The table of results is made anew from
manifests whenever a cell is finished.
"""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

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
from sprachbund.util import jobs as work
from sprachbund.util.files import read_object, write_json, write_text

STUDY_FILE = "study.json"
RESULTS_FILE = "results.csv"
FAILED_FILE = "failed.txt"
"""File in a cell's folder that states in one line why the cell failed."""
_NAMED = 3
CellFunction = Callable[[Cell, Path], CellScores]
"""Makes a cell in its folder, where it finds what it left there before; has to be picklable."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Files to be made, each by a function of its number; a `sprachbund.util.jobs.Job`.

    Attributes:
        paths: paths of the files, in the order of the work.
        make: makes one; has to be picklable.
        threads: threads of each process.
        gpus: GPUs of each process.
    """

    paths: tuple[Path, ...]
    make: Callable[[int], None]
    threads: int = 1
    gpus: int = 0

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each counts once."""
        return [(path, 1) for path in self.paths]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """There is nothing that files share."""
        work.leave_with_parent()

        def make(number: int, progress: Callable[[int], None]) -> None:
            self.make(number)
            progress(int(self.paths[number].exists()))

        return make


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
        report: Callable[[str], None] = print,
        progress: Callable[[int, int], None] = work.nothing,
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


def run_tasks(
    tasks: Tasks,
    what: str,
    finished: Callable[[], object] = lambda: None,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = work.nothing,
    give_up: Callable[[int, str], None] | None = None,
) -> None:
    """Make the files of tasks that are missing; the number of finished ones and the time left are reported.

    Args:
        tasks: tasks that are done.
        what: they are called.
        finished: is called whenever one is.
        workers: tasks at a time.
        ray_address: as for `Study.run`.
        report: called with a line for every step.
        progress: called with the number of finished ones and of all.
        give_up: as for `sprachbund.util.jobs.run`.

    Raises:
        SprachbundError: the error of the first task that failed.
    """
    before = reported = work.done(tasks)
    report(f"{reported} of {len(tasks.paths)} {what} are finished")
    began = time.monotonic()
    progress(reported, len(tasks.paths))

    def made(done: int, total: int) -> None:
        nonlocal reported
        progress(done, total)
        if done > reported:
            reported = done
            finished()
            left_min = (time.monotonic() - began) / (done - before) * (total - done) / 60
            report(f"{done} of {total} {what} are finished; about {_hours(left_min)} left")

    work.run(tasks, workers=workers, ray_address=ray_address, progress=made, give_up=give_up)


def _hours(minutes: float) -> str:
    """1:05 h."""
    whole = round(minutes)
    return f"{whole // 60}:{whole % 60:02d} h"


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


def remember(out: Path, recipe: BaseModel, *, may_change: Sequence[str]) -> None:
    """Write down what a study is, or see that it is still the same.

    What a study of an earlier version does not say is taken to be as it is now by default.

    Args:
        out: folder of the study.
        recipe: options that its numbers depend on.
        may_change: keys that a study in this folder may have otherwise: what adds cells, or changes no number.

    Raises:
        SprachbundError: naming the first key in which the folder's study is another.
    """
    values, path = recipe.model_dump(mode="json"), out / STUDY_FILE
    if path.exists():
        before = _with_defaults(read_study(out), type(recipe))
        for key in values:
            if key not in may_change and before.get(key) != values[key]:
                raise SprachbundError(
                    f"{out} holds a study with {_first_difference(key, before.get(key), values[key])}; "
                    "give another --out, or the same recipe"
                )
    write_json(path, values)


def _with_defaults(values: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """A recipe's values, those that it lacks by default; as they are where they are no such recipe any more."""
    try:
        return kind.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return values


def read_study(out: Path) -> dict[str, Any]:
    """Read the file of `remember`. Raises SprachbundError when there is no study."""
    path = out / STUDY_FILE
    if not path.exists():
        raise SprachbundError(f"{out} holds no study; begin one with `sprachbund study run`")
    return read_object(path, advice="begin the study in another folder")


def _first_difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for part in (*before, *now):
            if before.get(part) != now.get(part):
                return _first_difference(f"{key}.{part}", before.get(part), now.get(part))
    return f"{key} = {before!r}, and this one has {now!r}"
