"""How many threads compute a model fastest here: tried once, and remembered for this machine and model.

Threads beyond the cores of one memory, or beyond what a small model can share out, make it slower, and no count of
cores says where that begins.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.family import Family
from sprachbund.util.files import write_text

_FILE = "threads.json"
_REMEMBERED = 200
_ROUNDS = 3
_WORTH = 0.95
"""More threads have to take less than this of the time of fewer."""
_CLIP_S, _TOKENS = 3.0, 16


def fastest_threads(most: int, family_with: Callable[[int], Family], *, model: str, cache: Path) -> int:
    """The number of threads, from 1 to `most`, with which a family is fastest.

    Args:
        most: threads that may be used.
        family_with: the family computed by so many.
        model: what to remember it under, besides this machine.
        cache: folder of the file that remembers; where it cannot be written, every start measures.
    """
    known = _read(cache / _FILE)
    key = " ".join((platform.node(), platform.machine(), str(os.cpu_count()), str(most), model))
    if 1 <= (found := known.get(key, 0)) <= most:
        return found
    if most == 1:
        return 1
    works = {count: _work(family_with(count)) for count in candidates(most)}
    chosen = fastest(works)
    _write(cache / _FILE, {**known, key: chosen})
    return chosen


def candidates(most: int) -> list[int]:
    """Powers of two, half of all, and all: the second thread of a core is seldom worth it."""
    powers = {2**i for i in range(most.bit_length()) if 2**i <= most}
    return sorted(powers | {max(1, most // 2), most})


def fastest(works: dict[int, Callable[[], Any]]) -> int:
    """The key of the fastest work, measured in turn; a smaller one where the greater gains next to nothing."""
    times: dict[int, list[float]] = {count: [] for count in works}
    for number in range(_ROUNDS + 1):
        for count, work in works.items():
            begin = time.perf_counter()
            work()
            if number:  # the first time, weights are read from disk
                times[count].append(time.perf_counter() - begin)
    best = min(works)
    for count in sorted(works):
        if median(times[count]) < _WORTH * median(times[best]):
            best = count
    return best


def _work(family: Family) -> Callable[[], None]:
    """A short recording with some tokens; the family is nobody else's."""
    if hasattr(family, "real_length"):
        family.real_length = True
    num_samples = round(min(_CLIP_S, family.max_window_s) * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32) * 0.1
    features, num_tokens = family.features([noise]), min(_TOKENS, family.max_tokens)
    token = torch.zeros(1, 1, dtype=torch.long)

    def work() -> None:
        cache = family.start(family.encode(features), capacity=num_tokens)
        for _ in range(num_tokens):
            family.step(token, cache)

    return torch.inference_mode()(work)


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}


def _write(path: Path, known: dict[str, int]) -> None:
    latest = dict(list(known.items())[-_REMEMBERED:])
    with suppress(OSError):  # nothing is lost but time
        write_text(path, json.dumps(latest, indent=1))
