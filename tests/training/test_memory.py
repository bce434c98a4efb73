"""Freed memory stays in the process once that was asked for."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from sprachbund.training.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_blocks_are_reused():
    counts = {}
    for keep in (True, False):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True
        )
        counts[keep] = int(run.stdout)
    assert counts[True] < counts[False] / 10
