"""Making files by several processes, of this machine or of a Ray cluster: the same files, whoever makes them.

A job knows its files by number, and each is a function of its number alone. Nothing is exchanged but files, so
machines need a common file system; a job that was killed goes on with the files that are missing.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sprachbund.data.processes import Progress, run_processes
from sprachbund.errors import SprachbundError
from sprachbund.training.memory import give_back_freed_memory

_POLL_S = 0.2


class Job(Protocol):
    """Files to be made; has to be picklable."""

    @property
    def threads(self) -> int:
        """To compute with, in each process."""
        ...

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances it holds."""
        ...

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load what is needed: a function of the file's number and of one that is told utterances done in it."""
        ...


def nothing(done: int, total: int) -> None:
    """Tell nobody."""


def done(job: Job) -> int:
    """Utterances in files that are there."""
    return sum(count for path, count in job.files if path.exists())


def make(job: Job, share: tuple[int, int] = (0, 1), progress: Progress = nothing) -> None:
    """Make the files that are missing, of them every `share[1]`-th from number `share[0]` on."""
    import torch

    missing = [number for number, (path, _) in enumerate(job.files) if not path.exists()]
    mine = missing if share == (0, 1) else [number for number in missing if number % share[1] == share[0]]
    if not mine:
        return
    torch.set_num_threads(job.threads)
    make_file, total = job.prepare(), sum(count for _, count in job.files)
    for number in mine:
        before = done(job)
        make_file(number, lambda inside, before=before: progress(before + inside, total))  # type: ignore[misc]
        give_back_freed_memory()  # hours of utterances of ever other lengths


def run(job: Job, *, workers: int = 1, ray_address: str | None = None, progress: Progress = nothing) -> None:
    """Make all files of a job that are missing.

    Args:
        job: see `Job`.
        workers: number of processes.
        ray_address: of a Ray cluster, "local" for one on this machine; None for plain processes.
        progress: called with utterances done and utterances in all.

    Raises:
        SprachbundError: what the first process to fail raised, or that one died, or that Ray is not there.
    """
    if ray_address is not None:
        _run_on_ray(job, workers, ray_address, progress)
    elif workers == 1:
        make(job, progress=progress)
    else:
        total = sum(count for _, count in job.files)
        shares = [(number, workers) for number in range(workers)]
        run_processes(partial(make, job), shares, lambda: progress(done(job), total))


def _run_on_ray(job: Job, workers: int, address: str, progress: Progress) -> None:
    try:
        import ray
    except ImportError as error:
        raise SprachbundError("there is no Ray here; pip install 'ray', or leave out --ray") from error
    started = not ray.is_initialized()
    if started:
        _start_ray(address)
    total = sum(count for _, count in job.files)
    try:
        remote: Any = ray.remote(num_cpus=job.threads)(make)
        waiting = [remote.remote(job, (number, workers)) for number in range(workers)]
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=_POLL_S)
            ray.get(ready)
            progress(done(job), total)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, SprachbundError) else error from None
    finally:
        if started:
            ray.shutdown()


def _start_ray(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SprachbundError(
            f"no Ray cluster at {address} ({reason}); start one, or say --ray local"
        ) from error
