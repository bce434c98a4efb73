"""One piece of work shared out among processes of this machine: watched, ended together, with one's failure for all."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from sprachbund.errors import SprachbundError

_POLL_S = 0.2

Share = tuple[int, int]
"""Which of how many."""
Progress = Callable[[int, int], None]
"""Called with what is done, and with all that there is to do."""


def run_processes(
    work: Callable[[Share, Progress], None], shares: Sequence[Share], watch: Callable[[], None]
) -> None:
    """Do every share in a process of its own, and wait for all.

    Args:
        work: does a share; it has to be picklable, and to call its progress now and then: that is where a process
            whose parent is gone ends.
        shares: one for each process.
        watch: called in between, here.

    Raises:
        SprachbundError: what the first process to fail raised, or that one died; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Any, Connection] = {}
    try:
        for share in shares:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, share, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            running[process] = ours
        while running:
            for process in [p for p in running if not p.is_alive()]:
                _raise_failure(running.pop(process), process.exitcode)
            watch()
            for process in running:
                process.join(_POLL_S / len(running))
    finally:
        for process in running:
            process.terminate()
            process.join()


def _work(work: Callable[[Share, Progress], None], share: Share, failures: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer

    def leave_if_alone(done: int, total: int) -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        work(share, leave_if_alone)
    except SprachbundError as error:
        failures.send(str(error))


def _raise_failure(failures: Connection, code: int | None) -> None:
    if failures.poll():
        try:
            raise SprachbundError(failures.recv())
        except EOFError:
            pass
    if code:
        raise SprachbundError(
            f"a process ended with code {code}; the same command goes on, try fewer --workers"
        )
