"""NumPy's files: read as they were written, and refused by one line when they are damaged."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.tensors import load_array, load_arrays

FOUND = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FOUND)
    for mapped in (False, True):
        read = load_array(tmp_path / "a.npy", mapped=mapped)
        assert np.array_equal(read, FOUND)
        assert read.dtype == np.float32
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", a=FOUND, ids=np.array(["x", "yz"]), one=np.array(3))
        arrays = load_arrays(tmp_path / "a.npz")
        assert arrays["ids"].tolist() == ["x", "yz"]
        assert int(arrays["one"]) == 3
        assert np.array_equal(arrays["a"], FOUND)


def _head(shape: str) -> bytes:
    file = io.BytesIO()
    np.save(file, FOUND)
    return file.getvalue().replace(b"(2, 3), }" + b" " * (len(shape) - 6), shape.encode() + b", }")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: whole[:20],
        lambda whole: b"\x93NUMPY\x09\x00" + whole[8:],
        lambda whole: _head("(1000000000000, 3)"),
        lambda whole: _head("(-2, -3)"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_damaged_array_is_refused_before_it_is_allocated(
    tmp_path: Path, damage: Callable[[bytes], bytes], mapped: bool
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, FOUND)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SprachbundError, match=r"a.npy is not a whole .npy file \(.+\); make it") as caught:
        load_array(path, mapped=mapped, advice="make it again")
    assert "\n" not in str(caught.value)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([{}]))
    with pytest.raises(SprachbundError, match="Python objects"):
        load_array(tmp_path / "a.npy")
    with pytest.raises(SprachbundError, match=r"array .a. cannot be read .*Python objects"):
        load_arrays(tmp_path / "a.npz")


def test_a_damaged_archive_names_its_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=FOUND)
    whole = bytearray(path.read_bytes())
    whole[whole.index(FOUND.tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SprachbundError, match=r"a.npz: array 'a' cannot be read \(Bad CRC"):
        load_arrays(path)
    path.write_bytes(b"nothing")
    with pytest.raises(SprachbundError, match=r"is not a whole \.npz file"):
        load_arrays(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", _head("(1000000000000, 3)"))
    with pytest.raises(SprachbundError, match="asks for 12000000000000 bytes, there are 24"):
        load_arrays(path)
    with pytest.raises(SprachbundError, match="does not exist"):
        load_arrays(tmp_path / "none.npz")
