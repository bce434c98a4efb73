"""Recomputed activations: layers keep less for the backward pass; `training.check` predicts the memory of a run.

Every family has its layers in `encoder.layers` and, with an attention decoder, in `decoder.layers`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    _CHECKPOINT_PREFIX,
    CheckpointImpl,
    CheckpointWrapper,
    checkpoint_wrapper,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of the encoder, and of the decoder where there is one."""
    return [layer for part in (model.encoder, model.decoder) if part is not None for layer in part.layers]


def recompute_layers(model: Any) -> None:
    """Keep only the inputs of layers, and run them again in the backward pass (arXiv 1604.06174), in place.

    The gradients are the same. Running means of batch norms, which only version 1 of Seamless has, move twice as
    fast. torch's wrapper stands around each layer; it leaves the names in `state_dict` as they are, those of
    `named_parameters` it does not, see `saved_name`.
    """
    layers = {id(layer) for layer in layers_of(model)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in layers:
                parent.register_module(name, checkpoint_wrapper(child, CheckpointImpl.NO_REENTRANT))


def keep_layers(model: Any) -> None:
    """Take `recompute_layers` back."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CheckpointWrapper):
                parent.register_module(name, child._checkpoint_wrapped_module)


def saved_name(name: str) -> str:
    """Name in `state_dict` of a parameter that `named_parameters` names, within recomputed layers too."""
    return name.replace(_CHECKPOINT_PREFIX, "")


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flops_of(func: Any, args: Any, kwargs: Any, made: Any) -> int:
    """Floating-point operations of a call, as torch counts them; 0 of what it does not count.

    Args:
        func: operator, as a dispatch mode gets it.
        args: arguments of the call.
        kwargs: keyword arguments of the call.
        made: its result.
    """
    # torch has no formula for attention on the CPU.
    if func._overloadpacket == _ATTENTION:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if func._overloadpacket == _ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=made))


class _CountsOperations(TorchDispatchMode):
    """Counts floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.flops += flops_of(func, args, kwargs or {}, made)
        return made


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A forward pass.

    Attributes:
        kept_bytes: bytes that it keeps for the backward pass, without the weights.
        flops: floating-point operations.
    """

    kept_bytes: int
    flops: int


def forward_on_meta(model: nn.Module, forward: Callable[[], Any]) -> Forward:
    """Count a forward pass where nothing has an address: on the meta device.

    Args:
        model: model whose weights are not counted.
        forward: makes the pass.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, or its number would be given again
        return tensor

    operations = _CountsOperations()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), operations:
        made = forward()
    del made
    return Forward(kept_bytes=sum(storage.nbytes() for storage in kept.values()), flops=operations.flops)
