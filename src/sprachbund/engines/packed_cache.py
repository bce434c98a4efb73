"""Packed weights of model directories, kept in the directory itself or in the user's cache directory.

- The file (`write_packed`, `read_packed`) is mapped, so that a model starts without being packed again. Layout: eight
  bytes of magic, version and length of the head (32 bits each, little endian), the SHA-256 of these and the head, the
  head as JSON, and the arrays, each at a multiple of 64 bytes. The head names the model they came from, the numbers of
  its weights, the sizes of its parts, of each array its type, shape and offset, and the size and SHA-256 of all arrays.
  A start checks the head and the size of the file. The arrays are checked after writing and on request (`check_packed`,
  which `sprachbund doctor` and `models check` call): reading them whole at every start took 6 s for the shape of
  large-v3. Numbers that a disk has damaged are therefore not noticed at a start.
- The arrays are the same for all instruction sets, so machines with different processors can share a folder.
- The hash of a model (`content_hash`) covers its tensors, configuration and plan, however their files were written.
- The cache (`packed_for`) finds the file of a model by its hash, packs where there is none, and deletes old ones
  (`tidy`).
"""

import hashlib
import json
import mmap
import os
import shlex
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sprachbund.engines.options import WeightNumbers
from sprachbund.errors import SprachbundError
from sprachbund.models.hub import named_parts
from sprachbund.util.files import atomic_path
from sprachbund.util.known_files import remembered, user_cache
from sprachbund.util.pages import prefer_large_pages, zeros_in_pages

# The file.

MAGIC = b"sbpacked"
VERSION = 8
_FIXED = struct.Struct("<8sII")
_DIGEST_BYTES = hashlib.sha256().digest_size
_HEAD = _FIXED.size + _DIGEST_BYTES
_ALIGNMENT = 64
_TYPES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "float32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class PackedFileError(SprachbundError):
    """A packed file that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Packed weights of a model.

    Attributes:
        source: identity of the model they are of, such as a hash of its weights.
        shapes: sizes of each part ("decoder", "encoder").
        arrays: arrays of all parts, named PART.NAME.
        weights: numbers of the linear layers.
    """

    source: str
    shapes: dict[str, dict[str, Any]]
    arrays: dict[str, Tensor]
    weights: WeightNumbers = "int8"

    def part(self, name: str) -> dict[str, Tensor]:
        """The arrays of a part, by their own names."""
        return {
            key.removeprefix(name + "."): a for key, a in self.arrays.items() if key.startswith(name + ".")
        }


def write_packed(path: Path, packed: Packed) -> None:
    """Write a file that appears whole or not at all. Raises OSError where that is not possible.

    The system then forgets its pages, so that they are read from the disk once, in pages as large as it has: what was
    written piece by piece stays in small ones.
    """
    descriptions, size = _layout(packed)
    body = hashlib.sha256()
    for piece in _pieces(packed):
        body.update(piece)
    head = {
        "source": packed.source,
        "weights": packed.weights,
        "shapes": packed.shapes,
        "arrays": descriptions,
        "num_bytes": size,
        "sha256": body.hexdigest(),
    }
    content = json.dumps(head).encode()
    content += b" " * (-(_HEAD + len(content)) % _ALIGNMENT)
    fixed = _FIXED.pack(MAGIC, VERSION, len(content))
    with atomic_path(path) as draft, draft.open("wb") as file:
        file.write(fixed + hashlib.sha256(fixed + content).digest() + content)
        for piece in _pieces(packed):
            file.write(piece)
    if sys.platform == "linux":
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_large_pages(packed: Packed) -> Packed:
    """A copy in pages of 2 MiB where the system has them, of weights that no file holds."""
    descriptions, size = _layout(packed)
    data = zeros_in_pages(size, dtype=torch.uint8).numpy()
    arrays = {name: _array(data, *description) for name, description in descriptions.items()}
    for name, array in packed.arrays.items():
        arrays[name].copy_(array)
    return replace(packed, arrays=arrays)


def read_packed(
    path: Path, source: str | None = None, weights: WeightNumbers | None = None, *, whole: bool = False
) -> Packed:
    """Check a file and map its arrays, which must not be written to.

    Args:
        path: path of the file.
        source: identity that the file must name; None takes any.
        weights: numbers that it must hold; None takes any.
        whole: check the arrays too, which reads them all; by default the head and the size of the file.

    Raises:
        PackedFileError: missing, of another format, version, model or other numbers, cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            length = _head_length(file.read(_FIXED.size), path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        prefer_large_pages(mapped)
    except (OSError, ValueError) as error:
        raise PackedFileError(f"{path} cannot be read ({error})") from error
    content = mapped[_HEAD : _HEAD + length]
    if hashlib.sha256(mapped[: _FIXED.size] + content).digest() != mapped[_FIXED.size : _HEAD]:
        raise PackedFileError(f"{path} is damaged or cut short (the checksum of its head differs)")
    try:
        head = json.loads(content)
        num_bytes, sha256 = int(head["num_bytes"]), str(head["sha256"])
        if len(mapped) != _HEAD + length + num_bytes:
            raise PackedFileError(
                f"{path} is cut short or damaged (it has {len(mapped)} bytes, its head says "
                f"{_HEAD + length + num_bytes})"
            )
        data = np.frombuffer(mapped, np.uint8, offset=_HEAD + length)
        arrays = {name: _array(data, *description) for name, description in head["arrays"].items()}
        packed = Packed(source=head["source"], shapes=head["shapes"], arrays=arrays, weights=head["weights"])
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PackedFileError(f"{path} has another head than packed weights have ({error})") from error
    if whole and hashlib.sha256(data.data).hexdigest() != sha256:
        raise PackedFileError(f"{path} is damaged (the checksum of its arrays differs)")
    if source is not None and packed.source != source:
        raise PackedFileError(f"{path} is of another model ({packed.source})")
    if weights is not None and packed.weights != weights:
        raise PackedFileError(f"{path} holds weights in {packed.weights}, asked for are {weights}")
    return packed


def _head_length(fixed: bytes, path: Path) -> int:
    if len(fixed) < _FIXED.size or not fixed.startswith(MAGIC):
        raise PackedFileError(f"{path} is not a file of packed weights")
    _, version, length = _FIXED.unpack(fixed)
    if version != VERSION:
        raise PackedFileError(f"{path} is of version {version}, this is version {VERSION}")
    return int(length)


def _array(data: np.ndarray, type_name: str, shape: list[int], offset: int) -> Tensor:
    dtype = _TYPES[type_name]
    size = prod(shape) * dtype.itemsize
    if min([offset, *shape]) < 0 or offset % _ALIGNMENT or offset + size > len(data):
        raise ValueError("an array lies outside or between")
    return torch.from_numpy(data[offset : offset + size]).view(dtype).view(shape)


def _layout(packed: Packed) -> tuple[dict[str, tuple[str, list[int], int]], int]:
    """Of each array its type, shape and offset, and the bytes of all."""
    descriptions, size = dict[str, tuple[str, list[int], int]](), 0
    for name, array in packed.arrays.items():
        descriptions[name] = (_NAMES[array.dtype], list(array.shape), size)
        size = _aligned(size + array.numel() * array.element_size())
    return descriptions, size


def _pieces(packed: Packed) -> Any:
    """The bytes of all arrays with what lies between them."""
    for array in packed.arrays.values():
        raw = array.contiguous().numpy()
        yield raw.reshape(-1).view(np.uint8).data
        yield b"\0" * (_aligned(raw.nbytes) - raw.nbytes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# The hash of a model.

_LENGTH = struct.Struct("<Q")
_CHUNK = 2**22


def content_hash(files: Iterable[Path]) -> str:
    """SHA-256 of files of weights and configuration under their names.

    Of safetensors it is the metadata and the tensors by name, of JSON the values, so that neither order nor layout
    matters; of anything else, and of what is damaged, the bytes.
    """
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + _of_file(path))
    return total.hexdigest()


def _of_file(path: Path) -> bytes:
    try:
        if path.suffix == ".safetensors":
            return _of_tensors(path)
        if path.suffix == ".json":
            return hashlib.sha256(_canonical(json.loads(path.read_bytes()))).digest()
    except (ValueError, KeyError, TypeError, struct.error):
        pass  # whoever loads the model says what is wrong with it
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _of_tensors(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > path.stat().st_size:
            raise ValueError("its head is longer than the file")
        head = json.loads(file.read(length))
        digest.update(_canonical(head.pop("__metadata__", {})))
        for name, tensor in sorted(head.items()):
            begin, end = tensor.pop("data_offsets")
            digest.update(_canonical([name, tensor, end - begin]))
            _add(digest, file, _LENGTH.size + length + begin, end - begin)
    return digest.digest()


def _add(digest: "hashlib._Hash", file: BinaryIO, offset: int, size: int) -> None:
    file.seek(offset)
    while size > 0:
        piece = file.read(min(size, _CHUNK))
        if not piece:
            raise ValueError("it is cut short")
        digest.update(piece)
        size -= len(piece)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


# The cache.

PACKED_FILE = "model.sbpacked"
"""Packed weights that came with a model directory; used as long as they are those of its weights."""
LIMIT_BYTES = 4 * 2**30
"""The cache keeps at most so much: what was used last, and always what is in use."""
_SUFFIX = Path(PACKED_FILE).suffix
_KIND: dict[WeightNumbers, str] = {"int8": "", "int4": "-int4"}
_INDEX = "sources.json"
_NAME = 32  # digits of the hash in a file's name
_DAY_S = 24 * 3600  # a half-written file of that age is nobody's any more
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "sharing_plan.json")


_NOT_KEPT = "packed weights could not be kept"
_AGAIN = "each start will pack them again, unless XDG_CACHE_HOME names a folder for them"
_TURNS: dict[Path, threading.Lock] = {}
if sys.platform != "win32":  # it forks nothing
    os.register_at_fork(after_in_child=_TURNS.clear)  # whoever held one is not in the child


def default_cache() -> Path:
    """The folder where packed weights are kept by default."""
    return user_cache() / "packed"


def fingerprint(directory: Path, cache: Path) -> str:
    """SHA-256 of a model's weights and configuration; see `content_hash`.

    Reading them whole takes a second for a gigabyte, so the cache remembers it; see `util.known_files`.
    """
    files = _weight_files(directory)
    return remembered(files, cache / _INDEX, lambda: content_hash(files))


def packed_for(
    directory: Path, pack: Callable[[], Packed], cache: Path | None = None, weights: WeightNumbers = "int8"
) -> tuple[Packed, tuple[str, ...]]:
    """Packed weights of a model directory, mapped from there or the cache, or packed and written into the cache.

    Args:
        directory: directory of the model.
        pack: gives the weights in the numbers asked for.
        cache: folder of packed weights; the user's cache directory by default.
        weights: numbers asked for; files of others are left alone.

    Returns:
        The weights, and sentences for the user where something was not as it should be: a file that had to be packed
        again, or a cache that cannot be written.
    """
    cache, notes = cache or default_cache(), list[str]()
    source = fingerprint(directory, cache)
    shipped, path = _packed_paths(directory, cache, source, weights)
    with _turn(path):
        for there in filter(Path.exists, (shipped, path)):
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
            return read_packed(path, source, weights, whole=True), tuple(notes)
        except PackedFileError as error:
            if path.exists():
                notes.append(f"{_NOT_KEPT} ({error}); {_AGAIN}")
        except OSError as error:
            notes.append(f"{_NOT_KEPT} ({error}); {_AGAIN}")
        return in_large_pages(packed), tuple(notes)


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """A file of packed weights that was read whole.

    Attributes:
        path: path of the file.
        weights: numbers of its linear layers.
        error: fault of the file; None if it is as it was written.
    """

    path: Path
    weights: WeightNumbers
    error: PackedFileError | None

    def rebuilt_by(self, model: str) -> str:
        """The command that packs the weights anew, into the cache where the file came with the model.

        A start packs again what is missing, and what has another head, but not a file whose arrays are damaged.

        Args:
            model: as `--model` takes it.
        """
        bench = [
            "sprachbund",
            "bench",
            "--model",
            model,
            "--engine",
            f"native{_KIND[self.weights]}",
            "--repeats",
            "1",
        ]
        return f"{shlex.join(['rm', str(self.path)])} && {shlex.join(bench)}"


def check_packed(directory: Path, cache: Path | None = None) -> list[CheckedFile]:
    """Read the packed weights of a model directory whole, those beside the model and those in the cache.

    Args:
        directory: directory of the model.
        cache: folder of packed weights; the user's cache directory by default.
    """
    cache, checked = cache or default_cache(), list[CheckedFile]()
    source = fingerprint(directory, cache)
    for weights in _KIND:
        for path in filter(Path.exists, _packed_paths(directory, cache, source, weights)):
            try:
                read_packed(path, source, weights, whole=True)
            except PackedFileError as error:
                checked.append(CheckedFile(path=path, weights=weights, error=error))
            else:
                checked.append(CheckedFile(path=path, weights=weights, error=None))
    return checked


def _packed_paths(directory: Path, cache: Path, source: str, weights: WeightNumbers) -> tuple[Path, Path]:
    """Paths at which packed weights of a model may be: in its directory, and in the cache."""
    kept = cache / f"{source[:_NAME]}-{VERSION}{_KIND[weights]}{_SUFFIX}"
    return directory / _packed_file_name(weights), kept


def write_with_model(directory: Path, pack: Callable[[], Packed]) -> Path:
    """Pack a model and keep that in its own directory; the file's path. Raises OSError where that is not possible."""
    packed = pack()
    path = directory / _packed_file_name(packed.weights)
    write_packed(path, replace(packed, source=content_hash(_weight_files(directory))))
    return path


def tidy(cache: Path, in_use: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Delete files that a cache no longer needs.

    These are: other versions of the model in use, other versions of any that were not used for a month, half-written
    files, and, while the cache is larger than the limit, the file whose last use is longest ago. A process that has
    mapped a deleted file keeps it until its end.

    Args:
        cache: the folder.
        in_use: a file that is kept.
        limit_bytes: bytes of all files together.
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


def _packed_file_name(weights: WeightNumbers) -> str:
    return f"{Path(PACKED_FILE).stem}{_KIND[weights]}{_SUFFIX}"


def _outdated(path: Path, in_use: Path) -> bool:
    if path.name.endswith(tuple(f"-{VERSION}{kind}{_SUFFIX}" for kind in _KIND.values())):
        return False
    return path.name[:_NAME] == in_use.name[:_NAME] or time.time() - path.stat().st_mtime > 30 * _DAY_S


def _weight_files(directory: Path) -> list[Path]:
    """Weights and configurations of a model and of its parts, in folders below it or elsewhere."""
    return [
        path
        for folder in (directory, *named_parts(directory))
        for path in sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern))
    ]
