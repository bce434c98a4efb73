"""The table of `--table`: every recording with the language spoken and its text in every target, and the speed.

Drawn on a terminal; elsewhere the same as plain lines, which programs and logs can read.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sprachbund.decoding.result import Segment, Translation

NO_TEXT = "–"
"""Stands where there is no text: no speech, or the guard dropped it all."""

_NAME_SHARE = 4  # of the terminal's width, a fourth


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A recording that is finished; a text has a line for each segment."""

    name: str
    spoken: str
    texts: dict[str, list[str]]
    duration_s: float


class ResultTable:
    """Collects recordings and prints them when all are done; its clock starts when it is made.

    Args:
        files: all that are to come.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._names = short_names(files)
        self._done: list[_Done] = []
        self._written: list[Path] = []
        self._began, self._work_s = time.monotonic(), 0.0

    def add(self, file: str, translations: "dict[str, Translation]") -> None:
        """Take a finished recording; one entry per target."""
        self._work_s = time.monotonic() - self._began
        spoken = next((t.source_language for t in translations.values() if t.source_language), NO_TEXT)
        texts = {_tag(t, spoken): _lines(t) for t in translations.values()}
        duration_s = next(iter(translations.values())).duration_s
        self._done.append(_Done(name=self._names[file], spoken=spoken, texts=texts, duration_s=duration_s))

    def add_file(self, path: Path) -> None:
        """Take the name of a file that has been written."""
        self._written.append(path)

    def print(self) -> None:
        """Print what has come; nothing if nothing has."""
        if not self._done:
            return
        if sys.stdout.isatty():
            from rich.console import Console

            self.draw(Console(highlight=False))
        else:
            typer.echo(self.plain())
        for line in self.closing_lines():
            typer.echo(line)
        sys.stdout.flush()

    def draw(self, console: "Console") -> None:
        """Draw the table alone."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        drawn.add_column("recording", overflow="fold", max_width=console.width // _NAME_SHARE)
        drawn.add_column("spoken", no_wrap=True)
        drawn.add_column("in", no_wrap=True)
        drawn.add_column("text", overflow="fold", ratio=1)
        for recording in self._done:
            first = (recording.name, recording.spoken)
            for target, lines in recording.texts.items():
                style = "bold" if target == recording.spoken else ""
                drawn.add_row(*map(Text, (*first, target)), Text("\n".join(lines), style=style))
                first = ("", "")
            drawn.add_section()
        console.print(drawn)

    def plain(self) -> str:
        """The table as lines: one with the recording and its language, then the segments of each target."""
        printed = []
        for recording in self._done:
            printed.append(f"{recording.name} ({recording.spoken})")
            width = max(map(len, recording.texts))
            for target, lines in recording.texts.items():
                heads = [target, *[""] * (len(lines) - 1)]
                printed += [f"  {h.ljust(width)}  {line}" for h, line in zip(heads, lines, strict=True)]
        return "\n".join(printed)

    def closing_lines(self) -> list[str]:
        """How much sound took how long, and how many files were written."""
        sound_s = sum(recording.duration_s for recording in self._done)
        count = f"{len(self._done)} recording{'s' if len(self._done) > 1 else ''}"
        factor = f"{self._work_s / sound_s:.2f}" if sound_s else "unknown"
        speed = (
            f"{count}: {sound_s:.1f} s of sound in {self._work_s:.1f} s of work, real-time factor {factor}"
        )
        if not self._written:
            return [speed]
        kinds = ", ".join(sorted({path.suffix[1:] for path in self._written}))
        return [speed, f"{len(self._written)} files written ({kinds}) in {self._written[0].parent}/"]


class TableOutput:
    """Hands one recording to the table, also when Ctrl-C breaks it off.

    Args:
        table: of all recordings.
        file: as it was named.
        so_far: the translations of the segments that are finished.
    """

    def __init__(self, table: ResultTable, file: str, so_far: "Callable[[], dict[str, Translation]]") -> None:
        self._table, self._file, self._so_far = table, file, so_far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._table.add(self._file, self._so_far())

    def segment(self, target: str, segment: "Segment") -> None:
        """Wait for the whole."""

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Hand it on."""
        self._table.add(self._file, translations)


def short_names(files: Sequence[str]) -> dict[str, str]:
    """File names without their folders, where that leaves them different."""
    names = [Path(file).name for file in dict.fromkeys(files)]
    return {file: Path(file).name if names.count(Path(file).name) == 1 else file for file in files}


def _lines(translation: "Translation") -> list[str]:
    return [" ".join(segment.text.split()) for segment in translation.segments] or [NO_TEXT]


def _tag(translation: "Translation", spoken: str) -> str:
    from sprachbund.decoding.pairs import TRANSCRIBE

    return spoken if translation.target_language == TRANSCRIBE else translation.target_language
