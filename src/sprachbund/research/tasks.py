"""What all recipes need to go on where they were broken off: their tasks, and what a folder was begun with.

Only files are kept: a task is finished when its file exists, so a recipe that was killed goes on with what is missing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from sprachbund.data.manifest import texts_hash
from sprachbund.errors import SprachbundError
from sprachbund.util import jobs as work
from sprachbund.util.begun import refuse_others
from sprachbund.util.files import read_object, write_json
from sprachbund.util.progress import Progress, Report, nothing

STUDY_FILE = "study.json"
"""File with the options that the numbers of a folder depend on."""


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


def run_tasks(
    tasks: Tasks,
    what: str,
    finished: Callable[[], object] = lambda: None,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    report: Report = print,
    progress: Progress = nothing,
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


def make_files(
    paths: Sequence[Path], make: Callable[[int], None], what: str, *, workers: int, report: Report
) -> None:
    """Make the files that are missing, which do not need each other; of several processes each has one thread.

    Args:
        paths: paths of the files.
        make: makes one, by its number; has to be picklable.
        what: they are called.
        workers: files at a time.
        report: called with a line for every step.
    """
    tasks = Tasks(paths=tuple(paths), make=make, threads=torch.get_num_threads() if workers == 1 else 1)
    run_tasks(tasks, what, workers=workers, report=report)


def _hours(minutes: float) -> str:
    """1:05 h."""
    whole = round(minutes)
    return f"{whole // 60}:{whole % 60:02d} h"


DATA_FILE = "data.json"
"""File with the hashes of the data that the numbers of a folder are of."""


def remember(
    out: Path,
    recipe: BaseModel,
    *,
    may_change: Sequence[str],
    data: Sequence[Path],
    first_stays: Sequence[str] = (),
) -> None:
    """Write down what a study is, or see that it and its data are still the same; the data may lie elsewhere now.

    What a study of an earlier version does not say is taken to be as it is now, of a recipe by default.

    Args:
        out: folder of the study.
        recipe: options that its numbers depend on.
        may_change: keys that a study in this folder may have otherwise: what adds cells, or changes no number.
        data: directories of the corpora that its numbers depend on; those that are not there are left out.
        first_stays: keys in `may_change` of lists on whose first item the numbers of the others depend.

    Raises:
        SprachbundError: naming the first key in which the folder's study is another, or a corpus with other utterances
            or texts.
    """
    values, path = recipe.model_dump(mode="json"), out / STUDY_FILE
    if path.exists():
        before = _with_defaults(read_study(out), type(recipe))
        fixed = {key: value for key, value in values.items() if key not in may_change}
        known, firsts = (
            {f"{key}[0]": own[key][0] for key in first_stays if own.get(key)} for own in (before, values)
        )
        refuse_others(out, before | known, fixed | firsts, advice="give another --out, or the same recipe")
    hashes = _hashes(out, data)
    write_json(path, values)
    write_json(out / DATA_FILE, hashes)


def parts_of(data: Path) -> list[Path]:
    """The three corpora of a directory that most studies use."""
    return [data / name for name in ("train", "dev", "test")]


def _hashes(out: Path, data: Sequence[Path]) -> dict[str, str]:
    """Hashes of all corpora of a study, those that are the same as before and new ones."""
    path = out / DATA_FILE
    advice = "delete it if the study was begun with the data that are given"
    before = read_object(path, advice=advice) if path.exists() else {}
    now = {corpus.name: digest for corpus in data if (digest := texts_hash(corpus))}
    for corpus in data:
        if before.get(corpus.name, now.get(corpus.name)) != now.get(corpus.name):
            raise SprachbundError(
                f"{out} holds a study of other data: {corpus} has other utterances or texts than {corpus.name} had "
                "then; give another --out, or the same data"
            )
    return {**before, **now}


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
