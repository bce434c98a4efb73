"""Tables of parquet or arrow with an audio column, as Hugging Face datasets keep sound: its bytes, or a path."""

import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError

_BATCH = 64


def audio_column(path: Path, schema: Any) -> str:
    """The column whose values have bytes and a path, as `datasets` keeps sound."""
    import pyarrow

    for field in schema:
        if pyarrow.types.is_struct(field.type) and "bytes" in {part.name for part in field.type}:
            return str(field.name)
    raise SprachbundError(f"{path} has no column of audio (bytes and path); it has {', '.join(schema.names)}")


def schema_of(path: Path) -> Any:
    """The columns of a table, with their types."""
    return next(batches_of(path, None)).schema


def batches_of(path: Path, columns: list[str] | None) -> Iterator[Any]:
    """Record batches of a table; of none, where only the columns are asked for, an empty one."""
    import pyarrow
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        if path.suffix == ".arrow":
            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
                if columns is None:
                    yield pyarrow.RecordBatch.from_pylist([], schema=stream.schema)
                for batch in stream if columns is not None else ():
                    yield batch.select(columns)
            return
        with ParquetFile(path) as table:
            if columns is None:
                yield pyarrow.RecordBatch.from_pylist([], schema=table.schema_arrow)
                return
            yield from table.iter_batches(_BATCH, columns=columns)
    except (ArrowException, OSError, ValueError) as error:
        raise SprachbundError(f"{path} cannot be read ({error}); get it again") from error


def sound_of_row(path: Path, row: int) -> Any:
    """The sound in a row of a table, as a binary file; or the path of the file that the row names.

    Raises:
        SprachbundError: there is none.
    """
    sound = _sounds_of(path).sound(row) or {}
    if data := sound.get("bytes"):
        file = io.BytesIO(data)
        file.name = sound.get("path") or f"row {row + 1} of {path.name}"
        return file
    if name := sound.get("path"):
        file_path = Path(name) if Path(name).is_absolute() else path.parent / name
        if not file_path.is_file():
            raise SprachbundError(
                f"row {row + 1} of {path} names {file_path}, which is not there; check the path"
            )
        return file_path
    raise SprachbundError(f"row {row + 1} of {path} has no sound; leave it out")


class _Sounds:
    """The audio column of a table, a batch at a time; rows are best asked for in order."""

    def __init__(self, path: Path) -> None:
        self._path, self._column = path, audio_column(path, schema_of(path))
        self._restart()

    def _restart(self) -> None:
        self._begin, self._held = 0, list[dict[str, Any] | None]()
        self._batches = batches_of(self._path, [self._column])

    def sound(self, row: int) -> dict[str, Any] | None:
        """The value of a row."""
        if row < self._begin:
            self._restart()
        while row >= self._begin + len(self._held):
            self._begin += len(self._held)
            batch = next(self._batches, None)
            if batch is None:
                raise SprachbundError(
                    f"{self._path} has {self._begin} rows, and no row {row + 1}; it has changed"
                )
            self._held = batch.column(self._column).to_pylist()
        return self._held[row - self._begin]


@lru_cache(maxsize=1)
def _sounds_of(path: Path) -> _Sounds:
    return _Sounds(path)
