"""Several processes of one run, as torchrun starts them: the one that writes, shared values, and a common end.

Every function here does nothing, or gives back what it was given, in a process that is alone. The names are those of
torch.distributed: rank, world size; the first rank is the one that writes files and reports progress.

A process that fails leaves its message in the store that all share. A thread of each process reads it there and sees
whether the next rank still writes its pulse, so that none waits for another that has ended.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from sprachbund.errors import SprachbundError
from sprachbund.util.progress import Report

_T = TypeVar("_T")
TIME_LIMIT = timedelta(minutes=30)
"""Longest wait for the others in one exchange: one process alone may write a large checkpoint meanwhile."""
_TAKEN = "SPRACHBUND_DEVICE"
_FAILURE = "sprachbund/failure"
_PULSE = "sprachbund/pulse"
_WAIT = "sprachbund/wait"
_LEFT = "left"
_PULSE_S = 1.0
_SILENT_S = 600.0
"""Without a pulse for so long, a process or its machine has ended; a call of C may hold the thread for minutes."""
_GRACE_S = 10.0
"""So long a process has to end by its own error, once another has failed."""
_store: Store | None = None  # of the group that was started here; holds the first failure
_num_waits = 0
_num_blocks = 0


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes that a launcher (torchrun) started together with this one; 1 without one.

    A cluster may set WORLD_SIZE alone in every container; a launcher also says which rank a process is.
    """
    if not all(environment.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        return 1
    return max(1, int(environment["WORLD_SIZE"]))


def refuse_several_processes(what: str) -> None:
    """Check that no launcher started this process among others.

    Raises:
        SprachbundError: it did; all of them would write the same files.
    """
    if (count := launched_processes()) > 1:
        raise SprachbundError(
            f"{what} is one process, and {count} were started; run it without torchrun: where it shares work out, it "
            "starts its own processes"
        )


def own_device() -> torch.device:
    """The device that this process trains on: its own GPU, or the CPU where there is none, unless one was taken.

    Errors as of `local_device`.
    """
    if _TAKEN in os.environ:
        return torch.device(os.environ[_TAKEN])
    return local_device(os.environ, torch.cuda.device_count())


def take_device(device: torch.device) -> None:
    """Train on a device that was asked for, in this process and in those that it starts."""
    os.environ[_TAKEN] = str(device)


def local_device(environment: Mapping[str, str], num_gpus: int) -> torch.device:
    """The device of a process: the GPU with the number of its local rank, or the CPU where there is no GPU.

    Args:
        environment: environment of the process, as torchrun sets it; without LOCAL_RANK, the first GPU is taken.
        num_gpus: GPUs of this machine.

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

    An error on one rank ends all: its message is left for the others, whose next exchange fails once it is gone. A
    process that is in no exchange then is ended some seconds later, with the same message.

    Raises:
        SprachbundError: another rank failed, with the message of the first that did, or an exchange took longer than
            `TIME_LIMIT`.
    """
    if launched_processes() == 1:
        yield
        return
    if not distributed.is_initialized():
        _start_group()
    try:
        with _watched():
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


def on_first_rank(report: Report) -> Callable[[str], None]:
    """The same callable on the first rank; one that does nothing on the others."""
    return report if is_first_rank() else lambda line: None


def wait_for_all_ranks() -> None:
    """Return once every rank has come here, however long one works alone before it does."""
    global _num_waits
    if world_size() == 1:
        return
    if _store is None:
        return distributed.barrier()
    _num_waits += 1
    key = f"{_WAIT}/{_num_waits}"
    there, pause_s = _store.add(key, 1), 0.001
    while there < world_size():
        time.sleep(pause_s)
        pause_s = min(0.25, 1.5 * pause_s)
        there = _store.add(key, 0)
    # The process that keeps the store may end behind this; none of the others asks it any more then.
    distributed.barrier()


def refuse_different(what: Mapping[str, str]) -> None:
    """Check that all ranks have the same values under the same names; all of them have to call it.

    Args:
        what: anything that has to be equal, by the name that an error gives it.

    Raises:
        SprachbundError: naming the first that differs, and the ranks.
    """
    of_ranks = of_all_ranks(dict(what))
    for name in what:
        values = [one.get(name, "missing") for one in of_ranks]
        if other := [number for number, value in enumerate(values) if value != values[0]]:
            raise SprachbundError(
                f"{name} differs between processes: {values[0]} in process 0, {values[other[0]]} in process "
                f"{other[0]}; give all of them the same"
            )


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
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Objects and flags travel by gloo also where gradients travel by NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, number, count = next(rendezvous("env://"))
    # torchrun may keep the store when it starts all processes again, and addresses of those that have ended with it.
    _store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(
        backend, store=PrefixStore("group", _store), rank=number, world_size=count, timeout=TIME_LIMIT
    )


@contextmanager
def _watched() -> Iterator[None]:
    """Watch the other ranks from a thread while the outermost block runs."""
    global _num_blocks
    if _store is None or _num_blocks:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(_store, ended), daemon=True)
    _num_blocks += 1
    thread.start()
    try:
        yield
    finally:
        _num_blocks -= 1
        ended.set()
        thread.join()


def _watch(store: Store, ended: threading.Event) -> None:
    """Write this rank's pulse and read the next one's, until the block has ended or another rank has failed."""
    own, following = f"{_PULSE}/{rank()}", f"{_PULSE}/{(rank() + 1) % world_size()}"
    beat, heard, heard_at = 0, "", time.monotonic()
    try:
        while not ended.wait(_PULSE_S):
            beat += 1
            store.set(own, str(beat))
            if store.check([_FAILURE]):
                return _end_with(store.get(_FAILURE).decode(), ended)
            now = store.get(following).decode() if store.check([following]) else ""
            if now != heard or now == _LEFT:
                heard, heard_at = now, time.monotonic()
            elif time.monotonic() - heard_at > _SILENT_S:
                silent = (rank() + 1) % world_size()
                store.compare_set(_FAILURE, "", f"{silent} no sign of life for {_SILENT_S:.0f} s")
        store.set(own, _LEFT)
    except RuntimeError:  # the process that kept the store has ended; exchanges with it fail by themselves
        return


def _end_with(failure: str, ended: threading.Event) -> None:
    """End this process, unless its own error ends it first."""
    number, _, message = failure.partition(" ")
    if int(number) == rank() or ended.wait(_GRACE_S):
        return
    print(f"sprachbund: process {number} of {world_size()} failed: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _first_failure(error: Exception) -> SprachbundError | None:
    """The failure of another rank that this error follows from; where there is none, this one is left as the first."""
    if _store is None:
        return None
    own = _message(error)
    try:
        first = _store.compare_set(_FAILURE, "", f"{rank()} {own}").decode()
    except RuntimeError:  # the process that kept the store is gone; without torchrun that is the first rank
        if isinstance(error, SprachbundError):  # no exchange that failed: it says itself what is wrong
            return None
        return SprachbundError(f"process 0 of {world_size()} has ended; its own lines say why")
    number, _, message = first.partition(" ")
    if int(number) == rank() or message == own:
        return SprachbundError(own) if isinstance(error, RuntimeError) and own != str(error) else None
    return SprachbundError(f"process {number} of {world_size()} failed: {message}")


def _message(error: Exception) -> str:
    """The message of an error in one line; of a failed exchange, the reason in place of its addresses."""
    own = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RuntimeError) and "timed out" in own.lower():
        minutes = TIME_LIMIT.total_seconds() / 60
        return f"the other processes did not come within {minutes:g} minutes; one of them hangs, or is far slower"
    if isinstance(error, RuntimeError) and ("closed by peer" in own or "reset by peer" in own):
        return "another process has ended without a message; it was killed, or its machine was"
    return own
