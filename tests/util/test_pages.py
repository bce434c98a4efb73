"""Large pages: memory and mapped files hold the same in them."""

import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from sprachbund.util.pages import LARGE_PAGE, prefer_large_pages, zeros_in_pages


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("sizes", [(0, 3), (5, 7), (3, LARGE_PAGE // 2 + 1)])
def test_zeros_have_the_sizes_and_can_be_written(sizes: tuple[int, ...], large: bool) -> None:
    zeros = zeros_in_pages(*sizes, dtype=torch.int16, large=large)
    assert zeros.shape == sizes
    assert zeros.dtype == torch.int16
    assert zeros.data_ptr() % 64 == 0
    assert not zeros.any()
    assert torch.equal(zeros.fill_(-3), torch.full(sizes, -3, dtype=torch.int16))


@pytest.mark.skipif(sys.platform == "win32", reason="it forks nothing")
def test_a_forked_process_writes_into_a_copy_of_its_own() -> None:
    zeros = zeros_in_pages(LARGE_PAGE, dtype=torch.uint8)
    if (child := os.fork()) == 0:
        zeros[0] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert zeros[0] == 0


def test_a_mapped_file_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 16384)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    prefer_large_pages(mapped)
    assert mapped[:] == path.read_bytes()
