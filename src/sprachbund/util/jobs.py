"""Jobs that make files in several processes, on this machine or a Ray cluster, with the same result for any number.

A job knows its files by number, and each is a function of its number alone. Nothing is exchanged but files, so
machines need a common file system; a job that was killed goes on with the files that are missing.
"""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sprachbund.errors import SprachbundError
from sprachbund.util.memory import give_back_freed_memory

# Processes of this machine: started, watched and ended together; the failure of one ends all.

_WATCH_S = 0.2
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
            with without_interrupts():
                process.start()
            theirs.close()
            running[process] = ours
        while running:
            for process in [p for p in running if not p.is_alive()]:
                failure = receive_failure(running.pop(process))
                if failure is not None:
                    raise SprachbundError(failure)
                if process.exitcode:
                    raise SprachbundError(
                        f"a process {how_it_ended(process.exitcode)}; the same command goes on, try fewer --workers"
                    )
            watch()
            for process in running:
                process.join(_WATCH_S / len(running))
    finally:
        for process in running:
            process.terminate()
            process.join()


_Result = TypeVar("_Result")


def run_apart(function: Callable[..., _Result], *args: Any) -> _Result:
    """The result of a function in a new process, or what it raised. Ctrl-C ends both.

    Args:
        function: has to be picklable, as its arguments, its result and its errors.
        args: of it.

    Raises:
        SprachbundError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(theirs, function, args))
    with without_interrupts():
        process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        raise SprachbundError(
            f"a process {how_it_ended(process.exitcode or 0)}; end other programs, and run the command again"
        ) from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if error is not None:
        raise error
    return result


def _send_result(results: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        results.send((function(*args), None))
    except Exception as error:
        results.send((None, error))


@contextmanager
def without_interrupts() -> Iterator[None]:
    """A process that is started in here never hears Ctrl-C, which is its parent's to answer.

    From its first moment on: importing torch, it would print a traceback. Here Ctrl-C waits until the end of the block.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send_failure(failures: Connection, error: Exception) -> None:
    """Send an exception to the parent as the one line that a user is to see."""
    failures.send(line_of(error)[:_LONGEST_MESSAGE])


def line_of(error: Exception) -> str:
    """An exception as the one line that a user is to see."""
    return str(error) if isinstance(error, SprachbundError) else _line_of_unforeseen(error)


def receive_failure(failures: Connection) -> str | None:
    """The line that an ended process sent with `send_failure`; None if it sent none."""
    try:
        return str(failures.recv()) if failures.poll() else None
    except (EOFError, OSError):  # it was killed while it sent
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
    except Exception as error:  # of any kind: the parent prints its line, not a traceback
        send_failure(failures, error)


def _line_of_unforeseen(error: Exception) -> str:
    """An exception that nobody foresaw: its kind, its first line, and the line of code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError):
        return f"a process found no memory{where}; the same command goes on, try fewer --workers"
    return f"a process ended with {type(error).__name__}: {first}{where}; the same command goes on from there"


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
        """Load the data and return a function of a file's number and of a callback for utterances done in it."""
        ...


def nothing(done: int, total: int) -> None:
    """Tell nobody."""


def done(job: Job) -> int:
    """Utterances in files that are there."""
    return sum(count for path, count in job.files if path.exists())


def make(job: Job, share: tuple[int, int] = (0, 1), progress: Progress = nothing) -> None:
    """Make the files that are missing, of them every `share[1]`-th from number `share[0]` on.

    Args:
        job: names the files and makes each by its number.
        share: (index, count) of this process among all.
        progress: called with the files made and their number in all.
    """
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
        workers: number of processes, at most as many as there are files missing.
        ray_address: of a Ray cluster, "local" for one on this machine; None for plain processes.
        progress: called with utterances done and utterances in all.

    Raises:
        SprachbundError: what the first process to fail raised, or that one died, or that Ray is not there.
    """
    if ray_address is not None:
        return _run_on_ray(job, workers, ray_address, progress)
    workers = min(workers, sum(not path.exists() for path, _ in job.files))  # one that starts takes seconds
    if workers <= 1:
        make(job, progress=progress)
    else:
        total = sum(count for _, count in job.files)
        shares = [(number, workers) for number in range(workers)]
        run_processes(partial(make, job), shares, lambda: progress(done(job), total))


def _run_on_ray(job: Job, workers: int, address: str, progress: Progress) -> None:
    try:
        import ray
    except ImportError as error:
        raise SprachbundError(
            "there is no Ray here; pip install 'sprachbund[ray]', or leave out --ray"
        ) from error
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
