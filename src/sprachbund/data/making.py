"""Makes corpora shard by shard, each shard by a short-lived process of its own.

A shard is a pure function of its number, so making can be broken off and taken up, and two machines make the
same corpus. Short-lived, because a speech synthesiser that dies takes one shard with it and not the run: espeak-ng
crashes on rare combinations of voice and words, always the same ones, and the next attempt draws others.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from sprachbund.data.manifest import ManifestWriter, shard_numbers
from sprachbund.errors import SprachbundError

MAX_TRIES = 3


def make_shards(
    directory: Path,
    num_shards: int,
    make: Callable[[int, int, ManifestWriter], None],
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run `make(shard, attempt, writer)` for every shard that is not there yet.

    Args:
        directory: of the corpus.
        num_shards: how many shards there are to be.
        make: adds a shard's utterances to the writer it is given; attempts count from 1.
        workers: processes at a time.
        progress: called with (shards there, shards in all) whenever one appears.

    Raises:
        SprachbundError: when a shard could not be made in three tries; the others are there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    there = set(shard_numbers(directory))
    waiting = [(shard, 1) for shard in reversed(range(num_shards)) if shard not in there]
    running: dict[BaseProcess, tuple[int, int]] = {}
    done = num_shards - len(waiting)
    progress(done, num_shards)
    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < workers:
            shard, tries = waiting.pop()
            process: BaseProcess = context.Process(
                target=_make_one, args=(directory, shard, tries, make), daemon=True
            )
            process.start()
            running[process] = (shard, tries)
        for process in [p for p in running if not p.is_alive()]:
            shard, tries = running.pop(process)
            if process.exitcode == 0:
                done += 1
                progress(done, num_shards)
            elif tries == MAX_TRIES:
                raise SprachbundError(
                    f"shard {shard} of {directory} failed {MAX_TRIES} times; see the trace above"
                )
            else:
                waiting.append((shard, tries + 1))
        time.sleep(0.02)


def _make_one(
    directory: Path, shard: int, attempt: int, make: Callable[[int, int, ManifestWriter], None]
) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(1)
    writer = ManifestWriter(directory, shard_size=2**62, shard=shard)
    make(shard, attempt, writer)
    writer.flush()
