"""Where segments go while a file is being worked on: lines on the screen, files, or one JSON object."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from sprachbund.cli.console import duration, print_json
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    from sprachbund.decoding.result import Segment, Translation


class Output(Protocol):
    """One way out; used in a `with` statement, and finished only when all went well."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; with an error, keep what is finished."""
        ...

    def segment(self, target: str, segment: "Segment") -> None:
        """Take one segment."""
        ...

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Take the whole."""
        ...


class PrintOutput:
    """A line on stdout for each segment that the guard kept, at once.

    Args:
        title: printed first; None for a single file.
        several: whether each line names its language.
    """

    def __init__(self, *, title: str | None, several: bool) -> None:
        self._title, self._several = title, several

    def __enter__(self) -> Self:
        if self._title is not None:
            self._print(f"{self._title}:")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def segment(self, target: str, segment: "Segment") -> None:
        """Print it."""
        if segment.dropped is None:
            language = f" {segment.target_language}" if self._several else ""
            times = f"[{duration(segment.start_s)} → {duration(segment.end_s)}]"
            self._print(f"{times}{language} {' '.join(segment.text.split())}")

    def finish(self, translations: "dict[str, Translation]") -> None:
        """All is printed already."""

    def _print(self, line: str) -> None:
        typer.echo(line)
        sys.stdout.flush()


class WrittenFiles:
    """One file for each target and format, under its final name only when whole.

    Args:
        paths: by (target, format); the folder is made.
        tell: called with each file that has been written.
    """

    def __init__(self, paths: dict[tuple[str, str], Path], tell: Callable[[Path], None]) -> None:
        self._paths, self._tell = paths, tell
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from sprachbund.decoding.formats import SegmentWriter

        for folder in {path.parent for path in self._paths.values()}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SprachbundError(
                    f"{folder} cannot be made ({error.strerror}); name another --out"
                ) from error
        with ExitStack() as stack:
            self._writers = {
                key: stack.enter_context(SegmentWriter(path, key[1])) for key, path in self._paths.items()
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def segment(self, target: str, segment: "Segment") -> None:
        """Write it to the files of its target."""
        for (wanted, _), writer in self._writers.items():
            if wanted == target:
                writer.write(segment)

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Give the files their names."""
        for (target, _), writer in self._writers.items():
            self._tell(writer.finish(translations[target]))


class JsonOutput:
    """One JSON object on stdout when the file is done; after Ctrl-C, of what was finished.

    It has `file` and `translations` (by target: the fields of a `Translation`), and with one target these
    fields at the top too.

    Args:
        file: as it was named.
        so_far: the translations of the segments that are finished.
    """

    def __init__(self, file: str, so_far: "Callable[[], dict[str, Translation]]") -> None:
        self._file, self._so_far = file, so_far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            print_json({**self._object(self._so_far()), "error": "interrupted"})

    def segment(self, target: str, segment: "Segment") -> None:
        """Wait for the whole."""

    def finish(self, translations: "dict[str, Translation]") -> None:
        """Print the object."""
        print_json(self._object(translations))

    def _object(self, translations: "dict[str, Translation]") -> dict[str, Any]:
        by_target = {target: found.to_dict() for target, found in translations.items()}
        top = next(iter(by_target.values())) if len(by_target) == 1 else {}
        return {"file": self._file, **top, "translations": by_target}

    @staticmethod
    def failed(file: str, line: str) -> None:
        """Print the object of a file that gave nothing."""
        print_json({"file": file, "error": line})
