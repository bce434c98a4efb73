"""Products of a few rows with large weights in torch's own kernels, and whole modules in another precision.

A step of a decoder multiplies one row, or a few, and its time is that of reading weights. On CPUs `nn.Linear` reads
them once for every row in fp32, and lays them out anew at each call in bf16. oneDNN's product with weights laid out
beforehand does neither. In 8 bits the dynamically quantized product of FBGEMM is fastest. It takes one scale for all
rows that come together; here every row is brought to its own first, so that a row comes out the same whatever it is
computed with. Shapes: N rows, I inputs, O outputs.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import quantize_rows

Precision = Literal["fp32", "bf16", "int8"]
"""Weights as the model has them; weights and computation in bf16; 8-bit weights beside attention in bf16."""
_KERNELS = ("fbgemm", "qnnpack")
_PACKED_FOR_ROWS = 16
"""Rows at a time that weights are laid out for; fewer cost no more."""
_WORTH_PACKING: dict[torch.dtype, int] = {torch.float32: 2**18, torch.bfloat16: 0}
"""Numbers in a weight from which on packing pays: a packed product in fp32 takes ten microseconds to begin."""


class Int8Linear(nn.Module):
    """Stands for an `nn.Linear`; weights in 8 bits with a scale per row, inputs in 8 bits with a scale per row.

    Args:
        weight: (O, I).
        bias: (O,), or none.

    Attributes:
        num_bytes: of the packed weight and its scales.

    Raises:
        SprachbundError: torch has no 8-bit kernels for this processor, or the weight is not on one.
    """

    _ends: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, scale = quantize_rows(weight)
        with _kernels(weight.device), warnings.catch_warnings():
            # Torch means to drop tensors of this kind one day; it has no kernels as fast without them yet.
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(len(scale), dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.num_bytes = values.nbytes + scale.nbytes
        # A row that spans the whole range makes all rows be rounded in the same steps.
        ends = torch.zeros(1, self.in_features)
        ends[0, :2] = torch.tensor([1.0, -1.0])[: self.in_features]
        self.register_buffer("_ends", ends, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O) in fp32."""
        rows = x.reshape(-1, self.in_features).float()
        peak = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = torch.cat([rows / peak, self._ends])
        y = torch.ops.quantized.linear_dynamic(scaled, self._packed, _seven_bits())[:-1]
        y = y * peak if self.bias is None else torch.addcmul(self.bias, y, peak)
        return y.unflatten(0, x.shape[:-1]) if x.ndim != 2 else y


class PackedLinear(nn.Module):
    """Stands for an `nn.Linear` on a CPU, the weight laid out as oneDNN reads it.

    Args:
        weight: (O, I), in fp32 or bf16.
        bias: (O,), or none.

    Attributes:
        num_bytes: of the packed weight.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.num_bytes = weight.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> nn.Module:
    """A product of that precision with a weight (O, I) and a bias (O,), by the fastest way there is."""
    if precision == "int8":
        return Int8Linear(weight, bias)
    if precision == "bf16":
        weight, bias = _bf16(weight), None if bias is None else _bf16(bias)
    return PackedLinear(weight, bias) if _worth_packing(weight) else plain_linear(weight, bias)


def plain_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An `nn.Linear` around a weight (O, I) and a bias (O,)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _worth_packing(weight: Tensor) -> bool:
    """Whether a weight (O, I) is packed: by its size, and where this torch and this processor can."""
    if weight.device.type != "cpu" or weight.numel() < _WORTH_PACKING.get(weight.dtype, sys.maxsize):
        return False
    return _packs(weight.dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    operations = torch.ops.mkldnn
    there = hasattr(operations, "_reorder_linear_weight") and hasattr(operations, "_linear_pointwise")
    if not there or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(operations._is_mkldnn_bf16_supported())


def fused(parts: list[nn.Linear], precision: Precision) -> nn.Module:
    """One product in place of several of the same inputs; outputs one after another."""
    biases: list[Tensor] = [
        torch.zeros(p.out_features, dtype=p.weight.dtype, device=p.weight.device)
        if p.bias is None
        else p.bias
        for p in parts
    ]
    return linear(torch.cat([p.weight.detach() for p in parts]), torch.cat(biases), precision)


def recast(
    module: nn.Module, precision: Precision, swap: Callable[[nn.Module], nn.Module | None]
) -> nn.Module:
    """A copy of a module in another precision; the original is left as it is, and shares what does not differ.

    Args:
        module: any.
        precision: of every `nn.Linear`, which `linear` exchanges; bf16 casts all other floating-point numbers too.
        swap: what takes the place of a part, copied from the original by itself; None where nothing special does.
    """
    if (other := swap(module)) is not None:
        return other
    if type(module) is nn.Linear:
        return linear(module.weight, module.bias, precision)
    copied = copy.copy(module)
    copied._modules = {
        n: None if m is None else recast(m, precision, swap) for n, m in module._modules.items()
    }
    if precision == "bf16":
        copied._parameters = {n: _parameter(p) for n, p in module._parameters.items()}
        copied._buffers = {n: None if b is None else _bf16(b) for n, b in module._buffers.items()}
    return copied


def keep(module: nn.Module) -> None:
    """For `recast`: nothing special takes the place of any part."""


def num_bytes(module: nn.Module) -> int:
    """Of all weights."""
    numbers = (*module.parameters(), *module.buffers())
    packed = (m.num_bytes for m in module.modules() if isinstance(m, Int8Linear | PackedLinear))
    return sum(x.nbytes for x in numbers) + sum(packed)


def in_precision(parameter: Tensor, precision: Precision) -> nn.Parameter:
    """Numbers as a step of that precision adds them to others: in bf16 for bf16, else as they are."""
    kept = parameter.detach()
    return nn.Parameter(_bf16(kept) if precision == "bf16" else kept, requires_grad=False)


def _parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(_bf16(parameter.detach()), requires_grad=False)


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16) if x.is_floating_point() else x


@contextmanager
def _kernels(device: torch.device) -> Iterator[None]:
    """Torch's 8-bit kernels of this processor."""
    if device.type != "cpu":
        raise SprachbundError(f"8-bit weights on torch are for CPUs, not for {device}; use torch-bf16")
    known = [name for name in _KERNELS if name in torch.backends.quantized.supported_engines]
    if not known:
        raise SprachbundError("torch was built without 8-bit kernels for this processor; use torch-bf16")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = known[0]
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@cache
def _seven_bits() -> bool:
    """Whether inputs must leave out a bit: without dot products, sums of two products would not fit into 16."""
    has_dot_products = getattr(torch.cpu, "_is_vnni_supported", None)
    return has_dot_products is None or not has_dot_products()
