"""How much memory a run is going to take, told before it begins: nobody should learn it from a crash."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from sprachbund.data.batch import Batch
from sprachbund.data.loading import Supply
from sprachbund.data.plan import PlanOptions
from sprachbund.training.activations import Kept, measure_kept

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a run holds at its largest step, in one process.

    Attributes:
        num_parameters: of the model.
        num_trained: of them are trained.
        weights: of the model.
        gradients: of what is trained.
        moments: of the optimizers.
        activations: kept for the backward pass of the largest batch.
        recomputed: the same with `training.recompute`.
        batch: utterances in the largest batch.
        per_utterance: of the activations, for each utterance of it.
        available: memory of the device.
    """

    num_parameters: int
    num_trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    recomputed: int
    batch: int
    per_utterance: int
    available: int

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.moments

    def total(self, *, recompute: bool) -> int:
        """All of it."""
        return self.fixed + (self.recomputed if recompute else self.activations)

    def lines(self, *, recompute: bool, batch_s: float) -> list[str]:
        """What to tell before a run: sizes, memory, and what to change where it does not fit."""
        activations = self.recomputed if recompute else self.activations
        lines = [
            f"{_millions(self.num_parameters)} parameters, {_millions(self.num_trained)} of them are trained",
            f"memory, about: weights {_gib(self.weights)}, gradients {_gib(self.gradients)}, "
            f"optimizer {_gib(self.moments)}, activations {_gib(activations)} ({self.batch} utterances"
            f"{', recomputed' if recompute else ''}); together {_gib(self.total(recompute=recompute))} "
            f"of {_gib(self.available)}",
        ]
        if self.total(recompute=recompute) > self.available:
            lines.append(self.advice(recompute=recompute, batch_s=batch_s))
        return lines

    def advice(self, *, recompute: bool, batch_s: float) -> str:
        """What to change so that it fits, the cheapest first."""
        ways = []
        if not recompute:
            ways.append(
                f"training.recompute = true (then {_gib(self.total(recompute=True))}, a third slower)"
            )
        left = self.available - self.fixed
        if left > self.per_utterance > 0 and self.batch > 1:
            share = min(0.9, left / (self.per_utterance * self.batch))
            ways.append(f"training.batch_s = {max(1, math.floor(batch_s * share))}")
        if self.num_trained > self.num_parameters / 10:
            least = self.weights + self.activations
            ways.append(f"adapters ([lora], then about {_gib(least)}) or fewer parts (training.trainable)")
        return f"this does not fit: set {', or '.join(ways) or 'shorter training.max_duration_s'}"


def measure(
    model: Any,
    loss_of: Callable[[Batch], Any],
    corpus: Supply,
    plan: PlanOptions,
    optimizers: Sequence[Any],
    *,
    device: torch.device,
    num_processes: int = 1,
    epoch: int = 0,
) -> Footprint | None:
    """Measure on one and on two utterances of the epoch's largest batch; None when the epoch is empty.

    Memory grows linearly with the utterances of a batch; the difference of the two says how fast.
    """
    if not (batches := corpus.plan(plan, epoch)):
        return None
    largest = max(batches, key=lambda batch: float(corpus.durations_s[batch].max()) * len(batch))
    slowest = min(corpus.options.speeds)
    order = sorted(largest.tolist(), key=lambda i: -float(corpus.durations_s[i]))
    two = [corpus[(epoch, index, slowest)] for index in (order[0], order[min(1, len(order) - 1)])]

    def kept(count: int) -> Kept:
        batch = corpus.collate(two[:count]).to(device)
        with torch.random.fork_rng(devices=[]):
            return measure_kept(model, partial(loss_of, batch))

    one, both = kept(1), kept(2)
    count = math.ceil(len(largest) / num_processes)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Footprint(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trained=sum(p.numel() for p in trained),
        weights=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        moments=sum(map(_moments, optimizers)),
        activations=_line(one.total, both.total, count),
        recomputed=_line(one.recomputed, both.recomputed, count),
        batch=count,
        per_utterance=max(0, both.total - one.total),
        available=memory_of(device),
    )


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of a machine, what this process is allowed."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return whole


def _line(one: int, two: int, count: int) -> int:
    slope = max(0, two - one)
    return one + slope * (count - 1)


def _moments(optimizer: Any) -> int:
    """AdamW keeps two moments of every weight, Muon one."""
    plain = getattr(optimizer, "optimizer", optimizer)
    each = 2 if isinstance(plain, AdamW) else 1
    moved = (p for group in plain.param_groups for p in group["params"] if p.requires_grad)
    return each * _FP32 * sum(p.numel() for p in moved)


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
