"""Causal layers over streams of any length: a position attends to a window of those behind it, and no more are kept.

Rows may have come differently far, and yet go on together: their newest positions lie side by side at the end. Shapes:
R rows, Q new positions, S positions kept, K heads of keys, E head width, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.nn.causal_lm import CausalLayers, Store


@dataclass(frozen=True, kw_only=True)
class SlidingCache:
    """Keys and values of the newest positions of rows; it is never written to.

    Attributes:
        keys: keys of each layer (R, K, S, E), the newest last; a row that has come less far than S begins with nothing.
        values: values of each layer, likewise.
        lengths: positions (R,) that each row has come.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor

    @classmethod
    def empty(cls, layers: CausalLayers, num_rows: int) -> Self:
        """Cache of rows in front of their first position, in the precision and on the device of the layers."""
        weight, shape = next(layers.parameters()), layers.shape
        nothing = (weight.new_zeros(num_rows, shape.num_key_heads, 0, shape.head_width),) * shape.num_layers
        return cls(
            keys=nothing,
            values=nothing,
            lengths=torch.zeros(num_rows, dtype=torch.long, device=weight.device),
        )

    @property
    def num_kept(self) -> int:
        """Number S of kept positions."""
        return self.keys[0].shape[2]

    def take(self, rows: Tensor) -> Self:
        """The rows at the indices `rows` (r,)."""
        return type(self)(
            keys=tuple(layer[rows] for layer in self.keys),
            values=tuple(layer[rows] for layer in self.values),
            lengths=self.lengths[rows],
        )

    @classmethod
    def stack(cls, caches: Sequence[Self]) -> Self:
        """Rows of several caches, one cache behind the other."""
        most = max(cache.num_kept for cache in caches)

        def joined(layers: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            return tuple(
                torch.cat([F.pad(part, (0, 0, most - part.shape[2], 0)) for part in parts])
                for parts in zip(*layers, strict=True)
            )

        return cls(
            keys=joined([cache.keys for cache in caches]),
            values=joined([cache.values for cache in caches]),
            lengths=torch.cat([cache.lengths for cache in caches]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the cache by name; ready for `safetensors.torch.save`."""
        return {
            "keys": torch.stack(self.keys),
            "values": torch.stack(self.values),
            "lengths": self.lengths,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The cache that gave `tensors`."""
        return cls(
            keys=tuple(tensors["keys"]), values=tuple(tensors["values"]), lengths=tensors["lengths"].clone()
        )


def through_window(
    layers: CausalLayers, x: Tensor, cache: SlidingCache, window: int
) -> tuple[Tensor, SlidingCache]:
    """States (R, Q, D) of new positions, and the cache with the newest `window` - 1 of them.

    The computation is cut into pieces of a window, so that memory has a bound for any Q.

    Args:
        layers: layers to go through.
        x: inputs (R, Q, D), one position or more.
        cache: cache of the R rows.
        window: positions that each attends to, its own among them.
    """
    states = []
    for piece in x.split(window, dim=1):
        out, cache = _piece(layers, piece, cache, window)
        states.append(out)
    return torch.cat(states, dim=1), cache


def _piece(layers: CausalLayers, x: Tensor, cache: SlidingCache, window: int) -> tuple[Tensor, SlidingCache]:
    num_new, kept = x.shape[1], cache.num_kept
    positions = cache.lengths[:, None] + torch.arange(num_new, device=x.device)
    there = cache.lengths[:, None] + torch.arange(-kept, num_new, device=x.device)
    behind = positions[:, :, None] - there[:, None]
    allowed = ((behind >= 0) & (behind < window) & (there >= 0)[:, None])[:, None]
    keys, values = list(cache.keys), list(cache.values)

    def store(layer: int) -> Store:
        def put(new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
            all_keys = torch.cat([keys[layer], new_keys], dim=2)
            all_values = torch.cat([values[layer], new_values], dim=2)
            newest = max(0, all_keys.shape[2] - window + 1)
            keys[layer], values[layer] = all_keys[:, :, newest:], all_values[:, :, newest:]
            return all_keys, all_values

        return put

    states = layers.through(x, positions, [store(layer) for layer in range(len(keys))], allowed)
    after = SlidingCache(keys=tuple(keys), values=tuple(values), lengths=cache.lengths + num_new)
    return states, after
