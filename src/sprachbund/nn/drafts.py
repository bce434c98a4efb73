"""Draft networks: a parasite that reads a decoder's key/value cache, and Medusa heads.

Both predict tokens after the newest one. The parasite's self-attention owns no keys and values: it reads those that the
decoder's layers left behind (arXiv 2508.11189, section 2.2). Shapes: B memories, R rows (R is a multiple of B; row r
reads memory r // (R/B)), Q queries, C cached positions, G layers of a group, T frames, D width, H heads, L layers, N
blocks, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention, attend
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.nn.feed_forward import Activation, FeedForward
from sprachbund.nn.limits import Flag, Heads, InnerWidth, SomeLayers, Width


@dataclass(frozen=True, kw_only=True)
class ParasiteShape:
    """Sizes of a parasite; all but the number of blocks are its decoder's.

    Attributes:
        width: D.
        num_heads: H.
        num_layers: L, layers of the decoder; they fall into N contiguous groups, block l reading group l.
        num_blocks: N.
        feed_forward_width: inner width of every block.
        memory_width: width of the memory.
        pre_ln_q: normalise what queries are made from. As printed, the equation does not.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    width: Width
    num_heads: Heads
    num_layers: SomeLayers
    num_blocks: SomeLayers = 3
    feed_forward_width: InnerWidth
    memory_width: Width
    pre_ln_q: Flag = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_blocks <= self.num_layers:
            raise ValueError(
                f"{self.num_blocks} blocks cannot share {self.num_layers} layers; give 1 to {self.num_layers}"
            )

    @property
    def groups(self) -> list[range]:
        """The decoder layers that each block reads, as even as they can be."""
        bounds = [n * self.num_layers // self.num_blocks for n in range(self.num_blocks + 1)]
        return [range(a, b) for a, b in pairwise(bounds)]

    @classmethod
    def of(cls, decoder: TextDecoder, *, num_blocks: int = 3, pre_ln_q: bool = False) -> "ParasiteShape":
        """The shape that fits a decoder.

        Args:
            decoder: decoder of the model.
            num_blocks: N.
            pre_ln_q: whether queries are normed before they are projected.
        """
        layer: Any = decoder.layers[0]
        width = decoder.embedding.embedding_dim
        feed_forward: nn.Module = layer.feed_forward
        return cls(
            width=width,
            num_heads=layer.self_attention.num_heads,
            num_layers=len(decoder.layers),
            num_blocks=num_blocks,
            # One that is split by language has no width of its own.
            feed_forward_width=feed_forward.expand.out_features
            if isinstance(feed_forward, FeedForward)
            else 4 * width,
            memory_width=layer.cross_attention.key.in_features,
            pre_ln_q=pre_ln_q,
        )


@dataclass(kw_only=True)
class CrossCache:
    """Keys and values (B, H, T, D/H) of the memories, one pair for each block, and which frames are valid."""

    keys_values: list[tuple[Tensor, Tensor]]
    memory_allowed: Tensor | None

    def keep(self, memories: Tensor) -> None:
        """Drop every memory that is not among the indices `memories` (b,)."""
        self.keys_values = [(k[memories], v[memories]) for k, v in self.keys_values]
        if self.memory_allowed is not None:
            self.memory_allowed = self.memory_allowed[memories]


class ParasiteBlock(nn.Module):
    """h + LayerNorm(W^O MHA(W^Q h, K of the group, V of the group)), then cross-attention and feed-forward.

    The first part is the source's equation 3; the rest is a layer of the decoder.
    """

    def __init__(self, shape: ParasiteShape, activation: Activation) -> None:
        super().__init__()
        width = shape.width
        self.num_heads = shape.num_heads
        self.query_norm = nn.LayerNorm(width) if shape.pre_ln_q else nn.Identity()
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = MultiHeadAttention(width, shape.num_heads, memory_width=shape.memory_width)
        self.feed_forward = FeedForward(width, shape.feed_forward_width, activation)

    def forward(
        self,
        h: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        cross: tuple[Tensor, Tensor, Tensor | None],
    ) -> Tensor:
        """h (R, Q, D) after reading keys and values (R, H, G C, D/H), of which `visible` (R, Q, G C) count.

        Nothing hides any of them where `visible` is None.

        Args:
            h: (R, Q, D).
            keys: (R, H, G C, D/H).
            values: (R, H, G C, D/H).
            visible: boolean (R, Q, G C), keys that count; all if None.
            cross: the memory's keys, values and its padding mask.
        """
        query = self.query(self.query_norm(h)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if visible is None:
            read = attend(query, keys, values, None)
        else:
            read = read_visible(query, keys, values, visible[:, None])
        h = h + self.norm(self.out(read.transpose(1, 2).flatten(2)))
        h = h + self.cross_attention(self.cross_norm(h), *cross)
        fed: Tensor = self.feed_forward(h)
        return h + fed


def read_visible(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """One softmax over all visible positions (R, H, Q, D/H); 0 for a query that sees none.

    Args:
        query: (R, H, Q, D/H).
        keys: (R, H, C, D/H).
        values: (R, H, C, D/H).
        visible: boolean, broadcastable to (R, H, Q, C).
    """
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    # A finite floor: a softmax over nothing but minus infinity is not a number, and so is its gradient.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(~visible, 0.0)
    return weights.to(values.dtype) @ values


class Parasite(nn.Module):
    """The blocks and a last norm; embedding, positions and output matrix are the decoder's, passed in.

    Args:
        shape: see `ParasiteShape`; 14 N D^2 weights in matrices where the feed-forward has width 4 D.
        activation: activation of the feed-forwards, the decoder's.
    """

    def __init__(self, shape: ParasiteShape, activation: Activation = "gelu") -> None:
        super().__init__()
        self.shape = shape
        self.activation: Activation = activation
        self.blocks = nn.ModuleList(ParasiteBlock(shape, activation) for _ in range(shape.num_blocks))
        self.norm = nn.LayerNorm(shape.width)

    @torch.no_grad()
    def start_from(self, decoder: TextDecoder) -> None:
        """Copy what fits from the last layer of each group, and the last norm: queries that know the keys they meet."""
        for block, group in zip(self._blocks(), self.shape.groups, strict=True):
            layer: Any = decoder.layers[group[-1]]
            block.query.load_state_dict(layer.self_attention.query.state_dict())
            block.out.load_state_dict(layer.self_attention.out.state_dict())
            block.cross_norm.load_state_dict(layer.cross_norm.state_dict())
            # Some decoders have a bias on the keys, which changes nothing behind the softmax.
            block.cross_attention.load_state_dict(layer.cross_attention.state_dict(), strict=False)
            if type(layer.feed_forward) is FeedForward:
                block.feed_forward.load_state_dict(layer.feed_forward.state_dict())
        self.norm.load_state_dict(decoder.norm.state_dict())

    def remember(self, memory: Tensor, memory_allowed: Tensor | None) -> CrossCache:
        """Cross keys and values of a memory (B, T, D), made once per utterance."""
        pairs = [block.cross_attention.keys_values(memory) for block in self._blocks()]
        return CrossCache(keys_values=pairs, memory_allowed=memory_allowed)

    def predict(
        self, decoder: TextDecoder, tokens: Tensor, positions: Tensor, cache: DecoderCache, cross: CrossCache
    ) -> Tensor:
        """Hidden states (R, 1, D) for the token after `tokens` (R,), which stand at `positions` (R,).

        What is visible is what the cache holds: tokens before the newest one. Turn them into logits with `logits`.

        Args:
            decoder: decoder whose cache, embedding and positions these are.
            tokens: the newest ones (R,).
            positions: theirs (R,).
            cache: cache of the decoder, with the tokens before the newest ones.
            cross: see `remember`.
        """
        visible = None
        if cache.used == 0 or not cache.even:
            visible = torch.arange(cache.used, device=tokens.device) < cache.lengths[:, None, None]
        return self(
            decoder, tokens[:, None], positions[:, None], cache, cross, used=cache.used, visible=visible
        )

    def forward(
        self,
        decoder: TextDecoder,
        tokens: Tensor,
        positions: Tensor,
        cache: DecoderCache,
        cross: CrossCache,
        *,
        used: int,
        visible: Tensor | None,
        detach_kv: bool = True,
    ) -> Tensor:
        """Hidden states (R, Q, D) for the tokens after `tokens` (R, Q) at `positions` (R, Q).

        Args:
            decoder: decoder whose cache, embedding and positions these are.
            tokens: tokens (R, Q) at the queries' positions.
            positions: positions of the queries.
            cache: cache of the decoder.
            cross: see `remember`.
            used: C, cached positions that are read.
            visible: boolean (R, Q, C); None where every query sees all that is read.
            detach_kv: keep gradients from the decoder's keys and values.
        """
        h = decoder.embedding(tokens) + decoder.positions[positions]
        for block, group, pair in zip(self._blocks(), self.shape.groups, cross.keys_values, strict=True):
            keys = _laid_end_to_end(cache.self_keys, group, used, detach_kv)
            values = _laid_end_to_end(cache.self_values, group, used, detach_kv)
            everywhere = None if visible is None else visible.repeat(1, 1, len(group))
            h = block(h, keys, values, everywhere, (*pair, cross.memory_allowed))
        return h

    def teacher_forced(
        self,
        decoder: TextDecoder,
        tokens: Tensor,
        cache: DecoderCache,
        cross: CrossCache,
        *,
        valid: Tensor,
        detach_kv: bool = True,
    ) -> Tensor:
        """Hidden states (R, U, D) at every position of whole rows `tokens` (R, U) at once, as training needs them.

        `cache` holds the decoder's keys and values of the same rows; position i sees those at j < i that are
        `valid` (R, U). Equal to predicting position by position.

        Args:
            decoder: decoder whose embedding and positions these are.
            tokens: whole rows (R, U).
            cache: the decoder's keys and values of the same rows.
            cross: see `remember`.
            valid: boolean (R, U), positions that later ones may see.
            detach_kv: keep gradients from the decoder's keys and values.
        """
        num_rows, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).expand(num_rows, -1)
        earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(-1)
        visible = earlier & valid[:, None, :]
        return self(
            decoder, tokens, positions, cache, cross, used=length, visible=visible, detach_kv=detach_kv
        )

    def logits(self, decoder: TextDecoder, h: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D), through the decoder's output matrix."""
        return decoder.outputs(self.norm(h))

    def _blocks(self) -> list[ParasiteBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


def _laid_end_to_end(layers: Sequence[Tensor], group: range, used: int, detach: bool) -> Tensor:
    """(R, H, G C, D/H) out of the group's (R, H, capacity, D/H)."""
    parts = [layers[i].narrow(2, 0, used) for i in group]
    whole = torch.cat(parts, dim=2)
    return whole.detach() if detach else whole


# Medusa heads: each predicts, from the decoder's last hidden state alone, one token further ahead.
#
# The baseline that a parasite has to beat (arXiv 2401.10774, section 2.1): the same number of weights,
# trained the same way. Shapes: K heads, D width, V vocabulary.

PARASITE_BLOCK_SQUARES = 14
"""Squares of D in the matrices of a parasite's block: two of attention, four crossing, eight feeding forward."""


@dataclass(frozen=True, kw_only=True)
class MedusaShape:
    """Sizes of Medusa heads.

    Attributes:
        width: D.
        num_heads: K, tokens drafted ahead.
        num_blocks: residual blocks of a head, D^2 weights each.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    width: Width
    num_heads: Heads
    num_blocks: SomeLayers

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_blocks < 1:
            raise ValueError(f"{self.num_heads} heads of {self.num_blocks} blocks; give at least one of each")

    @classmethod
    def like_parasite(cls, *, width: int, num_heads: int, parasite_blocks: int) -> "MedusaShape":
        """Shape of Medusa heads with as many weights in matrices as a parasite of so many blocks, or with slightly
        fewer.

        Args:
            width: D.
            num_heads: Medusa heads, draft tokens of a pass.
            parasite_blocks: blocks of the parasite whose size is matched.
        """
        num_blocks = max(1, PARASITE_BLOCK_SQUARES * parasite_blocks // num_heads)
        return cls(width=width, num_heads=num_heads, num_blocks=num_blocks)


class _Residual(nn.Module):
    """x + SiLU(W x); starts as x, so that a head starts as the decoder's own output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        if not self.linear.weight.is_meta:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class MedusaHeads(nn.Module):
    """K stacks of residual blocks between the decoder's last hidden state and its output matrix."""

    def __init__(self, shape: MedusaShape) -> None:
        super().__init__()
        self.shape = shape
        self.stacks = nn.ModuleList(
            nn.Sequential(*(_Residual(shape.width) for _ in range(shape.num_blocks)))
            for _ in range(shape.num_heads)
        )

    def forward(self, hidden: Tensor, count: int | None = None) -> Tensor:
        """Hidden states (K, ..., D), of the first `count` heads, out of the decoder's, (..., D), behind its last norm.

        Entry k stands for the token k + 1 after the one that the decoder itself predicts there.
        """
        return torch.stack([stack(hidden) for stack in islice(self.stacks, count)])

    def logits(self, decoder: TextDecoder, hidden: Tensor, count: int | None = None) -> Tensor:
        """Logits (K, ..., V) through the decoder's output matrix.

        Args:
            decoder: decoder of the model.
            hidden: its last hidden states (..., D).
            count: K, heads that are asked; all if None.
        """
        return decoder.outputs(self(hidden, count))
