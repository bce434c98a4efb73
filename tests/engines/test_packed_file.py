"""Packed files: written whole, checked at their head or whole, and never taken for what they are not."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.engines.packed_cache import (
    MAGIC,
    VERSION,
    Packed,
    PackedFileError,
    in_large_pages,
    read_packed,
    write_packed,
)

UNUSABLE = (
    r"model\.sbpacked (cannot be read|is not a file of packed weights|is of version|is damaged|is cut short)"
)


def example(source: str = "a") -> Packed:
    arrays = {
        "decoder.values": torch.arange(-60, 60, dtype=torch.int8).view(2, 60),
        "decoder.offset": torch.tensor([1, -(2**31), 2**31 - 1], dtype=torch.int32),
        "encoder.scale": torch.tensor([[0.5, float("inf"), -0.0]]),
        "encoder.none": torch.zeros(0),
    }
    return Packed(source=source, shapes={"decoder": {"width": 4}}, arrays=arrays)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "model.sbpacked"
    write_packed(path, example())
    return path


def test_what_is_read_is_what_was_written(path: Path) -> None:
    result = read_packed(path, "a")
    wanted = example()
    assert result.shapes == wanted.shapes
    assert list(result.arrays) == list(wanted.arrays)
    for name, array in wanted.arrays.items():
        assert result.arrays[name].dtype == array.dtype
        assert torch.equal(result.arrays[name], array)
        assert array.numel() == 0 or result.arrays[name].data_ptr() % 64 == 0
    assert list(result.part("encoder")) == ["scale", "none"]
    assert list(path.parent.iterdir()) == [path]  # nothing half-written stays


def test_a_copy_in_large_pages_is_the_same() -> None:
    small = example()
    wide = replace(small, arrays=small.arrays | {"decoder.wide": torch.arange(2**20, dtype=torch.int32)})
    for wanted in (small, wide):
        result = in_large_pages(wanted)
        assert (result.source, result.shapes, list(result.arrays)) == (
            "a",
            wanted.shapes,
            list(wanted.arrays),
        )
        for name, array in wanted.arrays.items():
            assert result.arrays[name].dtype == array.dtype
            assert torch.equal(result.arrays[name], array)
            assert result.arrays[name].data_ptr() % 64 == 0


def test_every_cut_is_noticed_and_every_changed_byte_when_asked(path: Path) -> None:
    """A start reads the head alone; what is in the arrays is checked on request."""
    content = path.read_bytes()
    (head_length,) = struct.unpack("<I", content[12:16])
    for size in (*range(0, len(content), 7), len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(PackedFileError, match=UNUSABLE):
            read_packed(path)
    path.write_bytes(content + b"-")
    with pytest.raises(PackedFileError, match="its head says"):
        read_packed(path)
    arrays_at = 48 + head_length
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        with pytest.raises(PackedFileError, match=UNUSABLE):
            read_packed(path, whole=True)
        if place < arrays_at:
            with pytest.raises(PackedFileError, match=UNUSABLE):
                read_packed(path)
        else:
            assert read_packed(path).source == "a"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 a zip file, and certainly as long as a head", "not a file of packed weights"),
        (MAGIC + struct.pack("<II", 99, 4) + b"-" * 32 + b"null", "version 99"),
        (MAGIC + struct.pack("<II", VERSION, 2**31) + b"-" * 32 + b"{}", "checksum of its head differs"),
        (b"", "cannot be read|not a file"),
    ],
)
def test_other_and_older_files_say_so(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(PackedFileError, match=words):
        read_packed(path)


def test_the_file_of_another_model_is_refused(path: Path) -> None:
    with pytest.raises(PackedFileError, match="of another model"):
        read_packed(path, "b")


@pytest.mark.parametrize(
    "head",
    [
        None,
        [],
        {},
        {"source": "a", "shapes": {}, "arrays": {"x": ["int8", [64], 10**9]}},
        {"source": "a", "shapes": {}, "arrays": {"x": ["int8", [-1], 0]}},
        {"source": "a", "shapes": {}, "arrays": {"x": ["int8", [4], -4]}},
        {"source": "a", "shapes": {}, "arrays": {"x": ["float32", [2], 1]}},
        {"source": "a", "shapes": {}, "arrays": {"x": ["int3", [4], 0]}},
        {"source": "a", "shapes": {}, "arrays": {"x": "int8"}},
    ],
)
def test_a_checksum_alone_makes_no_packed_file(path: Path, head: object) -> None:
    if isinstance(head, dict):
        head |= {"weights": "int8", "num_bytes": 100, "sha256": hashlib.sha256(bytes(100)).hexdigest()}
    content = json.dumps(head).encode()
    fixed = MAGIC + struct.pack("<II", VERSION, len(content))
    path.write_bytes(fixed + hashlib.sha256(fixed + content).digest() + content + bytes(100))
    with pytest.raises(PackedFileError, match="another head"):
        read_packed(path, "a")
