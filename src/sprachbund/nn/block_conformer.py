"""Conformer whose frames attend within blocks (Granite Speech, arXiv 2505.08699), and the Q-Former behind it.

Attention looks no further than a block of `block` frames, with relative positions that are learned (arXiv 1803.02155);
half way up, the probabilities of a CTC head are added to the states (arXiv 2104.02724). Modules have the names that
their weights have in files of transformers. Shapes: B utterances, T frames, D width, H heads, E head width, N blocks,
C frames of a block.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import attend
from sprachbund.nn.conformer import valid_frames


@dataclass(frozen=True, kw_only=True)
class BlockConformerShape:
    """Sizes of the encoder.

    Attributes:
        input_width: width of a frame of features.
        width: D.
        num_layers: layers.
        num_heads: H.
        head_width: E.
        feed_forward_times: the feed-forwards are so many times as wide as D.
        convolution_times: the convolutions likewise.
        kernel_size: kernel size of the convolutions.
        block: C.
        max_distance: largest distance that has a position of its own; at least C.
        num_pieces: outputs of the CTC head.
        shown_layers: layers whose states are given beside the last ones; 0 is what the first layer is given.
    """

    input_width: int
    width: int
    num_layers: int
    num_heads: int
    head_width: int
    feed_forward_times: int
    convolution_times: int
    kernel_size: int
    block: int
    max_distance: int
    num_pieces: int
    shown_layers: tuple[int, ...] = ()


class _FeedForward(nn.Module):
    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.up_proj = nn.Linear(width, width * times)
        self.down_proj = nn.Linear(width * times, width)

    def forward(self, x: Tensor) -> Tensor:
        expanded: Tensor = self.down_proj(F.silu(self.up_proj(self.pre_norm(x))))
        return expanded


class BlockAttention(nn.Module):
    """Attention of frames to those of their block.

    Args:
        shape: shape of the encoder.
    """

    def __init__(self, shape: BlockConformerShape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.num_heads * shape.head_width
        self.pre_norm = nn.LayerNorm(shape.width)
        self.to_q = nn.Linear(shape.width, inner, bias=False)
        self.to_kv = nn.Linear(shape.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, shape.width)
        self.rel_pos_emb = nn.Embedding.from_pretrained(
            torch.empty(2 * shape.max_distance + 1, shape.head_width), freeze=False
        )
        if not self.rel_pos_emb.weight.is_meta:
            nn.init.normal_(self.rel_pos_emb.weight)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Attention (B, T, D) over states (B, T, D), of which the frames `valid`, boolean (B, T), are speech."""
        length, block = x.shape[1], self.shape.block
        normed = F.pad(self.pre_norm(x), (0, 0, 0, -length % block))
        query, key, value = (
            # (B, T, H E) to (B N, H, C, E)
            part.unflatten(1, (-1, block))
            .flatten(0, 1)
            .unflatten(-1, (self.shape.num_heads, -1))
            .transpose(1, 2)
            for part in (self.to_q(normed), *self.to_kv(normed).chunk(2, dim=-1))
        )
        distances = torch.arange(block, device=x.device)
        distances = (distances[:, None] - distances).clamp(-block, block) + self.shape.max_distance
        scores = torch.einsum("bhce,cre->bhcr", query, self.rel_pos_emb(distances))
        scores = (scores + query @ key.transpose(-1, -2)) / math.sqrt(self.shape.head_width)
        speech = F.pad(valid, (0, -length % block)).unflatten(1, (-1, block)).flatten(0, 1)
        # A block without speech attends to all of itself, and nobody reads what comes of it.
        scores = scores.masked_fill(~speech[:, None, None, :], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1) @ value
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, (len(x), -1)).flatten(1, 2)
        attended: Tensor = self.to_out(mixed[:, :length])
        return attended


class _DepthwiseConvolution(nn.Module):
    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.padding = (kernel_size // 2, kernel_size // 2 - (kernel_size + 1) % 2)
        self.conv = nn.Conv1d(width, width, kernel_size, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.conv(F.pad(x, self.padding))
        return convolved


class _Convolution(nn.Module):
    def __init__(self, shape: BlockConformerShape) -> None:
        super().__init__()
        inner = shape.width * shape.convolution_times
        self.norm = nn.LayerNorm(shape.width)
        self.up_conv = nn.Conv1d(shape.width, 2 * inner, 1)
        self.depth_conv = _DepthwiseConvolution(inner, shape.kernel_size)
        self.batch_norm = nn.BatchNorm1d(inner)
        self.down_conv = nn.Conv1d(inner, shape.width, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        gated = F.glu(self.up_conv(self.norm(x).transpose(1, 2)), dim=1)
        gated = gated.masked_fill(~valid[:, None, :], 0.0)  # what is convolved beyond the end of a row alone
        convolved = F.silu(self.batch_norm(self.depth_conv(gated)))
        contracted: Tensor = self.down_conv(convolved)
        return contracted.transpose(1, 2)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the batch norm keeps its statistics, which padding and small batches would move."""
        super().train(mode)
        self.batch_norm.eval()
        return self


class BlockConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (arXiv 2005.08100, equation 1).

    Args:
        shape: shape of the encoder.
    """

    def __init__(self, shape: BlockConformerShape) -> None:
        super().__init__()
        self.ff1 = _FeedForward(shape.width, shape.feed_forward_times)
        self.attn = BlockAttention(shape)
        self.conv = _Convolution(shape)
        self.ff2 = _FeedForward(shape.width, shape.feed_forward_times)
        self.post_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """States (B, T, D) to (B, T, D); `valid`, boolean (B, T), is speech."""
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(x, valid)
        x = x + self.conv(x, valid)
        normed: Tensor = self.post_norm(x + 0.5 * self.ff2(x))
        return normed


class BlockConformer(nn.Module):
    """A conformer whose attention stays in blocks.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: BlockConformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.input_linear = nn.Linear(shape.input_width, shape.width)
        self.layers = nn.ModuleList(BlockConformerLayer(shape) for _ in range(shape.num_layers))
        self.out = nn.Linear(shape.width, shape.num_pieces)
        self.out_mid = nn.Linear(shape.num_pieces, shape.width)

    def forward(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """States (B, T, D), 0 on padding, of features (B, T, M), of which `num_frames` (B,) frames are valid.

        With `shown_layers`, their states stand before the last ones: (B, T, (1 + layers shown) D).
        """
        valid = valid_frames(num_frames, features.shape[1])
        x = self.input_linear(features)
        shown = [x] if 0 in self.shape.shown_layers else []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, valid)
            if number == self.shape.num_layers // 2:
                x = x + self.out_mid(self.out(x).softmax(dim=-1))
            if number in self.shape.shown_layers:
                shown.append(x)
        return torch.cat([*shown, x], dim=-1).masked_fill(~valid[..., None], 0.0)


# The Q-Former (arXiv 2301.12597): learned queries read a window of frames by cross-attention.


@dataclass(frozen=True, kw_only=True)
class QFormerShape:
    """Sizes of the Q-Former.

    Attributes:
        width: width of the queries.
        inner_width: inner width of the feed-forwards.
        num_layers: layers.
        num_heads: heads of every attention.
        memory_width: width of the frames.
        cross_every: every so many layers, beginning with the first, read the frames.
        norm_epsilon: norm epsilon of all norms.
    """

    width: int
    inner_width: int
    num_layers: int
    num_heads: int
    memory_width: int
    cross_every: int
    norm_epsilon: float


class _Projections(nn.Module):
    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)


class _Residual(nn.Module):
    """A matrix, and a norm behind the residual."""

    def __init__(self, inner_width: int, shape: QFormerShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inner_width, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normed


class _QFormerAttention(nn.Module):
    def __init__(self, shape: QFormerShape, memory_width: int) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.attention = _Projections(shape.width, memory_width)
        self.output = _Residual(shape.width, shape)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (
                self.attention.query(x),
                self.attention.key(memory),
                self.attention.value(memory),
            )
        )
        mixed = attend(query, key, value, None).transpose(1, 2).flatten(2)
        added: Tensor = self.output(mixed, x)
        return added


class _Expansion(nn.Module):
    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.inner_width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class QFormerLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the frames in some layers, feed-forward; norms come last.

    Args:
        shape: shape of the Q-Former.
        reads: whether it has cross-attention.
    """

    def __init__(self, shape: QFormerShape, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.attention = _QFormerAttention(shape, shape.width)
        if reads:
            self.crossattention = _QFormerAttention(shape, shape.memory_width)
        self.intermediate_query = _Expansion(shape)
        self.output_query = _Residual(shape.inner_width, shape)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries (B, Q, D) that read a memory (B, T, memory width)."""
        x = self.attention(x, x)
        if self.reads:
            x = self.crossattention(x, memory)
        mixed: Tensor = self.output_query(self.intermediate_query(x), x)
        return mixed


class _QFormerLayers(nn.Module):
    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            QFormerLayer(shape, number % shape.cross_every == 0) for number in range(shape.num_layers)
        )


class QFormer(nn.Module):
    """Layers of queries.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: QFormerShape) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)
        self.encoder = _QFormerLayers(shape)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries (1 or B, Q, D) that read a memory (B, T, memory width), to (B, Q, D)."""
        x = self.layernorm(queries).expand(len(memory), -1, -1)
        for layer in self.encoder.layer:
            x = layer(x, memory)
        return x


class WindowProjector(nn.Module):
    """Every window of frames becomes as many queries, in the width of a language model.

    Args:
        shape: shape of the Q-Former.
        window: frames.
        num_queries: queries that read each window.
        width: width of the language model.
    """

    def __init__(self, shape: QFormerShape, window: int, num_queries: int, width: int) -> None:
        super().__init__()
        self.window, self.num_queries = window, num_queries
        self.query = nn.Parameter(torch.empty(1, num_queries, shape.width))
        if not self.query.is_meta:
            nn.init.normal_(self.query)
        self.qformer = QFormer(shape)
        self.linear = nn.Linear(shape.width, width)

    def num_tokens(self, num_frames: Tensor) -> Tensor:
        """Speech tokens (B,) of so many frames (B,)."""
        return (num_frames + self.window - 1) // self.window * self.num_queries

    def forward(self, states: Tensor) -> Tensor:
        """Inputs (B, P, width) of the language model from states (B, T, D), which are 0 on padding."""
        padded = F.pad(states, (0, 0, 0, -states.shape[1] % self.window))
        windows = padded.unflatten(1, (-1, self.window)).flatten(0, 1)
        tokens = self.qformer(self.query, windows).unflatten(0, (len(states), -1)).flatten(1, 2)
        projected: Tensor = self.linear(tokens)
        return projected
