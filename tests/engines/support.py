"""The kernels called one by one, and what each should give, in torch with the same rounding."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.engines.extension import instruction_sets, missing_because, native
from sprachbund.engines.packing import BLOCK, pack_matrix, pad
from sprachbund.models.weights import quantize_rows
from sprachbund.nn.decoder import TextDecoder

needs_native = pytest.mark.skipif(
    missing_because() is not None, reason=f"no native engine: {missing_because()}"
)
on_every_set = pytest.mark.parametrize("isa", instruction_sets() or ("portable",))

Module = TypeVar("Module", bound=nn.Module)

BF16_STEP = 2.0**-8
"""Largest relative error of a number rounded to bf16."""


def quantize(
    isa: str, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, epsilon: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Unsigned 8-bit values (N, D) and scales (N,) of x (N, D), after a layer norm if there is a gain.

    Without a bias it is RMSNorm, with the epsilon.
    """
    width = x.shape[1]
    x = pad(x, 1, BLOCK).contiguous()
    values, scale = torch.zeros(x.shape, dtype=torch.uint8), torch.zeros(len(x))
    norm = [None if p is None else pad(p, 0, BLOCK).contiguous() for p in (gain, bias)]
    native().quantize(isa, x, width, *norm, values, scale, epsilon)
    return values[:, :width], scale


def quantize_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    peak = x.abs().amax(1)
    # A number over a tensor is its reciprocal times the number in torch, which is rounded twice.
    factor = torch.where(peak > 0, torch.full_like(peak, 127) / peak, 0.0)
    return ((x * factor[:, None]).round() + 128).to(torch.uint8), peak / 127


def product(
    isa: str,
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    then: str = "keep",
    **more: Any,
) -> Tensor:
    """Quantized tokens (N, K) times a weight (M, K); (N, M). `out` is what it is added to, times `factor`."""
    inputs = pad(values, 1, 4).contiguous()
    matrix = {key: a.contiguous() for key, a in pack_matrix("matrix", weight, bias).items()}
    out = more.get("out", torch.full((len(values), len(weight)), torch.nan)).clone()
    native().product(isa, inputs, scale, matrix, len(weight), out, then, more.get("factor", 1.0))
    return out


def product_reference(values: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    quantized, row_scale = quantize_rows(weight)
    exact = (values.long() - 128) @ quantized.long().T
    y = exact.double() * row_scale.double() * scale[:, None].double()
    return y if bias is None else y + bias.double()


def as_bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).view(torch.int16)


def attend(
    isa: str, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """Mixed values (N, W) and weights (N, C) of queries (N, W) over keys and values (C, W)."""
    width, num_keys = query.shape[1], len(key)
    packed = _as_kernels_read(query, key, value)
    out, weights = torch.full(packed[0].shape, torch.nan), torch.full((len(query), num_keys), torch.nan)
    native().attend(isa, *packed, lengths, factor, out, weights)
    return out[:, :width], weights


def attend_many(
    isa: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    factor: float,
    kernel: str = "attend_many",
) -> Tensor:
    """As `attend`, mixed values alone; `kernel` may be `attend_all` too."""
    packed = _as_kernels_read(query, key, value)
    out = torch.full(packed[0].shape, torch.nan)
    getattr(native(), kernel)(isa, *packed, lengths, factor, out)
    return out[:, : query.shape[1]]


def attend_segments(
    isa: str, query: Tensor, keys: Tensor, values: Tensor, seen: int, factor: float
) -> Tensor:
    """As `attend_many`, over the first `seen` keys of each segment (S, C, W), for every query."""
    parts = [_as_kernels_read(query, key, value) for key, value in zip(keys, values, strict=True)]
    packed = [torch.stack([part[i] for part in parts]) for i in (1, 2)]
    out = torch.full(parts[0][0].shape, torch.nan)
    native().attend_segments(isa, parts[0][0], *packed, seen, factor, out)
    return out[:, : query.shape[1]]


def _as_kernels_read(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    query, key, value = (pad(x, 1, BLOCK) for x in (query, key, value))
    key, value = pad(key, 0, BLOCK), pad(value, 0, BLOCK)
    keys = key.view(-1, BLOCK, key.shape[1] // 2, 2).transpose(1, 2).reshape(-1, BLOCK * key.shape[1])
    pairs = value.view(-1, BLOCK // 2, 2, value.shape[1] // BLOCK, BLOCK)
    values = pairs.permute(0, 3, 1, 4, 2).reshape(-1, BLOCK * value.shape[1])
    return [as_bf16(x).contiguous() for x in (query, keys, values)]


def attend_eight(
    isa: str, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """As `attend`, with keys and values in 8 bits."""
    width = query.shape[1]
    query, key, value = (pad(x, 1, BLOCK).contiguous() for x in (query, key, value))
    out, weights = torch.full(query.shape, torch.nan), torch.full((len(query), len(key)), torch.nan)
    native().attend_eight(isa, as_bf16(query).contiguous(), key, value, lengths, factor, out, weights)
    return out[:, :width], weights


def attend_reference(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    """In double precision from the bf16 roundings of what comes in."""
    query, key, value = (x.to(torch.bfloat16).double() for x in (query, key, value))
    hidden = torch.arange(len(key)) >= lengths[:, None]
    weights = (query @ key.T * factor).masked_fill(hidden, -torch.inf).softmax(-1)
    weights = weights.nan_to_num(0.0)  # nothing to see gives nothing
    return weights @ value, weights


def quantized_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.flatten(0, -2)
    return product_reference(*quantize_reference(flat), weight, bias).float().view(*x.shape[:-1], len(weight))


def compute_linears(
    monkeypatch: pytest.MonkeyPatch, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> None:
    """Torch's linear layers compute by `linear`, and a decoder's output matrix in 8 bits."""
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: linear(x, self.weight, self.bias))
    monkeypatch.setattr(
        TextDecoder, "logits", lambda self, x: quantized_linear(self.norm(x), self.embedding.weight, None)
    )


def parts_of_a_product(
    multiply: Callable[[Tensor, Tensor], Tensor], values: Tensor, scale: Tensor, *sizes: int
) -> Tensor:
    """Quantized tokens (N, K) multiplied so many at a time; (N, M)."""
    cut = zip(values.split(sizes), scale.split(sizes), strict=True)
    return torch.cat([multiply(v, s) for v, s in cut])


def random_decoder(
    *, width: int, num_heads: int, num_layers: int = 2, vocabulary_size: int = 50, seed: int = 0, **more: Any
) -> TextDecoder:
    """Every weight, bias and norm random, so that none can be lost unseen."""
    sizes = {"max_tokens": 40, "vocabulary_size": vocabulary_size, "num_layers": num_layers, **more}
    return randomised(TextDecoder(width=width, num_heads=num_heads, **sizes), seed)


def randomised(module: Module, seed: int) -> Module:
    """The module, for inference, with random weights of about the sizes that training gives."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                vector = parameter.ndim == 1 or name == "positions"
                spread = 0.3 if vector else parameter[0].numel() ** -0.5
                middle = 1.0 if isinstance(part, nn.LayerNorm) and name == "weight" else 0.0
                parameter.copy_(torch.randn(parameter.shape) * spread + middle)
    return module.eval().requires_grad_(False)


def relative_error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def gelu_reference(x: Tensor) -> Tensor:
    return F.gelu(x.double())
