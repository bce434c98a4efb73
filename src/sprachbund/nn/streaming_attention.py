"""Attention by content and by distance, for chunks behind a past that is cached (arXiv 1901.02860, section 3.3).

Shapes: B rows, C frames of a chunk, P frames of the past, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativeAttention(nn.Module):
    """Attention by content and by distance (arXiv 1901.02860, section 3.3), over the past and a chunk."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.distance = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, H, T, D/H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, signals: Tensor, allowed: Tensor) -> Tensor:
        """Attend from x (B, C, D) to keys and values (B, H, P + C, D/H), of which the last C are its own.

        Args:
            x: normed.
            keys: of the past and of x.
            values: of the past and of x.
            signals: (P + 2 C - 1, D), of the distances from P + C - 1 down to 1 - C.
            allowed: boolean, broadcastable to (B, 1, C, P + C).
        """
        query = self.split_heads(self.query(x))
        by_distance = self.split_heads(self.distance(signals)[None])
        scores = (query + self.distance_bias[:, None]) @ by_distance.transpose(-1, -2)
        scores = _shifted(scores)[..., : keys.shape[2]] / math.sqrt(query.shape[-1])
        bias = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        mixed = _attend_with(query + self.content_bias[:, None], keys, values, bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _attend_with(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return scores.softmax(-1) @ value


def _shifted(scores: Tensor) -> Tensor:
    """Row i (of C) moved left by C - 1 - i: scores by distance become scores by key."""
    *head, num_queries, num_distances = scores.shape
    padded = F.pad(scores, (1, 0)).view(*head, num_distances + 1, num_queries)
    return padded[..., 1:, :].reshape(*head, num_queries, num_distances)


def distance_signals(first: int, last: int, width: int) -> Tensor:
    """Sines and cosines in turn (first - last + 1, D), of the distances from `first` down to `last`."""
    distances = torch.arange(first, last - 1, -1.0)
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = distances[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
