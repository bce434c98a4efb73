"""Encoder and decoder of mBART on our own layers, so that every search works on them (arXiv 2001.08210).

They differ from `sprachbund.nn` in a norm behind the embedding, scaled embeddings, and a bias on the logits. mBART's
bias on the keys is left out: it adds the same number to all scores of a query, and the softmax does not see that.
Shapes: B sources, R rows, S source tokens, U target tokens, D width, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.models.seamless.decoder import ScaledEmbedding
from sprachbund.models.token_mbart.shape import MbartShape
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.encoder import EncoderLayer


def embedding(num_rows: int, shape: MbartShape) -> ScaledEmbedding:
    """Rows that are read as the shape has it."""
    return ScaledEmbedding(num_rows, shape.width, math.sqrt(shape.width) if shape.scaled else 1.0)


class MbartEncoder(nn.Module):
    """Pre-norm layers over embedded tokens, with learned positions."""

    def __init__(self, shape: MbartShape) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(shape.positions, shape.width))
        self.embedding_norm, self.norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.layers = nn.ModuleList(
            EncoderLayer(
                shape.width,
                shape.num_encoder_heads,
                shape.encoder_feed_forward_width,
                dropout=shape.dropout,
                activation=shape.activation,
            )
            for _ in range(shape.num_encoder_layers)
        )

    def forward(self, embedded: Tensor, num_tokens: Tensor) -> Tensor:
        """States (B, S, D) of embedded tokens (B, S, D), of which the first `num_tokens` (B,) are valid."""
        x = self.embedding_norm(embedded + self.positions[: embedded.shape[1]])
        allowed = allowed_frames(x, num_tokens)
        for layer in self.layers:
            x = layer(x, allowed)
        states: Tensor = self.norm(x)
        return states


class MbartDecoder(TextDecoder):
    """Tokens and a memory in, logits out; output matrix tied to the embedding."""

    logits_bias: Tensor

    def __init__(self, vocabulary_size: int, shape: MbartShape) -> None:
        super().__init__(
            vocabulary_size=0,
            max_tokens=shape.positions,
            width=shape.width,
            num_heads=shape.num_decoder_heads,
            num_layers=shape.num_decoder_layers,
            feed_forward_width=shape.decoder_feed_forward_width,
            dropout=shape.dropout,
        )
        for layer in self.layers:
            each: Any = layer
            each.feed_forward.activation = shape.activation
        self.embedding = embedding(vocabulary_size, shape)
        self.embedding_norm = nn.LayerNorm(shape.width)
        self.register_buffer("logits_bias", torch.zeros(vocabulary_size))

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What the first layer gets (R, U, D) of tokens (R, U) and the vectors of their positions (..., U, D)."""
        x: Tensor = self.embedding_norm(super().embedded(tokens, positions))
        return x

    def outputs(self, x: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D) that have been through a last norm."""
        return F.linear(x, self.embedding.weight, self.logits_bias)
