"""Makes corpora shard by shard, each shard by a short-lived process of its own.

A shard is a pure function of its number, so making can be broken off and taken up, and two machines make the
same corpus. Short-lived, because a speech synthesiser that dies takes one shard with it and not the run: espeak-ng
crashes on rare combinations of voice and words, always the same ones, and the next attempt draws others.

The attempt decides what is said, so it may depend on nothing but the shard. Only a synthesiser that fails twice on the
same attempt leads to the next. A process that was killed from outside, as a system without memory does, is started
again with the same attempt; any other exception ends the work.
"""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from sprachbund.data.manifest import ManifestWriter, shard_numbers
from sprachbund.data.synthesis import CRASHES, SynthesisError
from sprachbund.errors import SprachbundError
from sprachbund.util.jobs import how_it_ended, receive_failure, send_failure, without_interrupts

MAX_TRIES = 3
"""Attempts with other content, on each of which the synthesiser fails twice."""
MAX_KILLS = 4
"""Times that a shard's process is killed before the work ends."""
_FAILED, _KILLED = 70, 71
"""Exit codes of a process whose synthesiser failed on a text, or was killed."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A shard to be made: with which attempt, how often that one failed, and how often its process was killed."""

    shard: int
    attempt: int = 1
    failures: int = 0
    kills: int = 0


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
        SprachbundError: when the synthesiser failed on three attempts at a shard, its process was killed too often, or
            `make` raised; the shards that are finished stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    there = set(shard_numbers(directory))
    waiting = [_Task(shard=shard) for shard in reversed(range(num_shards)) if shard not in there]
    running: dict[BaseProcess, tuple[_Task, Connection]] = {}
    done = num_shards - len(waiting)
    progress(done, num_shards)
    context = multiprocessing.get_context("fork")
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_make_one, args=(directory, task, make, theirs), daemon=True
                )
                with without_interrupts():
                    process.start()
                theirs.close()
                running[process] = task, ours
            for process in [p for p in running if not p.is_alive()]:
                task, failures = running.pop(process)
                failure = receive_failure(failures)
                if process.exitcode:
                    waiting.append(_again(task, process.exitcode, failure, directory))
                elif failure is not None:
                    raise SprachbundError(f"shard {task.shard} of {directory} cannot be made: {failure}")
                else:
                    done += 1
                    progress(done, num_shards)
            time.sleep(0.02)
    finally:
        for process in running:
            process.terminate()
            process.join()


def _again(task: _Task, code: int, failure: str | None, directory: Path) -> _Task:
    """What is tried after a process ended with an exit code. Raises SprachbundError when it was tried often enough."""
    reason = failure or f"its process {how_it_ended(code)}"
    if code != _FAILED and code not in CRASHES:
        if task.kills + 1 < MAX_KILLS:
            return replace(task, kills=task.kills + 1)
        raise SprachbundError(
            f"shard {task.shard} of {directory} was tried {MAX_KILLS} times; at last {reason}; "
            "the same command goes on, try fewer --workers"
        )
    if not task.failures:
        return replace(task, failures=1)
    if task.attempt < MAX_TRIES:
        return replace(task, attempt=task.attempt + 1, failures=0)
    raise SprachbundError(
        f"shard {task.shard} of {directory} cannot be spoken in {MAX_TRIES} different drawings; at last {reason}; "
        "give another --seed, or install the synthesiser again"
    )


def _make_one(
    directory: Path, task: _Task, make: Callable[[int, int, ManifestWriter], None], failures: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    import torch

    torch.set_num_threads(1)
    writer = ManifestWriter(directory, shard_size=2**62, shard=task.shard)
    try:
        make(task.shard, task.attempt, writer)
        writer.flush()
    except SynthesisError as error:
        send_failure(failures, error)
        sys.exit(_KILLED if error.killed else _FAILED)
    except Exception as error:  # of any kind: its line is told here, not its traceback
        send_failure(failures, error)
