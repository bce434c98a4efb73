"""Keeps freed memory in the process, so that training on CPUs spends its time computing.

glibc gives large blocks back to the system as soon as they are freed, and a training step frees and asks for
hundreds of them; the kernel then spends as much time clearing pages as we spend computing.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_KEEP_ALL = 2**31 - 1
_TOP_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks instead of returning them; says whether that was possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library, musl for one
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_ALL), (_M_TOP_PAD, _TOP_PAD))
    done = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(done)
