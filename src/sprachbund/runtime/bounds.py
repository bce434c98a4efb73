"""What this machine allows at most: how fast it reads memory, and how fast it multiplies numbers of 8 bits.

A token of a single row is bound by the first, an encoder by the second.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sprachbund.models.family import Family, Features
from sprachbund.runtime.extension import choose_instruction_set, missing_because, native
from sprachbund.runtime.packing import pack_matrix

_READ_BYTES = 2**29  # far more than any cache holds
_READS = 6
_TOKENS, _ROWS, _INPUTS = 480, 512, 512  # 0.5 MB in all: they stay in the caches next to a core
_PRODUCTS = 400  # a tenth of a second where a core does a million million operations a second
_TRIALS = 3


def read_gb_per_s(num_bytes: int = _READ_BYTES) -> float:
    """The fastest of some sums over memory that no cache holds, with the threads torch has now."""
    x = torch.ones(num_bytes // 4)  # zeros would all be one page
    return max(num_bytes / _seconds(lambda: x.dot(x)) for _ in range(_READS)) / 1e9


def int8_gops_per_s(threads: int, products: int = _PRODUCTS) -> float | None:
    """Billions of operations a second, two for a product and its sum, of the best kernel on so many threads.

    The fastest of some trials with operands that stay in the cache; None without the compiled part.
    """
    if missing_because():
        return None
    isa, module = choose_instruction_set(), native()
    matrix = {name: a.contiguous() for name, a in pack_matrix("matrix", torch.ones(_ROWS, _INPUTS)).items()}

    def work(_: int) -> None:
        values, scale = torch.full((_TOKENS, _INPUTS), 129, dtype=torch.uint8), torch.ones(_TOKENS)
        out = torch.empty(_TOKENS, _ROWS)
        for _ in range(products):
            module.product(isa, values, scale, matrix, _ROWS, out, "keep")

    operations = 2 * _TOKENS * _ROWS * _INPUTS * products * threads
    with ThreadPoolExecutor(threads) as pool:
        return (
            max(operations / _seconds(lambda: list(pool.map(work, range(threads)))) for _ in range(_TRIALS))
            / 1e9
        )


@torch.inference_mode()
def encoder_gops(family: Family, features: Features) -> float:
    """Billions of operations of the products, convolutions and attention in an encoder that torch computes."""
    # Torch's fused attention on CPUs is not among what the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.encode(features)
    return counter.get_total_flops() / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
