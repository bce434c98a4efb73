"""Weights of a decoder or encoder in the order in which the native kernels read them (native/kernels.hpp).

A matrix becomes int8, one scale per output row, in blocks of 16 rows x 4 inputs; heads are padded to multiples of 16
so that a block never holds parts of two. Shapes: D width, H heads, W width of a head, padded; V vocabulary.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.models.weights import quantize_rows
from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.decoder import DecoderLayer, TextDecoder
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.feed_forward import FeedForward

BLOCK = 16
"""Rows of a matrix, positions of a cache and dimensions of a head come in multiples of this."""
OFFSET = 128
"""What is added to signed 8-bit inputs to make them unsigned, as the processor's dot product wants them."""
_INPUTS = 4  # that the dot product takes at once

Arrays = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Sizes of a stack of layers.

    Attributes:
        width: D.
        heads: H.
        head_width: of a head, without padding.
        num_layers: L.
    """

    width: int
    heads: int
    head_width: int
    num_layers: int

    def sizes(self) -> dict[str, int]:
        """As keyword arguments of the compiled classes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DecoderShape(EncoderShape):
    """Sizes of a decoder: those of its layers, and V, the longest row and the width of the memory."""

    vocabulary_size: int
    max_tokens: int
    memory_width: int


def pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    """x with zeros at the end of a dimension, up to a multiple."""
    missing = -x.shape[dim] % multiple
    return x if missing == 0 else F.pad(x, (0, 0) * (x.ndim - 1 - dim % x.ndim) + (0, missing))


def pack_matrix(name: str, weight: Tensor, bias: Tensor | None = None) -> Arrays:
    """A weight (rows, inputs) and bias (rows,) as NAME.values, .scale, .offset and .bias."""
    values, scale = quantize_rows(weight)
    bias = torch.zeros_like(scale) if bias is None else bias.detach().float()
    values = pad(pad(values, 0, BLOCK), 1, _INPUTS)
    blocks = values.view(values.shape[0] // BLOCK, BLOCK, -1, _INPUTS).transpose(1, 2).contiguous()
    return {
        f"{name}.values": blocks,
        f"{name}.scale": pad(scale, 0, BLOCK) * (values != 0).any(1),
        f"{name}.offset": OFFSET * values.sum(1, dtype=torch.int32),
        f"{name}.bias": pad(bias, 0, BLOCK).contiguous(),
    }


def pack_norm(name: str, norm: nn.LayerNorm) -> Arrays:
    """Gain and bias (D,) as NAME.gain and NAME.bias."""
    parts = {f"{name}.gain": norm.weight, f"{name}.bias": norm.bias}
    return {key: pad(value.detach().float(), 0, BLOCK).clone() for key, value in parts.items()}


def pack_decoder(decoder: TextDecoder) -> tuple[DecoderShape, Arrays]:
    """A decoder whose `why_not` is None."""
    layers: list[DecoderLayer] = list(decoder.layers)  # type: ignore[arg-type]
    first = layers[0]
    vocabulary_size, width = decoder.embedding.weight.shape
    shape = DecoderShape(
        width=width,
        heads=first.self_attention.num_heads,
        head_width=width // first.self_attention.num_heads,
        num_layers=len(layers),
        vocabulary_size=vocabulary_size,
        max_tokens=decoder.max_tokens,
        memory_width=first.cross_attention.key.in_features,
    )
    arrays = pack_norm("norm", decoder.norm) | pack_matrix("vocabulary", decoder.embedding.weight)
    arrays["positions"] = decoder.positions.detach().float().contiguous()
    for i, layer in enumerate(layers):
        arrays |= {f"layers.{i}.{name}": array for name, array in _decoder_layer(layer).items()}
    return shape, arrays


def pack_encoder(layers: list[EncoderLayer], norm: nn.LayerNorm) -> tuple[EncoderShape, Arrays]:
    """A stack of layers and the norm behind it."""
    attention = layers[0].self_attention
    width = attention.query.in_features
    shape = EncoderShape(
        width=width,
        heads=attention.num_heads,
        head_width=width // attention.num_heads,
        num_layers=len(layers),
    )
    arrays = pack_norm("norm", norm)
    for i, layer in enumerate(layers):
        arrays |= {f"layers.{i}.{name}": array for name, array in _encoder_layer(layer).items()}
    return shape, arrays


def why_not(layers: list[nn.Module]) -> str | None:
    """Why the native kernels cannot run these layers; None when they can."""
    for layer in layers:
        if not isinstance(layer, DecoderLayer | EncoderLayer):
            return f"it has layers of the kind {type(layer).__name__}"
        forward = layer.feed_forward
        if not isinstance(forward, FeedForward):
            return "its feed-forwards are split by language"
        if forward.activation != "gelu":
            return f"its feed-forwards have the activation {forward.activation}"
    shapes = {(a.num_heads, a.query.out_features) for a in _attentions(layers)}
    return None if len(shapes) == 1 else "its layers have different heads"


def _attentions(layers: list[nn.Module]) -> list[MultiHeadAttention]:
    return [part for layer in layers for part in layer.modules() if isinstance(part, MultiHeadAttention)]


def _decoder_layer(layer: DecoderLayer) -> Arrays:
    cross, heads = layer.cross_attention, layer.cross_attention.num_heads
    return {
        **_self_attention(layer.self_norm, layer.self_attention),
        **pack_norm("cross_norm", layer.cross_norm),
        **pack_matrix("cross_query", *_head_rows([cross.query], heads)),
        **pack_matrix("cross_memory", *_head_rows([cross.key, cross.value], heads)),
        **pack_matrix("cross_out", _head_inputs(cross.out, heads), cross.out.bias),
        **_feed_forward(layer.feed_forward),
    }


def _encoder_layer(layer: EncoderLayer) -> Arrays:
    return {
        **_self_attention(layer.self_norm, layer.self_attention),
        **_feed_forward(layer.feed_forward),
    }


def _self_attention(norm: nn.LayerNorm, attention: MultiHeadAttention) -> Arrays:
    heads = attention.num_heads
    projections = [attention.query, attention.key, attention.value]
    return {
        **pack_norm("self_norm", norm),
        **pack_matrix("self_heads", *_head_rows(projections, heads)),
        **pack_matrix("self_out", _head_inputs(attention.out, heads), attention.out.bias),
    }


def _feed_forward(forward: FeedForward) -> Arrays:
    return {
        **pack_norm("feed_forward.norm", forward.norm),
        **pack_matrix("feed_forward.expand", forward.expand.weight, forward.expand.bias),
        **pack_matrix("feed_forward.contract", forward.contract.weight, forward.contract.bias),
    }


def _head_rows(projections: list[nn.Linear], heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of projections one after another, every head padded to whole blocks of rows."""
    weights, biases = [], []
    for projection in projections:
        bias = projection.bias
        if bias is None:
            bias = projection.weight.new_zeros(projection.out_features)
        weights.append(pad(projection.weight.detach().unflatten(0, (heads, -1)), 1, BLOCK).flatten(0, 1))
        biases.append(pad(bias.detach().unflatten(0, (heads, -1)), 1, BLOCK).flatten())
    return torch.cat(weights), torch.cat(biases)


def _head_inputs(out: nn.Linear, heads: int) -> Tensor:
    """Weight of an output projection whose inputs are heads padded to whole blocks."""
    return pad(out.weight.detach().unflatten(1, (heads, -1)), 2, BLOCK).flatten(1)
