"""Packed weights of model directories, kept in the user's cache directory under the hash of what they came from."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sprachbund.runtime.packed_file import VERSION, Packed, PackedFileError, read_packed, write_packed

_INDEX = "sources.json"
_REMEMBERED = 200  # entries of the index; models in temporary places come and go
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "sharing_plan.json")


def default_cache() -> Path:
    """Where packed weights are kept unless told otherwise."""
    return Path.home() / ".cache" / "sprachbund" / "packed"


def fingerprint(directory: Path, cache: Path) -> str:
    """SHA-256 of a model's weights and configuration.

    Reading them whole takes a second for a gigabyte, so the cache remembers it by the files' sizes and times.
    """
    files = sorted(path for pattern in _WEIGHTS for path in directory.glob(pattern))
    state = [[str(p.resolve()), s.st_size, s.st_mtime_ns] for p in files for s in [p.stat()]]
    known = _read_index(cache / _INDEX)
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    if key not in known:
        known[key] = _hash(files)
        _write_index(cache / _INDEX, known)
    return known[key]


def packed_for(
    directory: Path, pack: Callable[[], Packed], cache: Path | None = None
) -> tuple[Packed, tuple[str, ...]]:
    """Packed weights of a model directory, mapped from the cache, or packed and written there.

    Returns:
        The weights, and sentences for the user where something was not as it should be: a file that had to be packed
        again, or a cache that cannot be written.
    """
    cache, notes = cache or default_cache(), list[str]()
    source = fingerprint(directory, cache)
    path = cache / f"{source[:32]}-{VERSION}.sbpacked"
    if path.exists():
        try:
            return read_packed(path, source), ()
        except PackedFileError as error:
            notes.append(f"{error}. It was packed again")
    packed = replace(pack(), source=source)
    try:
        write_packed(path, packed)
        return read_packed(path, source), tuple(notes)
    except (OSError, PackedFileError) as error:
        notes.append(f"packed weights could not be kept ({error}); each start will pack them again")
        return packed, tuple(notes)


def _hash(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _read_index(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_index(path: Path, known: dict[str, str]) -> None:
    """Remember, if the place can be written; nothing is lost but time if not."""
    draft = path.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        latest = dict(list(known.items())[-_REMEMBERED:])
        draft.write_text(json.dumps(latest), encoding="utf-8")
        os.replace(draft, path)
