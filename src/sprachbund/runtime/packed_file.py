"""Packed weights in a file that is checked whole and then mapped, so that a model starts without being packed again.

Layout: eight bytes of magic, version and length of the head (32 bits each, little endian), the SHA-256 of all else in
the file, the head as JSON, and the arrays, each at a multiple of 64 bytes. The head names the model they came from, the
numbers that its weights are in, the sizes of its parts, and of each array its type, shape and place.
"""

import hashlib
import json
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.runtime.native_options import WeightNumbers
from sprachbund.util.files import atomic_path

MAGIC = b"sbpacked"
VERSION = 5
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
        source: what says which model they are of, such as a hash of its weights.
        shapes: sizes of each part ("decoder", "encoder").
        arrays: of all parts, named PART.NAME.
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
    """Write a file that appears whole or not at all. Raises OSError where that is not possible."""
    places, size = dict[str, Any](), 0
    for name, array in packed.arrays.items():
        places[name] = [_NAMES[array.dtype], list(array.shape), size]
        size = _aligned(size + array.numel() * array.element_size())
    head = {"source": packed.source, "weights": packed.weights, "shapes": packed.shapes, "arrays": places}
    content = json.dumps(head).encode()
    content += b" " * (-(_HEAD + len(content)) % _ALIGNMENT)
    fixed = _FIXED.pack(MAGIC, VERSION, len(content))
    digest = hashlib.sha256(fixed + content)
    for piece in _pieces(packed):
        digest.update(piece)
    with atomic_path(path) as draft, draft.open("wb") as file:
        file.write(fixed + digest.digest() + content)
        for piece in _pieces(packed):
            file.write(piece)


def read_packed(path: Path, source: str | None = None, weights: WeightNumbers | None = None) -> Packed:
    """Check a file and map its arrays, which must not be written to.

    Args:
        path: of the file.
        source: what the file must say it came from; None takes any.
        weights: numbers that it must hold; None takes any.

    Raises:
        PackedFileError: missing, foreign, of another version, another model or other numbers, cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            length = _head_length(file.read(_FIXED.size), path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise PackedFileError(f"{path} cannot be read ({error})") from error
    digest = hashlib.sha256(mapped[: _FIXED.size])
    digest.update(memoryview(mapped)[_HEAD:])
    if digest.digest() != mapped[_FIXED.size : _HEAD]:
        raise PackedFileError(f"{path} is damaged or cut short (its checksum differs)")
    try:
        head = json.loads(mapped[_HEAD : _HEAD + length])
        data = np.frombuffer(mapped, np.uint8, offset=_HEAD + length)
        arrays = {name: _array(data, *place) for name, place in head["arrays"].items()}
        packed = Packed(source=head["source"], shapes=head["shapes"], arrays=arrays, weights=head["weights"])
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PackedFileError(f"{path} has another head than packed weights have ({error})") from error
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


def _pieces(packed: Packed) -> Any:
    """The bytes of all arrays with what lies between them."""
    for array in packed.arrays.values():
        raw = array.contiguous().numpy()
        yield raw.reshape(-1).view(np.uint8).data
        yield b"\0" * (_aligned(raw.nbytes) - raw.nbytes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
