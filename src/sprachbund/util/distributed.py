"""Several processes of one run, as torchrun starts them: which one writes, what they agree on, how all end together.

Every function here does nothing, or gives back what it was given, in a process that is alone. The names are those of
torch.distributed: rank, world size; the first rank is the one that writes files and reports progress.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from sprachbund.errors import SprachbundError

_T = TypeVar("_T")
_FAILURE = "sprachbund/failure"
_store: Store | None = None  # of the group that was started here; holds the first failure


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes that a launcher (torchrun) started together with this one; 1 without one.

    A cluster may set WORLD_SIZE alone in every container; a launcher also says which rank a process is.
    """
    if not all(environment.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        return 1
    return max(1, int(environment["WORLD_SIZE"]))


def refuse_several_processes(what: str) -> None:
    """See that no launcher started this process among others.

    Raises:
        SprachbundError: it did; all of them would write the same files.
    """
    if (count := launched_processes()) > 1:
        raise SprachbundError(
            f"{what} is one process, and {count} were started; run it without torchrun: where it shares work out, it "
            "starts its own processes"
        )


def local_device(environment: Mapping[str, str], num_gpus: int) -> torch.device:
    """The device of a process: the GPU with the number of its local rank, or the CPU where there is no GPU.

    Args:
        environment: of the process, as torchrun sets it; without LOCAL_RANK, the first GPU is taken.
        num_gpus: of this machine.

    Raises:
        SprachbundError: more processes on this machine than GPUs.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    number = int(environment.get("LOCAL_RANK", "0"))
    if number >= num_gpus:
        raise SprachbundError(
            f"process {number} of this machine has no GPU of its own, there are {num_gpus}; start at most "
            f"{num_gpus} (--nproc-per-node {num_gpus})"
        )
    return torch.device("cuda", number)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes of the launcher for the block, which all of them have to enter; blocks may be nested.

    An error on one rank ends all: its message is left for the others, whose next exchange fails once it is gone.

    Raises:
        SprachbundError: another rank failed, with the message of the first that did.
    """
    if launched_processes() == 1:
        yield
        return
    if not distributed.is_initialized():
        _start_group()
    try:
        yield
    except Exception as error:
        if (failure := _first_failure(error)) is not None:
            raise failure from error
        raise


def rank() -> int:
    """Number of this process among those that joined, counted from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes that joined."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and reports progress."""
    return rank() == 0


def on_first_rank(report: Callable[[str], None]) -> Callable[[str], None]:
    """The same callable on the first rank; one that does nothing on the others."""
    return report if is_first_rank() else lambda line: None


def wait_for_all_ranks() -> None:
    """Return once every rank has come here."""
    if world_size() > 1:
        distributed.barrier()


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on the first rank, then on the others, which find the files that the first one made."""
    if not is_first_rank():
        wait_for_all_ranks()
    yield
    if is_first_rank():
        wait_for_all_ranks()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all ranks' tensors, which have the same shape; it has no gradient."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def of_first_rank(values: Tensor) -> Tensor:
    """The first rank's tensor, where the others hold one of the same shape."""
    if world_size() == 1:
        return values
    seen = values.detach().clone()
    distributed.broadcast(seen, 0)
    return seen


def of_all_ranks(value: _T) -> list[_T]:
    """Every rank's value, anything that can be pickled, in order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[_T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return [one for one in values if one is not None]


def _start_group() -> None:
    """Take this process's device and meet the others."""
    global _store
    device = local_device(os.environ, torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Objects and flags travel by gloo also where gradients travel by NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, number, count = next(rendezvous("env://"))
    _store = store
    distributed.init_process_group(backend, store=PrefixStore("group", store), rank=number, world_size=count)


def _first_failure(error: Exception) -> SprachbundError | None:
    """The failure of another rank that this error follows from; where there is none, this one is left as the first."""
    if _store is None:
        return None
    own = " ".join(str(error).split()) or type(error).__name__
    try:
        first = _store.compare_set(_FAILURE, "", f"{rank()} {own}").decode()
    except RuntimeError:  # the process that kept the store is gone; without torchrun that is the first rank
        return SprachbundError(f"process 0 of {world_size()} has ended; its own lines say why")
    number, _, message = first.partition(" ")
    if int(number) == rank() or message == own:
        return None
    return SprachbundError(f"process {number} of {world_size()} failed: {message}")
