"""Packed weights of model directories: beside the weights they are of, or else in the user's cache directory."""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sprachbund.runtime.native_options import WeightNumbers
from sprachbund.runtime.packed_file import VERSION, Packed, PackedFileError, read_packed, write_packed
from sprachbund.runtime.packed_source import content_hash
from sprachbund.util.files import write_text

PACKED_FILE = "model.sbpacked"
"""Packed weights that came with a model directory; used as long as they are those of its weights."""
LIMIT_BYTES = 4 * 2**30
"""The cache keeps at most so much: what was used last, and always what is in use."""
_SUFFIX = Path(PACKED_FILE).suffix
_KIND: dict[WeightNumbers, str] = {"int8": "", "int4": "-int4"}
_INDEX = "sources.json"
_NAME = 32  # digits of the hash in a file's name
_DAY_S = 24 * 3600  # a half-written file of that age is nobody's any more
_REMEMBERED = 200  # entries of the index; models in temporary places come and go
_RESOLUTION_NS = 2 * 10**9  # of files' times: FAT's is two seconds, and most are finer
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "sharing_plan.json")


_NOT_KEPT, _AGAIN = "packed weights could not be kept", "each start will pack them again"
_TURNS: dict[Path, threading.Lock] = {}
if sys.platform != "win32":  # it forks nothing
    os.register_at_fork(after_in_child=_TURNS.clear)  # whoever held one is not in the child


def default_cache() -> Path:
    """Where packed weights are kept unless told otherwise."""
    return Path.home() / ".cache" / "sprachbund" / "packed"


def fingerprint(directory: Path, cache: Path) -> str:
    """SHA-256 of a model's weights and configuration; see `content_hash`.

    Reading them whole takes a second for a gigabyte, so the cache remembers it by all that changes when a file is
    replaced or written to: its place on the disk (inode), size and times. The time of modification alone does not
    tell, for rsync, tar and container images set it; nobody can set the time of the last change (ctime).
    """
    files = _weight_files(directory)
    now, before = time.time_ns(), _states(files)
    known = _read_index(cache / _INDEX)
    key = hashlib.sha256(json.dumps(before).encode()).hexdigest()
    if key in known:
        return known[key]
    found = content_hash(files)
    # A file that is written to again within the resolution of its times looks the same as before.
    settled = all(state.changed_ns < now - _RESOLUTION_NS for state in before)
    if settled and _states(files) == before:
        _write_index(cache / _INDEX, {**known, key: found})
    return found


def packed_for(
    directory: Path, pack: Callable[[], Packed], cache: Path | None = None, weights: WeightNumbers = "int8"
) -> tuple[Packed, tuple[str, ...]]:
    """Packed weights of a model directory, mapped from there or the cache, or packed and written into the cache.

    Args:
        directory: of the model.
        pack: gives the weights in the numbers asked for.
        cache: where they are kept; the user's cache directory by default.
        weights: numbers asked for; files of others are left alone.

    Returns:
        The weights, and sentences for the user where something was not as it should be: a file that had to be packed
        again, or a cache that cannot be written.
    """
    cache, notes = cache or default_cache(), list[str]()
    source = fingerprint(directory, cache)
    path = cache / f"{source[:_NAME]}-{VERSION}{_KIND[weights]}{_SUFFIX}"
    with _turn(path):
        for there in filter(Path.exists, (directory / _beside(weights), path)):
            try:
                packed = read_packed(there, source, weights)
            except PackedFileError as error:
                if there.exists():  # else another process tidied it away just now, which is no fault
                    advice = "" if there == path else " into the cache; delete it"
                    notes.append(f"{error}; it was packed again{advice}")
                continue
            with suppress(OSError):
                os.utime(there)  # the time of its last use, for `tidy`
            return packed, tuple(notes)
        packed = replace(pack(), source=source)
        try:
            write_packed(path, packed)
            tidy(cache, path)
            return read_packed(path, source, weights), tuple(notes)
        except PackedFileError as error:
            if path.exists():
                notes.append(f"{_NOT_KEPT} ({error}); {_AGAIN}")
        except OSError as error:
            notes.append(f"{_NOT_KEPT} ({error}); {_AGAIN}")
        return packed, tuple(notes)


def write_beside(directory: Path, pack: Callable[[], Packed]) -> Path:
    """Pack a model and keep that in its own directory; the file's path. Raises OSError where that is not possible."""
    packed = pack()
    path = directory / _beside(packed.weights)
    write_packed(path, replace(packed, source=content_hash(_weight_files(directory))))
    return path


def tidy(cache: Path, in_use: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Delete what a cache needs no more.

    That is: other versions of the model in use, other versions of any that were not used for a month, what was left
    half-written, and, while all together is larger than `limit_bytes`, the file whose last use is longest ago. Whoever
    has mapped a deleted file keeps it until the end.
    """
    with suppress(OSError):
        for draft in cache.glob("*.partial"):
            if time.time() - draft.stat().st_mtime > _DAY_S:
                draft.unlink(missing_ok=True)
        files = {path: path.stat() for path in cache.glob(f"*{_SUFFIX}") if path != in_use}
        total = in_use.stat().st_size + sum(state.st_size for state in files.values())
        for path in sorted(files, key=lambda path: (not _outdated(path, in_use), files[path].st_mtime)):
            if _outdated(path, in_use) or total > limit_bytes:
                path.unlink(missing_ok=True)
                total -= files[path].st_size


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Threads that want one file take turns: the first packs, and the others find what it wrote."""
    with _TURNS.setdefault(path, threading.Lock()):
        yield


def _beside(weights: WeightNumbers) -> str:
    return f"{Path(PACKED_FILE).stem}{_KIND[weights]}{_SUFFIX}"


def _outdated(path: Path, in_use: Path) -> bool:
    if path.name.endswith(tuple(f"-{VERSION}{kind}{_SUFFIX}" for kind in _KIND.values())):
        return False
    return path.name[:_NAME] == in_use.name[:_NAME] or time.time() - path.stat().st_mtime > 30 * _DAY_S


class _State(NamedTuple):
    """What is another when a file is another."""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def _states(files: Iterable[Path]) -> list[_State]:
    found = ((str(path.resolve()), path.stat()) for path in files)
    return [
        _State(path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)  # those of a link's target
        for path, s in found
    ]


def _weight_files(directory: Path) -> list[Path]:
    return sorted(path for pattern in _WEIGHTS for path in directory.glob(pattern))


def _read_index(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_index(path: Path, known: dict[str, str]) -> None:
    """Remember, if the place can be written; nothing is lost but time if not."""
    with suppress(OSError):
        write_text(path, json.dumps(dict(list(known.items())[-_REMEMBERED:])))
