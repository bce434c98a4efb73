"""A family on the torch engine: its decoder fused, and in another precision where that is asked for."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.runtime.torch_linear import Precision, recast
from sprachbund.runtime.torch_parts import FusedEncoderLayer, TorchDecoder


def on_torch(family: Family, precision: Precision, *, cuda_graphs: bool = True) -> Family:
    """The family with its parts exchanged; the original is left as it is.

    Args:
        family: with its weights.
        precision: see `Precision`.
        cuda_graphs: see `TorchDecoder`.

    Raises:
        SprachbundError: a family without our decoder, or a precision that torch has no kernels for here.
    """
    model: Any = family
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, TextDecoder) or not _computes_alike(type(decoder)):
        raise SprachbundError(
            f"the torch engine in {precision} cannot run a decoder of the kind {type(decoder).__name__}; "
            "use the engine torch"
        )
    on_cpu = decoder.positions.device.type == "cpu"

    def swap(module: nn.Module) -> nn.Module | None:
        if isinstance(module, TextDecoder):
            return TorchDecoder(module, precision, cuda_graphs=cuda_graphs)
        if type(module) is EncoderLayer and precision != "fp32" and on_cpu:
            return FusedEncoderLayer(module, precision)
        return None

    if precision == "bf16":
        whole: Any = recast(model, precision, swap)
        # Features come in fp32; the original, of which this is a copy, must not get the hook.
        whole.encoder._forward_pre_hooks = OrderedDict()
        whole.encoder.register_forward_pre_hook(_first_in_bf16)
        return whole
    copied = copy.copy(model)
    # The small heads beside encoder and decoder stay as they are.
    exchanged = {"encoder": recast(model.encoder, precision, swap), "decoder": swap(decoder)}
    copied._modules = {**model._modules, **exchanged}
    return copied


def _computes_alike(kind: type[TextDecoder]) -> bool:
    """Whether a decoder does before and behind its layers what every other does; mBART's has a norm and a bias more."""
    return kind.embedded is TextDecoder.embedded and kind.outputs is TextDecoder.outputs


def _first_in_bf16(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    read = given[0].to(torch.bfloat16) if given[0].is_floating_point() else given[0]  # or it is tokens
    return (read, *given[1:])
