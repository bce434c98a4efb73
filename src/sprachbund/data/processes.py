"""One piece of work shared out among processes of this machine: watched, ended together, with one's failure for all."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError

_POLL_S = 0.2
_LONGEST_MESSAGE = 4000  # far less than a pipe holds, so that no failing process waits for a reader

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
                told = failure_told(running.pop(process))
                if told is not None:
                    raise SprachbundError(told)
                if process.exitcode:
                    raise SprachbundError(
                        f"a process {how_it_ended(process.exitcode)}; the same command goes on, try fewer --workers"
                    )
            watch()
            for process in running:
                process.join(_POLL_S / len(running))
    finally:
        for process in running:
            process.terminate()
            process.join()


def tell_failure(failures: Connection, error: Exception) -> None:
    """Send an exception to the parent as the one line that a user is to see."""
    line = str(error) if isinstance(error, SprachbundError) else _place_of(error)
    failures.send(line[:_LONGEST_MESSAGE])


def failure_told(failures: Connection) -> str | None:
    """What a process that has ended told with `tell_failure`; None when it told nothing."""
    try:
        return str(failures.recv()) if failures.poll() else None
    except (EOFError, OSError):  # it was killed while it told
        return None
    finally:
        failures.close()


def how_it_ended(code: int) -> str:
    """An exit code of `multiprocessing` in words, with the signal's name."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    often = ", as a system short of memory does" if name == "SIGKILL" else ""
    return f"was killed by {name}{often}"


def _work(work: Callable[[Share, Progress], None], share: Share, failures: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer

    def leave_if_alone(done: int, total: int) -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        work(share, leave_if_alone)
    except Exception as error:  # of any kind: its line is told here, not its traceback
        tell_failure(failures, error)


def _place_of(error: Exception) -> str:
    """An exception that nobody foresaw: its kind, its first line, and the line of code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError):
        return f"a process found no memory{where}; the same command goes on, try fewer --workers"
    return f"a process ended with {type(error).__name__}: {first}{where}; the same command goes on from there"
