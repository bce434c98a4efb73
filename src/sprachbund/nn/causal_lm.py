"""Causal language models of the Llama kind: Llama, Mistral, Qwen2, Qwen3 and Granite in one class.

Each layer is RMSNorm (arXiv 1910.07467), attention with rotary positions (arXiv 2104.09864) and grouped queries
(arXiv 2305.13245), RMSNorm, SwiGLU (arXiv 2002.05202). Modules have the names that their weights have in files of
transformers. Rows of a batch may have prefixes of their own, such as an instruction and speech, of any length; prefix
and tokens lie in one cache. Shapes: R rows, P prefix positions, Q tokens of a step, U positions of a whole row, C slots
of the cache, D width, H heads, K heads of keys and values, E head width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import attend
from sprachbund.nn.decoder import DecoderCache


@dataclass(kw_only=True)
class PrefixCache(DecoderCache):
    """Keys and values of prefixes and tokens; `lengths` and `capacity` count tokens alone.

    Attributes:
        prefix: positions (R,) before the first token.
        slots: positions that a row can hold in all.
        num_memories: utterances that the rows belong to.
    """

    prefix: Tensor
    slots: int
    num_memories: int

    @classmethod
    def empty(cls, prefix: Tensor, slots: int, num_memories: int) -> "PrefixCache":
        """A cache that holds nothing yet; keys and values are laid out when the first ones come.

        Args:
            prefix: number of tokens (R,) of each row's prefix.
            slots: tokens that fit into a row, the prefix among them.
            num_memories: B utterances that the rows belong to.
        """
        return cls(
            self_keys=[],
            self_values=[],
            cross_keys=[],
            cross_values=[],
            memory_allowed=None,
            lengths=torch.zeros_like(prefix),
            prefix=prefix,
            slots=slots,
            num_memories=num_memories,
        )

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold behind its prefix."""
        return self.slots - int(self.prefix.max())

    def put(
        self, layer: int, positions: Tensor, used: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `store`, and lays a layer out when its first keys and values come.

        Args:
            layer: number of the layer.
            positions: (R, Q).
            used: positions to give back, from the first.
            keys: (R, K, Q, E).
            values: (R, K, Q, E).
        """
        if layer == len(self.self_keys):
            rows, heads, _q, width = keys.shape
            self.self_keys.append(keys.new_zeros(rows, heads, self.slots, width))
            self.self_values.append(values.new_zeros(rows, heads, self.slots, values.shape[-1]))
        return self.store(layer, positions, used, keys, values)

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        super().reorder(rows)
        self.prefix = self.prefix[rows]

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        group = self.num_rows // self.num_memories
        self.reorder((memories[:, None] * group + torch.arange(group, device=memories.device)).flatten())
        self.num_memories = len(memories)


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions (arXiv 2104.09864), and how they are stretched to contexts longer than those of pretraining.

    Attributes:
        base: theta.
        kind: "linear" divides all frequencies by `factor`; "llama3" those of waves that are longer than
            `original_context` / `low_frequency` positions, none of those shorter than
            `original_context` / `high_frequency`, and the others partly (arXiv 2407.21783).
        factor: factor of the stretching.
        low_frequency: low frequency factor of "llama3".
        high_frequency: high frequency factor of "llama3".
        original_context: positions of the pretraining, for "llama3".
    """

    base: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_context: int = 8192

    def frequencies(self, width: int) -> Tensor:
        """Radians per position (E/2,) of the pairs of a head of E = `width`, in single precision on the CPU."""
        with torch.device("cpu"):  # needed by models that are built on meta, too
            plain = 1.0 / self.base ** (torch.arange(0, width, 2).float() / width)
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        waves = self.original_context / (2 * math.pi / plain)  # how often each turns within the old context
        share = (waves - self.low_frequency) / (self.high_frequency - self.low_frequency)
        share = share.clamp(0, 1)
        return share * plain + (1 - share) * plain / self.factor


@dataclass(frozen=True, kw_only=True)
class CausalShape:
    """Sizes and variants of a model.

    Attributes:
        vocabulary_size: V.
        width: D.
        inner_width: inner width of the feed-forwards.
        num_layers: layers.
        num_heads: H.
        num_key_heads: K, which divides H.
        head_width: E.
        context: most positions of a row that the model attends to.
        norm_epsilon: norm epsilon of all norms.
        rotary: positions.
        tied: whether the embedding is the output matrix too.
        head_norms: norms of each query and key head (Qwen3).
        qkv_bias: whether the projections to queries, keys and values have a bias.
        key_bias: whether keys have a bias where `qkv_bias` is set.
        out_bias: whether the projection behind the attention has a bias.
        inner_bias: whether the feed-forwards have a bias.
        down_bias: whether the last projection of the feed-forwards alone has a bias.
        embedding_scale: factor of everything that comes in (Granite's embedding_multiplier).
        residual_scale: factor of what each half of a layer adds (Granite's residual_multiplier).
        attention_scale: factor of the scores; None for 1 / sqrt(E).
        logits_scale: number that logits are divided by.
    """

    vocabulary_size: int
    width: int
    inner_width: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_width: int
    context: int
    norm_epsilon: float = 1e-6
    rotary: Rotary = field(default_factory=Rotary)
    tied: bool = False
    head_norms: bool = False
    qkv_bias: bool = False
    key_bias: bool = True
    out_bias: bool = False
    inner_bias: bool = False
    down_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logits_scale: float = 1.0


Angles = tuple[Tensor, Tensor]
"""Cosines and sines (R, 1, Q, E) of positions."""
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from new keys and values (R, K, Q, E) to all those to attend to (R, K, C, E)."""


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """Queries or keys (R, H, Q, E) turned by their angles; dimension e goes with e + E/2."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = angles
    return x * cosines + torch.cat((-second, first), dim=-1) * sines


class RMSNorm(nn.Module):
    """Division by the root mean square, in single precision, and a weight (arXiv 1910.07467, equation 4).

    Args:
        width: width of the last dimension.
        epsilon: added to the mean square.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        single = x.float()
        single = single * torch.rsqrt(single.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * single.to(x.dtype)


class GroupedAttention(nn.Module):
    """Causal attention in which several heads of queries share one of keys and values (arXiv 2305.13245).

    Args:
        shape: shape of the model.
    """

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.num_heads * shape.head_width, shape.num_key_heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias and shape.key_bias)
        self.v_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.width, bias=shape.out_bias)
        if shape.head_norms:
            self.q_norm = RMSNorm(shape.head_width, shape.norm_epsilon)
            self.k_norm = RMSNorm(shape.head_width, shape.norm_epsilon)

    def forward(self, x: Tensor, angles: Angles, store: Store, allowed: Tensor) -> Tensor:
        """One attention on x (R, Q, D).

        Args:
            x: (R, Q, D), normed.
            angles: angles of its positions.
            store: takes its keys and values, gives all.
            allowed: boolean (R, 1, Q, C), what each query attends to.
        """
        query, key, value = (
            projected.unflatten(-1, (-1, self.shape.head_width))
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        if self.shape.head_norms:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotated(query.transpose(1, 2), angles)
        if self.shape.attention_scale is not None:  # `attend` divides by sqrt(E)
            query = query * (self.shape.attention_scale * math.sqrt(self.shape.head_width))
        keys, values = store(rotated(key.transpose(1, 2), angles), value.transpose(1, 2))
        # The queries of a group stand behind each other: (R, K, H/K * Q, E).
        group = self.shape.num_heads // self.shape.num_key_heads
        grouped = query.unflatten(1, (-1, group)).flatten(2, 3)
        mixed = attend(grouped, keys, values, allowed.repeat(1, 1, group, 1))
        mixed = mixed.unflatten(2, (group, -1)).flatten(1, 2)
        attended: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return attended


class SwiGLU(nn.Module):
    """A feed-forward with a gate (arXiv 2002.05202, equation 6).

    Args:
        shape: shape of the model.
    """

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner_width, bias=shape.inner_bias)
        self.up_proj = nn.Linear(shape.width, shape.inner_width, bias=shape.inner_bias)
        self.down_proj = nn.Linear(shape.inner_width, shape.width, bias=shape.inner_bias or shape.down_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, D)."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return gated


class CausalLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual.

    Args:
        shape: shape of the model.
    """

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.residual_scale = shape.residual_scale
        self.input_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.self_attn = GroupedAttention(shape)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.mlp = SwiGLU(shape)

    def forward(self, x: Tensor, angles: Angles, store: Store, allowed: Tensor) -> Tensor:
        """One layer on x (R, Q, D); arguments as of `GroupedAttention.forward`.

        Args:
            x: (R, Q, D).
            angles: angles of its positions.
            store: takes its keys and values, gives all.
            allowed: boolean (R, 1, Q, C).
        """
        x = x + self.residual_scale * self.self_attn(self.input_layernorm(x), angles, store, allowed)
        mixed: Tensor = x + self.residual_scale * self.mlp(self.post_attention_layernorm(x))
        return mixed


class CausalLayers(nn.Module):
    """The layers and the norm behind them, without a vocabulary: of a language model, or of an encoder of its kind.

    Args:
        shape: sizes.
        layer: makes each layer, which is called as a `CausalLayer` is; that is made if None.
        norm: norm behind them; `RMSNorm` if None.
    """

    def __init__(
        self,
        shape: CausalShape,
        layer: Callable[[CausalShape], nn.Module] | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList((layer or CausalLayer)(shape) for _ in range(shape.num_layers))
        self.norm = RMSNorm(shape.width, shape.norm_epsilon) if norm is None else norm

    @cached_property
    def _frequencies(self) -> Tensor:
        # No buffer: it stays in single precision, whatever the weights are cast to.
        return self.shape.rotary.frequencies(self.shape.head_width)

    def through(
        self, embedded: Tensor, positions: Tensor, stores: Sequence[Store], allowed: Tensor
    ) -> Tensor:
        """States (R, Q, D) behind the last norm.

        Args:
            embedded: inputs (R, Q, D).
            positions: positions of the inputs, (R, Q) or (1, Q).
            stores: stores of each layer.
            allowed: boolean (R, 1, Q, C), what each position attends to of what the stores give.
        """
        angles = positions[:, None, :, None].float() * self._frequencies.to(positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        turned = angles.cos().to(embedded.dtype), angles.sin().to(embedded.dtype)
        x = embedded * self.shape.embedding_scale
        for layer, store in zip(self.layers, stores, strict=True):
            x = layer(x, turned, store, allowed)
        normed: Tensor = self.norm(x)
        return normed


class EmbedsTokens:
    """The sizes and token vectors of a language model, whoever computes its layers.

    Attributes:
        shape: sizes.
        embed_tokens: (V, D).
    """

    shape: CausalShape
    embed_tokens: nn.Embedding

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.shape.width

    @property
    def vocabulary_size(self) -> int:
        """Size V of the vocabulary."""
        return self.shape.vocabulary_size

    @property
    def context(self) -> int:
        """Most positions of a row."""
        return self.shape.context

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embed_tokens.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., D) of tokens (...)."""
        embedded: Tensor = self.embed_tokens(tokens)
        return embedded


class CausalLM(EmbedsTokens, CausalLayers):
    """Embeddings in, logits out, in whole rows or step by step.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: CausalShape) -> None:
        super().__init__(shape)
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(shape.vocabulary_size, shape.width), freeze=False
        )
        if not shape.tied:
            self.lm_head = nn.Linear(shape.width, shape.vocabulary_size, bias=False)
        if not self.embed_tokens.weight.is_meta:
            nn.init.normal_(self.embed_tokens.weight, std=0.02)

    def forward(self, rows: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Logits at positions of whole rows, as training needs them.

        Args:
            rows: embeddings (R, U, D), padded behind their ends: no position looks behind itself.
            wanted: positions (W,) to make logits of; all if None.

        Returns:
            (R, W, V).
        """
        length = rows.shape[1]
        positions = torch.arange(length, device=rows.device)[None]
        allowed = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()[None, None]
        x = self.through(rows, positions, [_as_given] * len(self.layers), allowed)
        return self.logits(x if wanted is None else x[:, wanted])

    def start(
        self, prefixes: Sequence[Tensor], *, capacity: int, num_memories: int, copies: int = 1
    ) -> PrefixCache:
        """Read prefixes, each of its own length, into a new cache.

        Args:
            prefixes: embeddings (P, D) of each.
            capacity: tokens that fit behind the longest.
            num_memories: B utterances that the rows belong to.
            copies: rows of each prefix, one behind the other: R is `copies` times the number of prefixes.
        """
        lengths = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        padded = nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
        cache = PrefixCache.empty(lengths, padded.shape[1] + capacity, num_memories)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(len(prefixes), -1)
        self._cached(padded, positions, cache)
        if copies > 1:
            cache.reorder(torch.arange(len(prefixes), device=padded.device).repeat_interleave(copies))
        return cache

    def step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        used = cache.used + tokens.shape[1]
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        positions = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        x = self._cached(self.embed(tokens), positions + cache.prefix[:, None], cache)
        cache.grow(tokens.shape[1])
        return self.logits(x)

    def _cached(self, embedded: Tensor, positions: Tensor, cache: PrefixCache) -> Tensor:
        """States (R, Q, D) of new positions (R, Q), whose keys and values the cache holds from now on."""
        used = int(positions.max()) + 1
        slots = torch.arange(used, device=positions.device)
        allowed = slots <= positions[:, None, :, None]
        stores: list[Store] = [partial(cache.put, i, positions, used) for i in range(len(self.layers))]
        return self.through(embedded, positions, stores, allowed)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D) that have been `through` the layers."""
        # A tied model has no matrix of its own, but for the copy that an engine packs.
        head = self._modules.get("lm_head")
        logits = F.linear(x, self.embed_tokens.weight) if head is None else head(x)
        return logits / self.shape.logits_scale


def _as_given(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys, values
