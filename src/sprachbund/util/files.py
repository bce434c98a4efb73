"""Files that appear whole or not at all, and files whose faults are named by path and line.

Every file that a later command reads is written here. The content goes to a temporary file in the same folder, is
flushed to the disk, and takes its final name in one step (POSIX rename). A process that is killed at any moment leaves
the old file or the new one, never half of one. A temporary file that a killed process left behind is removed by the
next writer of the same name. The same goes for folders.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import time
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sprachbund.errors import SprachbundError, first_line

PARTIAL = ".partial"
"""Ends the name of every temporary file: NAME.MACHINE-PROCESS-NUMBER.partial."""
_FORGOTTEN_S = 24 * 3600.0
_NUMBERS = count()  # so that two threads that write one file do not share a temporary one
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"
_WRITER = re.compile(r"(\w+)-(\d+)-\d+")
_IN_USE = set[Path]()  # temporary names of this process
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2

_Model = TypeVar("_Model", bound=BaseModel)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what was written there takes the name `path` when the block ends without an error.

    The folder is made if it is missing. After an error, the temporary file is removed and `path` is as it was.

    Args:
        path: the final name, of a file.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with _temporary(path, path) as partial:
        yield partial
        take_name(partial, path)


def take_name(partial: Path, path: Path) -> None:
    """Give a finished file its final name in one step; its content and its name are on the disk when this returns.

    `atomic_path` does it. Writers that keep an unfinished file, so that somebody can read it or go on with it, have a
    temporary name of their own and call this at the end.

    Args:
        partial: the temporary name, in the folder of `path`; nobody writes to it any more.
        path: the final name.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    _flush_to_disk(partial)
    os.replace(partial, path)
    _flush_to_disk(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a new folder; it takes the name `path` when the block ends without an error, in place of what was there.

    On Linux the old and the new folder change names in one step. Elsewhere two steps are needed, and a process that
    is killed between them leaves no folder of that name.

    Args:
        path: the final name, of a folder.

    Raises:
        OSError: the parent folder cannot be written, or the disk is full.
    """
    with _temporary(path.with_name(f".{path.name}"), path) as draft:  # hidden from those who look for folders
        draft.mkdir()
        yield draft
        _flush_all(draft)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        if path.exists():
            _exchange(draft, path)
        else:
            draft.rename(path)
    _flush_to_disk(path.parent)


@contextmanager
def atomic_files(directory: Path, *, last: str) -> Iterator[Path]:
    """Yield a new folder; its files are moved into `directory`, each whole, when the block ends without an error.

    For libraries that write several files into a folder that may hold others.

    Args:
        directory: is made if it is missing; files of the same names are replaced.
        last: pattern of the files' names that are moved after all others, by which readers know a whole folder.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with _temporary(directory / ".new", directory) as draft:
        draft.mkdir()
        yield draft
        _flush_all(draft)
        written = sorted(path for path in draft.rglob("*") if path.is_file())
        for path in sorted(written, key=lambda path: path.match(last)):
            final = directory / path.relative_to(draft)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
    _flush_to_disk(directory)


@contextmanager
def _temporary(path: Path, final: Path) -> Iterator[Path]:
    """Yield an unused name beside `path`; what has that name when the block ends is removed. Errors name `final`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    partial = _temporary_name(path)
    _IN_USE.add(partial)
    try:
        yield partial
    except OSError as error:
        _name_the_final_path(error, partial, final)
        raise
    finally:
        with suppress(OSError):
            _remove(partial)
        _IN_USE.discard(partial)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with the line ends of `text`; see `atomic_path`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically, ending in a newline; `value` is what `json.dumps` takes, or a pydantic model.

    Args:
        path: the file.
        value: as `json.dumps` takes it, or a pydantic model.
        indent: spaces; None writes one line.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, ensure_ascii=False, indent=indent) + "\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content atomically; see `atomic_path`."""
    with atomic_path(path) as partial:
        shutil.copyfile(source, partial)


def named_twice(paths: Sequence[Path]) -> list[Path]:
    """The paths that lead where another one leads, however they are written.

    Args:
        paths: files or directories.
    """
    resolved = [path.resolve() for path in paths]
    return [path for path, one in zip(paths, resolved, strict=True) if resolved.count(one) > 1]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises OSError: the file is missing or cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files, in the order of names, and of contents where these are equal.

    Raises OSError: one cannot be read.
    """
    lines = sorted(f"{path.name}\0{file_sha256(path)}\n" for path in set(paths))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def remove_stale(path: Path) -> None:
    """Remove temporary files, or folders, of `path` whose writer no longer runs.

    A writer on this machine is asked for by its process id. One on another machine (a shared file system) counts as
    gone after a day.
    """
    with suppress(OSError):  # the folder may be unreadable; then the writer that follows says so
        for partial in path.parent.glob(f"{_escaped(path.name)}.*{PARTIAL}"):
            writer = _WRITER.fullmatch(partial.name[len(path.name) + 1 : -len(PARTIAL)])
            if writer is None:  # the finished part of somebody's interrupted translation
                continue
            old = time() - partial.stat().st_mtime > _FORGOTTEN_S
            gone = int(writer[2]) == os.getpid() or not _runs(int(writer[2]))
            # in a container that is started again, the new process has the id of the one that was killed
            if old or (writer[1] == _HOST and gone and partial not in _IN_USE):
                _remove(partial)


def is_file(path: Path) -> bool:
    """Whether there is a file of that path; false of one that can be none, such as a sentence, where `Path` raises."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_empty(directory: Path, but: Collection[str] = ()) -> bool:
    """Whether a folder is empty, but for temporary files that the next writers remove, and the names `but`."""
    names = (path.name for path in directory.iterdir() if path.name not in but)
    return all(
        name.endswith(PARTIAL) and _WRITER.fullmatch(name[: -len(PARTIAL)].rpartition(".")[2])
        for name in names
    )


def read_text(path: Path, *, advice: str = "copy or make it again") -> str:
    """Read a UTF-8 file.

    Args:
        path: path of the file.
        advice: the next step, which ends the message of an error.

    Raises:
        SprachbundError: missing, unreadable, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise SprachbundError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise SprachbundError(f"{path} cannot be read ({error.strerror or error}); {advice}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise SprachbundError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; {advice}") from None


def read_json(path: Path, *, advice: str = "copy or make it again") -> Any:
    """Read a JSON file; arguments and errors as of `read_text`, and one for what is not JSON."""
    return parse_json(read_text(path, advice=advice), str(path), advice=advice)


def read_object(path: Path, *, advice: str = "copy or make it again") -> dict[str, Any]:
    """Read a JSON file that has to hold an object; arguments and errors as of `read_json`."""
    value = read_json(path, advice=advice)
    if not isinstance(value, dict):
        raise SprachbundError(f"{path} holds {_kind(value)}, not a JSON object; {advice}")
    return value


def parse_json(text: str | bytes, source: str, *, advice: str = "copy or make it again") -> Any:
    """Parse JSON; `source` says in errors where it stands, such as "FILE, line 3".

    Args:
        text: the document.
        source: name of the source, such as "FILE, line 3", for errors.
        advice: end of error messages.

    Raises:
        SprachbundError: not JSON, with line and column; nested deeper than Python's parser goes.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise SprachbundError(f"{source} is not JSON ({where}: {error.msg}); {advice}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        # ValueError: an integer of more digits than Python converts
        raise SprachbundError(f"{source} is not JSON ({first_line(error)[:200]}); {advice}") from None


def one_of(paths: Sequence[Path]) -> str:
    """Paths to choose from, for messages: "one of own/dev, own/train"; of many, the first."""
    if len(paths) == 1:
        return str(paths[0])
    return f"one of {', '.join(map(str, paths[:6]))}{', ...' if len(paths) > 6 else ''}"


def read_model(path: Path, kind: type[_Model], *, advice: str = "copy or make it again") -> _Model:
    """Read a JSON file into a pydantic model; arguments and errors as of `read_json`, and one that names the field."""
    return validate(kind, read_json(path, advice=advice), str(path), advice=advice)


def validate(kind: type[_Model], value: Any, source: str, *, advice: str = "copy or make it again") -> _Model:
    """Make a pydantic model of a value. Raises SprachbundError: the source, the field at fault, why and the advice.

    Args:
        kind: class of the model.
        value: parsed JSON or TOML.
        source: name of the source, for errors.
        advice: end of error messages.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        where = f"{source}: {field}" if field else source
        raise SprachbundError(f"{where}: {first['msg']} (it is {_shown(first['input'])}); {advice}") from None


def read_toml(path: Path, *, advice: str = "mend the file") -> dict[str, Any]:
    """Read a TOML file; arguments and errors as of `read_text`, and one for what is not TOML."""
    try:
        return tomllib.loads(read_text(path, advice=advice))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise SprachbundError(f"{path} is not TOML ({first_line(error)[:200]}); {advice}") from None


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}{PARTIAL}")


def _name_the_final_path(error: OSError, partial: Path, final: Path) -> None:
    """Let an error name what was to be written: a full disk names nothing, other errors the temporary name."""
    if error.filename is None and error.errno in _FULL:
        error.filename = str(final)
    elif error.filename is not None:
        error.filename = str(error.filename).replace(str(partial), str(final))


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    try:
        # Windows flushes only what was opened for writing
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse it for folders
            raise
    finally:
        os.close(descriptor)


def _flush_all(directory: Path) -> None:
    for path in directory.rglob("*"):
        _flush_to_disk(path)
    _flush_to_disk(directory)


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change names."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # an old C library
            exchange = ctypes.CDLL(None).renameat2
            if exchange(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
                return
    aside = _temporary_name(old.with_name(f".{old.name}"))  # some file systems cannot exchange either
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this machine runs."""
    if os.name == "nt":  # there, signal 0 is not a question but Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    try:  # one that was killed, and whose parent has not asked how it ended, does not run either
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, UnicodeDecodeError):
        return True


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
