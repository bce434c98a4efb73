"""Restrictions of a process that decodes untrusted sound.

Three walls, each of which holds by itself: limits of the process (POSIX setrlimit), a network namespace without any
interface, and a list of system calls (seccomp) that holds neither `open`, `socket` nor `execve`. The last two are
Linux's; where the kernel lacks one, `Sandbox` says so. Nothing but the standard library is needed here: the namespace
is left before anything else is imported.
"""

import ctypes
import errno
import math
import os
import platform
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from sprachbund.audio.constants import MAX_CHANNELS
from sprachbund.errors import SprachbundError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIGKILL = 9

# The only system calls that decoding from an open descriptor into an open socket needs, by their numbers on x86-64 and
# AArch64. Among those left out: open, stat by name, write, ftruncate, socket, connect, bind, execve, clone, kill,
# ptrace, mount, io_uring_setup.
_ALLOWED = {
    "read": (0, 63), "pread64": (17, 67), "lseek": (8, 62), "fstat": (5, 80), "close": (3, 57),
    "sendto": (44, 206), "recvfrom": (45, 207),
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "gettimeofday": (96, 169), "getrandom": (318, 278),
    "getpid": (39, 172), "gettid": (186, 178), "sysinfo": (99, 179), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""For each `platform.machine()`, the number that the kernel gives the architecture, and its column in `_ALLOWED`."""


@dataclass(frozen=True, kw_only=True)
class DecodingLimits:
    """Limits of decoding a recording; beyond them, the decoding ends with an error.

    Attributes:
        memory_bytes: address space beside that of the libraries.
        cpu_s: processor time of one pass through the recording, in whole seconds.
        stall_s: so many seconds the decoding may keep its reader waiting, and the length of what it has given
            beside. Time in which the reader does something else does not count. Not used where the recording is a
            pipe, whose other end may take its time.
        channels: channels of the sound.
        duration_s: seconds of the sound, whatever its header says.
    """

    memory_bytes: int = 1 << 30
    cpu_s: int = 600
    stall_s: float = 30.0
    channels: int = MAX_CHANNELS
    duration_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value: float = self.__dict__[one.name]
            if not 0 < value < math.inf:
                raise SprachbundError(f"{one.name} is {value}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Restrictions that confine the decoding of untrusted sound on this machine.

    Attributes:
        process: a process of its own with one recording, one way out and limits; without it, untrusted sound is
            refused.
        seccomp: a list of system calls, without files, sockets and programs.
        network_namespace: a network without interfaces.
    """

    process: bool
    seccomp: bool
    network_namespace: bool

    def __str__(self) -> str:
        if not self.process:
            return "refused: this system cannot give one recording to a process of its own (fork, SCM_RIGHTS)"
        walls = {
            "a list of system calls (seccomp)": self.seccomp,
            "an empty network namespace": self.network_namespace,
        }
        standing = ", ".join(
            ["decoded in a process with limits", *(wall for wall, there in walls.items() if there)]
        )
        missing = ", ".join(wall for wall, there in walls.items() if not there)
        return f"{standing}; not available here: {missing}" if missing else standing

    @property
    def whole(self) -> bool:
        """Whether all restrictions are in force."""
        return self.process and self.seccomp and self.network_namespace


def leave_network() -> bool:
    """Put this process, which has to have one thread, into a network namespace of its own; return whether it worked."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # Only root may make one as it is; others may inside a user namespace, where the system permits these.
    return libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


def knows_seccomp() -> bool:
    """Whether this kernel filters system calls, and this processor's are known here."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # Without a filter the answer is EFAULT where filters are known, EINVAL where they are not.
    return (
        libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0) != 0
        and ctypes.get_errno() == errno.EFAULT
    )


def close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor of this process but these, standard output and the like among them."""
    begin = 0
    for descriptor in sorted(kept):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def confine(limits: DecodingLimits) -> None:
    """Give up, irrevocably, the rights of this process that decoding does not need; see the head of the file.

    Raises:
        OSError: a wall that this system has could not be put up.
    """
    import resource

    used_bytes = 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        used_bytes = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, 0)  # what is open stays open
    _lower(
        resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1
    )  # the first limit sends SIGXCPU, by which the parent knows it
    _lower(resource.RLIMIT_AS, used_bytes + limits.memory_bytes)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_NPROC, 0)
        _confine_on_linux()


def _lower(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, unless it is lower already; `hard` is `soft` if not given."""
    import resource

    wanted = soft if hard is None else hard
    now = resource.getrlimit(which)[1]
    most = wanted if now == resource.RLIM_INFINITY else min(wanted, now)
    resource.setrlimit(which, (min(soft, most), most))


def _confine_on_linux() -> None:
    with_filter = knows_seccomp()
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    _check(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it ended before this process had asked to end with it
        os._exit(1)
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if with_filter:
        program = _filter()
        instructions = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
        _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter() -> bytes:
    """A program of the kernel's packet filter machine over struct seccomp_data: number, architecture, arguments."""
    load, jump_if_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    kill, fail, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    architecture, column = _ARCHITECTURES[platform.machine()]
    numbers = sorted(pair[column] for pair in _ALLOWED.values())

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    # A call of another architecture, as a 64-bit process may make, has other numbers and ends the process.
    program = [instruction(load, 4), instruction(jump_if_equal, architecture, 1), instruction(give, kill)]
    program.append(instruction(load, 0))
    for position, number in enumerate(numbers):  # the last instruction allows
        program.append(instruction(jump_if_equal, number, len(numbers) - position))
    return b"".join([*program, instruction(give, fail), instruction(give, allow)])
