"""The text decoder that every attention family shares, and the cache it is stepped with.

One decoder for Whisper and for our own families, so that whatever is built on it (beam search, speculation,
pruning, a faster engine) works for all of them. Shapes: B memories, R rows (R is a multiple of B; row r reads
memory r // (R/B)), Q tokens per step, U tokens, C cache capacity, T frames, D width, H heads, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.feed_forward import Activation, FeedForward, Route


@dataclass(kw_only=True)
class DecoderCache:
    """The state of a decoder between steps: keys and values of each layer, and the number of tokens of each row.

    Attributes:
        self_keys: one (R, H, C, D/H) per layer; only the first `lengths[r]` positions of row r are valid.
        self_values: as `self_keys`.
        cross_keys: one (B, H, T, D/H) per layer, computed once from the memory.
        cross_values: as `cross_keys`.
        memory_allowed: boolean (B, 1, 1, T), False on padding; None when no memory is padded.
        lengths: (R,) tokens held per row. Lower it to forget tokens (see `rewind`).
        route: languages of the rows; None where no feed-forward is split by them.
        used: tokens of the fullest row; known without asking the device.
        even: whether all rows hold as many.
    """

    self_keys: list[Tensor]
    self_values: list[Tensor]
    cross_keys: list[Tensor]
    cross_values: list[Tensor]
    memory_allowed: Tensor | None
    lengths: Tensor
    route: Route | None = None
    used: int = 0
    even: bool = True

    @property
    def num_rows(self) -> int:
        """Number R of rows."""
        return self.lengths.shape[0]

    @property
    def capacity(self) -> int:
        """C, the number of tokens a row can hold."""
        return self.self_keys[0].shape[2]

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `store`, at the `positions` (R, Q) behind what every row holds.

        Args:
            layer: number of the layer.
            positions: (R, Q), behind what every row holds.
            keys: (R, H, Q, D/H).
            values: (R, H, Q, D/H).
        """
        begin, used = self.used, self.used + positions.shape[1]
        if not self.even:
            return self.store(layer, positions, used, keys, values)
        own = self.self_keys[layer][:, :, :used], self.self_values[layer][:, :, :used]
        own[0][:, :, begin:].copy_(keys)
        own[1][:, :, begin:].copy_(values)
        return own

    def store(
        self, layer: int, positions: Tensor, used: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (R, H, Q, D/H) at `positions` (R, Q); return the first `used`."""
        rows = torch.arange(self.num_rows, device=positions.device)[:, None]
        self.self_keys[layer][rows, :, positions] = keys.transpose(1, 2)
        self.self_values[layer][rows, :, positions] = values.transpose(1, 2)
        return self.self_keys[layer][:, :, :used], self.self_values[layer][:, :, :used]

    def grow(self, count: int) -> None:
        """Every row holds `count` tokens more."""
        self.lengths, self.used = self.lengths + count, self.used + count

    def rewind(self, lengths: Tensor) -> None:
        """Forget every token at or after `lengths` (R,), each row by itself; nothing is copied.

        Lengths that do not lie on a device spare the search waiting for it.
        """
        held = lengths.tolist()
        self.lengths = lengths.to(self.lengths.device)
        self.used, self.even = max(held), min(held) == max(held)

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        self.self_keys = [k[rows] for k in self.self_keys]
        self.self_values = [v[rows] for v in self.self_values]
        self.rewind(self.lengths[rows])
        self.route = None if self.route is None else self.route.take(rows)

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        group = self.num_rows // self.cross_keys[0].shape[0]
        rows = (memories[:, None] * group + torch.arange(group, device=memories.device)).flatten()
        self.reorder(rows)
        self.cross_keys = [k[memories] for k in self.cross_keys]
        self.cross_values = [v[memories] for v in self.cross_values]
        if self.memory_allowed is not None:
            self.memory_allowed = self.memory_allowed[memories]


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward (arXiv 1706.03762, section 3.1; pre-norm).

    Args:
        width: D.
        num_heads: H.
        feed_forward_width: width of the feed-forward.
        memory_width: width of the memory.
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
        memory_width: int,
        dropout: float,
        activation: Activation = "gelu",
        key_bias: bool = False,
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, num_heads, key_bias=key_bias)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(
            width, num_heads, key_bias=key_bias, memory_width=memory_width
        )
        self.feed_forward = FeedForward(width, feed_forward_width, activation)
        self.dropout = dropout

    def forward(
        self,
        x: Tensor,
        store: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        allowed: Tensor | None,
        cross: tuple[Tensor, Tensor, Tensor | None],
        weights: list[Tensor] | None = None,
        route: Route | None = None,
    ) -> Tensor:
        """One layer on x (R, Q, D).

        `store` takes the keys and values of x, (R, H, Q, D/H), and returns all those to attend to,
        (R, H, C, D/H); `cross` holds the memory's keys, values and its padding mask; `route` the
        languages of the rows. Returns (R, Q, D).

        Args:
            x: (R, Q, D).
            store: from the keys and values of x, (R, H, Q, D/H), to all those to attend to, (R, H, C, D/H).
            allowed: boolean (R, 1, Q, C), the positions that each query attends to; all if None.
            cross: the memory's keys, values and its padding mask.
            weights: the cross-attention weights (R, H, Q, T) are appended to it, if given.
            route: languages of the rows, where feed-forwards are split by them.
        """
        normed = self.self_norm(x)
        keys, values = store(*self.self_attention.keys_values(normed))
        x = x + self.self_attention(normed, keys, values, allowed)
        x = x + self.cross_attention(self.cross_norm(x), *cross, weights)
        return x + F.dropout(self.feed_forward(x, route), self.dropout, self.training)


class TextDecoder(nn.Module):
    """Tokens and a memory in, logits out; learned positions.

    Args:
        vocabulary_size: V.
        max_tokens: longest row, U.
        width: D.
        num_heads: H.
        num_layers: L.
        feed_forward_width: width of the feed-forward, 4 D by default.
        memory_width: width of the memory, D by default.
        dropout: after each feed-forward, in training.
        tied: whether the embedding is the output matrix too (arXiv 1608.05859), or that is one of its own.
        activation: activation of the feed-forwards.
        key_bias: see `MultiHeadAttention`.
        layer_kind: class of the layers.

    Attributes:
        logits_bias: (V,), added to all logits; None here, kinds of decoders that have one set it.
    """

    logits_bias: Tensor | None

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_tokens: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feed_forward_width: int | None = None,
        memory_width: int | None = None,
        dropout: float = 0.0,
        tied: bool = True,
        activation: Activation = "gelu",
        key_bias: bool = False,
        layer_kind: type[DecoderLayer] = DecoderLayer,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.empty(vocabulary_size, width), freeze=False)
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        self.layers = nn.ModuleList(
            layer_kind(
                width,
                num_heads,
                feed_forward_width or 4 * width,
                memory_width=memory_width or width,
                dropout=dropout,
                activation=activation,
                key_bias=key_bias,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output_head = None if tied else nn.Linear(width, vocabulary_size, bias=False)
        self.register_buffer("logits_bias", None)
        # Weights about to be loaded are built on the meta device, where drawing numbers would import torch's
        # compiler: a second and a half at every start.
        if not self.positions.is_meta:
            nn.init.normal_(self.embedding.weight, std=width**-0.5)
            nn.init.normal_(self.positions, std=0.02)

    @property
    def output_matrix(self) -> Tensor:
        """The matrix (V, D) of the logits."""
        return self.embedding.weight if self.output_head is None else self.output_head.weight

    @property
    def max_tokens(self) -> int:
        """Longest row the positions allow."""
        return self.positions.shape[0]

    def start(
        self,
        memory: Tensor,
        num_frames: Tensor | None,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        route: Route | None = None,
    ) -> DecoderCache:
        """An empty cache over a memory (B, T, D) of which the first `num_frames` (B,) frames are valid.

        `route` holds the languages of the R rows, where feed-forwards are split by them.

        Args:
            memory: (B, T, D).
            num_frames: valid frames (B,); all if None.
            rows_per_memory: rows for each utterance; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            route: languages of the R rows, where feed-forwards are split by them.
        """
        num_rows = memory.shape[0] * rows_per_memory
        capacity = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        pairs = (layer.cross_attention.keys_values(memory) for layer in self._layers())
        # They are read at every step, so it pays to lay them out head by head.
        cross = [(keys.contiguous(), values.contiguous()) for keys, values in pairs]
        heads, head_width = cross[0][0].shape[1], cross[0][0].shape[3]
        shape = (num_rows, heads, capacity, head_width)
        return DecoderCache(
            self_keys=[cross[0][0].new_zeros(shape) for _ in cross],
            self_values=[cross[0][0].new_zeros(shape) for _ in cross],
            cross_keys=[keys for keys, _ in cross],
            cross_values=[values for _, values in cross],
            memory_allowed=allowed_frames(memory, num_frames),
            lengths=torch.zeros(num_rows, dtype=torch.long, device=memory.device),
            route=route,
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds.

        Rows may hold different numbers of tokens. The cache then holds Q more; `cache.rewind` takes back what
        was not wanted. When `weights` is a list, each layer's cross-attention weights are appended.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        return self.logits(self.states(tokens, cache, weights))

    def states(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """A step that stops before the last norm: (R, Q, D), for `logits`. Errors as for `step`.

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: each layer's cross-attention weights (R, H, Q, T) are appended to it, if given.
        """
        positions, allowed = self.query_positions(tokens, cache)
        x = self.embedded(tokens, self.positions[positions])
        for i, layer in enumerate(self._layers()):
            cross = (cache.cross_keys[i], cache.cross_values[i], cache.memory_allowed)
            x = layer(x, partial(cache.write, i, positions), allowed, cross, weights, cache.route)
        cache.grow(tokens.shape[1])
        return x

    def query_positions(self, tokens: Tensor, cache: DecoderCache) -> tuple[Tensor, Tensor | None]:
        """Positions (R, Q) of `tokens` (R, Q) behind those in a cache, and their mask (R, 1, Q, C); None allows all.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        num_queries = tokens.shape[1]
        used = cache.used + num_queries
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        columns = torch.arange(used, device=tokens.device)
        positions = cache.lengths[:, None] + columns[:num_queries]
        sees_all = cache.even and num_queries == 1
        return positions, None if sees_all else columns <= positions[:, None, :, None]

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        num_frames: Tensor | None,
        route: Route | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Hidden states (R, U, D) of whole rows `tokens` (R, U) at once, as training needs them.

        Equal to stepping through the row token by token; turn them into logits with `logits`. `kept` is given every
        layer's self-attention keys and values (R, H, U, D/H), with their gradients.

        Args:
            tokens: (R, U).
            memory: (B, T, D).
            num_frames: valid frames (B,) of the memory; all if None.
            route: languages of the rows, where feed-forwards are split by them.
            kept: takes every layer's self-attention keys and values (R, H, U, D/H), with their gradients.
        """
        length = tokens.shape[1]
        x = self.embedded(tokens, self.positions[:length])
        allowed = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        memory_allowed = allowed_frames(memory, num_frames)
        for i, layer in enumerate(self._layers()):
            cross = (*layer.cross_attention.keys_values(memory), memory_allowed)
            x = layer(x, partial(_as_given, kept, i), allowed, cross, None, route)
        return x

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the input of the first layer (R, U, D), of tokens (R, U) and vectors of positions (..., U, D)."""
        x: Tensor = self.embedding(tokens) + positions
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self.outputs(self.norm(x))

    def outputs(self, x: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D) behind a last norm, this decoder's or another network's."""
        return F.linear(x, self.output_matrix, self.logits_bias)

    def _layers(self) -> list[DecoderLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def _as_given(
    kept: dict[int, tuple[Tensor, Tensor]] | None, layer: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    if kept is not None:
        kept.setdefault(layer, (keys, values))  # a layer that is recomputed comes by twice
    return keys, values


def allowed_frames(memory: Tensor, num_frames: Tensor | None) -> Tensor | None:
    """Mask (B, 1, 1, T) of the valid frames of a memory (B, T, D); None where all are valid."""
    if num_frames is None:
        return None
    frames = torch.arange(memory.shape[1], device=memory.device)
    return (frames < num_frames[:, None])[:, None, None, :]
