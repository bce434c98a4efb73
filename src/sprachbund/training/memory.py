"""What layers keep for the backward pass, and how to keep less; `training.check` predicts the memory of a run.

Every family has its layers in `encoder.layers` and, with an attention decoder, in `decoder.layers`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    checkpoint_wrapper,
)


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
