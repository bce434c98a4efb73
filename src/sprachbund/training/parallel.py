"""Data parallelism: every process of a run holds a copy of the model (DDP), or a shard of every tensor (FSDP2).

With copies, every process holds all weights, gradients and moments, and gradients are exchanged. With shards
(`training.shard`, arXiv 2304.11277), a process holds 1 / world size of them, and fetches the whole weights of a layer
when it computes. Both give the gradient of one process on the whole batch.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from sprachbund.data.batch import Batch
from sprachbund.models.base import Loss, PartlyTrained
from sprachbund.models.speech_llm.encoders import SpeechEncoder
from sprachbund.nn.feed_forward import is_split
from sprachbund.nn.moe import MixtureOfExperts, has_experts
from sprachbund.training.memory import layers_of
from sprachbund.training.options import TrainingOptions
from sprachbund.util.distributed import own_device, rank, sum_over_ranks, world_size

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LossOf(nn.Module):
    """A family's loss as the `forward` that wrappers for several processes watch, in the precision that the options
    have on the device of this process.

    `uses_all` gives every weight a gradient, zero where a batch leaves it unused.

    Args:
        model: a family's module.
        options: options of the training.
    """

    def __init__(self, model: Any, options: TrainingOptions) -> None:
        super().__init__()
        self.model = model
        self.in_bf16 = options.in_bf16(own_device())
        self.uses_all = False

    def forward(self, batch: Batch) -> Loss:
        """`Loss` of a batch."""
        with torch.autocast(batch.features.device.type, torch.bfloat16, enabled=self.in_bf16):
            loss: Loss = self.model.loss(batch)
        return replace(loss, total=_with_all_weights(self, loss.total)) if self.uses_all else loss


class Parallel:
    """The model as one process of a run holds it.

    Args:
        loss_of: the loss of the model; stays a plain module, whatever is done with its weights.
        options: options of the training.

    Attributes:
        device: device of this process.
        rank: rank of this process.
        count: count of processes.
        is_sharded: whether this process holds a shard of the weights only.
        loss_of: the loss, without exchange of gradients.
    """

    def __init__(self, loss_of: LossOf, options: TrainingOptions) -> None:
        self.device, self.rank, self.count = own_device(), rank(), world_size()
        self.is_sharded = options.shard and self.count > 1
        self._plain = loss_of
        self._has_unused = _has_unused_parameters(loss_of.model)
        self.loss_of = _sharded(loss_of) if self.is_sharded else loss_of.to(self.device)
        self._call: Any = self.loss_of

    @property
    def model(self) -> Any:
        """The model that is trained: a twin of the plain one where its weights are sharded."""
        return self.loss_of.model

    def connect(self) -> None:
        """Exchange gradients from now on; which parameters are trained is settled."""
        if self.count > 1 and not self.is_sharded:
            on_gpu = self.device.type == "cuda"
            self._call = DistributedDataParallel(
                self.loss_of,
                device_ids=[self.device] if on_gpu else None,
                find_unused_parameters=self._has_unused,
                gradient_as_bucket_view=True,  # or every gradient would be held twice
            )

    def loss(self, batch: Batch, *, exchange: bool) -> tuple[Loss, AbstractContextManager[None]]:
        """The loss of a batch, and the context for its backward pass.

        Args:
            batch: this process's share.
            exchange: whether gradients are exchanged behind it; only the last part of a batch does.
        """
        if isinstance(self._call, FSDPModule):
            self._call.set_requires_gradient_sync(exchange)
        if isinstance(self._call, DistributedDataParallel) and not exchange:
            with self._call.no_sync():
                return self._call(batch), self._call.no_sync()
        return self._call(batch), nullcontext()

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return sum_over_ranks(torch.tensor(values, dtype=torch.float64)).tolist()

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients."""
        if gradients := [p.grad for p in self.loss_of.parameters() if p.grad is not None]:
            torch._foreach_mul_(gradients, factor)

    def clip(self, most: float) -> float:
        """Scale the gradients down to a norm; returns the norm before, the same one in every process.

        Args:
            most: highest norm.
        """
        norm = nn.utils.clip_grad_norm_(self.loss_of.parameters(), most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def whole(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors of the state of the model by name, one after the other; every process has to come here.

        Args:
            names: names in `state_dict`.
        """
        state = self.model.state_dict()
        for name in names:
            yield name, whole_tensor(state[name])

    def give_back(self) -> None:
        """Bring all weights into the plain model; every process has to come here."""
        if not self.is_sharded:
            return
        state = self.model.state_dict()
        with torch.no_grad():
            for name, own in _named_tensors(self._plain.model):
                own.data = whole_tensor(state[name]).detach().to("cpu", copy=True)


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a shard."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers, each once."""
    saved = model.state_dict().keys()
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, buffer


def _has_unused_parameters(model: Any) -> bool:
    """Whether a share of a batch may leave parameters without a gradient.

    A branch whose languages are absent from a process's share of a batch has no gradient there, and no more has an
    expert that nobody chose.
    """
    partly = isinstance(model, PartlyTrained) and model.has_unused_parameters
    return partly or is_split(model) or has_experts(model)


def _sharded(loss_of: LossOf) -> LossOf:
    """A twin of the module, whose weights are sharded, layer by layer; the plain module keeps none.

    `fully_shard` cannot be undone, and others hold on to the plain module. The weights are moved to the device a layer
    at a time, so that a device never holds all of them.
    """
    own: list[Tensor] = [*loss_of.parameters(), *loss_of.buffers()]
    twin = copy.deepcopy(loss_of, {id(tensor): tensor for tensor in own})
    twin.uses_all = _has_unused_parameters(twin.model)
    # Autocast chooses the precision of each operation, as with copies of the weights. Norms want theirs in 32 bits, so
    # what is trained travels in 32, too; weights that `in_16_bits` has rounded travel in 16.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for layer in _sharded_layers(twin.model):
        for name, module in layer.named_modules():
            if name.endswith(("cross_attention.key", "cross_attention.value")):
                fully_shard(module, mp_policy=policy)  # which run before the layer does
        if twin.uses_all:
            layer.register_forward_hook(_use_all_weights)
        fully_shard(layer, mp_policy=policy)
    fully_shard(twin, mp_policy=policy)
    for parameter in loss_of.parameters():
        parameter.data = parameter.new_empty(0)
    return twin


def _sharded_layers(model: Any) -> list[nn.Module]:
    """Modules that run once for a batch, whose weights are fetched by themselves; all else is fetched with the model.

    Processes fetch together. So an encoder that hears utterances one by one, of which each process has another number,
    is whole during a pass.
    """
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    encoder = model.encoder
    if isinstance(encoder, SpeechEncoder) and encoder.one_by_one:
        return [*model.decoder.layers, *mixtures]
    return [*layers_of(model), *mixtures]


def _use_all_weights(layer: nn.Module, _given: Any, made: Any) -> Any:
    """Give every weight of a layer a gradient: processes sum up the gradients that each has, so all must have the same.

    A branch whose languages are absent from a process's share, or an expert that nobody chose there, has none.
    """
    if isinstance(made, tuple):
        return (_with_all_weights(layer, made[0]), *made[1:])
    return _with_all_weights(layer, made)


def _with_all_weights(module: nn.Module, value: Tensor) -> Tensor:
    """The same value, on which all trained weights of a module depend that are whole at the moment."""
    whole = (p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor))
    return value + sum((p.flatten()[0] * 0 for p in whole), start=value.new_zeros(()))


def in_16_bits(model: nn.Module) -> Callable[[], None]:
    """Keep matrices and embeddings that are not trained in bf16, in place; returns what brings the (rounded) weights
    back to fp32.

    Norms and biases stay as they are: they are small. What an embedding returns is brought to fp32, so that layers add
    up in fp32; one that multiplies its rows by a number does that in 16 bits. Adapters and all else that is trained
    stays in fp32, where an update of 1e-5 of a weight is not rounded away.
    """
    cast: dict[int, Tensor] = {}
    hooks: list[RemovableHandle] = []
    for module in model.modules():
        if isinstance(module, (*_MATRICES, nn.Embedding)):
            weight = module.weight
            if not weight.requires_grad and weight.dtype == torch.float32:
                weight.data = weight.data.bfloat16()
                cast[id(weight)] = weight
            # A weight that is tied to an output matrix may have been cast with that.
            if isinstance(module, nn.Embedding) and id(weight) in cast:
                hooks.append(module.register_forward_hook(_widened))

    def back() -> None:
        for weight in cast.values():
            weight.data = weight.data.float()
        for hook in hooks:
            hook.remove()

    return back


def _widened(_layer: nn.Module, _given: Any, rows: Tensor) -> Tensor:
    """Rows of an embedding in fp32."""
    return rows.float()


class MovingAverage:
    """Exponential moving average of the trained weights, which is evaluated and kept in their place.

    Args:
        parameters: parameters that are trained, as this process holds them.
        decay: decay of the average, for each step.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.averages: list[Tensor] = []
        self.begin()

    def begin(self) -> None:
        """Take the weights as they are."""
        self.averages = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        torch._foreach_lerp_(self.averages, [p.detach() for p in self._parameters], 1 - self._decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages where the weights are, and the weights where the averages were."""
        for parameter, average in zip(self._parameters, self.averages, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
