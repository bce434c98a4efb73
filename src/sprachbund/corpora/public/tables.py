"""Lines and tables of corpora with file and line in every error, and the search for files in copies of corpora."""

import csv
import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.text.languages import primary, tag_of

csv.field_size_limit(1 << 24)


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file without their ends; a byte order mark is dropped.

    Raises:
        SprachbundError: not there, or not UTF-8, with the line.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path}:{number}: not UTF-8 ({error.reason}); copy the file again") from error
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror}); check the path") from error


def count_lines(path: Path) -> int:
    """Return the number of lines of a file; the last one counts with or without its end."""
    return sum(1 for _ in read_lines(path))


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    header: bool = True,
    escape: str | None = None,
    delimiter: str = "\t",
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table, each with its file and line; quotation marks are text.

    Args:
        path: path of the table.
        columns: columns that must be there; without a header they are the columns, in order.
        header: whether the first line names the columns.
        escape: character that makes a tab behind it text.
        delimiter: separator of fields.

    Raises:
        SprachbundError: a column that is missing, a line with too few or too many fields.
    """
    lines: Iterable[str] = (line + "\n" for line in read_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, escapechar=escape)
    sound = _sound_rows(path, rows)
    names = [name.strip() for name in next(sound, [])] if header else list(columns)
    if missing := [name for name in columns if name not in names]:
        raise SprachbundError(
            f"{path}:1: no column {', '.join(map(repr, missing))} (there are {', '.join(names) or 'none'}); "
            "copy the table again"
        )
    for row in sound:
        where = f"{path}:{rows.line_num}"
        if len(row) != len(names):
            raise SprachbundError(f"{where}: {len(row)} fields, not {len(names)}; copy the table again")
        yield where, dict(zip(names, row, strict=True))


def read_parallel(*paths: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same line of several files, with its line in the first.

    Raises:
        SprachbundError: files of different lengths, with both counts.
    """
    counts = {path: count_lines(path) for path in paths}
    first = paths[0]
    for path, count in counts.items():
        if count != counts[first]:
            raise SprachbundError(
                f"{path} has {count} lines, {first} {counts[first]}; they belong together, copy both again"
            )
    for number, lines in enumerate(zip(*(read_lines(path) for path in paths), strict=True), start=1):
        yield f"{first}:{number}", lines


def whole_number(text: str, where: str) -> int:
    """A number in a table. Raises SprachbundError with file and line."""
    try:
        return int(text)
    except ValueError:
        raise SprachbundError(f"{where}: {text!r} is not a number; copy the table again") from None


def _sound_rows(path: Path, rows: Any) -> Iterator[list[str]]:
    """Rows that are not empty; what csv cannot read is said with its line."""
    try:
        yield from filter(None, rows)
    except csv.Error as error:
        raise SprachbundError(f"{path}:{rows.line_num}: {error}; copy the table again") from error


# The search for files, and errors that say what is missing and where to get it.

_CROWDED = frozenset({"clips", "wav", "wavs", "audio", "audios", "speech", ".git"})
"""Folders with a file for each utterance, not looked through for tables."""

_SAME = {"cmn": "zh", "zho": "zh", "arb": "ar", "nob": "nb", "npi": "ne", "pes": "fa", "swh": "sw"}
"""Codes of corpora whose language models know by a wider tag."""

MAX_DEPTH = 6


def require(path: Path, what: str, homepage: str) -> Path:
    """The path, if something is there. Raises SprachbundError with what it is and where it comes from.

    Args:
        path: file or folder.
        what: name of the thing, for the error.
        homepage: web address that offers it, for the error.
    """
    if not path.exists():
        raise SprachbundError(f"{path} is missing ({what}); get it from {homepage}")
    return path


def find_files(root: Path, pattern: str) -> list[Path]:
    """Files under a folder whose names match a pattern, sorted; folders full of clips are not entered."""
    return sorted(
        folder / name for folder, names in _walk(root) for name in names if fnmatch.fnmatch(name, pattern)
    )


def find_folders(root: Path, *inside: str) -> list[Path]:
    """Folders at or under a folder that hold all the named files or folders, sorted."""
    return sorted(folder for folder, _ in _walk(root) if all((folder / name).exists() for name in inside))


def first_that_is(candidates: Sequence[Path]) -> Path:
    """The first path that exists, or the first one, for messages to name."""
    return next((path for path in candidates if path.exists()), candidates[0])


def tag(code: str, where: str) -> str:
    """BCP-47 tag of a corpus's language code, without region: "zh" for cmn, zh-CN and cmn_hans_cn."""
    language = tag_of(primary(code.replace("_", "-")), f"{where}:")
    return _SAME.get(language, language)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files; a link to a folder elsewhere is a folder like others."""
    whole = root.resolve()
    for folder, folders, files in os.walk(root, followlinks=True):
        path = Path(folder)
        deep = len(path.relative_to(root).parts) >= MAX_DEPTH
        folders[:] = sorted(f for f in folders if not (deep or f in _CROWDED or _leads_back(path / f, whole)))
        yield path, files


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to what is looked through in any case."""
    return folder.is_symlink() and folder.resolve().is_relative_to(root)
