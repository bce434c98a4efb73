"""Packs weights of decoders and encoders in the order in which the native kernels read them (native/kernels.hpp).

A matrix becomes int8, one scale per output row, in blocks of 16 rows x 4 inputs, or, where that was asked for, codes of
4 bits; heads are padded to multiples of 16 so that a block never holds parts of two. Encoders have transformer layers,
as in Whisper, or conformer layers; the factor 1/2 of a conformer's feed-forwards is multiplied into their last
matrices.

Shapes: D width, H heads, W width of a head, padded; K taps of a convolution, M channels, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.engines.options import WeightNumbers
from sprachbund.models.weights import quantize_rows
from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.conformer import ConformerLayer, ConvolutionModule
from sprachbund.nn.decoder import DecoderLayer, TextDecoder
from sprachbund.nn.drafts import Parasite, ParasiteBlock
from sprachbund.nn.encoder import ConvolutionalEncoder, EncoderLayer
from sprachbund.nn.feed_forward import ACTIVATIONS, FeedForward, SplitFeedForward
from sprachbund.nn.quantized import BlockWeights, quantize_blocks
from sprachbund.nn.text_to_text import (
    CanaryDecoder,
    FixedPositionDecoder,
    MbartDecoder,
    NormedEmbedding,
    ScaledEmbedding,
)

BLOCK = 16
"""Rows of a matrix, positions of a cache and dimensions of a head come in multiples of this."""
OFFSET = 128
"""Number added to signed 8-bit inputs to make them unsigned, as the processor's dot product wants them."""
_PARTS = (nn.Linear, nn.LayerNorm, nn.Conv1d, FeedForward, MultiHeadAttention, ConvolutionModule)
DECODERS = (TextDecoder, FixedPositionDecoder, CanaryDecoder, MbartDecoder)
"""Classes of decoders that can be packed, if their layers can; not their subclasses."""
_EPSILON = 1e-5  # as the kernels have it
_INPUTS = 4  # that the dot product takes at once
_FOUR_INPUTS = 2 * _INPUTS  # whose codes lie in the same bytes

Arrays = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LayersShape:
    """Sizes of a stack of layers.

    Attributes:
        width: D.
        heads: H.
        head_width: width of a head, without padding.
        num_layers: L.
        activation: activation of the feed-forwards.
    """

    width: int
    heads: int
    head_width: int
    num_layers: int
    activation: str

    def sizes(self) -> dict[str, Any]:
        """Sizes as keyword arguments of the compiled classes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DecoderShape(LayersShape):
    """Sizes of a decoder: its layers, V, the longest row, the width of the memory, the scale of embeddings."""

    vocabulary_size: int
    max_tokens: int
    memory_width: int
    embedding_scale: float


def pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Pad with zeros at the end of a dimension.

    Args:
        x: any shape.
        dim: the dimension.
        multiple: number that its size becomes a multiple of.
    """
    missing = -x.shape[dim] % multiple
    return x if missing == 0 else F.pad(x, (0, 0) * (x.ndim - 1 - dim % x.ndim) + (0, missing))


def pack_matrix(name: str, weight: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> Arrays:
    """A linear layer in 8 bits, as NAME.values, .scale, .offset and .bias.

    Args:
        name: prefix of the arrays.
        weight: (rows, inputs).
        bias: (rows,), zeros if None.
        factor: multiplies the outputs.
    """
    values, scale = quantize_rows(weight)
    bias = torch.zeros_like(scale) if bias is None else bias.detach().float()
    values = pad(pad(values, 0, BLOCK), 1, _INPUTS)
    blocks = values.view(values.shape[0] // BLOCK, BLOCK, -1, _INPUTS).transpose(1, 2).contiguous()
    return {
        f"{name}.values": blocks,
        f"{name}.scale": pad(scale * factor, 0, BLOCK) * (values != 0).any(1),
        f"{name}.offset": OFFSET * values.sum(1, dtype=torch.int32),
        f"{name}.bias": pad(bias * factor, 0, BLOCK).contiguous(),
    }


def pack_four(name: str, weight: Tensor, bias: Tensor | None = None, factor: float = 1.0) -> Arrays:
    """As `pack_matrix`, arguments included, in 4 bits: NAME.codes, .steps (scales of 32 inputs each, bf16), .zeros.

    Raises:
        SprachbundError: a weight with numbers that are not finite.
    """
    return pack_blocks(name, quantize_blocks(weight), bias, factor)


def pack_blocks(name: str, quantized: BlockWeights, bias: Tensor | None, factor: float = 1.0) -> Arrays:
    """The same of codes that are there already, in 4 bits and blocks of 32 inputs.

    Args:
        name: prefix of the arrays.
        quantized: the weight.
        bias: (rows,), zeros if None.
        factor: multiplies the outputs.
    """
    rows, codes, zeros = len(quantized.codes), quantized.plain_codes(), quantized.plain_zeros()
    steps = (codes.double() - zeros.double()[..., None]) * quantized.scales.double()[..., None]
    bias = torch.zeros(rows) if bias is None else bias.detach().float()
    inputs = quantized.num_inputs + -quantized.num_inputs % _FOUR_INPUTS
    pairs = pad(codes.flatten(1)[:, :inputs], 0, BLOCK).view(-1, BLOCK, inputs // _FOUR_INPUTS, 2, _INPUTS)
    scales = pad(quantized.scales.view(torch.int16), 0, BLOCK).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    points = pad(zeros, 0, BLOCK).view(
        -1, 2, BLOCK // 2, zeros.shape[1]
    )  # the halves of a byte: rows 0 and 8, ...
    return {
        f"{name}.codes": (pairs[..., 0, :] | pairs[..., 1, :] << 4).transpose(1, 2).contiguous(),
        f"{name}.steps": scales.contiguous(),
        f"{name}.zeros": (points[:, 0] | points[:, 1] << 4).transpose(1, 2).contiguous(),
        f"{name}.scale": pad(torch.full((rows,), factor), 0, BLOCK),
        f"{name}.offset": pad(OFFSET * steps.sum((1, 2)).float(), 0, BLOCK),
        f"{name}.bias": pad(bias * factor, 0, BLOCK).contiguous(),
    }


_PACK = {"int8": pack_matrix, "int4": pack_four}
"""Functions that pack a linear layer, by the numbers asked for."""


def pack_linear(
    name: str, weight: Tensor, bias: Tensor | None, weights: WeightNumbers, factor: float = 1.0
) -> Arrays:
    """A linear layer in the numbers asked for.

    Args:
        name: prefix of the arrays.
        weight: (rows, inputs).
        bias: (rows,), zeros if None.
        weights: numbers, "int8" or "int4".
        factor: multiplies the outputs.
    """
    return _PACK[weights](name, weight, bias, factor)


def pack_norm(name: str, norm: nn.LayerNorm) -> Arrays:
    """Gain and bias (D,) as NAME.gain and NAME.bias."""
    parts = {f"{name}.gain": norm.weight, f"{name}.bias": norm.bias}
    return {key: pad(value.detach().float(), 0, BLOCK).clone() for key, value in parts.items()}


def decoder_shape(decoder: TextDecoder) -> DecoderShape:
    """Sizes of a decoder whose `why_not` is None."""
    layers: list[DecoderLayer] = list(decoder.layers)  # type: ignore[arg-type]
    first = layers[0]
    vocabulary_size, width = decoder.embedding.weight.shape
    return DecoderShape(
        width=width,
        heads=first.self_attention.num_heads,
        head_width=width // first.self_attention.num_heads,
        num_layers=len(layers),
        activation=first.feed_forward.activation,
        vocabulary_size=vocabulary_size,
        max_tokens=decoder.max_tokens,
        memory_width=first.cross_attention.key.in_features,
        embedding_scale=float(decoder.embedding.scale)
        if isinstance(decoder.embedding, ScaledEmbedding)
        else 1.0,
    )


def pack_decoder(decoder: TextDecoder, weights: WeightNumbers = "int8") -> tuple[DecoderShape, Arrays]:
    """A decoder whose `why_not` is None, its linear layers in the numbers asked for."""
    layers: list[DecoderLayer] = list(decoder.layers)  # type: ignore[arg-type]
    arrays = pack_norm("norm", decoder.norm)
    arrays |= pack_matrix("vocabulary", decoder.embedding.weight, decoder.logits_bias)
    if isinstance(decoder, NormedEmbedding):
        arrays |= pack_norm("embedding_norm", decoder.embedding_norm)
    arrays["positions"] = decoder.positions.detach().float().contiguous()
    for i, layer in enumerate(layers):
        arrays |= {f"layers.{i}.{name}": array for name, array in _decoder_layer(layer, weights).items()}
    return decoder_shape(decoder), arrays


def why_not(layers: Sequence[nn.Module], *kinds: type[nn.Module]) -> str | None:
    """Reason why the native kernels cannot run layers that should all be of one of `kinds`; None when they can."""
    if not layers:
        return "it has no layers"
    if strange := [
        layer for layer in layers if type(layer) is not type(layers[0]) or type(layer) not in kinds
    ]:
        return f"it has layers of the kind {type(strange[0]).__name__}"
    parts = [part for layer in layers for part in list(layer.modules())[1:]]
    if any(isinstance(part, SplitFeedForward) for part in parts):
        return "its feed-forwards are split by language"
    if (reason := why_not_parts(parts, _PARTS)) is not None:
        return reason
    shapes = {(a.num_heads, a.query.out_features) for a in parts if isinstance(a, MultiHeadAttention)}
    return None if len(shapes) == 1 else "its layers have different heads"


def why_not_parts(parts: Sequence[nn.Module], kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Reason why the native kernels cannot run parts of layers that should be of `kinds`; None when they can."""
    if other := [part for part in parts if type(part) not in kinds]:
        return f"its layers have parts of the kind {type(other[0]).__name__}"
    if any(isinstance(part, nn.LayerNorm) and part.eps != _EPSILON for part in parts):
        return f"its norms have another epsilon than {_EPSILON:g}"
    activations = {part.activation for part in parts if isinstance(part, FeedForward)}
    if len(activations) > 1 or not activations <= ACTIVATIONS.keys():
        return f"the activations of its feed-forwards are {' and '.join(sorted(activations))}"
    return None


def pack_parasite(parasite: Parasite, weights: WeightNumbers = "int8") -> Arrays:
    """The blocks of a parasite and its last norm; embedding, positions and output matrix are its decoder's."""
    arrays, shape = pack_norm("norm", parasite.norm), parasite.shape
    blocks: list[ParasiteBlock] = list(parasite.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        own = pack_norm("self_norm", block.query_norm) if isinstance(block.query_norm, nn.LayerNorm) else {}
        own |= {
            **pack_linear("self_heads", *_head_rows([block.query], shape.num_heads), weights),
            **pack_linear("self_out", _head_inputs(block.out, shape.num_heads), block.out.bias, weights),
            **pack_norm("read_norm", block.norm),
            **_cross_and_forward(block, weights),
        }
        arrays |= {f"layers.{i}.{name}": array for name, array in own.items()}
    return arrays


def _decoder_layer(layer: DecoderLayer, weights: WeightNumbers) -> Arrays:
    own = pack_self_attention(layer.self_norm, layer.self_attention, weights)
    return own | _cross_and_forward(layer, weights)


def _cross_and_forward(layer: DecoderLayer | ParasiteBlock, weights: WeightNumbers) -> Arrays:
    cross, heads = layer.cross_attention, layer.cross_attention.num_heads
    return {
        **pack_norm("cross_norm", layer.cross_norm),
        **pack_linear("cross_query", *_head_rows([cross.query], heads), weights),
        **pack_linear("cross_memory", *_head_rows([cross.key, cross.value], heads), weights),
        **pack_linear("cross_out", _head_inputs(cross.out, heads), cross.out.bias, weights),
        **pack_feed_forward("feed_forward", layer.feed_forward, weights),
    }


def pack_self_attention(norm: nn.LayerNorm, attention: MultiHeadAttention, weights: WeightNumbers) -> Arrays:
    """A norm and the attention behind it as self_norm, self_heads (queries, keys, values) and self_out.

    Args:
        norm: norm over D.
        attention: attention with H heads.
        weights: numbers of the linear layers.
    """
    heads = attention.num_heads
    projections = [attention.query, attention.key, attention.value]
    return {
        **pack_norm("self_norm", norm),
        **pack_linear("self_heads", *_head_rows(projections, heads), weights),
        **pack_linear("self_out", _head_inputs(attention.out, heads), attention.out.bias, weights),
    }


def pack_feed_forward(name: str, forward: FeedForward, weights: WeightNumbers, factor: float = 1.0) -> Arrays:
    """A feed-forward as NAME.norm, .expand and .contract.

    Args:
        name: prefix of the arrays.
        forward: the module.
        weights: numbers of the linear layers.
        factor: multiplies the outputs.
    """
    return {
        **pack_norm(f"{name}.norm", forward.norm),
        **pack_linear(f"{name}.expand", forward.expand.weight, forward.expand.bias, weights),
        **pack_linear(f"{name}.contract", forward.contract.weight, forward.contract.bias, weights, factor),
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


# Encoders.


@dataclass(frozen=True, kw_only=True)
class EncoderShape(LayersShape):
    """Sizes of a stack of layers.

    Attributes:
        kernel_size: K of a conformer's convolutions; 0 says that the layers are a transformer's, with a norm behind.
    """

    kernel_size: int = 0


@dataclass(frozen=True, kw_only=True)
class StemShape:
    """Sizes of the convolutions before the layers.

    Attributes:
        channels: M.
        width: D.
        taps: kernel sizes of the convolutions.
        strides: strides of the convolutions.
    """

    channels: int
    width: int
    taps: list[int]
    strides: list[int]

    def sizes(self) -> dict[str, Any]:
        """Sizes as keyword arguments of the compiled class."""
        return asdict(self)


def stem_shape(convolutions: Sequence[nn.Conv1d]) -> StemShape:
    """Sizes of convolutions that follow each other."""
    return StemShape(
        channels=convolutions[0].in_channels,
        width=convolutions[0].out_channels,
        taps=[c.kernel_size[0] for c in convolutions],
        strides=[c.stride[0] for c in convolutions],
    )


def pack_stem(convolutions: Sequence[nn.Conv1d]) -> Arrays:
    """Convolutions as matrices 0, 1, ... whose inputs are taps x channels, the channels padded."""
    arrays: Arrays = {}
    for i, convolution in enumerate(convolutions):
        weight = pad(convolution.weight.detach().transpose(1, 2), 2, BLOCK).flatten(1)
        arrays |= pack_matrix(str(i), weight, convolution.bias)
    return arrays


def why_not_encoder(encoder: nn.Module | None) -> str | None:
    """Reason why the native kernels cannot run an encoder's layers; None when they can."""
    if not isinstance(encoder, ConvolutionalEncoder):
        return f"it is of the kind {type(encoder).__name__}"
    layers = list(encoder.layers)
    if reason := why_not(layers, EncoderLayer, ConformerLayer):
        return reason
    if not encoder.convolutions:
        return "what lies before its layers is unknown"
    sizes = {layer.convolution.depthwise.kernel_size for layer in layers if isinstance(layer, ConformerLayer)}
    return None if len(sizes) <= 1 else "its convolutions have different sizes"


def encoder_shape(layers: Sequence[nn.Module]) -> EncoderShape:
    """Sizes of layers whose `why_not_encoder` is None."""
    first: Any = layers[0]
    conformer = isinstance(first, ConformerLayer)
    attention: MultiHeadAttention = first.attention if conformer else first.self_attention
    width = attention.query.in_features
    return EncoderShape(
        width=width,
        heads=attention.num_heads,
        head_width=width // attention.num_heads,
        num_layers=len(layers),
        activation=(first.feed_forward_in if conformer else first.feed_forward).activation,
        kernel_size=first.convolution.depthwise.kernel_size[0] if conformer else 0,
    )


def pack_encoder(
    layers: Sequence[nn.Module], norm: nn.LayerNorm | None = None, weights: WeightNumbers = "int8"
) -> tuple[EncoderShape, Arrays]:
    """Sizes and arrays of a stack of layers.

    Args:
        layers: layers of an encoder.
        norm: norm behind a transformer's layers; None for conformers.
        weights: numbers of the linear layers.
    """
    arrays = {} if norm is None else pack_norm("norm", norm)
    for i, layer in enumerate(layers):
        arrays |= {f"layers.{i}.{name}": array for name, array in _layer(layer, weights).items()}
    return encoder_shape(layers), arrays


def _layer(layer: nn.Module, weights: WeightNumbers) -> Arrays:
    if isinstance(layer, ConformerLayer):
        return _conformer_layer(layer, weights)
    assert isinstance(layer, EncoderLayer)
    return {
        **pack_self_attention(layer.self_norm, layer.self_attention, weights),
        **pack_feed_forward("feed_forward", layer.feed_forward, weights),
    }


def _conformer_layer(layer: ConformerLayer, weights: WeightNumbers) -> Arrays:
    convolution = pack_convolution(layer.convolution, weights)
    return {
        **pack_feed_forward("feed_forward_in", layer.feed_forward_in, weights, 0.5),
        **pack_self_attention(layer.attention_norm, layer.attention, weights),
        **{f"convolution.{name}": array for name, array in convolution.items()},
        **pack_feed_forward("feed_forward", layer.feed_forward_out, weights, 0.5),
        **pack_norm("norm", layer.norm),
    }


def pack_convolution(convolution: ConvolutionModule, weights: WeightNumbers = "int8") -> Arrays:
    """A convolution module as norm, gate (what is gated, what gates it), taps (K, D padded), bias, inner_norm, out."""
    gate, depthwise = convolution.gate, convolution.depthwise
    weight, bias = (
        pad(p.detach().unflatten(0, (2, -1)), 1, BLOCK).flatten(0, 1) for p in (gate.weight, gate.bias)
    )
    assert depthwise.bias is not None
    return {
        **pack_norm("norm", convolution.norm),
        **pack_linear("gate", weight, bias, weights),
        "taps": pad(depthwise.weight.detach().float()[:, 0].T, 1, BLOCK).contiguous(),
        "bias": pad(depthwise.bias.detach().float(), 0, BLOCK).clone(),
        **pack_norm("inner_norm", convolution.inner_norm),
        **pack_linear("out", convolution.out.weight, convolution.out.bias, weights),
    }
