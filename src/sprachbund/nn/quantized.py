"""Weights in 3 to 8 bits with a scale and a zero point for each block of inputs, and the layer that computes from them.

The native engine's kernels read the result (`sprachbund.engines.packing`), and `block_linear` computes from it on
torch.
Shapes: O outputs, I inputs, G blocks of an output, N blocks in all, K weights of a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.errors import SprachbundError

BlockMethod = Literal["k-quant", "round"]
BlockBits = Literal[3, 4, 5, 6, 8]
SCALE = torch.bfloat16
"""Type of stored scales; codes are chosen for the stored scale, so that its rounding is not counted twice."""
_CANDIDATES = 20
_AT_ONCE = 4096  # blocks: their numbers stay in the cache while all candidates are tried


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """A weight (O, I) as scale * (code - zero point).

    Attributes:
        bits: bits of a code.
        block: K, inputs that share a scale; the last block of an output is filled up with zeros.
        num_inputs: I.
        codes: (O, G * K * bits / 8) unsigned codes, packed, lowest bits first.
        scales: (O, G) in `SCALE`.
        zeros: (O, bytes) zero points, unsigned and packed as the codes; None for the middle of the range.
    """

    bits: int
    block: int
    num_inputs: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(x.nbytes for x in (self.codes, self.scales, self.zeros) if x is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight, with its share of scales and zero points, and of the filling."""
        return 8 * self.num_bytes / (len(self.codes) * self.num_inputs)

    def plain_codes(self) -> Tensor:
        """(O, G, K) in bytes."""
        num_codes = self.scales.shape[1] * self.block
        return from_bits(self.codes, self.bits, num_codes).unflatten(1, (-1, self.block))

    def plain_zeros(self) -> Tensor:
        """(O, G) in bytes."""
        if self.zeros is None:
            return torch.full_like(self.scales, 2 ** (self.bits - 1), dtype=torch.uint8)
        return from_bits(self.zeros, self.bits, self.scales.shape[1])

    def dequantize(self) -> Tensor:
        """(O, I) in fp32."""
        steps = self.plain_codes().float() - self.plain_zeros().float()[..., None]
        return (steps * self.scales.float()[..., None]).flatten(1)[:, : self.num_inputs]


def quantize_blocks(
    weight: Tensor,
    bits: int = 4,
    *,
    block: int = 32,
    method: BlockMethod = "k-quant",
    symmetric: bool = False,
) -> BlockWeights:
    """A weight (O, I) in codes with a scale and a zero point for every `block` inputs of an output.

    k-quant gives a weight the importance sqrt(mean of the block's squares) + |weight|, tries 20 step widths around the
    one that spans the block's range, fits scale and offset to the codes of each by weighted least squares, brings the
    offset to a whole zero point, and keeps what has the least weighted error. That is measured on what is stored, and
    rounding to nearest is among what it chooses from: no block is worse by k-quant than by rounding.

    Args:
        weight: (O, I); where `block` does not divide I, the last block is filled up with zeros that count for nothing.
        bits: 3, 4, 5, 6 or 8.
        block: inputs that share a scale; a multiple of 8.
        method: "k-quant", or "round": to the nearest of even steps over the range of a block and zero.
        symmetric: whether every zero point is the middle of the range, and none is stored.

    Raises:
        SprachbundError: bits, block or method not offered; not a matrix; numbers that are not finite.
    """
    _check(weight, bits, block, method)
    num_inputs = weight.shape[1]
    padded = torch.nn.functional.pad(weight.detach().float(), (0, -num_inputs % block))
    counts = torch.arange(padded.shape[1], device=weight.device) < num_inputs
    blocks, valid = padded.reshape(-1, block), counts.view(-1, block).float().repeat(len(weight), 1)
    fit = partial(_fit, bits=bits, search=method == "k-quant", symmetric=symmetric)
    fitted = [fit(*part) for part in zip(blocks.split(_AT_ONCE), valid.split(_AT_ONCE), strict=True)]
    codes, scales, zeros = (torch.cat(part) for part in zip(*fitted, strict=True))
    per_output = (len(weight), -1)
    return BlockWeights(
        bits=bits,
        block=block,
        num_inputs=num_inputs,
        codes=to_bits(codes.byte().view(per_output), bits),
        scales=scales.to(SCALE).view(per_output),
        zeros=None if symmetric else to_bits(zeros.byte().view(per_output), bits),
    )


def importance(blocks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the weight of each weight's error (N, K): sqrt(mean w^2) + |w|; 0 where `valid` (N, K) is 0."""
    valid = torch.ones_like(blocks) if valid is None else valid
    mean = (blocks.square() * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return (mean.sqrt() + blocks.abs()) * valid


def to_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes (O, n) of so many bits as bytes (O, ceil(n * bits / 8)), lowest bits first."""
    single = (codes[..., None] >> _bit_positions(bits, codes.device) & 1).flatten(1)
    eights = torch.nn.functional.pad(single, (0, -single.shape[1] % 8)).unflatten(1, (-1, 8))
    return _together(eights)


def from_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (O, count) of what `to_bits` gave.

    Args:
        packed: bytes (O, ...).
        bits: bits of a code.
        count: codes of a row.
    """
    if 8 % bits == 0:  # whole codes in every byte
        shifts = bits * _bit_positions(8 // bits, packed.device)
        return (packed[..., None] >> shifts & 2**bits - 1).flatten(1)[:, :count]
    single = (packed[..., None] >> _bit_positions(8, packed.device) & 1).flatten(1)[:, : count * bits]
    return _together(single.unflatten(1, (count, bits)))


def _bit_positions(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=device)


def _together(single: Tensor) -> Tensor:
    """Bits (..., n), the lowest first, as one byte."""
    return (single << _bit_positions(single.shape[-1], single.device)).sum(-1, dtype=torch.uint8)


_Fit = tuple[Tensor, Tensor, Tensor]  # codes (N, K), scales (N, 1), zero points (N, 1), all fp32


def _fit(blocks: Tensor, valid: Tensor, *, bits: int, search: bool, symmetric: bool) -> _Fit:
    most = float(2**bits - 1)
    low, high = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low, start = -high, high / (2 ** (bits - 1) - 1)
    else:
        start = (high - low) / most
    best = _stored(blocks, start, low, bits, symmetric)
    if not search:
        return best
    a = importance(blocks, valid)
    if not symmetric:  # the range that is tried need not hold zero
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    error = _weighted_error(blocks, a, best)
    for step in range(_CANDIDATES):
        inverse = (most - 1 + 0.1 * step) / (high - low)
        codes = ((blocks - low) * inverse).nan_to_num(0.0).round().clamp(0, most)
        scale, offset = _least_squares(blocks, a, codes, 2 ** (bits - 1) if symmetric else None)
        other = _stored(blocks, scale, offset, bits, symmetric)
        other_error = _weighted_error(blocks, a, other)
        better = other_error < error
        error = torch.where(better, other_error, error)
        best = tuple(torch.where(better, x, y) for x, y in zip(other, best, strict=True))  # type: ignore[assignment]
    return best


def _least_squares(blocks: Tensor, a: Tensor, codes: Tensor, middle: int | None) -> tuple[Tensor, Tensor]:
    """Scale and offset (N, 1) for which scale * code + offset is nearest; with a zero point given, the scale alone."""

    def mean(x: Tensor) -> Tensor:
        return (a * x).sum(1, keepdim=True) / total

    total = a.sum(1, keepdim=True)
    if middle is not None:
        steps = codes - middle
        return mean(steps * blocks) / mean(steps.square()), torch.zeros_like(total)
    code, value = mean(codes), mean(blocks)
    centred = codes - code
    scale = mean(centred * (blocks - value)) / mean(centred.square())
    return scale, value - scale * code


def _stored(blocks: Tensor, scale: Tensor, offset: Tensor, bits: int, symmetric: bool) -> _Fit:
    """Scale and offset as they can be stored, and the codes that are nearest then."""
    most = 2**bits - 1
    smallest = torch.finfo(SCALE).tiny
    scale = scale.nan_to_num(0.0, 0.0, 0.0).to(SCALE).float()
    scale = torch.where(scale < smallest, torch.ones_like(scale), scale)  # a block of zeros, or as good as
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-offset / scale).round().clamp(0, most)
    return ((blocks / scale).round() + zero).clamp(0, most), scale, zero


def _weighted_error(blocks: Tensor, a: Tensor, fit: _Fit) -> Tensor:
    codes, scale, zero = fit
    return (a * ((codes - zero) * scale - blocks).square()).sum(1, keepdim=True)


def _check(weight: Tensor, bits: int, block: int, method: str) -> None:
    if bits not in get_args(BlockBits):
        offered = ", ".join(map(str, get_args(BlockBits)))
        raise SprachbundError(f"weights in {bits} bits are not offered; choose one of {offered}")
    if block < 8 or block % 8:
        raise SprachbundError(f"blocks of {block} weights are not offered; give a multiple of 8")
    if method not in get_args(BlockMethod):
        raise SprachbundError(f"there is no method {method!r}; choose {' or '.join(get_args(BlockMethod))}")
    if weight.ndim != 2 or 0 in weight.shape:
        raise SprachbundError(f"a weight of the shape {tuple(weight.shape)} has no blocks; give a matrix")
    if not weight.isfinite().all():
        raise SprachbundError("the weight has numbers that are not finite; train or load the model again")


# The layer that computes from packed weights.

PACKED = ("codes", "scales", "zeros")
"""Names of what a `BlockLinear` holds in the place of a weight."""

_ROWS_AT_ONCE = 2**20
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
            self.register_buffer(name, vars(packed)[name])
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
        step = max(1, _ROWS_AT_ONCE // self.in_features)
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
    """Exchange linear layers of a model on the meta device for packed ones, into which weights can be loaded.

    Args:
        model: on the meta device; is changed in place.
        names: names of its linear layers.
        bits: bits of a weight.
        block: weights that share a scale.
        symmetric: whether blocks have no zero point.
    """
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
