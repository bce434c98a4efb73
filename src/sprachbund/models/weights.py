"""Weights on disk in 32, 16 or 8 bits, in one safetensors file that can be memory-mapped.

In 8 bits a matrix is stored as signed integers with one fp32 scale per output row (`NAME` int8 beside
`NAME.scale`): w is about q * scale, scale = max |row| / 127. Vectors stay in 16 bits. What linear layers hold packed
(`sprachbund.nn.block_linear`) is stored as it is held, whatever the bits of the others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.block_linear import PACKED
from sprachbund.util.tensors import save_tensors

Bits = Literal[8, 16, 32]
SCALE = ".scale"


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and fp32 scales (rows,) of a weight (rows, ...); rounding to nearest, symmetric."""
    rows = weight.detach().float().flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    values = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), scale


def dequantize_rows(values: Tensor, scale: Tensor) -> Tensor:
    """fp32 weight of what `quantize_rows` gave."""
    return values.float() * scale.reshape(-1, *[1] * (values.ndim - 1))


def write_weights(
    path: Path, weights: Mapping[str, Tensor], bits: Bits, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights, with `metadata` in the file's head; the file appears whole or not at all."""
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if is_packed(name, weights):
            stored[name] = weight.contiguous()
        elif bits == 8 and weight.ndim > 1 and weight.is_floating_point():
            stored[name], stored[name + SCALE] = quantize_rows(weight)
        else:
            stored[name] = weight.detach().to(torch.float32 if bits == 32 else torch.float16).contiguous()
    save_tensors(path, stored, {"format": "pt", "bits": str(bits), **(metadata or {})})


def read_metadata(path: Path) -> dict[str, str]:
    """What the head of a weights' file says; nothing when there is no such file, or it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # reading the weights names what is wrong with them


def read_weights(path: Path) -> dict[str, Tensor]:
    """fp32 weights of a file written by `write_weights`, and those that are packed as they are held.

    Raises:
        SprachbundError: when the file is missing or not a whole safetensors file.
    """
    if not path.exists():
        raise SprachbundError(f"{path.parent} has no {path.name}; a model directory needs its weights")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SprachbundError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    return {name: _read(name, value, stored) for name, value in stored.items() if not name.endswith(SCALE)}


def is_packed(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is of a packed linear layer, by its name and those beside it."""
    layer, _, what = name.rpartition(".")
    return what in PACKED and f"{layer}.{PACKED[0]}" in weights


def _read(name: str, value: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    if is_packed(name, stored):
        return value
    return dequantize_rows(value, stored[name + SCALE]) if name + SCALE in stored else value.float()
