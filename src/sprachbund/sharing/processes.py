"""Sharing a collection out among processes: of this machine, or those that torchrun started on several.

Every process loads the model and makes the blocks whose numbers are its own; nothing is exchanged but files, so
machines need a common file system.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.data.manifest import Manifest
from sprachbund.data.processes import Progress, run_processes
from sprachbund.errors import SprachbundError
from sprachbund.models.directory import load
from sprachbund.sharing.collect import Collection
from sprachbund.sharing.collect_options import CollectOptions
from sprachbund.training.memory import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Job:
    """A collection that any process can prepare for itself.

    Attributes:
        model: path of a model directory, or its name.
        data: corpora.
        options: see `CollectOptions`.
        parts: folder that keeps finished blocks.
        identity: whatever else decides the result.
        device: where to compute, as torch names it.
        threads: to compute with in each process.
    """

    model: str
    data: tuple[Path, ...]
    options: CollectOptions
    parts: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 1

    def prepare(self) -> Collection:
        """Load what it needs. Raises SprachbundError as `Collection` does, or for a device that is not there."""
        import torch

        torch.set_num_threads(self.threads)
        keep_freed_memory()
        model: Any = load(self.model)
        try:
            model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise SprachbundError(f"device {self.device!r} cannot be used ({reason}); try cpu") from error
        manifests = [Manifest(path) for path in self.data]
        return Collection(model, manifests, self.options, self.parts, identity=self.identity)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of how many processes, started from outside, this one is."""

    rank: int
    count: int
    wait: Callable[[], object]
    """Return when all of them have come here."""


@contextmanager
def shared() -> Iterator[Share]:
    """This process among those of torchrun; alone without it."""
    from torch import distributed

    if not distributed.is_torchelastic_launched():
        yield Share(rank=0, count=1, wait=lambda: None)
        return
    distributed.init_process_group("gloo")
    try:
        yield Share(rank=distributed.get_rank(), count=distributed.get_world_size(), wait=distributed.barrier)
    finally:
        distributed.destroy_process_group()


def run_job(
    job: Job,
    collection: Collection,
    workers: int,
    progress: Progress,
    *,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Make all blocks of a job with so many processes.

    Args:
        job: what every process prepares.
        collection: the same, prepared here, to watch.
        workers: number of processes.
        progress: called with passes made and passes in all.
        share: rank and number of the processes that were started from outside.

    Raises:
        SprachbundError: what the first process to fail raised, or that one died.
    """
    rank, count = share
    shares = [(rank * workers + number, count * workers) for number in range(workers)]
    run_processes(
        partial(_make_blocks, job), shares, lambda: progress(collection.passes_made, collection.passes)
    )


def _make_blocks(job: Job, share: tuple[int, int], progress: Progress) -> None:
    job.prepare().run(share, progress=progress)
