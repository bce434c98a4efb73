"""Packed files: written whole, checked whole, and never taken for what they are not."""

import struct
from pathlib import Path

import pytest
import torch

from sprachbund.runtime.packed_cache import fingerprint, packed_for
from sprachbund.runtime.packed_file import MAGIC, Packed, PackedFileError, read_packed, write_packed


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
    found = read_packed(path, "a")
    wanted = example()
    assert found.shapes == wanted.shapes
    assert list(found.arrays) == list(wanted.arrays)
    for name, array in wanted.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert torch.equal(found.arrays[name], array)
        assert array.numel() == 0 or found.arrays[name].data_ptr() % 64 == 0
    assert list(found.part("encoder")) == ["scale", "none"]
    assert list(path.parent.iterdir()) == [path]  # nothing half-written stays


def test_every_cut_and_every_changed_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(PackedFileError):
            read_packed(path)
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x11]) + content[place + 1 :])
        with pytest.raises(PackedFileError):
            read_packed(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 a zip file, and certainly as long as a head", "not a file of packed weights"),
        (MAGIC + struct.pack("<II", 99, 4) + b"-" * 32 + b"null", "version 99"),
        (MAGIC + struct.pack("<II", 1, 2**31) + b"-" * 32 + b"{}", "checksum differs"),
        (b"", "cannot be read|not a file"),
    ],
)
def test_foreign_and_older_files_say_so(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(PackedFileError, match=words):
        read_packed(path)


def test_the_file_of_another_model_is_refused(path: Path) -> None:
    with pytest.raises(PackedFileError, match="of another model"):
        read_packed(path, "b")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")
    return directory


class Packer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Packed:
        self.calls += 1
        return example("memory")


def test_a_model_is_packed_once_and_again_when_it_changes(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    for _ in range(3):
        packed, notes = packed_for(model, packer, cache)
        assert notes == ()
        assert torch.equal(packed.arrays["decoder.values"], example().arrays["decoder.values"])
    assert packer.calls == 1
    (model / "model.safetensors").write_bytes(b"other weights")
    packed_for(model, packer, cache)
    assert packer.calls == 2


def test_the_hash_is_of_the_content(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = fingerprint(model, cache)
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in model.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    assert fingerprint(twin, cache) == first
    (twin / "config.json").write_text("{ }")
    assert fingerprint(twin, cache) != first


def test_a_damaged_file_is_packed_again_and_said_so(model: Path, tmp_path: Path) -> None:
    packer, cache = Packer(), tmp_path / "cache"
    packed_for(model, packer, cache)
    (path,) = cache.glob("*.sbpacked")
    path.write_bytes(path.read_bytes()[:-1])
    _, notes = packed_for(model, packer, cache)
    assert packer.calls == 2
    assert len(notes) == 1
    assert "packed again" in notes[0]
    assert packed_for(model, packer, cache)[1] == ()


def test_without_a_place_to_write_packing_goes_on_in_memory(model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    packed, notes = packed_for(model, Packer(), blocked)
    assert packed.arrays.keys() == example().arrays.keys()
    assert "could not be kept" in notes[0]
