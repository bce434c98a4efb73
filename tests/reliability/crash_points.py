"""Kills a command at every change of its output folder, runs it again, and compares the folder with an undisturbed one.

A crash point is before each change (a file created, written to, renamed or removed, a folder made or removed), and
amid each write. The state of the disk after a change is that before the next one.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MAY_DIFFER = ("events.out.tfevents.*", "log.txt")
"""Files that name the time, which two undisturbed runs write differently: TensorBoard's, and the logs of trainings."""
_LEFT_OVER = ("*.partial", ".tmp*")
WHOLE = ("*",)
"""In `Case.clocks`: a file that shows nothing but times, or is a picture of them."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that goes on where it was killed.

    Attributes:
        name: for people.
        prepare: makes the inputs in a folder, by the command it is given to run others, and gives the arguments of the
            command, the last two of which are `--out` and the folder of its output.
        clocks: of JSON and .npz files by pattern, the patterns of fields that say when or how long something was done;
            `WHOLE` for a file of which only its being there, and not empty, is compared.
        finished: what a rerun says that finds all done, of a command that is refused then; None for one that is not.
    """

    name: str
    prepare: Callable[[Path, Callable[..., None]], Sequence[str]]
    clocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    finished: str | None = None


@dataclass(frozen=True)
class CrashPoint:
    """Where a run is killed: before a change, or amid it; how it was called when the run was not disturbed."""

    number: int
    amid: bool
    what: str

    def __str__(self) -> str:
        return f"{'amid' if self.amid else 'before'} change {self.number}, {self.what}"


@dataclass
class Exploration:
    """What killing a command showed.

    Attributes:
        changes: of the output folder, by an undisturbed run.
        kills: runs that were killed.
        failed: reruns that did not end well, with their last line.
        different: reruns that left another folder, with the first file that differs.
        unflushed: files that got their final name before their content was on the disk.
    """

    command: str
    changes: int = 0
    points: int = 0
    kills: int = 0
    failed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unflushed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All that should not be."""
        return [*self.failed, *self.different, *self.unflushed]


class Machine:
    """Runs commands below a folder; use it in a `with` statement."""

    def __init__(self, folder: Path, timeout_s: float = 120.0) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.timeout_s = timeout_s
        library = self.folder / "killing.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "killing.c"), "-ldl"], check=True
        )
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "OMP_NUM_THREADS": "1",
            "HOME": str(home),  # caches of this machine stay out of it
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        }
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
        )

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(self.timeout_s)

    def run(
        self, argv: Sequence[str], watched: Path, point: CrashPoint | None = None
    ) -> tuple[int, list[str]]:
        """Run a command, to be killed at a point; its exit code, and the lines of the log of changes."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        log, count = self.folder / "log", self.folder / "count"
        log.write_text("", encoding="utf-8")
        count.write_bytes(bytes(8))
        environment = {
            "KILLING_FOLDER": str(watched),
            "KILLING_LOG": str(log),
            "KILLING_COUNT": str(count),
            "KILLING_AT": str(point.number if point else 0),
            "KILLING_HALF": str(int(point.amid)) if point else "0",
        }
        output = str(self.folder / "output.txt")
        job = {"argv": list(argv), "environment": environment, "output": output, "timeout_s": self.timeout_s}
        print(json.dumps(job), file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        return code, log.read_text(encoding="utf-8").splitlines()

    def must(self, *argv: str | Path) -> None:
        """Run a command that has to succeed. Raises RuntimeError."""
        code, _ = self.run(list(map(str, argv)), self.folder / "nothing")
        if code != 0:
            raise RuntimeError(f"{' '.join(map(str, argv))} ended with {code}: {self.output()}")

    def output(self) -> str:
        """The last line of what a command wrote."""
        text = (self.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        return (text.strip().splitlines() or ["nothing"])[-1]


def explore(
    case: Case,
    machine: Machine,
    most: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    points: Callable[[CrashPoint], bool] = lambda point: True,
) -> Exploration:
    """Kill a command at points spread evenly over all of them.

    Args:
        case: the command.
        machine: runs it.
        most: points at most; all if None.
        report: called with a line for faults and progress.
        points: which may be chosen.
    """
    inputs = machine.folder / case.name.replace(" ", "-")
    inputs.mkdir(parents=True, exist_ok=True)
    argv = list(map(str, case.prepare(inputs, machine.must)))
    assert argv[-2] == "--out"
    watched = Path(argv[-1]).parent
    result = Exploration(case.name)
    trees = []
    for _ in range(2):
        _empty(watched)
        code, log = machine.run(argv, watched)
        if code != 0:
            raise RuntimeError(f"{case.name}, undisturbed, ended with {code}: {machine.output()}")
        trees.append(tree(watched, case.clocks))
    if fault := difference(trees[0], trees[1]):
        result.different.append(f"two undisturbed runs: {fault}")
    result.unflushed = unflushed(log)
    result.changes = sum(not line.startswith("0 ") for line in log)
    all_points = [point for point in _points(log) if points(point)]
    result.points = len(all_points)
    for done, point in enumerate(spread(all_points, most), start=1):
        _empty(watched)
        code, _ = machine.run(argv, watched, point)
        if code != -signal.SIGKILL:
            result.failed.append(f"{point}: was not killed but ended with {code}: {machine.output()}")
            continue
        result.kills += 1
        code, _ = machine.run(argv, watched)
        if code != 0 and not (case.finished is not None and case.finished in machine.output()):
            result.failed.append(f"{point}: run again, it ended with {code}: {machine.output()}")
        elif fault := difference(trees[0], tree(watched, case.clocks)):
            result.different.append(f"{point}: {fault}")
        report(f"{case.name}: {done}, {len(result.faults)} faults")
    _empty(watched)
    return result


def tree(folder: Path, clocks: Mapping[str, Sequence[str]] = {}) -> dict[str, str]:
    """What a folder holds: paths to hashes, "folder" for folders, and where links lead."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            result[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            result[name] = "folder"
        elif not any(fnmatch.fnmatch(path.name, pattern) for pattern in MAY_DIFFER):
            fields = {f for pattern, names in clocks.items() if fnmatch.fnmatch(name, pattern) for f in names}
            content = path.read_bytes()
            if fields.issuperset(WHOLE):
                content = b"something" if content else b""
            elif fields and path.suffix == ".npz":
                with np.load(path) as arrays:
                    plain = {key: _plain(arrays[key]) for key in arrays.files}
                content = json.dumps(_without(plain, fields)).encode()
            elif fields:
                content = json.dumps(_without(json.loads(content), fields)).encode()
            result[name] = hashlib.sha256(content).hexdigest()
    return result


def difference(wanted: Mapping[str, str], seen: Mapping[str, str]) -> str | None:
    """The first difference of two folders in words; None where they are the same."""
    for name in sorted({*wanted, *seen}):
        if name not in seen:
            return f"{name} is missing"
        if any(fnmatch.fnmatch(Path(name).name, pattern) for pattern in _LEFT_OVER):
            return f"{name} is left over"
        if name not in wanted:
            return f"{name} is too much"
        if wanted[name] != seen[name]:
            return f"{name} differs"
    return None


def unflushed(log: Iterable[str]) -> list[str]:
    """Files that were renamed after a write that nobody had waited for."""
    waiting, result = set(), []
    for line in log:
        _, what, path = line.split(" ", 2)
        if what in ("create", "write", "truncate"):
            waiting.add(path)
        elif what == "fsync":
            waiting.discard(path)
        elif what == "rename" and path in waiting:
            result.append(path)
    return result


def spread(points: Sequence[CrashPoint], most: int | None) -> list[CrashPoint]:
    """So many of them, from the first to the last."""
    if most is None or most >= len(points):
        return list(points)
    return [points[round(n * (len(points) - 1) / max(1, most - 1))] for n in range(most)]


def _points(log: Iterable[str]) -> Iterable[CrashPoint]:
    for line in log:
        number, what, path = line.split(" ", 2)
        if number == "0":
            continue
        yield CrashPoint(int(number), False, f"{what} {path}")
        if what == "write":
            yield CrashPoint(int(number), True, f"{what} {path}")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _plain(array: np.ndarray) -> Any:
    """An array as JSON; one that holds a text of JSON as that."""
    return json.loads(str(array)) if array.dtype.kind == "U" and array.ndim == 0 else array.tolist()


def _without(value: Any, fields: set[str]) -> Any:
    if isinstance(value, dict):
        kept = {
            key: inner for key, inner in value.items() if not any(fnmatch.fnmatch(key, f) for f in fields)
        }
        return {key: _without(inner, fields) for key, inner in kept.items()}
    return [_without(inner, fields) for inner in value] if isinstance(value, list) else value
