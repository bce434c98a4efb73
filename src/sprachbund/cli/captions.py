"""Live text on a terminal: what stands is printed line by line, what may still change stands below it, dimmed."""

import json
import sys
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from sprachbund.cli.console import duration, say

if TYPE_CHECKING:
    from sprachbund.streaming.events import LiveText
    from sprachbund.streaming.live import Moment


class Captions(Protocol):
    """A way to show what a live session says."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        ...

    def add(self, moment: "Moment") -> None:
        """Show an event."""
        ...


class Lines:
    """A line on stdout for every stretch of speech once it has ended; on a terminal, what is under way below.

    Args:
        several: whether each line names its language.
    """

    def __init__(self, *, several: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._several = several
        self._open: dict[tuple[str, int], tuple[str, str]] = {}
        console = Console(highlight=False, soft_wrap=False)
        shows = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if shows else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, moment: "Moment") -> None:
        """Show an event."""
        from sprachbund.streaming.events import LiveText

        event = moment.event
        if not isinstance(event, LiveText):
            say(f"{event.kind}: {event.message}")
            return
        key = event.target, event.segment
        committed = self._open.get(key, ("", ""))[0] + event.committed
        self._open[key] = committed, event.tentative
        if event.final:
            del self._open[key]
            if committed:
                self._print(f"{self._stamp(event)}{committed}")
        self._refresh(moment)

    def _stamp(self, event: "LiveText") -> str:
        language = f"{event.target_language} " if self._several else ""
        return f"[{duration(event.start_s)} → {duration(event.end_s)}] {language}"

    def _print(self, line: str) -> None:
        if self._live is None:
            typer.echo(line)
            sys.stdout.flush()
        else:
            self._live.console.print(line, markup=False)

    def _refresh(self, moment: "Moment") -> None:
        from rich.text import Text

        if self._live is None:
            return
        shown = Text()
        for (target, _), (committed, tentative) in self._open.items():
            shown.append(f"{target} " if self._several else "", style="bold")
            shown.append(committed)
            shown.append(f"{tentative}\n", style="dim italic")
        behind_s = max(0.0, moment.second - moment.event.audio_s)
        shown.append(f"{duration(moment.event.audio_s)} heard, {behind_s:.1f} s behind", style="dim")
        self._live.update(shown, refresh=True)


class JsonLines:
    """Every event as a JSON object on a line of its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def add(self, moment: "Moment") -> None:
        """Print an event, with its kind and its moment."""
        from sprachbund.decoding.result import rounded
        from sprachbund.streaming.events import LiveText

        kind = "text" if isinstance(moment.event, LiveText) else "notice"
        values: dict[str, Any] = {"type": kind, **asdict(moment.event), "second": moment.second}
        typer.echo(json.dumps(rounded(values), ensure_ascii=False))
        sys.stdout.flush()
