"""Encoders and decoders of text-to-text translators on our own layers, so that every search and engine works on them.

Four kinds of public checkpoints are built of them. They differ from `sprachbund.nn.decoder.TextDecoder` as follows:

| kind | embeddings | positions | norms | on the logits |
|---|---|---|---|---|
| M2M-100, NLLB, SeamlessM4T (arXiv 2010.11125, 2207.04672, 2308.11596) | scaled | sinusoids | before each part | |
| mBART (arXiv 2001.08210) | scaled, then a norm | learned | before each part | a bias |
| Marian (arXiv 1804.00344) | scaled | sinusoids | behind each part, none behind the layers | a bias |

Shapes: B sources, R rows, S source tokens, U target tokens, D width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.decoder import DecoderLayer, TextDecoder, allowed_frames
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.feed_forward import ACTIVATIONS, Activation, Route
from sprachbund.nn.limits import POSITIONS, Flag, Heads, InnerWidth, Layers, Share, SomeLayers, Width


class TextToTextShape(BaseModel):
    """Sizes; the defaults are those of mBART-50 (arXiv 2008.00401).

    Attributes:
        width: D of encoder and decoder.
        num_encoder_heads: H of the encoder.
        num_decoder_heads: H of the decoder.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        encoder_feed_forward_width: hidden width of each encoder layer.
        decoder_feed_forward_width: hidden width of each decoder layer.
        activation: activation of the feed-forwards.
        scaled: whether embeddings are multiplied by the root of D.
        positions: longest row of tokens, on either side.
        dropout: after each feed-forward, in training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1024
    num_encoder_heads: Heads = 16
    num_decoder_heads: Heads = 16
    num_encoder_layers: Layers = 12
    num_decoder_layers: SomeLayers = 12
    encoder_feed_forward_width: InnerWidth = 4096
    decoder_feed_forward_width: InnerWidth = 4096
    activation: Activation = "relu"
    scaled: Flag = True
    positions: int = Field(default=1024, strict=True, ge=2, le=POSITIONS.most)
    dropout: Share = 0.1

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        for name, heads in (("encoder", self.num_encoder_heads), ("decoder", self.num_decoder_heads)):
            if self.width % heads:
                raise ValueError(f"num_{name}_heads {heads} does not divide width {self.width}")
        return self


class ScaledEmbedding(nn.Embedding):
    """An embedding whose rows are multiplied by `scale` where they are read, not where they are tied."""

    def __init__(self, num_embeddings: int, width: int, scale: float) -> None:
        # On the meta device, drawing numbers would import torch's compiler.
        super().__init__(num_embeddings, width, _weight=torch.empty(num_embeddings, width))
        self.scale = scale
        if not self.weight.is_meta:
            nn.init.normal_(self.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows (..., D) of `tokens` (...)."""
        return super().forward(tokens) * self.scale


def embedding(num_rows: int, shape: TextToTextShape) -> ScaledEmbedding:
    """Rows that are read as the shape has it."""
    return ScaledEmbedding(num_rows, shape.width, math.sqrt(shape.width) if shape.scaled else 1.0)


class FixedPositionDecoder(TextDecoder):
    """Tokens and a memory in, logits out; positions are a table that is never stored.

    Args:
        vocabulary_size: V.
        positions: (U, D), real numbers even where the weights are on the meta device.
        num_heads: H.
        num_layers: L.
        feed_forward_width: hidden width of every layer.
        scaled: whether embeddings are multiplied by the root of D.
        dropout: after each feed-forward, in training.
        activation: activation of the feed-forwards.
        layer_kind: class of the layers.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        positions: Tensor,
        num_heads: int,
        num_layers: int,
        feed_forward_width: int,
        scaled: bool,
        dropout: float,
        activation: Activation = "relu",
        layer_kind: type[DecoderLayer] = DecoderLayer,
    ) -> None:
        width = positions.shape[1]
        super().__init__(
            vocabulary_size=0,
            max_tokens=0,
            width=width,
            num_heads=num_heads,
            num_layers=num_layers,
            feed_forward_width=feed_forward_width,
            dropout=dropout,
            activation=activation,
            key_bias=True,
            layer_kind=layer_kind,
        )
        del self.positions
        self.register_buffer("positions", positions, persistent=False)
        self.embedding = ScaledEmbedding(vocabulary_size, width, math.sqrt(width) if scaled else 1.0)


class NormedEmbedding(TextDecoder):
    """A decoder with a norm in front of its layers and a bias on its logits.

    Attributes:
        embedding_norm: the norm.
        logits_bias: (V,).
    """

    embedding_norm: nn.LayerNorm
    logits_bias: Tensor

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the input of the first layer (R, U, D), of tokens (R, U) and vectors of positions (..., U, D)."""
        normed: Tensor = self.embedding_norm(super().embedded(tokens, positions))
        return normed


class CanaryDecoder(NormedEmbedding, FixedPositionDecoder):
    """Tokens and a memory in, logits out, as in Canary and Cohere ASR.

    Args:
        vocabulary_size: V.
        others: arguments of `FixedPositionDecoder`.
    """

    def __init__(self, *, vocabulary_size: int, **others: Any) -> None:
        super().__init__(vocabulary_size=vocabulary_size, **others)
        self.embedding_norm = nn.LayerNorm(self.positions.shape[1])
        self.logits_bias = nn.Parameter(torch.zeros(vocabulary_size))


class TextToTextEncoder(nn.Module):
    """Layers over embedded tokens and their positions, with a norm behind them.

    Args:
        shape: sizes.
        positions: (S, D), a table that is never stored; learned ones if None.
        key_bias: see `MultiHeadAttention`.
        layer_kind: class of the layers.
    """

    def __init__(
        self,
        shape: TextToTextShape,
        positions: Tensor | None = None,
        *,
        key_bias: bool = True,
        layer_kind: type[EncoderLayer] = EncoderLayer,
    ) -> None:
        super().__init__()
        if positions is None:
            self.positions = nn.Parameter(torch.empty(shape.positions, shape.width))
            if not self.positions.is_meta:
                nn.init.normal_(self.positions, std=0.02)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.layers = nn.ModuleList(
            layer_kind(
                shape.width,
                shape.num_encoder_heads,
                shape.encoder_feed_forward_width,
                dropout=shape.dropout,
                activation=shape.activation,
                key_bias=key_bias,
            )
            for _ in range(shape.num_encoder_layers)
        )
        self.norm: nn.Module = nn.LayerNorm(shape.width)

    def forward(self, embedded: Tensor, num_tokens: Tensor) -> Tensor:
        """States (B, S, D) of embedded tokens (B, S, D), of which the first `num_tokens` (B,) are valid."""
        x = self.before_layers(embedded + self.positions[: embedded.shape[1]])
        allowed = allowed_frames(x, num_tokens)
        for layer in self.layers:
            x = layer(x, allowed)
        states: Tensor = self.norm(x)
        return states

    def before_layers(self, x: Tensor) -> Tensor:
        """Return the input of the first layer (B, S, D), of embedded tokens with their positions (B, S, D)."""
        return x


# mBART. Of text-to-text checkpoints its bias on the keys is kept, so that they are written as they were read; it adds
# the same number to all scores of a query, and the softmax does not see that.


class MbartEncoder(TextToTextEncoder):
    """Pre-norm layers over embedded tokens, with learned positions and a norm before the first layer."""

    def __init__(self, shape: TextToTextShape, *, key_bias: bool = False) -> None:
        super().__init__(shape, key_bias=key_bias)
        self.embedding_norm = nn.LayerNorm(shape.width)

    def before_layers(self, x: Tensor) -> Tensor:  # noqa: D102 - see above
        normed: Tensor = self.embedding_norm(x)
        return normed


class MbartDecoder(NormedEmbedding):
    """Tokens and a memory in, logits out; output matrix tied to the embedding."""

    def __init__(self, vocabulary_size: int, shape: TextToTextShape, *, key_bias: bool = False) -> None:
        super().__init__(
            vocabulary_size=0,
            max_tokens=shape.positions,
            width=shape.width,
            num_heads=shape.num_decoder_heads,
            num_layers=shape.num_decoder_layers,
            feed_forward_width=shape.decoder_feed_forward_width,
            dropout=shape.dropout,
            activation=shape.activation,
            key_bias=key_bias,
        )
        self.embedding = embedding(vocabulary_size, shape)
        self.embedding_norm = nn.LayerNorm(shape.width)
        self.register_buffer("logits_bias", torch.zeros(vocabulary_size))


# Marian. The norm of a feed-forward lies behind it here, though the module is the one that has it in front.


class PostNormEncoderLayer(EncoderLayer):
    """Self-attention and feed-forward, each followed by its norm (arXiv 1706.03762, section 3.1)."""

    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """As `EncoderLayer.forward`, with the same arguments; feed-forwards are never split."""
        attention = self.self_attention
        x = self.self_norm(x + attention(x, *attention.keys_values(x), allowed))
        return _post_normed(self, x)


class PostNormDecoderLayer(DecoderLayer):
    """Self-attention, cross-attention and feed-forward, each followed by its norm (arXiv 1706.03762, section 3.1)."""

    def forward(
        self,
        x: Tensor,
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        allowed: Tensor | None,
        cross: tuple[Tensor, Tensor, Tensor | None],
        weights: list[Tensor] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        """As `DecoderLayer.forward`, with the same arguments; feed-forwards are never split."""
        keys, values = store(*self.self_attention.keys_values(x))
        x = self.self_norm(x + self.self_attention(x, keys, values, allowed))
        x = self.cross_norm(x + self.cross_attention(x, *cross, weights))
        return _post_normed(self, x)


def _post_normed(layer: EncoderLayer | DecoderLayer, x: Tensor) -> Tensor:
    part = layer.feed_forward
    y = part.contract(ACTIVATIONS[part.activation](part.expand(x)))
    normed: Tensor = part.norm(x + F.dropout(y, layer.dropout, layer.training))
    return normed


def marian_positions(length: int, width: int) -> Tensor:
    """Sines, then cosines, (length, width); a pair's rate is 10000^(-2i/D), i from 0 (arXiv 1706.03762, section 3.5).

    `sprachbund.nn.conformer.sinusoids` divides by one pair less, as fairseq does.
    """
    rates = 10_000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class MarianEncoder(TextToTextEncoder):
    """Post-norm layers over embedded tokens."""

    def __init__(self, shape: TextToTextShape, positions: Tensor) -> None:
        super().__init__(shape, positions, layer_kind=PostNormEncoderLayer)
        self.norm = nn.Identity()


class MarianDecoder(FixedPositionDecoder):
    """Tokens and a memory in, logits out; output matrix tied to the embedding."""

    logits_bias: Tensor

    def __init__(self, vocabulary_size: int, shape: TextToTextShape, positions: Tensor) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            positions=positions,
            num_heads=shape.num_decoder_heads,
            num_layers=shape.num_decoder_layers,
            feed_forward_width=shape.decoder_feed_forward_width,
            scaled=shape.scaled,
            dropout=shape.dropout,
            activation=shape.activation,
            layer_kind=PostNormDecoderLayer,
        )
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.register_buffer("logits_bias", torch.zeros(vocabulary_size))
