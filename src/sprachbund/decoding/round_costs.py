"""What a round of the search costs here and now, with and without guesses, and what guessing is to gain by it.

Whether speculation pays is a matter of the machine: on a CPU a pass over five tokens costs little more than one over
one, on a large batch it does not. So it is measured before it is used: whole rounds, since a draft that is asked
again and again finds its weights in the processor's cache, and in a search the model's pass lies between; and rounds
behind one of their own kind, since a search goes on in the way it began. Shapes: R rows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from sprachbund.decoding.draft import DraftRun
from sprachbund.decoding.greedy import GreedySearch
from sprachbund.decoding.options import MAX_GUESSES, Accept
from sprachbund.decoding.rows import Rows
from sprachbund.decoding.speculative import Guessing, SpeculativeSearch
from sprachbund.models.family import Family

MEASURED_GUESSES = (1, 2, 4, MAX_GUESSES)
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Measured times for one number of rows.

    Attributes:
        plain_s: seconds of a round without guesses: a pass over the newest token, and the choice of the next.
        drafted_s: seconds of a round with 1, 2, .. guesses: making them, a pass over them, and what stands of them.
    """

    plain_s: float
    drafted_s: tuple[float, ...]

    def gain(self, acceptance: float, guesses: int) -> float:
        """Predicted tokens per second against those without a draft, at so many guesses a round.

        (1 - p^(k+1)) / (1 - p) tokens a round (arXiv 2211.17192, equation 1) over its time, against one token over the
        time of a round without guesses.
        """
        return tokens_per_round(acceptance, guesses) * self.plain_s / self.drafted_s[guesses - 1]

    def best(self, acceptance: float, most: int = MAX_GUESSES) -> tuple[int, float]:
        """How many guesses gain most, and how much."""
        options = [(self.gain(acceptance, k), -k) for k in range(1, most + 1)]
        gain, guesses = max(options)
        return -guesses, gain


def tokens_per_round(acceptance: float, guesses: int) -> float:
    """Expected tokens of a round, when each guess is accepted with that probability if those before it were."""
    return float(sum(acceptance**k for k in range(guesses + 1)))


def measure_rounds(
    family: Family,
    rows: Rows,
    run: DraftRun,
    prompts: Sequence[Sequence[int]],
    accept: Accept = "exact",
    most: int = MAX_GUESSES,
) -> RoundCosts:
    """Seconds of the second rounds behind the prompts (R); the rows and their cache are left as they were.

    In a first round a draft has nothing to remember. Where it ends a row already, it is the one that counts.
    A few numbers of guesses are measured, as medians over alternating repeats, and those between interpolated. Numbers
    that the cache has no room for cost as much as the largest there is room for.
    """
    device = rows.cache.lengths.device
    held = rows.cache.lengths.cpu()
    counts = [count for count in MEASURED_GUESSES if count <= most]

    def plain() -> float:
        search = GreedySearch(replace(rows))
        tokens = search.choose()
        for _ in range(2):
            seconds = timed(lambda: search.round(family, tokens), device)
            rows.cache.rewind(held)
        return seconds

    def drafted(count: int) -> float:
        guessing = Guessing.begin(run, prompts, guesses=count, accept=accept)
        search = SpeculativeSearch(family, replace(rows), guessing)
        search.begin()
        seconds = timed(search.round, device)
        if not search.finished.any():  # a finished row would be written over
            seconds = timed(search.round, device)
        rows.cache.rewind(held)
        return seconds

    times: dict[int, list[float]] = {count: [] for count in (0, *counts)}
    for count, seen in [*times.items()] * _REPEATS:
        seen.append(drafted(count) if count else plain())
    drafted_s = np.interp(range(1, most + 1), counts, [median(times[count]) for count in counts])
    return RoundCosts(plain_s=median(times[0]), drafted_s=tuple(drafted_s.tolist()))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
