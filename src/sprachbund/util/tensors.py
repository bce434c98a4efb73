"""Files of tensors (safetensors) and arrays (npy, npz): the same bytes for the same content, written atomically.

The safetensors library writes its metadata in an order that changes from run to run, and leaves `.tmp*` files behind
when it is killed. The format is small (https://github.com/huggingface/safetensors#format), so it is written here; the
library reads it.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sprachbund.errors import SprachbundError, first_line
from sprachbund.util.files import atomic_path

CHECKSUM = "sha256"
"""Key of the metadata under which the SHA-256 of all tensors' bytes stands, in the order of the file."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_CHUNK = 1 << 22
_OLD_S = 24 * 3600.0


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically, with a checksum in its metadata.

    Args:
        path: path of the file.
        tensors: by name, of any device and layout; those that share memory are written apart.
        metadata: texts for the file's head.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    # wide types first, so that each tensor starts at a multiple of its item's size, then by name
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    digest = hashlib.sha256()
    for content in _contents(ordered):
        digest.update(content)
    head: dict[str, Any] = {
        "__metadata__": dict(sorted({**(metadata or {}), CHECKSUM: digest.hexdigest()}.items()))
    }
    offset = 0
    for name, tensor in ordered.items():
        size = tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    _remove_leftovers(path.parent)
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for content in _contents(ordered):
            file.write(content)


def load_tensors(path: Path, *, advice: str = "copy it again") -> dict[str, Tensor]:
    """Read a safetensors file, and check it against its checksum if it has one.

    Args:
        path: path of the file.
        advice: the next step, which ends the message of an error.

    Raises:
        SprachbundError: missing, not a whole safetensors file, or with another checksum than it says.
    """
    if not path.exists():
        raise SprachbundError(f"{path} does not exist; {advice}")
    try:
        with safe_open(path, "pt") as file:
            wanted = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise SprachbundError(f"{path} is not a whole safetensors file ({error}); {advice}") from error
    _check(path, wanted, advice)
    return tensors


def check_tensors(path: Path, *, advice: str = "copy it again") -> None:
    """Check that a file for another reader is the one that was written. Arguments and errors as `load_tensors`."""
    try:
        with safe_open(path, "pt") as file:
            wanted = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError) as error:
        raise SprachbundError(f"{path} is not a whole safetensors file ({error}); {advice}") from error
    _check(path, wanted, advice)


def _check(path: Path, wanted: str | None, advice: str) -> None:
    if wanted is not None and (seen := data_checksum(path)) != wanted:
        raise SprachbundError(f"{path} is damaged (its checksum is {seen[:12]}, not {wanted[:12]}); {advice}")


def data_checksum(path: Path) -> str:
    """SHA-256 of all that follows the head of a safetensors file, as `save_tensors` writes it into the head."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        file.seek(_LENGTH.size + length)
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _contents(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of each tensor, one at a time, so that no second copy of all is held."""
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy() if flat.numel() else b"")  # type: ignore[arg-type]


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_CHUNK):
        yield piece


def _remove_leftovers(directory: Path) -> None:
    """Remove what earlier versions left when they were killed: the safetensors library's own temporary files."""
    with suppress(OSError):
        for leftover in directory.glob(".tmp??????"):
            if leftover.is_file() and time() - leftover.stat().st_mtime > _OLD_S:
                leftover.unlink(missing_ok=True)


# NumPy arrays. A damaged file is an error of one line, raised before anything large is allocated.


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a file of one array (`.npy`) atomically."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write a file of arrays by name (`.npz`) atomically.

    Args:
        path: the file.
        arrays: by name, of any shape.
        compressed: whether to deflate them.
    """
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as partial, partial.open("wb") as file:
        save(file, **arrays)  # type: ignore[arg-type]


def load_array(path: Path, *, mapped: bool = False, advice: str = "copy or make it again") -> np.ndarray:
    """Read a .npy file.

    Args:
        path: path of the file.
        mapped: map it into memory instead of reading it.
        advice: the next step, which ends the message of an error.

    Raises:
        SprachbundError: missing, truncated, not such a file, or of Python objects.
    """
    try:
        with path.open("rb") as file:
            _check_size(file, path.stat().st_size)
            if not mapped:
                file.seek(0)
                return np.asarray(npy.read_array(file, allow_pickle=False))
        return npy.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise SprachbundError(f"{path} does not exist; {advice}") from None
    except Exception as error:  # a damaged head raises almost anything, from ValueError to TokenError
        raise SprachbundError(
            f"{path} is not a whole .npy file ({first_line(error)[:200]}); {advice}"
        ) from error


def load_arrays(path: Path, *, advice: str = "copy or make it again") -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file; arguments and errors as of `load_array`."""
    name = ""
    try:
        arrays: dict[str, np.ndarray] = {}
        with zipfile.ZipFile(path) as whole:
            for member in whole.infolist():
                name = member.filename.removesuffix(".npy")
                with whole.open(member) as file:
                    _check_size(file, member.file_size)  # type: ignore[arg-type]  # a reader of bytes
                with whole.open(member) as file:
                    arrays[name] = np.asarray(npy.read_array(file, allow_pickle=False))
                    file.read(1)  # the end is where the checksum is compared
        return arrays
    except FileNotFoundError:
        raise SprachbundError(f"{path} does not exist; {advice}") from None
    except Exception as error:  # as above, and what zipfile raises
        where = f"{path}: array {name!r} cannot be read" if name else f"{path} is not a whole .npz file"
        raise SprachbundError(f"{where} ({first_line(error)[:200]}); {advice}") from error


def _check_size(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless an array's head and its content together have so many bytes."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version[0]}.{version[1]} is not known here")
    if dtype.hasobject:
        raise ValueError("it holds Python objects; write it as plain numbers")
    count = 1
    for length in shape:  # Python's integers, which do not overflow
        if length < 0:
            raise ValueError(f"its shape is {shape}")
        count *= length
    held = size - file.tell()
    if count * dtype.itemsize != held:
        raise ValueError(
            f"its shape {shape} of {dtype} asks for {count * dtype.itemsize} bytes, there are {held}"
        )
