"""What of a machine may be used, read from the files of a made-up one."""

import os
import sys
from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.util.processor import (
    available_memory,
    core_groups,
    core_quota,
    instruction_flags,
    processor_name,
    usable_cores,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


V1_GROUPS = "9:name=systemd:/\n3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(
    ("files", "quota", "cores"),
    [
        ({}, None, 16),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, 16),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5, 3),
        ({"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 64.0, 16),
        # a group and those above it: the least counts
        (
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
            },
            1.5,
            2,
        ),
        # the host's path of a container that sees its own group at the top
        ({"proc/self/cgroup": "0::/kube/pod1\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, 2),
        ({"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, 2),
        # version 1
        (
            {
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            16,
        ),
        (
            {
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            1,
        ),
    ],
)
def test_cores_are_those_of_the_affinity_mask_or_of_the_quota(
    tmp_path: Path, files: dict[str, str], quota: float | None, cores: int
) -> None:
    root = write(tmp_path, files)
    assert core_quota(root) == quota
    assert usable_cores(root) == cores


def test_a_mask_below_the_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5})
    assert usable_cores(write(tmp_path, {"sys/fs/cgroup/cpu.max": "800000 100000\n"})) == 2


def test_more_groups_than_cores_are_refused() -> None:
    cores = usable_cores()
    assert len(core_groups(cores)) == cores
    with pytest.raises(SprachbundError, match=rf"{cores + 1} groups .*; ask for 1 to {cores}$"):
        core_groups(cores + 1)


@pytest.mark.parametrize(
    ("files", "num_bytes"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable: 3000 kB\n"}, 3000 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 3000 kB\n",
                "sys/fs/cgroup/memory.max": "1000000\n",
                "sys/fs/cgroup/memory.current": "700000\n",
                "sys/fs/cgroup/memory.stat": "anon 400000\ninactive_file 200000\nactive_file 100000\n",
            },
            600_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 3000 kB\n",
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "2000000\n",
                "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "500000\n",
            },
            1_500_000,
        ),
    ],
)
def test_memory_is_what_system_and_groups_leave(
    tmp_path: Path, files: dict[str, str], num_bytes: int | None
) -> None:
    assert available_memory(write(tmp_path, files)) == num_bytes


def test_the_processor_has_a_name_and_instructions(tmp_path: Path) -> None:
    x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nflags\t\t: sse avx2 fma\n\nprocessor\t: 1\n"
    arm = "processor\t: 0\nFeatures\t: fp asimd\n"
    root = write(tmp_path / "x86", {"proc/cpuinfo": x86})
    assert (processor_name(root), instruction_flags(root)) == ("Some CPU @ 2.00GHz", ("avx2", "fma", "sse"))
    assert instruction_flags(write(tmp_path / "arm", {"proc/cpuinfo": arm})) == ("asimd", "fp")
    assert instruction_flags(tmp_path / "nothing") == ()
