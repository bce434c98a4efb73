"""The processor and what of it this process may use: its name and instructions, cores, memory.

Containers limit both without hiding the rest of the machine: a quota of processor time and a limit of memory stand in
control groups (cgroups) of version 1 or 2, which are read here. Linux alone has them, and affinity masks.
"""

import math
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sprachbund.errors import SprachbundError

_ROOT = Path("/")
_V1_UNLIMITED = 2**60
"""Version 1 writes "no limit of memory" as a number around 2^63."""


def processor_name(root: Path = _ROOT) -> str:
    """Name of the processor as its maker writes it."""
    return next(iter(_cpuinfo(root, "model name")), "") or platform.processor() or platform.machine()


def instruction_flags(root: Path = _ROOT) -> tuple[str, ...]:
    """Instruction sets that the processor states, sorted; none where the system does not list them."""
    return tuple(sorted(next(iter(_cpuinfo(root, "flags", "Features")), "").split()))


def is_intel(root: Path = _ROOT) -> bool:
    """Whether Intel made the processor."""
    return "GenuineIntel" in (next(iter(_cpuinfo(root, "vendor_id")), "") or platform.processor())


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may keep busy: those of its affinity mask, or fewer under a quota of its container.

    A quota of half a core is one core, one of 2.5 cores is three; at least one.

    Args:
        root: root of the file system, for tests.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = core_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def core_groups(count: int) -> list[list[int]]:
    """The usable cores in `count` groups of neighbours, for threads that are to stay on them.

    Raises:
        SprachbundError: there are fewer cores than groups, or the system does not let threads be pinned.
    """
    if sys.platform != "linux":
        raise SprachbundError(
            f"threads can be pinned to cores on Linux alone, this is {sys.platform}; leave it out"
        )
    cores = sorted(os.sched_getaffinity(0))[: usable_cores()]
    if count > len(cores):
        raise SprachbundError(
            f"{count} groups of cores were asked for, and {len(cores)} cores may be used; ask for 1 to {len(cores)}"
        )
    return [cores[i * len(cores) // count : (i + 1) * len(cores) // count] for i in range(count)]


def pin_thread(cores: Sequence[int]) -> None:
    """Keep the calling thread, and those that it will start, on some cores."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, cores)


def core_quota(root: Path = _ROOT) -> float | None:
    """Processor time per time that control groups allow, in cores; None without a limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        match _words(folder / "cpu.max"):  # version 2: "QUOTA PERIOD" or "max PERIOD", in microseconds
            case [quota, period] if quota != "max":
                quotas.append(int(quota) / int(period))
        quota_us, period_us = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota_us and period_us and int(quota_us[0]) > 0:  # version 1; -1 is no limit
            quotas.append(int(quota_us[0]) / int(period_us[0]))
    return min(quotas, default=None)


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that can be had without swapping, by the system's estimate and the limits of control groups; None where
    neither is known."""
    meminfo = _lines(root / "proc" / "meminfo")
    known = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    for folder, limit, usage in _memory_groups(root):
        known.append(limit - usage + _file_cache(folder))
    return max(0, min(known)) if known else None


def memory_limits(root: Path = _ROOT) -> list[int]:
    """Bytes that control groups of this process allow in all; none without a limit."""
    return [limit for _, limit, _ in _memory_groups(root)]


def _memory_groups(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Folder, limit and bytes in use of each control group that limits memory."""
    for folder in _groups(root, "memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, now = _words(folder / limit), _words(folder / used)
            if most and now and most[0] != "max" and int(most[0]) < _V1_UNLIMITED:
                yield folder, int(most[0]), int(now[0])


def _file_cache(folder: Path) -> int:
    """Bytes of a group that hold files that the system can drop; a group counts them as used."""
    values = dict(line.split() for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
    return int(values.get("inactive_file", 0)) + int(values.get("active_file", 0))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups of a controller, up to the topmost; each limits those below it.

    Inside a container the path in /proc/self/cgroup may be that of the host, which is not there; the topmost folder is
    the container's own group then.
    """
    mounts = root / "sys" / "fs" / "cgroup"
    folders = dict.fromkeys((mounts, mounts / controller))
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = mounts
        elif controller in controllers.split(","):
            mount = mounts / controller
        else:
            continue
        inner = mount / path.lstrip("/")
        folders |= dict.fromkeys(f for f in (inner, *inner.parents) if f.is_relative_to(mount))
    yield from folders


def _cpuinfo(root: Path, *names: str) -> Iterator[str]:
    """Values of the lines of /proc/cpuinfo with one of these names."""
    for line in _lines(root / "proc" / "cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in names:
            yield value.strip()


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
