"""What a pass of several tokens costs here and now, and what guessing is to gain by it.

Whether speculation pays is a matter of the machine: on a CPU a pass over five tokens costs little more than one over
one, on a large batch it does not. So it is measured before it is used. Shapes: R rows, Q tokens of a pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from sprachbund.decoding.options import MAX_GUESSES
from sprachbund.models.family import Family
from sprachbund.nn.decoder import DecoderCache

MEASURED_TOKENS = (1, 2, 3, 5, MAX_GUESSES + 1)
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class PassCosts:
    """Measured times for one number of rows.

    Attributes:
        pass_s: seconds of the model's pass over 1, 2, .. tokens of every row.
        draft_s: seconds of the draft's making of 1, 2, .. guesses for every row.
    """

    pass_s: tuple[float, ...]
    draft_s: tuple[float, ...]

    def gain(self, acceptance: float, guesses: int) -> float:
        """Predicted tokens per second against those without a draft, at so many guesses a pass.

        (1 - p^(k+1)) / (1 - p) tokens a pass (arXiv 2211.17192, equation 1) over the time of a pass over k + 1 tokens
        and of k guesses, against one token over the time of a pass over one.
        """
        cost = (self.pass_s[guesses] + self.draft_s[guesses - 1]) / self.pass_s[0]
        return tokens_per_pass(acceptance, guesses) / cost

    def best(self, acceptance: float, most: int = MAX_GUESSES) -> tuple[int, float]:
        """How many guesses gain most, and how much."""
        options = [(self.gain(acceptance, k), -k) for k in range(1, most + 1)]
        gain, guesses = max(options)
        return -guesses, gain


def tokens_per_pass(acceptance: float, guesses: int) -> float:
    """Expected tokens of a pass, when each guess is accepted with that probability if those before it were."""
    return float(sum(acceptance**k for k in range(guesses + 1)))


def measure_passes(family: Family, cache: DecoderCache, most: int = MAX_GUESSES) -> tuple[float, ...]:
    """Seconds of a pass over 1 .. most + 1 tokens, behind what the cache holds; the cache is left as it was.

    A few counts are measured, the shortest of alternating repeats' medians, and those between interpolated. Counts
    that the cache has no room for cost as much as the largest there is room for.
    """
    held = cache.lengths
    room = cache.capacity - int(held.max())
    counts = [count for count in MEASURED_TOKENS if count <= min(room, most + 1)] or [1]
    tokens = torch.zeros(len(held), max(counts), dtype=torch.long, device=held.device)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for repeat in range(_REPEATS + 1):
        for count in counts:
            seconds = timed(lambda count=count: family.step(tokens[:, :count], cache), held.device)  # type: ignore[misc]
            cache.rewind(held)
            if repeat:  # the first warms up
                times[count].append(seconds)
    return tuple(np.interp(range(1, most + 2), counts, [median(times[c]) for c in counts]).tolist())


def measure_draft(
    propose: Callable[[int], object], device: torch.device, most: int = MAX_GUESSES
) -> tuple[float, ...]:
    """Seconds of making 1 .. most guesses; the ends are measured and those between interpolated."""
    times: dict[int, list[float]] = {1: [], most: []}
    for repeat in range(_REPEATS + 1):
        for count, seen in times.items():
            seconds = timed(lambda count=count: propose(count), device)  # type: ignore[misc]
            if repeat:
                seen.append(seconds)
    counts = sorted(times)
    return tuple(np.interp(range(1, most + 1), counts, [median(times[c]) for c in counts]).tolist())


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
