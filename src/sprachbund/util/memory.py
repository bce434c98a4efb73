"""Memory of the machine, and what becomes of freed memory: kept, so that training computes, or given back.

glibc gives large blocks back to the system as soon as they are freed, and a training step frees and asks for
hundreds of them; the kernel then spends as much time clearing pages as we spend computing. It does not give back what
lies below a block in use, so work on pieces of ever other lengths holds more and more.
"""

import ctypes
import os
import sys
from typing import Any

from sprachbund.util.processor import memory_limits

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_KEEP_ALL = 2**31 - 1
_TOP_PAD = 256 * 2**20


def installed_memory() -> int:
    """Bytes of memory that the machine has."""
    if sys.platform == "win32":
        kib = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kib))
        return int(kib.value) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def allowed_memory() -> int:
    """Bytes of memory that this process may use: all of the machine, or the limit of its container."""
    return min([installed_memory(), *memory_limits()])


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks instead of returning them; says whether that was possible."""
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_ALL), (_M_TOP_PAD, _TOP_PAD))
    done = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(done)


PRODUCT_CACHES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
"""Variables that oneDNN, and torch above it, read at their first product: how many prepared products they keep."""
PRODUCTS_KEPT = 64


def remember_few_products() -> None:
    """Let torch keep `PRODUCTS_KEPT` prepared products in place of 1,024, where none was computed yet.

    On CPUs in bf16, each has buffers of its own, for operands of one shape. Batches rarely have the same shape twice,
    so a training takes gigabytes that nothing uses (`python -m benchmarks.products_kept`). What is set counts.
    """
    for name in PRODUCT_CACHES:
        os.environ.setdefault(name, str(PRODUCTS_KEPT))


def give_back_freed_memory() -> None:
    """Return to the system what is free between blocks in use, where glibc is the C library."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library; None where that is another, musl for one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
