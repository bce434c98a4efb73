"""Freed memory stays in the process once that was asked for, or is given back when that is."""

import os
import subprocess
import sys

import pytest
import torch

from sprachbund.util.memory import PRODUCT_CACHES, remember_few_products

SCRIPT = """
import resource, torch
from sprachbund.util.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_blocks_are_reused():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < given_back / 10


PIECES = """
import torch
from pathlib import Path
from sprachbund.util.memory import give_back_freed_memory
def held_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
pieces = [torch.ones(20_000 + i % 7) for i in range(1000)]  # each too small to be a mapping of its own
kept = pieces[::50]
del pieces
before = held_mib()
give_back_freed_memory()
print(before - held_mib())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_lies_between_blocks_in_use_is_given_back():
    run = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert float(run.stdout) > 40  # of 76 MiB


PRODUCTS = """
import sys, torch
from pathlib import Path
from sprachbund.util.memory import remember_few_products
def held_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
torch.set_num_threads(1)
if sys.argv[1] == "few":
    remember_few_products()
weights = torch.randn(512, 192, dtype=torch.bfloat16)
def multiply(rows):
    torch.nn.functional.linear(torch.randn(rows, 192, dtype=torch.bfloat16), weights)
multiply(900)
before = held_mib()
for rows in range(300, 900):
    multiply(rows)
print(held_mib() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="products in bf16 are not prepared here"
)
def test_products_of_few_shapes_are_kept(monkeypatch):
    for name in PRODUCT_CACHES:
        monkeypatch.delenv(name, raising=False)  # a training of this process set them
    grown = {
        which: float(
            subprocess.run(
                [sys.executable, "-c", PRODUCTS, which], capture_output=True, text=True, check=True
            ).stdout
        )
        for which in ("few", "all")
    }
    assert grown["few"] < grown["all"] / 2


def test_what_the_environment_says_of_kept_products_counts(monkeypatch):
    environment = {"LRU_CACHE_CAPACITY": "7"}
    monkeypatch.setattr(os, "environ", environment)
    remember_few_products()
    assert environment == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
