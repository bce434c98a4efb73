"""Files of tensors: the library reads what is written here, bytes repeat, damage is found."""

import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sprachbund.errors import SprachbundError
from sprachbund.util.tensors import CHECKSUM, load_tensors, save_tensors


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
    return {
        "odd": base[1:, ::2],  # neither contiguous nor at the start of its memory
        "tied": base,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        **{str(kind): (base * 3).to(kind) for kind in kinds},
    }


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = _tensors()
    save_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    for read in (load_file(tmp_path / "a.safetensors"), load_tensors(tmp_path / "a.safetensors")):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].shape == tensor.shape
            assert torch.equal(read[name], tensor)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    tensors, metadata = _tensors(), {str(i): "x" for i in range(20)}
    save_tensors(tmp_path / "a", tensors, metadata)
    save_tensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, _tensors())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(SprachbundError, match=r"a.safetensors is damaged \(its checksum"):
        load_tensors(path)


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "external.safetensors")
    assert torch.equal(load_tensors(tmp_path / "external.safetensors")["a"], torch.ones(3))
    save_tensors(tmp_path / "own.safetensors", {"a": torch.ones(3)})
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        assert len(file.metadata()[CHECKSUM]) == 64


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SprachbundError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "a")


def test_old_temporary_files_of_the_library_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmpAbC123", tmp_path / ".tmpXyZ789"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    save_tensors(tmp_path / "a", _tensors())
    assert not old.exists()
    assert new.exists()
