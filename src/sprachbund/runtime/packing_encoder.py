"""Weights of an encoder's layers in the order in which the native kernels read them.

Transformer layers, as in Whisper, and conformer layers. The halves in which a conformer adds its feed-forwards are
taken into their last matrices. Shapes: D width, K taps of a convolution.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.conformer import ConformerLayer, ConvolutionModule, Subsampling
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.runtime.native_options import WeightNumbers
from sprachbund.runtime.packing import (
    BLOCK,
    Arrays,
    LayersShape,
    pack_feed_forward,
    pack_linear,
    pack_matrix,
    pack_norm,
    pack_self_attention,
    pad,
    why_not,
)


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
        taps: of each.
        strides: of each.
    """

    channels: int
    width: int
    taps: list[int]
    strides: list[int]

    def sizes(self) -> dict[str, Any]:
        """As keyword arguments of the compiled class."""
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


def stem_of(encoder: nn.Module | None) -> list[nn.Conv1d]:
    """The convolutions before an encoder's layers, each with GELU behind, where the kernels can run them; else none."""
    subsampling = getattr(encoder, "subsampling", None)
    if type(subsampling) is Subsampling:
        return list(subsampling.convolutions)  # type: ignore[arg-type]
    # Whisper's, told by its parts: importing the family would cost every start of the others.
    pair = [getattr(encoder, name, None) for name in ("conv1", "conv2")]
    return pair if all(type(part) is nn.Conv1d for part in pair) else []  # type: ignore[return-value]


def why_not_encoder(encoder: nn.Module | None) -> str | None:
    """Why the native kernels cannot run an encoder's layers; None when they can."""
    layers = getattr(encoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return f"it is of the kind {type(encoder).__name__}"
    if reason := why_not(list(layers), EncoderLayer, ConformerLayer):
        return reason
    if not stem_of(encoder):
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
    """A stack of layers, linear ones in the numbers asked for, and the norm behind it if they are a transformer's."""
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
