"""Jobs that make files in several processes, on this machine or a Ray cluster, with the same result for any number.

A job knows its files by number, and each is a function of its number alone. So results are in order whoever made them,
and a file that a process died over is made by another. Nothing is exchanged but files, so machines need a common file
system; a job that was killed goes on with the files that are missing.
"""

import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from sprachbund.errors import SprachbundError, first_line
from sprachbund.util.memory import give_back_freed_memory
from sprachbund.util.progress import Progress, nothing

# Processes of this machine: started, watched and ended together; the failure of one ends all.

_LONGEST_MESSAGE = 4000  # far less than a pipe holds, so that no failing process waits for a reader

_Result = TypeVar("_Result")


StartMethod = Literal["spawn", "fork"]
"""Start of a process: anew, or as a copy of this one, which takes no time and needs nothing to be picklable."""


class ProcessDiedError(SprachbundError):
    """A process ended without a result.

    Args:
        code: exit code, as `multiprocessing` has it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"a process {how_it_ended(code)}; end other programs, and run the command again")
        self.code = code


def run_apart(function: Callable[..., _Result], *args: Any, start: StartMethod = "spawn") -> _Result:
    """The result of a function in a new process, or what it raised. Ctrl-C ends both; the process ends with this one.

    Args:
        function: has to be picklable, unless the process is a copy; so have its result and its errors.
        args: arguments of it.
        start: start method of the process.

    Raises:
        ProcessDiedError: the process died.
    """
    context = multiprocessing.get_context(start)
    ours, theirs = context.Pipe(duplex=False)
    # mypy knows the classes of the two contexts, and none that they share.
    process: BaseProcess = context.Process(target=_send_result, args=(theirs, function, args))  # type: ignore[attr-defined]
    with without_interrupts():
        process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        process.join()
        raise ProcessDiedError(process.exitcode or 0) from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if error is not None:
        raise error
    return result


def _send_result(results: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    leave_with_parent()
    try:
        results.send((function(*args), None))
    except Exception as error:
        results.send((None, error))


LAST_STEP_S = 60
"""Seconds that a process which trains, or loads for one that does, has for its last step after SIGTERM."""


def leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone: two may not make the same file.

    The end is that of SIGTERM, at which a training first finishes its step and saves its state. One that has not ended
    after a minute is killed, since a new run of the same command may have begun.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_STEP_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def without_interrupts(*others: signal.Signals) -> Iterator[None]:
    """A process that is started in here never hears Ctrl-C, which is its parent's to answer.

    From its first moment on: importing torch, it would print a traceback. Here Ctrl-C waits until the end of the block.

    Args:
        others: signals that the process does not hear either, until it unblocks them.
    """
    if sys.platform == "win32":
        yield
        return
    # The first process that is spawned starts this one before itself, which lets Ctrl-C through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
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


LOCAL = "local"
"""Address of a Ray cluster that is started on this machine, for one job."""
_POLL_S = 0.2
MAX_DEATHS = 3
"""Processes that may die over one file before the job ends."""


class Job(Protocol):
    """Files to be made; has to be picklable."""

    @property
    def threads(self) -> int:
        """Threads to compute with in each process; 0 leaves torch as it is."""
        ...

    @property
    def gpus(self) -> int:
        """GPUs of each process; 0 where it computes on the CPU or names one GPU itself."""
        ...

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each file, and how many utterances it holds."""
        ...

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load model and data, and return a function of a file's number and of a callback for utterances done in it."""
        ...


def done(job: Job) -> int:
    """Utterances in files that are there."""
    return sum(count for path, count in job.files if path.exists())


def gpus_of(device: str) -> int:
    """GPUs that each process of a job asks for, by the device that was named: "cuda" is one, "cuda:1" is that one."""
    return int(device == "cuda")


def run(
    job: Job,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    start: StartMethod = "spawn",
    progress: Progress = nothing,
    give_up: Callable[[int, str], None] | None = None,
) -> None:
    """Make all files of a job that are missing.

    Each process prepares the job once, and is handed one number after the other, as soon as it has finished the one
    before. Where a process dies, another one takes its place and its file, up to `MAX_DEATHS` times. An error that the
    job raises ends all processes.

    Args:
        job: see `Job`.
        workers: number of processes, at most as many as there are files missing.
        ray_address: address of a Ray cluster, "local" for one on this machine; None for plain processes.
        start: start method of plain processes; they are copies of this one only if it has not computed with several
            threads.
        progress: called with utterances done and utterances in all.
        give_up: called with the number of a file that processes died over, and why, so that the others are made; None
            ends all processes.

    Raises:
        SprachbundError: the error of the first process that failed; processes died over one file; there are fewer GPUs
            than processes; or Ray is not there.
    """
    files = job.files
    missing = [number for number, (path, _) in enumerate(files) if not path.exists()]
    if not missing:
        return
    tally = _Tally(files, missing, progress)
    workers = min(workers, len(missing))  # one that starts takes seconds
    if ray_address is not None:
        with _ray(ray_address, workers * max(1, job.threads)):
            _hand_out(missing, _RayActors(job, workers), tally, give_up)
    elif workers == 1:
        worker = _Worker(job)
        for number in missing:
            worker.make(number, lambda inside, number=number: tally.tick(number, inside))  # type: ignore[misc]
            tally.finish(number)
    else:
        _hand_out(missing, _Processes(job, workers, start), tally, give_up)


class _Tally:
    """Counts utterances done."""

    def __init__(self, files: Sequence[tuple[Path, int]], missing: Sequence[int], progress: Progress) -> None:
        self._files, self._progress = files, progress
        self._total = sum(count for _, count in files)
        self._done = self._total - sum(files[number][1] for number in missing)
        self._inside: dict[int, int] = {}

    def tick(self, number: int, inside: int) -> None:
        """So many utterances of a file are done; 0 when another process begins it again."""
        self._inside[number] = inside
        self._progress(self._done + sum(self._inside.values()), self._total)

    def finish(self, number: int) -> None:
        """A file is done. A task may fail without ending the others; then its file is not there."""
        path, count = self._files[number]
        self._inside.pop(number, None)
        self._done += count * path.exists()
        self._progress(self._done + sum(self._inside.values()), self._total)

    def name(self, number: int) -> str:
        """Of a file, for messages."""
        return self._files[number][0].name


class _Worker:
    """Maker of files in a process: it loads what the job needs with the first one, and keeps it.

    Args:
        job: job that the files belong to.
        folder: folder that relative paths are relative to, where the process may have begun in another one.
    """

    def __init__(self, job: Job, folder: str | None = None) -> None:
        self._job, self._folder = job, folder
        self._make: Callable[[int, Callable[[int], None]], None] | None = None

    def make(self, number: int, tick: Callable[[int], None] = lambda inside: None) -> None:
        """Make a file."""
        if self._make is None:
            if self._folder is not None:
                _enter(self._folder)
            if self._job.threads:
                import torch

                torch.set_num_threads(self._job.threads)
            self._make = self._job.prepare()
        self._make(number, tick)
        give_back_freed_memory()  # hours of utterances of ever other lengths


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise SprachbundError(
            f"{platform.node()}, a machine of the Ray cluster, has no folder {folder} ({error.strerror}); run the "
            "command in one that all machines share"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Event:
    """Message of a worker about one file.

    Attributes:
        number: number of the file.
        inside: utterances done of it, while it is made.
        death: cause of the worker's end, where it ended.
    """

    number: int
    inside: int | None = None
    death: str = ""


class _Pool(Protocol):
    """Workers, each of which makes one file at a time."""

    @property
    def idle(self) -> int:
        """Workers without a file."""
        ...

    def hand(self, number: int) -> None:
        """Give a number to an idle worker."""
        ...

    def wait(self) -> list[_Event]:
        """Events after a short wait at most. Raises SprachbundError where the job did."""
        ...

    def end(self) -> None:
        """End all workers."""
        ...


def _hand_out(
    missing: Sequence[int], pool: _Pool, tally: _Tally, give_up: Callable[[int, str], None] | None
) -> None:
    waiting, running, deaths = list(reversed(missing)), 0, dict[int, int]()
    try:
        while waiting or running:
            while waiting and pool.idle:
                pool.hand(waiting.pop())
                running += 1
            for event in pool.wait():
                if event.inside is not None:
                    tally.tick(event.number, event.inside)
                    continue
                running -= 1
                if not event.death:
                    tally.finish(event.number)
                    continue
                tally.tick(event.number, 0)
                deaths[event.number] = deaths.get(event.number, 0) + 1
                if deaths[event.number] < MAX_DEATHS:
                    waiting.append(event.number)
                    continue
                why = (
                    f"was begun {MAX_DEATHS} times, and each time its process died; at last it {event.death}"
                )
                if give_up is None:
                    raise SprachbundError(
                        f"{tally.name(event.number)} {why}; the same command goes on, try fewer --workers"
                    )
                give_up(event.number, why)
                tally.finish(event.number)
    finally:
        pool.end()


class _Processes:
    """Processes of this machine, with a pipe each."""

    def __init__(self, job: Job, workers: int, start: StartMethod) -> None:
        self._job = job
        self._context = multiprocessing.get_context(start)
        self._gpus = _shares_of_gpus(job.gpus, workers)
        self._idle: list[tuple[Any, Connection, str | None]] = []
        self._running: dict[Connection, tuple[Any, int, str | None]] = {}
        self._unstarted = list(reversed(self._gpus))

    @property
    def idle(self) -> int:
        return len(self._idle) + len(self._unstarted)

    def hand(self, number: int) -> None:
        if self._idle:
            process, pipe, gpus = self._idle.pop()
        else:
            gpus = self._unstarted.pop()
            pipe, theirs = self._context.Pipe()
            # No daemon: those may not start processes, as a job may want to.
            process = self._context.Process(  # type: ignore[attr-defined]
                target=_serve, args=(self._job, gpus, theirs, os.getpid())
            )
            with without_interrupts():
                process.start()
            theirs.close()
        self._running[pipe] = process, number, gpus
        with suppress(OSError):  # it is dead, which `wait` sees
            pipe.send(number)

    def wait(self) -> list[_Event]:
        events = []
        for pipe in connection.wait(list(self._running), _POLL_S):
            assert isinstance(pipe, Connection)
            process, number, gpus = self._running[pipe]
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                process.join()
                del self._running[pipe]
                self._unstarted.append(gpus)
                events.append(_Event(number=number, death=how_it_ended(process.exitcode or 0)))
                continue
            if isinstance(said, str):
                raise SprachbundError(said)
            if said is None:
                del self._running[pipe]
                self._idle.append((process, pipe, gpus))
            events.append(_Event(number=number, inside=said))
        return events

    def end(self) -> None:
        processes = [process for process, *_ in (*self._idle, *self._running.values())]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _serve(job: Job, gpus: str | None, pipe: Connection, parent: int) -> None:
    """Make files by the numbers that come, in a process of its own; it says None for each, or the line of an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # before CUDA begins
        os.environ.pop("LOCAL_RANK", None)  # of torchrun, whose share of the GPUs these are
    worker = _Worker(job)

    def tick(inside: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        pipe.send(inside)

    try:
        while True:
            number = pipe.recv()
            try:
                worker.make(number, tick)
            except Exception as error:  # of any kind: the parent prints its line, not a traceback
                send_failure(pipe, error)
                return
            pipe.send(None)
    except (EOFError, OSError):  # the parent is gone
        os._exit(1)


def _shares_of_gpus(each: int, workers: int) -> list[str | None]:
    """For each process, the GPUs that it is to see, as CUDA_VISIBLE_DEVICES names them.

    Args:
        each: GPUs of each process; with 0, the variable is not set.
        workers: number of processes.

    Raises:
        SprachbundError: there are not as many.
    """
    if not each:
        return [None] * workers
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    rank, count = (
        int(os.environ.get(name, one)) for name, one in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    known = known[rank::count]
    if len(known) < each * workers:
        raise SprachbundError(
            f"{workers} processes need {each * workers} GPUs, and there are {len(known)}; try --workers "
            f"{max(1, len(known) // each)}" + ("" if known else " --device cpu")
        )
    return [",".join(known[number * each : (number + 1) * each]) for number in range(workers)]


class _RayActors:
    """Actors of a Ray cluster; Ray gives each the CPUs and GPUs that the job states."""

    def __init__(self, job: Job, workers: int) -> None:
        import ray

        # The workers of a cluster that runs already began elsewhere.
        self._ray, self._job, self._folder = ray, ray.put(job), os.getcwd()
        self._kind: Any = ray.remote(num_cpus=max(1, job.threads), num_gpus=job.gpus)(_Worker)
        there = ray.cluster_resources()
        most = [workers, int(there.get("CPU", 0)) // max(1, job.threads)]
        most += [int(there.get("GPU", 0)) // job.gpus] if job.gpus else []
        if not (count := min(most)):
            raise SprachbundError(
                f"each process asks for {job.threads} CPUs and {job.gpus} GPUs, and the Ray cluster has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}; add machines, or change --threads or --device"
            )
        self._unstarted, self._idle = count, list[Any]()
        self._running: dict[Any, tuple[Any, int]] = {}

    @property
    def idle(self) -> int:
        return len(self._idle) + self._unstarted

    def hand(self, number: int) -> None:
        if self._idle:
            actor = self._idle.pop()
        else:
            actor, self._unstarted = self._kind.remote(self._job, self._folder), self._unstarted - 1
        self._running[actor.make.remote(number)] = actor, number

    def wait(self) -> list[_Event]:
        events = []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
        for one in ready:
            actor, number = self._running.pop(one)
            try:
                self._ray.get(one)
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, SprachbundError) else error from None
            except self._ray.exceptions.RayError as error:
                # An actor that died, or whose machine did.
                self._unstarted += 1
                events.append(_Event(number=number, death=f"was lost ({first_line(error)})"))
            else:
                self._idle.append(actor)
                events.append(_Event(number=number))
        return events

    def end(self) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)


@contextmanager
def _ray(address: str, num_cpus: int) -> Iterator[None]:
    """A connection to a cluster, or a cluster of this machine with so many CPUs."""
    try:
        import ray
    except ImportError as error:
        raise SprachbundError(
            "there is no Ray here; pip install 'sprachbund[ray]', or leave out --ray"
        ) from error
    if ray.is_initialized():
        yield
        return
    own = {"num_cpus": num_cpus} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # of any kind: Ray raises bare ones where a machine is slow to start
        raise SprachbundError(
            f"no Ray cluster at {address} ({first_line(error)}); start one, or say --ray local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
