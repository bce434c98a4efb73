"""What a model keeps between its forward and its backward pass: how much that is, and how to keep less.

Both go by layers: every family has them in `encoder.layers` and, with an attention decoder, in `decoder.layers`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of the encoder, and of the decoder where there is one."""
    parts = (model.encoder, getattr(model, "decoder", None))
    return [layer for part in parts if part is not None for layer in part.layers]


def recompute_layers(model: Any) -> None:
    """Keep only the inputs of layers, and run them again in the backward pass (arXiv 1604.06174), in place.

    The gradients are the same. Running means of batch norms, which only version 1 of Seamless has, move twice as
    fast.
    """
    for layer in layers_of(model):
        layer.forward = partial(_recomputed, layer.forward)


def keep_layers(model: Any) -> None:
    """Take `recompute_layers` back."""
    for layer in layers_of(model):
        vars(layer).pop("forward", None)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


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
