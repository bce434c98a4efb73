"""Input and output of all verbs: error lines, progress bars, lists given with commas."""

import errno
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import typer

from sprachbund.errors import SprachbundError

DELAY_S = 2.0
"""Seconds for which a command may show nothing on a terminal."""
LOG_DELAY_S = 30.0
"""Seconds for which it may write nothing about its progress into a file or a pipe."""
MOMENT_S = 0.3
"""Work shorter than this shows no progress bar; nobody could read it."""
_NEXT_STEPS = {
    errno.ENOSPC: "make room there and run the same command again",
    errno.EDQUOT: "make room there and run the same command again",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "change its permissions, or name another folder",
    errno.EMFILE: "let more files be open at once with `ulimit -n`",
}
"""The next step after an error of the operating system, by its number."""


class UsageError(SprachbundError):
    """The command was asked for something that cannot be, whatever the files hold.

    Attributes:
        hints: lines that are printed after the error: commands that would do what was wanted.
    """

    hints: tuple[str, ...] = ()


class _Debug:
    """Whether tracebacks are wanted; the one thing that everything that catches errors has to know."""

    wanted = False


def set_debug(wanted: bool) -> None:
    """Show tracebacks beside error lines from now on, or not."""
    _Debug.wanted = wanted


class _Progress:
    """State of the progress shown, shared by everything that writes to a terminal.

    Attributes:
        silent_since: time at which the command began, or wrote the last line about its progress.
        bar: the innermost one under way, drawn or not.
    """

    silent_since = time.monotonic()
    bar: "Bar | None" = None


def begin() -> None:
    """A command begins now: its first bar may not be long in coming."""
    _Progress.silent_since = time.monotonic()


@contextmanager
def no_bar() -> Iterator[None]:
    """Wipe the bar that may be drawn while something else is written to the terminal."""
    bar = _Progress.bar
    with nullcontext() if bar is None else bar.wiped():
        yield


def trace(error: BaseException) -> None:
    """Print the traceback of an error that becomes a line, if tracebacks are wanted."""
    if _Debug.wanted:
        traceback.print_exception(error)


@contextmanager
def as_usage(kind: type[SprachbundError] = SprachbundError) -> Iterator[None]:
    """Errors in here, or those of a kind, are the command line's fault."""
    try:
        yield
    except UsageError:
        raise
    except kind as error:
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


def threads_of_each(workers: int) -> int:
    """Threads of each of so many processes, where none are asked for: those that torch has here, divided."""
    import torch

    return max(1, torch.get_num_threads() // workers)


def set_device(device: str | None) -> None:
    """Let what is trained in this process be on a device; None takes the first GPU, if there is one.

    Raises:
        SprachbundError: a device that is not there, or one for several processes of a launcher.
    """
    if device is None:
        return
    from sprachbund.util.devices import find_device
    from sprachbund.util.distributed import launched_processes, take_device

    chosen = find_device(device)
    if launched_processes() > 1:
        raise SprachbundError(
            f"--device {device} is for one process; of several, each takes the GPU of its number: leave it out"
        )
    take_device(chosen)


def say(line: str) -> None:
    """One line on stderr, under the command's name."""
    with no_bar():
        sys.stdout.flush()
        typer.echo(f"sprachbund: {line}", err=True)


def show(line: str, *, err: bool = False) -> None:
    """One line on stdout, or stderr, above a bar that may be drawn."""
    with no_bar():
        typer.echo(line, err=err)


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
    """Return the values given as "de,fr", as several options, or both, each once, in order."""
    parts = (part.strip() for value in values or () for part in value.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """A JSON value on stdout, at once."""
    show(json.dumps(value, ensure_ascii=False, indent=indent))
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


_LEAST_BAR = 4
"""Columns; rich makes none narrower."""
Unit = Literal["things", "seconds", "bytes"]
_AMOUNTS: dict[Unit, Callable[[float], str]] = {"things": "{:.0f}".format, "seconds": duration, "bytes": size}


class Bar:
    """The progress of work on stderr, once the command has taken over two seconds: the amounts and the time left.

    A terminal shows a progress bar, and of one inside another the inner one. A terminal that cannot move its cursor
    (TERM=dumb) gets a line now and then, and so does a file or a pipe, more rarely. Work whose end is unknown shows how
    long it has taken.

    Args:
        label: name of the work.
        total: amount at which the work ends, None when unknown; `update` may set it later.
        unit: unit of the amounts: "things", "seconds" of audio, or "bytes".
        enabled: False shows nothing.
        delay_s: for how long the command may show nothing.
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
        self._lock = threading.RLock()
        self._outer: Bar | None = None
        self._progress: Any = None
        self._began = time.monotonic()
        self._updates: tuple[tuple[float, float], ...] = ()
        """Time and amount of the first and the last update of this work; what was done before it says nothing about
        the speed."""
        self._draws = _draws(sys.stderr)
        self._pause_s = delay_s if sys.stderr.isatty() else LOG_DELAY_S

    def __enter__(self) -> Self:
        if self._enabled:
            self._outer, _Progress.bar = _Progress.bar, self
            if self._outer is not None:
                self._outer._hide()
            self._wait_in_turn()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._hide()
            _Progress.bar = self._outer
            if self._outer is not None:
                self._outer._wait_in_turn()

    def update(self, done: float, total: float | None = None, label: str | None = None) -> None:
        """Say how far the work has come.

        Args:
            done: amount of work done.
            total: amount in all; None keeps the one known, unless the label is another one.
            label: text before the bar; None keeps the one shown.
        """
        with self._lock:
            now, is_labelled = time.monotonic(), label not in (None, self._label)
            total = total or (0 if is_labelled else self._total) or 0
            is_other = done < self._done or total != (self._total or 0) or (is_labelled and not total)
            self._began = now if is_other else self._began
            # Replaced whole: another thread draws.
            self._updates = ((now, done),) if is_other else (*self._updates[:1], (now, done))
            self._done, self._total, self._label = done, total, label or self._label
            if self._progress is not None:
                self._progress.tasks[0].total = total or None  # its method would keep a total that was known
                self._progress.update(self._progress.tasks[0].id, completed=done)

    @contextmanager
    def wiped(self) -> Iterator[None]:
        """Nothing of the bar is on the terminal in here."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
            try:
                yield
            finally:
                if self._progress is not None:
                    self._progress.start()

    def _hide(self) -> None:
        with self._lock:
            self._timer.cancel()
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _amount(self) -> str:
        of = f" / {self._shown(self._total)}" if self._total else ""
        return self._shown(self._done) + of if self._done or self._total else ""

    def _time(self) -> str:
        """The time left, by the mean speed so far; the time taken while that is unknown."""
        now, total, updates = time.monotonic(), self._total, self._updates
        if total and len(updates) == 2 and updates[1][1] > updates[0][1]:
            (first, before), (last, done) = updates
            each_s = (last - first) / (done - before)
            return f"{_clock(each_s * (total - done) - (now - last))} left"
        return _clock(now - self._began)

    def _numbers(self) -> str:
        return " ".join(part for part in (self._amount(), self._time()) if part)

    def _wait_in_turn(self) -> None:
        self._wait(max(MOMENT_S, self._pause_s - (time.monotonic() - _Progress.silent_since)))

    def _wait(self, pause_s: float) -> None:
        self._timer = threading.Timer(pause_s, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if _Progress.bar is not self:
                return
            if self._draws:
                self._draw()
                return
            with suppress(OSError, ValueError):  # nobody reads any more
                sys.stderr.write(f"sprachbund: {self._line()}\n")
                sys.stderr.flush()
            _Progress.silent_since = time.monotonic()
            # A log of an hour is not to be full of them.
            self._pause_s = min(600.0, max(5.0, self._pause_s * 1.5))
            self._wait(self._pause_s)

    def _line(self) -> str:
        share = f"{100 * self._done / self._total:.0f} %" if self._total and self._done else ""
        parts = [self._label, self._amount(), share, self._time()]
        return ", ".join(part for part in parts if part) + " …"

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task
        from rich.table import Column
        from rich.text import Text

        class Terminal(Console):
            def show_cursor(self, show: bool = True) -> bool:
                return False  # a command that was killed would leave the terminal without one

        class PartColumn(ProgressColumn):
            """A text that is made anew with each picture."""

            def __init__(self, text: Callable[[], str]) -> None:
                super().__init__(Column(no_wrap=True))
                self.text = text

            def render(self, task: Task) -> Text:
                return Text(self.text())

        def label() -> str:
            """As much of it as there is room for beside the other parts: a bar of two lines cannot be wiped."""
            room = terminal.width - len(self._numbers()) - len(" ") - _LEAST_BAR - len(" ")
            shown = Text(self._label)
            shown.truncate(max(_LEAST_BAR, room), overflow="ellipsis")
            return shown.plain

        terminal = Terminal(stderr=True)
        self._progress = Progress(
            PartColumn(label),
            BarColumn(bar_width=30),
            PartColumn(self._numbers),
            console=terminal,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file is not to come here
        )
        self._progress.add_task("", completed=self._done, total=self._total or None)
        self._progress.start()


def live_bar(label: str) -> Bar:
    """A bar beside lines that say in a log how far the work has come: on terminals alone, and for one process."""
    return Bar(label, enabled=sys.stderr.isatty() and os.environ.get("RANK", "0") == "0")


def _clock(seconds: float) -> str:
    """0:07, 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _draws(stream: Any) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown") and sys.platform != "win32"
    return bool(stream.isatty()) and not dumb
