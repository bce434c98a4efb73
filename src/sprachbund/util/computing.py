"""Options of `sprachbund.util.jobs`, as one value: the processes that share a job.

It loads no NumPy, since commands are made of it.
"""

from dataclasses import dataclass
from typing import Annotated

from sprachbund.util.options import Option, Range, check


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Options of the processes that share a job.

    Attributes:
        workers: processes at a time.
        threads: threads of each process; another number can change the last bits of features.
        ray: address of a Ray cluster: auto, host:port, or local for one here; plain processes if not given.
        block: utterances of a file, which are lost at most when a process ends.
    """

    workers: Annotated[int, Range(1), Option("--workers", metavar="N")] = 1
    threads: Annotated[int, Range(1), Option("--threads", metavar="N")] = 1
    ray: Annotated[str | None, Option("--ray", metavar="ADDRESS")] = None
    block: Annotated[int, Range(1), Option("--block", metavar="N")] = 64

    def __post_init__(self) -> None:
        check(self)

    @property
    def is_alone(self) -> bool:
        """Whether the work is done in this process."""
        return self.workers == 1 and self.ray is None
