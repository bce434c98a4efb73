"""Engine and precision of each part of a model, read from the modules that it has now, not from its engine's name.

An engine replaces some modules of a family, and what it cannot compute stays on torch. `parts_of` names, for every part
that works on a text, who computes it and in which numbers.
"""

from collections.abc import Iterator

import torch
from torch import nn

from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.native_linear import NativeModule
from sprachbund.engines.torch_layers import Int8Linear, PackedLinear, TorchDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.cascade import Cascade
from sprachbund.models.drafts import read_card
from sprachbund.models.streaming_onnx import OnnxEncoder, OnnxTransducer
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.quantized import BlockLinear

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
_DRAFT_OF_TABLES = "token-map"


def parts_of(family: Family) -> dict[str, str]:
    """Engine and precision of each part of a family, such as "native, int8" for "encoder".

    Parts have the names of the family's modules. A part with several kinds of layers names all of them, the one with
    most weights first. A decoder is left out where the text is written frame by frame, since nothing runs it. A draft
    beside the model is "draft NAME". Of a cascade they are the recogniser's; the translator has its own.

    Args:
        family: as an engine gives it.
    """
    if isinstance(family, Cascade):  # by its class, which has the recogniser as a family of its own
        return parts_of(family.recogniser)
    able = family.capabilities
    by_frames = able.writes_by_frames
    modules = dict(family.named_children()) if isinstance(family, nn.Module) else {}
    parts = {}
    for name, module in modules.items():
        idle = by_frames and module is able.decoder
        if not idle and (computes := computed_by(module)):
            parts[name] = computes
    return parts | {f"draft {name}": _draft(family, name) for name in family.drafts}


def computed_by(module: nn.Module) -> str:
    """Engine and precision of a module; empty for one without weights."""
    sizes: dict[str, int] = {}
    for computes, size in _weights(module):
        sizes[computes] = sizes.get(computes, 0) + size
    return "; ".join(sorted(sizes, key=lambda name: (-sizes[name], name)))


def _weights(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Engine of every layer, and its number of weights in matrices."""
    if isinstance(module, NativeModule):
        yield f"native, {module.numbers}", module.num_weights
        for child in module.children():  # such as an embedding
            yield from _weights(child)
    elif isinstance(module, OnnxEncoder | OnnxTransducer):
        yield "ONNX Runtime", 1
    elif isinstance(module, TorchDecoder):
        yield f"torch, {module.precision}", 1
    elif isinstance(module, Int8Linear):
        yield "torch, int8", module.in_features * module.out_features
    elif isinstance(module, PackedLinear):
        numbers = "bf16" if module.num_bytes == 2 * module.in_features * module.out_features else "fp32"
        yield f"torch, {numbers}", module.in_features * module.out_features
    elif isinstance(module, BlockLinear):
        yield f"torch, {module.bits} bits unpacked", module.in_features * module.out_features
    else:
        # Vectors, such as those of norms, are in fp32 beside weights in any numbers.
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                yield f"torch, {_NAMES.get(parameter.dtype, str(parameter.dtype))}", parameter.numel()
        for child in module.children():
            yield from _weights(child)


def _draft(family: Family, name: str) -> str:
    """Engine and precision of a draft beside the model."""
    try:
        kind = read_card(family.drafts[name]).kind
    except SprachbundError:
        return "none, its file cannot be read"
    decoder = family.capabilities.decoder
    if isinstance(
        decoder, NativeDecoder
    ):  # native language models are searched from Python, their drafts too
        return "native, a table" if kind == _DRAFT_OF_TABLES else "native, int8"
    if kind == _DRAFT_OF_TABLES:
        return "Python, a table"
    in_bf16 = isinstance(decoder, TextDecoder) and decoder.positions.dtype == torch.bfloat16
    return "torch, bf16" if in_bf16 else "torch, fp32"
