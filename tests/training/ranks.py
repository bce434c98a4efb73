"""Forks processes that meet as under torchrun: they need no second import, and run side by side."""

import importlib
import os
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sprachbund.util.distributed import world_size

_LONGEST_S = 1800.0 if "ALL_RANKS" in os.environ else 240.0


def fork_ranks(counts: Sequence[int], work: Callable[[int, int], None], out: Path) -> dict[str, int]:
    """Run `work(rank, count)` in so many processes for each count, which meet; their exit codes by "COUNT/RANK".

    They compute on one thread, as the threads that torch may have begun are not there after a fork. What ends one is
    in `out`/COUNT/failure.RANK.txt; those that still run after some minutes are killed.
    """
    importlib.import_module(
        "torch._dynamo"
    )  # every optimizer needs it, and each process would import it again
    children: dict[int, str] = {}
    for count in counts:
        (out / str(count)).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        for rank in range(count):
            if (child := os.fork()) == 0:
                _in_rank(rank, count, port, work, out / str(count))
            children[child] = f"{count}/{rank}"
    codes, deadline = dict.fromkeys(children.values(), -1), time.monotonic() + _LONGEST_S
    while children and time.monotonic() < deadline:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return codes


def _in_rank(rank: int, count: int, port: int, work: Callable[[int, int], None], out: Path) -> None:
    if count > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        values = (rank, rank, count, count, "127.0.0.1", port)
        os.environ.update(dict(zip(names, map(str, values), strict=True)))
    try:
        torch.set_num_threads(1)
        work(rank, count)
        assert world_size() == count
    except BaseException:
        (out / f"failure.{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
