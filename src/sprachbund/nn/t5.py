"""Encoder and decoder of T5 v1.1, as MADLAD-400 has them (arXiv 1910.10683, 2002.05202, 2309.04662).

They differ from `sprachbund.nn.text_to_text`: positions are relative and added to the scores of attention, which are
not scaled; norms have no mean and no bias, linear layers no bias; feed-forwards are gated; heads together may be wider
than the states; and the output matrix is one of its own.

Shapes: B sources, R rows, S source tokens, U or Q target tokens, C cache, D width, H heads, K width of a head, V
vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.decoder import DecoderCache, TextDecoder, allowed_frames
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.limits import Heads, InnerWidth, Layers, Share, Width


class T5Shape(BaseModel):
    """Sizes; the defaults are those of MADLAD-400 3B.

    Attributes:
        width: D.
        num_heads: H.
        head_width: K; H K need not be D.
        feed_forward_width: hidden width of every layer.
        num_encoder_layers: number of layers of the encoder.
        num_decoder_layers: number of layers of the decoder.
        buckets: distances that are told apart.
        max_distance: tokens from which on all distances are one.
        epsilon: epsilon of the norms.
        dropout: after each feed-forward, in training.
        positions: longest row of tokens on either side. The layout has no limit; this is ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Width = 1024
    num_heads: Heads = 16
    head_width: Width = 128
    feed_forward_width: InnerWidth = 8192
    num_encoder_layers: Layers = 32
    num_decoder_layers: Layers = 32
    buckets: int = Field(default=32, strict=True, ge=4, le=2**12)
    max_distance: int = Field(default=128, strict=True, ge=3, le=2**16)
    epsilon: float = Field(default=1e-6, gt=0, le=1)
    dropout: Share = 0.1
    positions: int = 1024


def buckets_of(distances: Tensor, num_buckets: int, max_distance: int, *, both_sides: bool) -> Tensor:
    """The bucket of each distance from a query to a key, in tokens; keys behind a query have negative ones.

    Half of the buckets are for one distance each, the others grow with the logarithm of it (arXiv 1910.10683, section
    2.1).

    Args:
        distances: position of the key minus that of the query, of any shape.
        num_buckets: number of buckets of both sides together.
        max_distance: from which on all distances share the last bucket.
        both_sides: whether keys may come after the query, as in an encoder; they then have half of the buckets.

    Returns:
        Numbers of buckets, of the same shape.
    """
    first = torch.zeros_like(distances)
    if both_sides:
        num_buckets //= 2
        first = (distances > 0).long() * num_buckets
        size = distances.abs()
    else:
        size = (-distances).clamp(min=0)
    exact = num_buckets // 2
    # Powers of float32 decide at the borders; transformers computes them in the same order.
    ratio = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return first + torch.where(size < exact, size, far)


class T5Attention(MultiHeadAttention):
    """Attention without scaling and biases; a mask may be boolean, or be what is added to the scores."""

    def __init__(self, shape: T5Shape) -> None:
        inner = shape.num_heads * shape.head_width
        super().__init__(inner, shape.num_heads)
        self.query, self.key, self.value = (nn.Linear(shape.width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, shape.width, bias=False)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """As `MultiHeadAttention.forward`, with the same arguments, but for the mask.

        Args:
            x: queries (R, Q, D).
            keys: (B, H, C, K).
            values: (B, H, C, K).
            allowed: broadcastable to (B, H, Q, C): boolean, or added to the scores; nothing if None.
            weights: the attention weights (R, H, Q, C) are appended to it, if given.
        """
        num_rows, num_queries, _ = x.shape
        query = self.split_heads(self.query(x).reshape(keys.shape[0], -1, keys.shape[1] * keys.shape[3]))
        if weights is None:
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed, scale=1.0)
        else:
            scores = query @ keys.transpose(-1, -2)
            if allowed is not None and allowed.dtype == torch.bool:
                scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
            elif allowed is not None:
                scores = scores + allowed
            probabilities = scores.softmax(dim=-1)
            weights.append(probabilities.detach())
            mixed = probabilities @ values
        return self.out(mixed.transpose(1, 2).reshape(num_rows, num_queries, -1))


class GatedFeedForward(nn.Module):
    """Norm, a product of two expansions of which one has passed GELU, contraction (arXiv 2002.05202, section 2)."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.gate = nn.Linear(shape.width, shape.feed_forward_width, bias=False)
        self.expand = nn.Linear(shape.width, shape.feed_forward_width, bias=False)
        self.contract = nn.Linear(shape.feed_forward_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        normed = self.norm(x)
        y: Tensor = self.contract(F.gelu(self.gate(normed), approximate="tanh") * self.expand(normed))
        return y


class T5EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.self_attention = T5Attention(shape)
        self.feed_forward = GatedFeedForward(shape)
        self.dropout = shape.dropout

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        """One layer on x (B, S, D); `added` (B, H, S, S) to the scores; (B, S, D)."""
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, *self.self_attention.keys_values(normed), added)
        return x + F.dropout(self.feed_forward(x), self.dropout, self.training)


class T5DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.self_attention = T5Attention(shape)
        self.cross_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.cross_attention = T5Attention(shape)
        self.feed_forward = GatedFeedForward(shape)
        self.dropout = shape.dropout

    def forward(
        self,
        x: Tensor,
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        added: Tensor,
        cross: tuple[Tensor, Tensor, Tensor | None],
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """As `DecoderLayer.forward`, but for the mask.

        Args:
            x: (R, Q, D).
            store: from the keys and values of x, (R, H, Q, K), to all those to attend to, (R, H, C, K).
            added: numbers that are added to the scores of each query, (R or 1, H, Q, C).
            cross: the memory's keys, values and its padding mask.
            weights: the cross-attention weights (R, H, Q, T) are appended to it, if given.
        """
        normed = self.self_norm(x)
        keys, values = store(*self.self_attention.keys_values(normed))
        x = x + self.self_attention(normed, keys, values, added)
        x = x + self.cross_attention(self.cross_norm(x), *cross, weights)
        return x + F.dropout(self.feed_forward(x), self.dropout, self.training)


class T5Encoder(nn.Module):
    """Layers over embedded tokens, which know one another's distances, with a norm behind them.

    Args:
        shape: sizes.

    Attributes:
        positions: (buckets, H), what distances add to the scores of every layer.
    """

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.positions = _table(shape)
        self.layers = nn.ModuleList(T5EncoderLayer(shape) for _ in range(shape.num_encoder_layers))
        self.norm = nn.RMSNorm(shape.width, shape.epsilon)

    def forward(self, embedded: Tensor, num_tokens: Tensor) -> Tensor:
        """States (B, S, D) of embedded tokens (B, S, D), of which the first `num_tokens` (B,) are valid."""
        own = torch.arange(embedded.shape[1], device=embedded.device)
        buckets = buckets_of(own - own[:, None], self.shape.buckets, self.shape.max_distance, both_sides=True)
        added = self.positions[buckets].permute(2, 0, 1)[None]
        allowed = allowed_frames(embedded, num_tokens)
        assert allowed is not None
        added = added.masked_fill(~allowed, torch.finfo(added.dtype).min)
        x = embedded
        for layer in self.layers:
            x = layer(x, added)
        states: Tensor = self.norm(x)
        return states


class T5Decoder(TextDecoder):
    """Tokens and a memory in, logits out; the output matrix is one of its own.

    Args:
        vocabulary_size: V.
        shape: sizes.

    Attributes:
        positions: (buckets, H), what distances add to the scores of every layer.
    """

    def __init__(self, vocabulary_size: int, shape: T5Shape) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            max_tokens=0,
            width=shape.width,
            num_heads=shape.num_heads,
            num_layers=0,
            tied=False,
        )
        self.shape = shape
        self.positions = _table(shape)
        self.layers = nn.ModuleList(T5DecoderLayer(shape) for _ in range(shape.num_decoder_layers))
        self.norm = nn.RMSNorm(shape.width, shape.epsilon)  # type: ignore[assignment]

    @property
    def max_tokens(self) -> int:
        """Longest row that is written here; the layout itself has no limit."""
        return self.shape.positions

    def states(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """As `TextDecoder.states`, with the same arguments and errors."""
        positions, allowed = self.query_positions(tokens, cache)
        used = cache.used + tokens.shape[1]
        added = self._added(positions[:1] if cache.even else positions, used, allowed)
        x = self.embedding(tokens)
        for i, layer in enumerate(self.layers):
            cross = (cache.cross_keys[i], cache.cross_values[i], cache.memory_allowed)
            x = layer(x, partial(cache.write, i, positions), added, cross, weights)
        cache.grow(tokens.shape[1])
        return x

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        num_frames: Tensor | None,
        route: Route | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """As `TextDecoder.forward`, with the same arguments."""
        length = tokens.shape[1]
        x = self.embedding(tokens)
        own = torch.arange(length, device=tokens.device)[None]
        added = self._added(own, length, own <= own[:, :, None])
        memory_allowed = allowed_frames(memory, num_frames)

        def keep(layer: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
            def store(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
                if kept is not None:
                    kept.setdefault(layer, (keys, values))
                return keys, values

            return store

        layers: list[T5DecoderLayer] = list(self.layers)  # type: ignore[arg-type]
        for i, layer in enumerate(layers):
            cross = (*layer.cross_attention.keys_values(memory), memory_allowed)
            x = layer(x, keep(i), added, cross)
        return x

    def outputs(self, x: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D) behind the last norm; the engines exchange the matrix for a faster one."""
        assert self.output_head is not None
        logits: Tensor = self.output_head(x)
        return logits

    def _added(self, positions: Tensor, used: int, allowed: Tensor | None) -> Tensor:
        """Position bias and mask, (R or 1, H, Q, C), of queries at `positions` (R or 1, Q) and `used` keys."""
        keys = torch.arange(used, device=positions.device)
        buckets = buckets_of(
            keys - positions[:, :, None], self.shape.buckets, self.shape.max_distance, both_sides=False
        )
        added = self.positions[buckets].permute(0, 3, 1, 2)
        return added if allowed is None else added.masked_fill(~allowed, torch.finfo(added.dtype).min)


def _table(shape: T5Shape) -> nn.Parameter:
    table = nn.Parameter(torch.empty(shape.buckets, shape.num_heads))
    if not table.is_meta:
        nn.init.normal_(table, std=0.02)
    return table
