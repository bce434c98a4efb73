"""What a training in a folder of its own leaves there: a log while it runs, and no more than its result afterwards."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sprachbund.training.checkpoint import RESUME_FILE

LOG_FILE = "log.txt"
_OF_A_RUN = (RESUME_FILE, "best", "tensorboard")
"""What only a run that goes on needs."""


@contextmanager
def run_log(folder: Path) -> Iterator[Callable[[str], None]]:
    """Takes lines into a file of the folder, which is made: several are trained at a time, and each tells its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        yield lambda line: print(line, file=log, flush=True)


def forget_run(folder: Path) -> None:
    """Delete what only a run that goes on needs; its model, log and convergence stay."""
    for name in _OF_A_RUN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
