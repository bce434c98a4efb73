"""Memory in pages of 2 MiB, where Linux has them.

A core that reads from one end of memory to the other looks up an address for every page, and what it fetches in advance
ends with the page.
"""

import mmap
import sys
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

LARGE_PAGE = 2**21


def prefer_large_pages(mapped: mmap.mmap, *, large: bool = True) -> None:
    """Ask Linux for large pages; nothing happens on other systems, and with kernels that have none.

    Args:
        mapped: memory, or a file. File systems with large folios (ext4 since Linux 6.16, XFS) keep such pages when they
            read a file from the disk.
        large: False asks for small pages, to compare.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE if large else mmap.MADV_NOHUGEPAGE)


def zeros_in_pages(*sizes: int, dtype: torch.dtype, large: bool = True) -> Tensor:
    """Zeros in large pages; in memory of torch where they are less than a page, and on other systems than Linux.

    Args:
        sizes: sizes of the dimensions.
        dtype: of the numbers.
        large: False asks for small pages, to compare.

    Raises:
        MemoryError: the system has not got so much.
    """
    num_bytes = prod(sizes) * dtype.itemsize
    if sys.platform != "linux" or num_bytes < LARGE_PAGE:
        return torch.zeros(sizes, dtype=dtype)
    try:
        # Python shares such memory with forked processes unless told otherwise, and shared memory has large pages by
        # another setting of the system.
        mapped = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes") from error
    prefer_large_pages(mapped, large=large)
    return torch.frombuffer(mapped, dtype=dtype).view(sizes)
