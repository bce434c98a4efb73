"""Attention over any number of query positions, with the keys and values passed in from outside.

Nothing here remembers anything: whoever decodes step by step holds the keys and values in a cache object
(`sprachbund.nn.decoder.DecoderCache`) and passes them in. Shapes: B batch, R rows (hypotheses), Q query
positions, C key positions, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, weights: list[Tensor] | None = None
) -> Tensor:
    """Scaled dot-product attention, "Attention is all you need", arXiv 1706.03762, equation 1.

    Args:
        query: (B, H, Q, D/H).
        key: (B, H, C, D/H).
        value: (B, H, C, D/H).
        allowed: boolean, broadcastable to (B, H, Q, C); False hides a key. None shows all.
        weights: when a list is given, the attention weights (B, H, Q, C) are appended to it.

    Returns:
        (B, H, Q, D/H).
    """
    if weights is None and not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    # On CPUs the backward pass of the fused kernel costs a quarter of a training step at our lengths; plain
    # products do not, and the weights are there for whoever asks.
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(dim=-1)
    if weights is not None:
        weights.append(probabilities.detach())
    return probabilities.to(value.dtype) @ value


class MultiHeadAttention(nn.Module):
    """Query, key, value and output projections around `attend`.

    Args:
        width: D of the queries and of the output.
        num_heads: H; must divide D.
        key_bias: whether the key projection has a bias (Whisper's has none; a bias there changes nothing
            after the softmax).
        memory_width: D of what keys and values are made from, when it is not `width`.
    """

    def __init__(
        self, width: int, num_heads: int, *, key_bias: bool = False, memory_width: int | None = None
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width or width, width, bias=key_bias)
        self.value = nn.Linear(memory_width or width, width)
        self.out = nn.Linear(width, width)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, C, D) to (B, H, C, D/H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory (B, C, D), each (B, H, C, D/H)."""
        return self.split_heads(self.key(memory)), self.split_heads(self.value(memory))

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend from x (R, Q, D) to keys and values (B, H, C, D/H) where R is a multiple of B.

        With R > B, row r reads memory r // (R / B): several hypotheses or target languages share one memory
        without a copy of it. `allowed` is then (B, 1, 1, C), or None. Returns (R, Q, D).

        Args:
            x: queries (R, Q, D).
            keys: (B, H, C, D/H).
            values: (B, H, C, D/H).
            allowed: boolean (B, 1, Q, C), the keys that each query attends to; all if None.
            weights: the attention weights (R, H, Q, C) are appended to it, if given.
        """
        num_rows, num_queries, _ = x.shape
        num_memories = keys.shape[0]
        query = self.split_heads(self.query(x).reshape(num_memories, -1, x.shape[-1]))
        mixed = attend(query, keys, values, allowed, weights)
        return self.out(mixed.transpose(1, 2).reshape(num_rows, num_queries, -1))
