"""Makes corpora shard by shard, each attempt at a shard by a short-lived process of its own.

A shard is a pure function of its number, so making can be stopped and resumed, and two machines make the
same corpus. Short-lived, because a speech synthesiser that dies takes one shard with it and not the run: espeak-ng
crashes on rare combinations of voice and words, always the same ones, and the next attempt draws others.

The attempt decides what is said, so it may depend on nothing but the shard. Only a synthesiser that fails twice on the
same attempt leads to the next. A process that was killed from outside, as a system without memory does, is started
again with the same attempt; any other exception ends the work. `sprachbund.util.jobs` hands the shards out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sprachbund.data.manifest import ManifestWriter, cuts_path, shard_numbers
from sprachbund.data.synthesis import CRASHES, SynthesisError
from sprachbund.errors import SprachbundError
from sprachbund.util.jobs import ProcessDiedError, how_it_ended, line_of, run, run_apart
from sprachbund.util.progress import Progress, nothing

MAX_TRIES = 3
"""Attempts with other content, on each of which the synthesiser fails twice."""
MAX_KILLS = 4
"""Times that a shard's process is killed before the work ends."""

MakeShard = Callable[[int, int, ManifestWriter], None]
"""Adds the utterances of a shard, by its number and the attempt (from 1), to a writer."""


def make_shards(
    directory: Path,
    num_shards: int,
    make: MakeShard,
    *,
    workers: int = 2,
    ray_address: str | None = None,
    progress: Progress = nothing,
) -> None:
    """Run `make(shard, attempt, writer)` for every shard that is not there yet.

    Args:
        directory: directory of the corpus.
        num_shards: number of shards wanted.
        make: adds a shard's utterances to the writer it is given; picklable for Ray.
        workers: processes at a time.
        ray_address: address of a Ray cluster that shares the folder; "local" for one here; None for plain processes.
        progress: called with (shards there, shards in all) whenever one appears.

    Raises:
        SprachbundError: when the synthesiser failed on three attempts at a shard, its process was killed too often, or
            `make` raised; the shards that are finished stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    progress(sum(number < num_shards for number in shard_numbers(directory)), num_shards)
    job = _Shards(directory=directory, num_shards=num_shards, make=make)
    run(job, workers=workers, ray_address=ray_address, start="fork", progress=progress)


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """The shards of a corpus; a `sprachbund.util.jobs.Job`."""

    directory: Path
    num_shards: int
    make: MakeShard
    threads: int = 0  # of the processes that hand attempts out; those of attempts compute with one
    gpus: int = 0

    @property
    def files(self) -> Sequence[tuple[Path, int]]:
        return [(cuts_path(self.directory, number), 1) for number in range(self.num_shards)]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        def make(number: int, progress: Callable[[int], None]) -> None:
            attempt: _Attempt | None = _Attempt(shard=number)
            while attempt is not None:
                attempt = _next(attempt, self.directory, self.make)

        return make


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """At a shard: the attempt's number, how often it failed, and how often the shard's process was killed."""

    shard: int
    number: int = 1
    failures: int = 0
    kills: int = 0


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Reason why a synthesiser did not speak a text, and whether its program was killed."""

    reason: str
    killed: bool


def _next(attempt: _Attempt, directory: Path, make: MakeShard) -> _Attempt | None:
    """Make an attempt in a process of its own; the next one, or None when the shard is there.

    Raises:
        SprachbundError: `make` raised, or the shard was tried often enough.
    """
    try:
        failure = run_apart(_make_one, directory, attempt, make, start="fork")
    except ProcessDiedError as died:
        crashed = died.code in CRASHES
        failure = _Failure(reason=f"its process {how_it_ended(died.code)}", killed=not crashed)
    return None if failure is None else _after(attempt, failure, directory)


def _after(attempt: _Attempt, failure: _Failure, directory: Path) -> _Attempt:
    """The next attempt after a failure. Raises SprachbundError after too many."""
    if failure.killed:
        if attempt.kills + 1 < MAX_KILLS:
            return replace(attempt, kills=attempt.kills + 1)
        raise SprachbundError(
            f"shard {attempt.shard} of {directory} was tried {MAX_KILLS} times; at last {failure.reason}; "
            "the same command goes on, try fewer --workers"
        )
    if not attempt.failures:
        return replace(attempt, failures=1)
    if attempt.number < MAX_TRIES:
        return replace(attempt, number=attempt.number + 1, failures=0)
    raise SprachbundError(
        f"shard {attempt.shard} of {directory} cannot be spoken in {MAX_TRIES} different drawings; at last "
        f"{failure.reason}; give another --seed, or install the synthesiser again"
    )


def _make_one(directory: Path, attempt: _Attempt, make: MakeShard) -> _Failure | None:
    import torch

    torch.set_num_threads(1)
    writer = ManifestWriter(directory, shard_size=2**62, shard=attempt.shard)
    try:
        make(attempt.shard, attempt.number, writer)
        writer.flush()
    except SynthesisError as error:
        return _Failure(reason=str(error), killed=error.killed)
    except Exception as error:  # of any kind: a user sees its line, not its traceback
        raise SprachbundError(
            f"shard {attempt.shard} of {directory} cannot be made: {line_of(error)}"
        ) from None
    return None
