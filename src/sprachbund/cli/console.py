"""What all verbs share in talking to people: error lines, progress bars, lists given with commas."""

import errno
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import typer

from sprachbund.errors import SprachbundError

DELAY_S = 2.0
"""Work shorter than this shows no progress bar."""
LOG_DELAY_S = 30.0
"""Work shorter than this writes nothing about its progress into a file or a pipe."""
_NEXT_STEPS = {
    errno.ENOSPC: "make room there and run the same command again",
    errno.EDQUOT: "make room there and run the same command again",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "change its permissions, or name another place",
    errno.EMFILE: "let more files be open at once with `ulimit -n`",
}
"""What to do about errors of the operating system, by their number."""


class UsageError(SprachbundError):
    """The command was asked for something that cannot be, whatever the files hold.

    Attributes:
        hints: lines that are printed after the error: commands that would do what was wanted.
    """

    hints: tuple[str, ...] = ()


class _Debug:
    """Whether tracebacks are wanted; the one thing that every place that catches errors has to know."""

    wanted = False


def set_debug(wanted: bool) -> None:
    """Show tracebacks beside error lines from now on, or not."""
    _Debug.wanted = wanted


def trace(error: BaseException) -> None:
    """Print the traceback of an error that becomes a line, if tracebacks are wanted."""
    if _Debug.wanted:
        traceback.print_exception(error)


@contextmanager
def as_usage() -> Iterator[None]:
    """Errors in here are the command line's fault."""
    try:
        yield
    except UsageError:
        raise
    except SprachbundError as error:
        raise UsageError(str(error)) from error


def in_one_process(command: str) -> None:
    """Refuse a command whose files all processes of torchrun would write."""
    if "LOCAL_RANK" in os.environ:  # or torch would be imported for every command
        from sprachbund.util.distributed import refuse_several_processes

        with as_usage():
            refuse_several_processes(f"`{command}`")


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"the same command goes on with what is in {out}")
        raise


def set_threads(threads: int | None) -> None:
    """Let torch compute with `threads` threads; None keeps its default."""
    if threads is not None:
        import torch  # here, since most commands start without it

        torch.set_num_threads(threads)


def say(line: str) -> None:
    """One line on stderr, under the command's name."""
    sys.stdout.flush()
    typer.echo(f"sprachbund: {line}", err=True)


def error_line(error: BaseException) -> str:
    """An exception in one line; one that was not foreseen points to `--debug`."""
    # here, since most commands start without them
    from sprachbund.engines.extension import lacks_memory
    from sprachbund.util.extras import missing_package

    parts = [" ".join(str(error).split())]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        closed = "stdin or stdout is closed; open it, or let it be /dev/null"
        parts = [closed if error.errno == errno.EBADF else f"{where}{error.strerror or error}"]
        parts += [_NEXT_STEPS[error.errno]] if error.errno in _NEXT_STEPS else []
    elif lacks_memory(error):
        parts = [
            f"there is not enough memory for this ({parts[0]}); end other programs, or ask for less at once"
        ]
    elif isinstance(error, ImportError) and (missing := missing_package(error)):
        parts = [missing]
    elif not isinstance(error, SprachbundError):
        parts = [f"unexpected {type(error).__name__}: {parts[0]} (--debug shows the traceback)"]
    return "; ".join([*parts, *getattr(error, "__notes__", [])])


def listed(values: Iterable[str] | None) -> list[str]:
    """What was given as "de,fr", as several options, or both, each once, in order."""
    parts = (part.strip() for value in values or () for part in value.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """A JSON value on stdout, at once."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=indent))
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Columns of text, aligned; numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people: 2.1, 1:15.2, 2:03:04.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    if not minutes:
        return f"{rest / 10:.1f}"
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest / 10:04.1f}"


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


Unit = Literal["things", "seconds", "bytes"]
_AMOUNTS: dict[Unit, Callable[[float], str]] = {"things": "{:.0f}".format, "seconds": duration, "bytes": size}


class Bar:
    """How far work has come, on stderr, once it has taken over two seconds: the amounts and the time left.

    A terminal shows a progress bar. One that cannot move its cursor (TERM=dumb) gets a line now and then, and so does a
    file or a pipe, more rarely.

    Args:
        label: what is being done.
        total: where it ends, None when unknown; `update` may set it later.
        unit: what the amounts count: "things", "seconds" of audio, or "bytes".
        enabled: False shows nothing.
        delay_s: how long the work may go on unseen.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        *,
        unit: Unit = "things",
        enabled: bool = True,
        delay_s: float = DELAY_S,
    ) -> None:
        self._label, self._total, self._done = label, total, 0.0
        self._shown = _AMOUNTS[unit]
        self._enabled = enabled
        self._lock = threading.Lock()
        self._progress: Any = None
        self._task: Any = None
        self._first: tuple[float, float] | None = None
        """Time and amount of the first update under this label; what was done before says nothing about the speed."""
        self._draws = _draws(sys.stderr)
        self._pause_s = max(0.0, delay_s) if sys.stderr.isatty() else LOG_DELAY_S
        self._timer = threading.Timer(self._pause_s, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if self._enabled:
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._enabled = False
            self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()

    def update(self, done: float, total: float | None = None, label: str | None = None) -> None:
        """Say how far the work has come.

        Args:
            done: amount of work done.
            total: amount in all; None keeps the one known.
            label: text before the bar; None keeps the one shown.
        """
        with self._lock:
            if self._first is None or done < self._done or label not in (None, self._label):
                self._first = time.monotonic(), done
            self._done, self._total = done, total or self._total
            self._label = label or self._label
            if self._progress is not None:
                self._progress.update(self._task, **self._state())

    def _state(self) -> dict[str, Any]:
        of = f" / {self._shown(self._total)}" if self._total else ""
        amount = self._shown(self._done) + of if self._done or self._total else ""
        return {
            "completed": self._done,
            "total": self._total,
            "description": self._label,
            "amount": amount,
        }

    def _show(self) -> None:
        with self._lock:
            if not self._enabled:
                return
            if self._draws:
                self._draw()
                return
            with suppress(OSError, ValueError):  # nobody reads any more
                sys.stderr.write(f"sprachbund: {self._line()}\n")
                sys.stderr.flush()
            # A log of an hour is not to be full of them.
            self._pause_s = min(600.0, max(5.0, self._pause_s * 1.5))
            self._timer = threading.Timer(self._pause_s, self._show)
            self._timer.daemon = True
            self._timer.start()

    def _line(self) -> str:
        parts = [self._label, self._state()["amount"]]
        if self._total and self._first is not None and self._done > self._first[1]:
            parts.append(f"{100 * self._done / self._total:.0f} %")
            speed = (self._done - self._first[1]) / max(1e-9, time.monotonic() - self._first[0])
            minutes, seconds = divmod(round(max(0.0, self._total - self._done) / speed), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        return ", ".join(part for part in parts if part) + " …"

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Left(TimeRemainingColumn):
            def render(self, task: Task) -> Text:
                left = super().render(task)
                return left + Text(" left") if task.total and task.speed else Text("")

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            Left(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(**self._state())
        self._progress.start()


def _draws(stream: Any) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown") and sys.platform != "win32"
    return bool(stream.isatty()) and not dumb
