"""The layer that computes from weights in 3 to 8 bits as they are packed, and models made ready to hold such layers.

Shapes: O outputs, I inputs, G blocks of an output.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.block_quantization import SCALE, BlockWeights

PACKED = ("codes", "scales", "zeros")
"""Names of what a `BlockLinear` holds in the place of a weight."""

_AT_ONCE = 2**20
"""Weights unpacked at a time: 4 MiB, whatever the size of the layer."""


class BlockLinear(nn.Module):
    """Stands for an `nn.Linear`; it holds packed codes and unpacks some rows at a time when it computes.

    It has no gradient.

    Args:
        packed: the weight (O, I).
        bias: (O,), or none.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: BlockWeights, bias: Tensor | None) -> None:
        super().__init__()
        self.bits, self.block, self.in_features = packed.bits, packed.block, packed.num_inputs
        self.out_features = len(packed.codes)
        for name in PACKED:
            self.register_buffer(name, getattr(packed, name))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def packed(self) -> BlockWeights:
        """The weight as it is held."""
        return self._rows(slice(None))

    @property
    def weight(self) -> Tensor:
        """(O, I) in fp32, unpacked for this call."""
        return self.packed.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        step = max(1, _AT_ONCE // self.in_features)
        parts = [self._product(x, slice(row, row + step)) for row in range(0, self.out_features, step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _product(self, x: Tensor, rows: slice) -> Tensor:
        weight = self._rows(rows).dequantize().to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias[rows])

    def _rows(self, rows: slice) -> BlockWeights:
        """The weights of some outputs; nothing is copied."""
        return BlockWeights(
            bits=self.bits,
            block=self.block,
            num_inputs=self.in_features,
            codes=self.codes[rows],
            scales=self.scales[rows],
            zeros=None if self.zeros is None else self.zeros[rows],
        )


def linear_names(model: nn.Module, under: str = "") -> tuple[str, ...]:
    """Names of all linear layers of a model, or of those below one of its parts, such as "encoder"."""
    return tuple(
        name
        for name, part in model.named_modules()
        if type(part) is nn.Linear and (not under or name == under or name.startswith(under + "."))
    )


def packed_layers(model: nn.Module) -> dict[str, BlockLinear]:
    """Layers of a model that are packed, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, BlockLinear)}


def num_weights(model: nn.Module) -> int:
    """All weights of a model, packed ones as many as they stand for."""
    packed = packed_layers(model).values()
    biases = sum(0 if layer.bias is None else layer.bias.numel() for layer in packed)
    matrices = sum(layer.in_features * layer.out_features for layer in packed)
    return sum(p.numel() for p in model.parameters()) + matrices + biases


def make_room(model: nn.Module, names: Iterable[str], *, bits: int, block: int, symmetric: bool) -> None:
    """Exchange linear layers of a model on the meta device for packed ones, into which weights can be loaded."""
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        num_blocks = -(-linear.in_features // block)
        empty = BlockWeights(
            bits=bits,
            block=block,
            num_inputs=linear.in_features,
            codes=_meta(linear.out_features, num_blocks * block * bits // 8, torch.uint8),
            scales=_meta(linear.out_features, num_blocks, SCALE),
            zeros=None if symmetric else _meta(linear.out_features, -(-num_blocks * bits // 8), torch.uint8),
        )
        model.set_submodule(name, BlockLinear(empty, linear.bias))


def _meta(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="meta")
