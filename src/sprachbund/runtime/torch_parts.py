"""The torch engine's decoder and encoder layers: fused products, one cache from start to end, attention by dtype.

They have the methods of the modules they stand for, so that a model whose parts were exchanged is still the same
model to every search and draft. Shapes: B memories, R rows (row r reads memory r // (R/B)), Q tokens per step, C cache
capacity, T frames, L layers, D width, H heads, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sprachbund.nn.attention import attend
from sprachbund.nn.decoder import DecoderCache, DecoderLayer, TextDecoder, allowed_frames
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.feed_forward import Route
from sprachbund.runtime.cuda_graphs import Recorder
from sprachbund.runtime.torch_linear import (
    Precision,
    fused,
    in_precision,
    keep,
    linear,
    num_bytes,
    plain_linear,
    recast,
)

_QUERIES = 128
"""At a time, so that their scores stay in the processor's cache."""


def attend_in_bf16(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """What `attend` gives, in bf16 on a CPU: plain products, which are faster there than torch's fused kernel.

    Args:
        query: (B, H, Q, D/H), of any precision; it is that of the result.
        key: (B, H, T, D/H) in bf16.
        value: (B, H, T, D/H) in bf16.
        allowed: boolean, broadcastable to (B, H, 1, T); None shows all.
    """
    scaled = (query * query.shape[-1] ** -0.5).to(key.dtype)
    mixed = []
    for part in scaled.split(_QUERIES, dim=2):
        scores = part @ key.transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        mixed.append(scores.softmax(-1) @ value)
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)).to(query.dtype)


class StaticCache(DecoderCache):
    """A `DecoderCache` whose rows are moved within one place in memory.

    Attributes:
        recorder: of its steps as CUDA graphs, which hold while its tensors stay where they are; None without.
    """

    recorder: Recorder | None = None

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        super().keep(memories)
        self._moved_away()

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        for kept in (self.self_keys, self.self_values):
            for i, x in enumerate(kept):
                kept[i] = self._moved(x, rows)
        self.rewind(self.lengths[rows])
        self.route = None if self.route is None else self.route.take(rows)

    def _moved(self, x: Tensor, rows: Tensor) -> Tensor:
        taken = x[rows, :, : self.used]
        if len(rows) != len(x):
            self._moved_away()
            x = x.new_zeros(len(rows), *x.shape[1:])
        x[:, :, : self.used] = taken
        return x

    def _moved_away(self) -> None:
        if self.recorder is not None:
            self.recorder.forget()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What is common to all layers in one step: places (R, Q) of its tokens, and what they see (R, 1, Q, C) or all.

    A step over `all_places` of the cache is the same whatever the cache holds.
    """

    cache: DecoderCache
    positions: Tensor
    allowed: Tensor | None
    weights: list[Tensor] | None = None
    all_places: bool = False

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (R, H, Q, D/H) into the cache; all those to attend to."""
        if self.all_places:
            return self.cache.store(layer, self.positions, self.cache.capacity, keys, values)
        return self.cache.write(layer, self.positions, keys, values)


class FusedDecoderLayer(nn.Module):
    """Stands for a `DecoderLayer`; queries, keys and values of a token are one product.

    Args:
        layer: its weights are shared where they stay as they are.
        precision: see `Precision`.

    Attributes:
        memory_width: of the memory that keys and values are made from.
    """

    def __init__(self, layer: DecoderLayer, precision: Precision) -> None:
        super().__init__()
        own, cross = layer.self_attention, layer.cross_attention
        self.num_heads, self.memory_width = own.num_heads, cross.key.in_features
        self.self_norm = recast(layer.self_norm, precision, keep)
        self.cross_norm = recast(layer.cross_norm, precision, keep)
        self.own = fused([own.query, own.key, own.value], precision)
        self.own_out = linear(own.out.weight, own.out.bias, precision)
        self.cross = linear(cross.query.weight, cross.query.bias, precision)
        self.cross_out = linear(cross.out.weight, cross.out.bias, precision)
        self.memory = fused([cross.key, cross.value], precision)
        self.feed_forward = _feed_forward(layer, precision)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory (B, T, D), each (B, H, T, D/H)."""
        keys, values = self.memory(memory).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        """x (R, Q, D) after this layer, number `layer` of the cache."""
        cache = step.cache
        query, keys, values = (self._heads(part) for part in self.own(self.self_norm(x)).chunk(3, dim=-1))
        keys, values = step.write(layer, keys, values)
        x = x + self.own_out(_joined(attend(query, keys, values, step.allowed)))
        query = self.cross(self.cross_norm(x)).view(len(cache.cross_keys[layer]), -1, x.shape[2])
        mixed = _read(self._heads(query), cache, layer, step.weights)
        x = x + self.cross_out(_joined(mixed).view(x.shape))
        return x + cast(Tensor, self.feed_forward(x, cache.route))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TorchDecoder(TextDecoder):
    """Stands for a `TextDecoder` when rows are stepped; it has no gradient.

    Args:
        decoder: its weights are shared where they stay as they are.
        precision: see `Precision`.
        cuda_graphs: on a GPU, record steps that come again and again as graphs.

    Attributes:
        precision: as given.
        step_bytes: of weights that each step reads.
    """

    def __init__(self, decoder: TextDecoder, precision: Precision, *, cuda_graphs: bool = True) -> None:
        nn.Module.__init__(self)
        self.precision = precision
        self.embedding = cast(nn.Embedding, recast(decoder.embedding, precision, keep))
        self.norm = cast(nn.LayerNorm, recast(decoder.norm, precision, keep))
        self.positions = in_precision(decoder.positions, precision)
        layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        self.layers = nn.ModuleList(FusedDecoderLayer(layer, precision) for layer in layers)
        untied = decoder.output_head is not None
        self.output_head = plain_linear(in_precision(decoder.output_matrix, precision)) if untied else None
        self.output = linear(decoder.output_matrix, None, precision)
        self._memory_dtype = self.positions.dtype if precision == "fp32" else torch.bfloat16
        self._records = cuda_graphs and self.positions.device.type == "cuda"
        self.eval()

    @property
    def step_bytes(self) -> int:  # noqa: D102 - see above
        layers = num_bytes(self.layers) - sum(num_bytes(layer.memory) for layer in self._fused())
        return layers + num_bytes(self.norm) + num_bytes(self.output)

    def start(
        self,
        memory: Tensor,
        num_frames: Tensor | None,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        route: Route | None = None,
    ) -> StaticCache:
        """As `TextDecoder.start`."""
        capacity = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        pairs = [layer.keys_values(memory) for layer in self._fused()]
        num_rows, heads, width = len(memory) * rows_per_memory, pairs[0][0].shape[1], pairs[0][0].shape[3]
        own = pairs[0][0].new_zeros(2, len(pairs), num_rows, heads, capacity, width)
        cross = [[x.to(self._memory_dtype).contiguous() for x in kind] for kind in zip(*pairs, strict=True)]
        cache = StaticCache(
            self_keys=list(own[0]),
            self_values=list(own[1]),
            cross_keys=cross[0],
            cross_values=cross[1],
            memory_allowed=allowed_frames(memory, num_frames),
            lengths=torch.zeros(num_rows, dtype=torch.long, device=memory.device),
            route=route,
        )
        if self._records and route is None:  # which languages the rows have is asked on the host
            cache.recorder = Recorder()
        return cache

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """As `TextDecoder.step`."""
        recorder = cache.recorder if isinstance(cache, StaticCache) and weights is None else None
        if recorder is not None and cache.used + tokens.shape[1] <= cache.capacity:
            logits = recorder.run(partial(self.step_over_all, cache), tokens, cache.lengths)
            if logits is not None:
                cache.grow(tokens.shape[1])
                return logits
        return self.logits(self.states(tokens, cache, weights))

    def step_over_all(self, cache: DecoderCache, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, Q, V) of a step in which all places of a cache are read, and those not filled are masked.

        It needs to know nothing on the host, takes how full the rows are from `lengths` (R,), and writes only to the
        cache's own tensors, the same at each call: so it can be recorded. The cache does not count the tokens.
        """
        places = torch.arange(cache.capacity, device=tokens.device)
        positions = lengths[:, None] + places[: tokens.shape[1]]
        allowed = places <= positions[:, None, :, None]
        return self.logits(
            self._through(tokens, _Step(cache=cache, positions=positions, allowed=allowed, all_places=True))
        )

    def states(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """A step that stops before the last norm: (R, Q, D), for `logits`. Errors as for `step`."""
        positions, allowed = self.places(tokens, cache)
        x = self._through(tokens, _Step(cache=cache, positions=positions, allowed=allowed, weights=weights))
        cache.grow(tokens.shape[1])
        return x

    def _through(self, tokens: Tensor, step: _Step) -> Tensor:
        """States (R, Q, D) after all layers."""
        x: Tensor = self.embedding(tokens) + self.positions[step.positions]
        for i, layer in enumerate(self._fused()):
            x = layer(x, i, step)
        return x

    def outputs(self, x: Tensor) -> Tensor:
        """As `TextDecoder.outputs`."""
        return cast(Tensor, self.output(x))

    def forward(self, *args: Any, **more: Any) -> Tensor:
        """Not there: an engine has no gradient."""
        raise NotImplementedError("an engine only steps; compute whole rows with the model itself")

    def _fused(self) -> list[FusedDecoderLayer]:
        return [cast(FusedDecoderLayer, layer) for layer in self.layers]


class FusedEncoderLayer(nn.Module):
    """Stands for an `EncoderLayer`, with attention in bf16."""

    def __init__(self, layer: EncoderLayer, precision: Precision) -> None:
        super().__init__()
        attention = layer.self_attention
        self.num_heads = attention.num_heads
        self.self_norm = recast(layer.self_norm, precision, keep)
        self.own = fused([attention.query, attention.key, attention.value], precision)
        self.own_out = linear(attention.out.weight, attention.out.bias, precision)
        self.feed_forward = _feed_forward(layer, precision)

    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """As `EncoderLayer.forward`."""
        parts = self.own(self.self_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        half = torch.bfloat16
        mixed = attend_in_bf16(query, key.to(half).contiguous(), value.to(half).contiguous(), allowed)
        x = x + self.own_out(_joined(mixed))
        return x + cast(Tensor, self.feed_forward(x, route))


def _read(query: Tensor, cache: DecoderCache, layer: int, weights: list[Tensor] | None) -> Tensor:
    """What queries (B, H, R/B Q, D/H) read from the memories."""
    keys, values, allowed = cache.cross_keys[layer], cache.cross_values[layer], cache.memory_allowed
    if weights is not None:
        return attend(query, keys.to(query.dtype), values.to(query.dtype), allowed, weights)
    on_cpu = keys.device.type == "cpu"
    if keys.dtype == torch.bfloat16 and on_cpu:
        return attend_in_bf16(query, keys, values, allowed)
    return attend(query, keys, values, allowed)


def _joined(x: Tensor) -> Tensor:
    """(B, H, Q, D/H) to (B, Q, D)."""
    return x.transpose(1, 2).flatten(2)


def _feed_forward(layer: DecoderLayer | EncoderLayer, precision: Precision) -> nn.Module:
    part: nn.Module = layer.feed_forward  # of any kind, split by language too
    return recast(part, precision, keep)
