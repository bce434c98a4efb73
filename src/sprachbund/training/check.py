"""Predicted memory of a run: every run reports it first, and `train --check`, with the time, for each strategy.

A probe makes the forward and backward pass of two and of five utterances of the largest batch, and counts the bytes
that are alive, and the floating-point operations of matrix products, convolutions and attention. What they take grows
linearly with the utterances, so the rest is arithmetic.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import TrainingDataset
from sprachbund.errors import SprachbundError
from sprachbund.models.base import PartlyTrained
from sprachbund.training.memory import flops_of, keep_layers, layers_of, recompute_layers
from sprachbund.training.optimizers import freeze_others, make_optimizers
from sprachbund.training.options import TrainingOptions
from sprachbund.training.parallel import LossOf, in_16_bits
from sprachbund.util.memory import allowed_memory

Check = Callable[[Any, TrainingDataset, TrainingOptions], None]
"""Called with a model, its data and its options in place of training."""
NO_BATCH = "no batch can be made of the training data; look at training.max_duration_s"
_FP32 = 4
_PROBED = (2, 5)
"""Utterances of the probes, fewer where no batch has as many: with one alone, casts of the weights may be all that
counts."""


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are made and are still alive, without the gradients of weights; and operations.

    Args:
        model: model whose weights are not counted.

    Attributes:
        now: bytes that are alive.
        peak: most bytes that were.
        flops: floating-point operations.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        held = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.flops += flops_of(func, args, kwargs or {}, made)
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def leave_out(self, parameter: Tensor) -> None:
        """Count the gradient of a weight no longer: it stays until the step."""
        assert parameter.grad is not None
        self.now -= parameter.grad.untyped_storage().nbytes()

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number in self._known:
            return
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, size)

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward and backward pass.

    Attributes:
        activations: most bytes that are alive at a time, without weights and their gradients.
        flops: floating-point operations.
    """

    activations: int
    flops: int


def probe(model: nn.Module, loss: Callable[[], Tensor]) -> Pass:
    """Count a forward and backward pass.

    Args:
        model: model in the mode that it is trained in; its buffers and gradients come out as they were.
        loss: makes the loss.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    alive = LiveTensors(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for parameter in trained:
            stack.callback(parameter.register_post_accumulate_grad_hook(alive.leave_out).remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        with alive:
            loss().backward()
    for parameter in trained:
        parameter.grad = None
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return Pass(activations=alive.peak, flops=alive.flops)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to train, and the bytes that each GPU holds in it.

    Attributes:
        shard: divide the weights among the processes (`training.shard`).
        recompute: run layers again (`training.recompute`).
        accumulate: parts of a batch (`training.accumulate`).
        utterances: utterances in the largest part.
        weights: and buffers.
        gradients: bytes of the gradients of what is trained.
        moments: moments of the optimizers, and the moving average.
        activations: activations at most at a time, with all that a pass makes and drops.
        fetched: whole weights of the layers that are computed, and of what is in no layer.
        total: most at a time.
        flops: floating-point operations of the run, of all GPUs together.
    """

    shard: bool
    recompute: bool
    accumulate: int
    utterances: int
    weights: int
    gradients: int
    moments: int
    activations: int
    fetched: int
    total: int
    flops: float

    @property
    def settings(self) -> str:
        """Settings as they are written in a recipe."""
        set_ = [
            f"{name} = true"
            for name, wanted in (("shard", self.shard), ("recompute", self.recompute))
            if wanted
        ]
        if self.accumulate > 1:
            set_.append(f"accumulate = {self.accumulate}")
        return ", ".join(set_) or "the settings as they are"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The quantities that a run's memory depends on, in bytes.

    Attributes:
        num_parameters: parameters of the model.
        num_trained: parameters that are trained.
        weights: and buffers.
        gradients: gradients of what is trained.
        moments: moments of the optimizers, and the moving average.
        largest_layer: weights of the largest layer.
        outside: weights of what is in no layer.
        probed: two numbers of utterances.
        activations: activations of so many, without and with recomputing, as far as that was probed.
        utterances: utterances in the largest batch.
        flops: floating-point operations of all steps, likewise.
    """

    num_parameters: int
    num_trained: int
    weights: int
    gradients: int
    moments: int
    largest_layer: int
    outside: int
    probed: tuple[int, int]
    activations: Mapping[bool, tuple[int, int]]
    utterances: int
    flops: Mapping[bool, float]

    def strategy(self, gpus: int, *, shard: bool, recompute: bool, accumulate: int) -> Strategy:
        """Return the memory of each of some GPUs.

        Args:
            gpus: GPUs that share every batch.
            shard: divide the weights among the processes.
            recompute: run layers again.
            accumulate: parts of each GPU's share of a batch.
        """
        utterances = math.ceil(self.utterances / (gpus * accumulate))
        (few, more), (first, second) = self.activations[recompute], self.probed
        each = max(0, more - few) / max(1, second - first)
        activations = max(0, round(few + each * (utterances - first)))
        is_sharded = shard and gpus > 1
        num_shards = gpus if is_sharded else 1
        weights, gradients, moments = (
            math.ceil(size / num_shards) for size in (self.weights, self.gradients, self.moments)
        )
        # The next layer is fetched while one is computed, and the gradients of one are summed up whole.
        fetched = self.outside + 3 * self.largest_layer if is_sharded else 0
        if gpus == 1 and accumulate == 1:
            # Gradients grow as activations go, and are dropped after the step.
            total = weights + moments + max(activations, gradients)
        else:
            total = weights + moments + gradients + activations + fetched
        return Strategy(
            shard=is_sharded,
            recompute=recompute,
            accumulate=accumulate,
            utterances=utterances,
            weights=weights,
            gradients=gradients,
            moments=moments,
            activations=activations,
            fetched=fetched,
            total=total,
            flops=self.flops[recompute],
        )

    def strategies(self, gpus: int, memory: int) -> list[Strategy]:
        """Strategies: of each way, the one with the fewest parts of a batch that fits, or with the most; the fastest
        way first.

        Args:
            gpus: GPUs of the cluster.
            memory: bytes of each.
        """
        sharing = (False, True) if gpus > 1 else (False,)
        ways = [(shard, recompute) for recompute in (False, True) for shard in sharing]
        chosen = []
        for shard, recompute in ways:
            most = max(1, math.ceil(self.utterances / gpus))
            parts = [2**n for n in range(most.bit_length()) if 2**n <= most]
            strategies = [self.strategy(gpus, shard=shard, recompute=recompute, accumulate=n) for n in parts]
            chosen.append(next((one for one in strategies if one.total <= memory), strategies[-1]))
        return chosen


def check_shape(model: Any, corpus: TrainingDataset, options: TrainingOptions) -> Shape:
    """Probe a model on this machine's CPU for every strategy on GPUs; it is changed as by the beginning of a run.

    Args:
        model: a family's module.
        corpus: training data.
        options: options of the run.

    Raises:
        SprachbundError: there is no batch.
    """
    if options.precision == "auto":
        options = options.model_copy(
            update={"precision": "bf16"}
        )  # what it is on the GPUs that are asked about
    corpus.enter(0)
    freeze_others(model, options.trainable)
    for part in model.untrained if isinstance(model, PartlyTrained) else ():
        part.requires_grad_(False)
    if options.frozen_bf16:
        in_16_bits(model)
    optimizers = make_optimizers(model, options)
    shape = measure_shape(LossOf(model, options), corpus, options, optimizers)
    if shape is None:
        raise SprachbundError(NO_BATCH)
    return shape


def measure_shape(
    loss_of: LossOf,
    corpus: TrainingDataset,
    options: TrainingOptions,
    optimizers: Sequence[Any],
    *,
    recompute: Sequence[bool] = (False, True),
    num_parts: int = 1,
) -> Shape | None:
    """Probe a model where it is; None where there is no batch. Nothing of it is changed.

    Args:
        loss_of: loss of the model, which has its weights whole.
        corpus: training data.
        options: options of the run.
        optimizers: optimizers of the model.
        recompute: whether layers are run again, in each of the probes.
        num_parts: parts that every batch is made in; no probe is larger than a part.
    """
    model = loss_of.model
    plan = BatchingOptions(
        batch_s=options.batch_s,
        max_utterances=options.max_utterances,
        max_duration_s=options.max_duration_s,
        seed=options.seed,
    )
    if not (batches := corpus.plan(plan, 0)):
        return None
    largest = max(batches, key=lambda batch: float(corpus.durations_s[batch].max()) * len(batch))
    order = sorted(largest.tolist(), key=lambda i: -float(corpus.durations_s[i]))
    most = math.ceil(len(largest) / num_parts)
    probed = (min(_PROBED[0], most), min(_PROBED[1], most))
    slowest = min(corpus.options.speeds)
    longest = [corpus[(0, index, slowest)] for index in order[: probed[1]]]
    device, was_training = next(model.parameters()).device, loss_of.training
    loss_of.train()

    def passed(count: int) -> Pass:
        batch = corpus.collate(longest[:count]).to(device)
        return probe(model, lambda: loss_of(batch).total)

    passes = {}
    for again in recompute:
        with recomputed(model) if again else nullcontext():
            passes[again] = (passed(probed[0]), passed(probed[1]))
    loss_of.train(was_training)
    # Padded speech of a mean batch, in that of the larger probe.
    padded = [float(corpus.durations_s[batch].max()) * len(batch) for batch in batches]
    share = sum(padded) / len(padded) / (probed[1] * float(corpus.durations_s[order[0]]))
    return shape_of(
        model,
        optimizers,
        probed=probed,
        passes=passes,
        utterances=len(largest),
        probes=options.steps * share,
        ema=bool(options.ema),
    )


def shape_of(
    model: Any,
    optimizers: Sequence[Any],
    *,
    probed: tuple[int, int],
    passes: Mapping[bool, tuple[Pass, Pass]],
    utterances: int,
    probes: float,
    ema: bool,
) -> Shape:
    """A run's shape, of its probes.

    Args:
        model: a family's module, with its weights whole.
        optimizers: optimizers of the model.
        probed: two numbers of utterances.
        passes: over so many, without and with recomputing.
        utterances: utterances in the largest batch.
        probes: factor by which the run is larger than the larger probe.
        ema: whether there is a moving average of the weights.
    """
    layers = [sum(map(_size, layer.parameters())) for layer in layers_of(model)]
    weights = sum(map(_size, (*model.parameters(), *model.buffers())))
    trained = [p for p in model.parameters() if p.requires_grad]
    num_trained = sum(p.numel() for p in trained)
    return Shape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trained=num_trained,
        weights=weights,
        gradients=sum(map(_size, trained)),
        moments=sum(map(_moments, optimizers)) + (num_trained * _FP32 if ema else 0),
        largest_layer=max(layers, default=0),
        outside=max(0, weights - sum(layers)),
        probed=probed,
        activations={again: (few.activations, more.activations) for again, (few, more) in passes.items()},
        utterances=utterances,
        flops={again: probes * more.flops for again, (_, more) in passes.items()},
    )


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Layers are run again in the block."""
    recompute_layers(model)
    try:
        yield
    finally:
        keep_layers(model)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _moments(optimizer: Any) -> int:
    """AdamW keeps two moments of every weight, Muon one."""
    each = 2 if isinstance(optimizer, AdamW) else 1
    return (
        each * _FP32 * sum(p.numel() for g in optimizer.param_groups for p in g["params"] if p.requires_grad)
    )


HEAD = [
    "[training]",
    "utterances",
    "weights",
    "gradients",
    "moments",
    "activations",
    "fetched",
    "in all",
    "fits",
    "hours",
]


def rows_of(strategies: Sequence[Strategy], memory: int, flops_per_s: float) -> list[list[str]]:
    """Rows of a table under `HEAD`, one for each strategy.

    Args:
        strategies: strategies that are shown.
        memory: bytes of each GPU.
        flops_per_s: floating-point operations that all GPUs sustain together, in a second.
    """
    return [
        [
            one.settings,
            str(one.utterances),
            *map(gib, (one.weights, one.gradients, one.moments, one.activations, one.fetched, one.total)),
            "yes" if one.total <= memory else "no",
            hours_of(one.flops / flops_per_s / 3600),
        ]
        for one in strategies
    ]


def hours_of(hours: float) -> str:
    """Hours with two digits, as they stand in a table; what is shorter than a minute has none."""
    if hours < 1 / 60:
        return "under a minute"
    return f"{hours:.2g}" if hours < 100 else f"{hours:.0f}"


def time_note(gpu_tflops: float) -> str:
    """Return a line that says which work the hours of a table include.

    Args:
        gpu_tflops: operations that each GPU sustains, in 10^12 a second.
    """
    return (
        f"hours: of the matrix products, convolutions and attention of all steps, at {gpu_tflops:g} TFLOP/s that each "
        "GPU sustains (--gpu-tflops); loading of data, exchange between GPUs and evaluations are not in it"
    )


def verdict(strategies: Sequence[Strategy], memory: int) -> str:
    """Advice on the strategy to take; where none fits, on other changes.

    Args:
        strategies: the fastest first.
        memory: bytes of each GPU.
    """
    if fitting := next((one for one in strategies if one.total <= memory), None):
        return f"it fits with {fitting.settings}"
    least = min(strategies, key=lambda one: one.total)
    return (
        f"nothing fits: with {least.settings} it takes {gib(least.total)} of {gib(memory)}; take more GPUs, train "
        "adapters ([lora]) with frozen_bf16, or set a shorter training.max_duration_s"
    )


def lines_of(shape: Shape, chosen: Strategy, available: int) -> list[str]:
    """Return the lines that a run prints before it begins: sizes, and memory.

    Args:
        shape: shape of the run.
        chosen: strategy of the run.
        available: bytes of the device.
    """
    again = ", recomputed" if chosen.recompute else ""
    fetched = f", fetched layers {gib(chosen.fetched)}" if chosen.shard else ""
    return [
        f"{_millions(shape.num_parameters)} parameters, {_millions(shape.num_trained)} of them are trained",
        f"memory, about: weights {gib(chosen.weights)}, gradients {gib(chosen.gradients)}, "
        f"optimizer {gib(chosen.moments)}, activations {gib(chosen.activations)} ({chosen.utterances} utterances"
        f"{again}){fetched}; together {gib(chosen.total)} of {gib(available)}",
    ]


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of a machine, what this process is allowed."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return allowed_memory()


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def gib(size: int) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
