"""The text decoder of Seamless (that of NLLB) on our own decoder, so that every search works on it.

It differs from `sprachbund.nn.decoder.TextDecoder` in fixed sinusoidal positions, scaled embeddings, ReLU, and
a bias on the keys.
"""

import math

import torch
from torch import Tensor, nn

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.conformer import sinusoids
from sprachbund.nn.decoder import DecoderLayer, TextDecoder
from sprachbund.nn.feed_forward import FeedForward


class ScaledEmbedding(nn.Embedding):
    """An embedding whose rows are multiplied by `scale` where they are read, not where they are tied."""

    def __init__(self, num_embeddings: int, width: int, scale: float) -> None:
        super().__init__(num_embeddings, width)
        self.scale = scale

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows (..., D) of `tokens` (...)."""
        return super().forward(tokens) * self.scale


class SeamlessDecoderLayer(DecoderLayer):
    """Pre-norm self-attention, cross-attention and feed-forward with ReLU (arXiv 2308.11596, section 4)."""

    def __init__(self, width: int, num_heads: int, feed_forward_width: int, *, dropout: float) -> None:
        with torch.device("meta"):  # what is replaced below
            super().__init__(width, num_heads, feed_forward_width, memory_width=width, dropout=dropout)
        self.self_norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads, key_bias=True)
        self.cross_attention = MultiHeadAttention(width, num_heads, key_bias=True)
        self.feed_forward = FeedForward(width, feed_forward_width, "relu")


class SeamlessDecoder(TextDecoder):
    """Tokens and a memory in, logits out; output matrix tied to the embedding.

    Args:
        vocabulary_size: V.
        max_tokens: longest row, U.
        width: D.
        num_heads: H.
        num_layers: L.
        feed_forward_width: of every layer.
        first_position: row of the table of sinusoids that the first token gets; padding has those before.
        scaled: whether embeddings are multiplied by the root of D.
        dropout: after each feed-forward, in training.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_tokens: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feed_forward_width: int,
        first_position: int,
        scaled: bool,
        dropout: float,
    ) -> None:
        super().__init__(
            vocabulary_size=0, max_tokens=0, width=width, num_heads=num_heads, num_layers=0, dropout=dropout
        )
        del self.positions
        with torch.device("cpu"):  # it is never stored, so it has to be real in a model built on meta too
            table = sinusoids(first_position + max_tokens, width)[first_position:]
        self.register_buffer("positions", table, persistent=False)
        self.embedding = ScaledEmbedding(vocabulary_size, width, math.sqrt(width) if scaled else 1.0)
        self.layers = nn.ModuleList(
            SeamlessDecoderLayer(width, num_heads, feed_forward_width, dropout=dropout)
            for _ in range(num_layers)
        )
