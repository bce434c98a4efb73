"""Encoders of convolutions and layers, and the plain pre-norm transformer layer that Whisper's is made of.

Shapes: T frames behind the convolutions, D width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.decoder import TextDecoder, allowed_frames
from sprachbund.nn.feed_forward import Activation, FeedForward, Route, is_split


class EncoderLayers(nn.ModuleList):
    """The layers of an encoder, one after the other, under one or several routes.

    A route of n B rows asks for every row under n routes, row b's being b, b + B, ...: what lies before the first
    split is then computed once, and n B rows come out.
    """

    def forward(self, x: Tensor, visible: Tensor | None = None, route: Route | None = None) -> Tensor:
        """Return the states (n B, T, D) behind the last layer.

        Args:
            x: (B, T, D).
            visible: mask (B, ...) of the layers.
            route: languages of the rows, where feed-forwards are split by them.
        """
        for states in self._behind_each(x, visible, route):
            x = states
        return x

    def with_means(self, x: Tensor, visible: Tensor, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """Return the states behind the last layer, and the means (n B, N + 1, D) of `x` and of those behind each layer.

        The means are over the frames that are visible, and have no gradient.

        Args:
            x: (B, T, D).
            visible: boolean (B, T), or (B, 1, 1, T): True on valid frames.
            route: languages of the rows.
        """
        valid = visible.flatten(1)[..., None]
        means = [mean_frame(x, valid)]
        for states in self._behind_each(x, visible, route):
            x = states
            means.append(mean_frame(x, valid.repeat(len(x) // len(valid), 1, 1)))
        return x, torch.stack([mean.repeat(len(x) // len(mean), 1) for mean in means], dim=1)

    def _behind_each(self, x: Tensor, visible: Tensor | None, route: Route | None) -> Iterator[Tensor]:
        num_routes = 1 if route is None or route.source is None else route.source.shape[0] // x.shape[0]
        for layer in self:
            if num_routes > 1 and is_split(layer):
                x = x.repeat(num_routes, 1, 1)
                visible = None if visible is None else visible.repeat(num_routes, *[1] * (visible.ndim - 1))
                num_routes = 1
            x = layer(x, visible, route)
            yield x


def mean_frame(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean (B, D) of x (B, T, D) over the frames that are valid, boolean (B, T, 1); in fp32."""
    return (x.detach().float() * valid).sum(1) / valid.sum(1).clamp(min=1)


class ConvolutionalEncoder(nn.Module):
    """The base of encoders that are convolutions with GELU behind each, then a stack of layers.

    The native engine computes such encoders; what it has to know of them stands here.

    Attributes:
        layers: all of one class.
    """

    layers: EncoderLayers

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """The convolutions before the layers, in order; empty where something else is in their place."""
        raise NotImplementedError

    @property
    def position_table(self) -> Tensor | None:
        """The table (T, D) that is added to the frames behind the convolutions; None where it is computed."""
        return None

    @property
    def final_norm(self) -> nn.LayerNorm | None:
        """The norm behind the layers, if there is one."""
        return None


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward (arXiv 1706.03762, section 3.1; pre-norm).

    Args:
        width: D.
        num_heads: H.
        feed_forward_width: width of the feed-forward.
        dropout: after the feed-forward, in training.
        activation: activation of the feed-forward.
        key_bias: see `MultiHeadAttention`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        feed_forward_width: int,
        *,
        dropout: float = 0.0,
        activation: Activation = "gelu",
        key_bias: bool = False,
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads, key_bias=key_bias)
        self.feed_forward = FeedForward(width, feed_forward_width, activation)
        self.dropout = dropout

    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """One layer on x (B, T, D); `allowed` is boolean (B, 1, 1, T), False on padding; (B, T, D).

        `route` holds the languages of the rows.
        """
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, *self.self_attention.keys_values(normed), allowed)
        return x + F.dropout(self.feed_forward(x, route), self.dropout, self.training)


# A text encoder that stands in for the speech encoder while a model is trained (arXiv 2508.11189, section
# 2.1).
#
# It reads what was said and feeds the same decoder: the easier task shows the decoder what to say of the
# speech. Shapes: B utterances, S transcript tokens, D width, H heads.


class TextEncoder(nn.Module):
    """Pre-norm layers without a causal mask, positions of its own and a last norm; the token embedding is passed in.

    Args:
        max_tokens: longest transcript, S.
        width: D.
        num_heads: H.
        num_layers: number of layers of the encoder.
        feed_forward_width: hidden width of every layer.
        activation: activation of the feed-forwards.
        memory_width: width M of the states; D if None. A linear layer behind the norm brings them there.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feed_forward_width: int,
        activation: Activation = "gelu",
        memory_width: int | None = None,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, feed_forward_width, activation=activation)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        same = memory_width in (None, width)
        self.to_memory = nn.Identity() if same else nn.Linear(width, memory_width or width)
        if not self.positions.is_meta:
            nn.init.normal_(self.positions, std=0.02)

    @classmethod
    def like(cls, decoder: TextDecoder, num_layers: int) -> "TextEncoder":
        """One whose layers have the shape of a decoder's, and start from its first ones; its states fit that decoder.

        Raises:
            ValueError: more layers than the decoder has, or none.
        """
        if not 1 <= num_layers <= len(decoder.layers):
            raise ValueError(
                f"{num_layers} text layers cannot start from {len(decoder.layers)} decoder layers; "
                f"give 1 to {len(decoder.layers)}"
            )
        layer: Any = decoder.layers[0]
        width = decoder.embedding.embedding_dim
        feed_forward: nn.Module = layer.feed_forward
        plain = feed_forward if isinstance(feed_forward, FeedForward) else None
        encoder = cls(
            max_tokens=decoder.max_tokens,
            width=width,
            num_heads=layer.self_attention.num_heads,
            num_layers=num_layers,
            # One that is split by language has no width of its own.
            feed_forward_width=4 * width if plain is None else plain.expand.out_features,
            activation="gelu" if plain is None else plain.activation,
            memory_width=layer.cross_attention.key.in_features,
        )
        encoder.start_from(decoder)
        return encoder

    @torch.no_grad()
    def start_from(self, decoder: TextDecoder) -> None:
        """Copy self-attention and feed-forward of the decoder's first layers, and its positions; the norm is new."""
        for own, theirs in zip(self._layers(), list(decoder.layers), strict=False):
            layer: Any = theirs
            own.self_norm.load_state_dict(layer.self_norm.state_dict())
            # Some decoders have a bias on the keys, which changes nothing behind the softmax.
            own.self_attention.load_state_dict(layer.self_attention.state_dict(), strict=False)
            if type(layer.feed_forward) is FeedForward:
                own.feed_forward.load_state_dict(layer.feed_forward.state_dict())
        self.positions.copy_(decoder.positions)

    def forward(self, embedding: nn.Embedding, tokens: Tensor, num_tokens: Tensor) -> Tensor:
        """States (B, S, M) of transcripts `tokens` (B, S) of which the first `num_tokens` (B,) are valid.

        Args:
            embedding: embedding of the decoder.
            tokens: (B, S).
            num_tokens: valid tokens (B,).
        """
        x = embedding(tokens) + self.positions[: tokens.shape[1]]
        allowed = allowed_frames(x, num_tokens)
        for layer in self._layers():
            x = layer(x, allowed)
        states: Tensor = self.to_memory(self.norm(x))
        return states

    def _layers(self) -> list[EncoderLayer]:
        return list(self.layers)  # type: ignore[arg-type]
