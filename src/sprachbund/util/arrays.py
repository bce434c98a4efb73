"""Files of NumPy arrays that appear whole or not at all.

A damaged file is an error of one line, raised before anything large is allocated.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from sprachbund.errors import SprachbundError
from sprachbund.util.files import atomic_path


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a file of one array (`.npy`) atomically."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write a file of arrays by name (`.npz`) atomically."""
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as partial, partial.open("wb") as file:
        save(file, **arrays)  # type: ignore[arg-type]


def load_array(path: Path, *, mapped: bool = False, advice: str = "copy or make it again") -> np.ndarray:
    """Read a .npy file.

    Args:
        path: of the file.
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
        raise SprachbundError(f"{path} is not a whole .npy file ({_first_line(error)}); {advice}") from error


def load_arrays(path: Path, *, advice: str = "copy or make it again") -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file; arguments and errors as of `load_array`."""
    name = ""
    try:
        found: dict[str, np.ndarray] = {}
        with zipfile.ZipFile(path) as whole:
            for member in whole.infolist():
                name = member.filename.removesuffix(".npy")
                with whole.open(member) as file:
                    _check_size(file, member.file_size)  # type: ignore[arg-type]  # a reader of bytes
                with whole.open(member) as file:
                    found[name] = np.asarray(npy.read_array(file, allow_pickle=False))
                    file.read(1)  # the end is where the checksum is compared
        return found
    except FileNotFoundError:
        raise SprachbundError(f"{path} does not exist; {advice}") from None
    except Exception as error:  # as above, and what zipfile raises
        where = f"{path}: array {name!r} cannot be read" if name else f"{path} is not a whole .npz file"
        raise SprachbundError(f"{where} ({_first_line(error)}); {advice}") from error


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


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
