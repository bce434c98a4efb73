"""Memory of a training run: what layers keep for the backward pass, how to keep less, and an estimate before the run.

Recomputing and measuring go by layers: every family has them in `encoder.layers` and, with an attention decoder, in
`decoder.layers`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    checkpoint_wrapper,
)
from torch.optim import AdamW

from sprachbund.data.batch import Batch
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import TrainingDataset
from sprachbund.util.memory import allowed_memory


def _stacks(model: Any) -> list[nn.ModuleList]:
    """The layers of the encoder, and those of the decoder where there is one."""
    return [part.layers for part in (model.encoder, model.decoder) if part is not None]


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of the encoder, and of the decoder where there is one."""
    return [layer for layers in _stacks(model) for layer in layers]


def recompute_layers(model: Any) -> None:
    """Keep only the inputs of layers, and run them again in the backward pass (arXiv 1604.06174), in place.

    The gradients are the same. Running means of batch norms, which only version 1 of Seamless has, move twice as
    fast. torch's wrapper stands around each layer; it leaves the names in `state_dict` as they are, those of
    `named_parameters` it does not.
    """
    for layers in _stacks(model):
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT)


def keep_layers(model: Any) -> None:
    """Take `recompute_layers` back."""
    for layers in _stacks(model):
        for index, layer in enumerate(layers):
            if isinstance(layer, CheckpointWrapper):
                layers[index] = layer._checkpoint_wrapped_module


@dataclass(kw_only=True)
class Kept:
    """Bytes kept for the backward pass.

    Attributes:
        outside: of all layers.
        inside: of each layer.
        inputs: of each layer's first input.
    """

    outside: int = 0
    inside: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        """When everything is kept."""
        return self.outside + sum(self.inside)

    @property
    def recomputed(self) -> int:
        """When layers are run again: their inputs, and all of the largest one."""
        return self.outside + sum(self.inputs) + max(self.inside, default=0)


def measure_kept(model: nn.Module, forward: Callable[[], Any]) -> Kept:
    """Count what one forward pass keeps, every piece of memory once and weights not at all.

    The model runs as in evaluation, so that no running mean moves; masks of dropout are therefore not counted.
    """
    trained, kept, where = model.training, Kept(), -1
    seen = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def entered(number: int, _layer: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal where
        where = number
        kept.inputs[number] += given[0].numel() * given[0].element_size()

    def left(_layer: nn.Module, _given: Any, _made: Any) -> None:
        nonlocal where
        where = -1

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            if where < 0:
                kept.outside += storage.nbytes()
            else:
                kept.inside[where] += storage.nbytes()
        return tensor

    layers = layers_of(model)
    kept.inside, kept.inputs = [0] * len(layers), [0] * len(layers)
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            for handle in (
                layer.register_forward_pre_hook(partial(entered, number)),
                layer.register_forward_hook(left),
            ):
                stack.callback(handle.remove)
        stack.callback(model.train, trained)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        stack.enter_context(torch.enable_grad())
        # What was made stays alive until all is counted, or freed memory would be taken for memory seen before.
        model.eval()
        made = forward()
        del made
    return kept


def kept_on_meta(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps, weights not among them, where nothing has an address: on the meta device."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, or its number would be given again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = forward()
    del made
    return sum(storage.nbytes() for storage in kept.values())


# The estimate, which a run reports before it begins.

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
        """Lines to report before a run: sizes, memory, and what to change where it does not fit."""
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
    corpus: TrainingDataset,
    plan: BatchingOptions,
    optimizers: Sequence[Any],
    *,
    device: torch.device,
    num_processes: int = 1,
    num_shards: int = 1,
    epoch: int = 0,
) -> Footprint | None:
    """Measure on one and on two utterances of the epoch's largest batch; None when the epoch is empty.

    Memory grows linearly with the utterances of a batch; the difference of the two says how fast.

    Args:
        model: to be trained.
        loss_of: its loss of a batch.
        corpus: training data.
        plan: how batches are made.
        optimizers: of the model.
        device: that the run trains on.
        num_processes: parts that every batch is made in, by all processes together.
        num_shards: processes that share the weights, the gradients and the moments.
        epoch: whose largest batch is taken.
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
        weights=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        // num_shards,
        gradients=sum(p.numel() * p.element_size() for p in trained) // num_shards,
        moments=sum(map(_moments, optimizers)) // num_shards,
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
    return allowed_memory()


def _line(one: int, two: int, count: int) -> int:
    slope = max(0, two - one)
    return one + slope * (count - 1)


def _moments(optimizer: Any) -> int:
    """AdamW keeps two moments of every weight, Muon one."""
    each = 2 if isinstance(optimizer, AdamW) else 1
    moved = (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)
    return each * _FP32 * sum(p.numel() for p in moved)


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
