"""Files that appear whole or not at all, and files whose faults are named by place.

Every file that a later command reads is written here. The content goes to a temporary file in the same folder, is
flushed to the disk, and takes its final name in one step (POSIX rename). A process that is killed at any moment leaves
the old file or the new one, never half of one. A temporary file that a killed process left behind is removed by the
next writer of the same name.
"""

import json
import os
import platform
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import time
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sprachbund.errors import SprachbundError

PARTIAL = ".partial"
"""Ends the name of every temporary file: NAME.MACHINE-PROCESS-NUMBER.partial."""
_FORGOTTEN_S = 24 * 3600.0
_NUMBERS = count()  # so that two threads that write one file do not share a temporary one
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"

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
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    partial = path.with_name(f"{path.name}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}{PARTIAL}")
    try:
        yield partial
        _flush_to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _flush_to_disk(path.parent)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, with the line ends of `text`; see `atomic_path`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically, ending in a newline; `value` is what `json.dumps` takes, or a pydantic model."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, ensure_ascii=False, indent=indent) + "\n")


def remove_stale(path: Path) -> None:
    """Remove temporary files of `path` whose writer no longer runs.

    A writer on this machine is asked for by its process id. One on another machine (a shared file system) counts as
    gone after a day.
    """
    with suppress(OSError):  # the folder may be unreadable; then the writer that follows says so
        for partial in path.parent.glob(f"{_escaped(path.name)}.*{PARTIAL}"):
            writer = re.fullmatch(r"(\w+)-(\d+)-\d+", partial.name[len(path.name) + 1 : -len(PARTIAL)])
            old = time() - partial.stat().st_mtime > _FORGOTTEN_S
            if old or (writer is not None and writer[1] == _HOST and not _runs(int(writer[2]))):
                partial.unlink(missing_ok=True)


def read_text(path: Path, *, advice: str = "copy or make it again") -> str:
    """Read a UTF-8 file.

    Args:
        path: of the file.
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
        raise SprachbundError(f"{source} is not JSON ({_first_line(error)}); {advice}") from None


def read_model(path: Path, kind: type[_Model], *, advice: str = "copy or make it again") -> _Model:
    """Read a JSON file into a pydantic model; arguments and errors as of `read_json`, and one that names the field."""
    return validate(kind, read_json(path, advice=advice), str(path), advice=advice)


def validate(kind: type[_Model], value: Any, source: str, *, advice: str = "copy or make it again") -> _Model:
    """Make a pydantic model of a value. Raises SprachbundError: the source, the field at fault, why and the advice."""
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
        raise SprachbundError(f"{path} is not TOML ({_first_line(error)}); {advice}") from None


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
    return True


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
