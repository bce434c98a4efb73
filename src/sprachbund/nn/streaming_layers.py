"""The parts of a streaming FastConformer: its sizes, the subsampling, the causal convolution, the layer.

Shapes: B rows, T frames, C frames of a chunk, M mel bins, D width, H heads, L layers, K kernel size, P frames of the
past.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.feed_forward import FeedForward, Route
from sprachbund.nn.streaming_attention import RelativeAttention
from sprachbund.nn.streaming_state import MARGIN, NUM_HALVINGS, LayerPast, StreamState


@dataclass(frozen=True, kw_only=True)
class StreamingShape:
    """Sizes of the encoder.

    Attributes:
        width: D.
        feed_forward_width: of each half-step feed-forward.
        kernel_size: K of the depthwise convolutions.
        stem_channels: of the subsampling.
        scale_input: multiply what enters the first layer by the root of D, as NeMo's checkpoints want it.
    """

    num_mel_bins: int = 80
    width: int = 256
    num_heads: int = 4
    num_layers: int = 8
    feed_forward_width: int = 1024
    kernel_size: int = 9
    stem_channels: int = 256
    scale_input: bool = False
    dropout: float = 0.0


class CausalStem(nn.Module):
    """Three depthwise-separable convolutions of stride 2 over time and frequency (arXiv 2305.05084, section 2)."""

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__()
        channels = shape.stem_channels
        self.first = nn.Conv2d(1, channels, 3, stride=2)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, groups=channels) for _ in range(NUM_HALVINGS - 1)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(NUM_HALVINGS - 1))
        self.out = nn.Linear(channels * self.sizes(shape)[-1][1], shape.width)

    @staticmethod
    def sizes(shape: StreamingShape) -> list[tuple[int, int]]:
        """Channels and bins before each convolution, and after the last."""
        found = [(1, shape.num_mel_bins)]
        for _ in range(NUM_HALVINGS):
            found.append((shape.stem_channels, found[-1][1] // 2 + 1))
        return found

    def forward(self, mel: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mel (B, 8 C, M), or fewer frames at the end of a stream, and what came before; frames (B, C, D) and the
        same for the next.
        """
        x, after = mel[:, None], []
        for number, past in enumerate(before):
            x = torch.cat([past, x], dim=2)
            after.append(x[:, :, -MARGIN:])
            x = F.pad(x, (MARGIN, 1))  # over frequencies, as NeMo's checkpoints do
            if number == 0:
                x = F.relu(self.first(x))
            else:
                x = F.relu(self.pointwise[number - 1](self.depthwise[number - 1](x)))
        return self.out(x.transpose(1, 2).flatten(2)), tuple(after)


class CausalConvolution(nn.Module):
    """Gated pointwise, depthwise over the past, pointwise; layer norm in the place of batch norm."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel_size, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, D) and the inputs (B, D, K - 1) before them; the same shapes."""
        x = F.glu(self.gate(self.norm(x))).transpose(1, 2)
        x = torch.cat([before, x], dim=2)
        after = x[:, :, x.shape[2] - before.shape[2] :]
        x = self.depthwise(x).transpose(1, 2)
        return self.out(F.silu(self.inner_norm(x))), after


class StreamingLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (arXiv 2005.08100, equation 1)."""

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(shape.width, shape.feed_forward_width)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = RelativeAttention(shape.width, shape.num_heads)
        self.convolution = CausalConvolution(shape.width, shape.kernel_size)
        self.feed_forward_out = FeedForward(shape.width, shape.feed_forward_width)
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = shape.dropout

    def forward(
        self, x: Tensor, past: LayerPast, signals: Tensor, allowed: Tensor, route: Route | None
    ) -> tuple[Tensor, LayerPast]:
        """(B, C, D) and what is past; the same of the chunk. For the other arguments see `RelativeAttention`."""
        x = x + 0.5 * self._dropped(self.feed_forward_in(x, route))
        normed = self.attention_norm(x)
        keys = torch.cat([past.keys, self.attention.split_heads(self.attention.key(normed))], dim=2)
        values = torch.cat([past.values, self.attention.split_heads(self.attention.value(normed))], dim=2)
        x = x + self._dropped(self.attention(normed, keys, values, signals, allowed))
        mixed, convolution = self.convolution(x, past.convolution)
        x = x + self._dropped(mixed)
        x = self.norm(x + 0.5 * self._dropped(self.feed_forward_out(x, route)))
        return x, LayerPast(keys=keys, values=values, convolution=convolution)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def empty_state(shape: StreamingShape, num_rows: int, past: int, like: Tensor) -> StreamState:
    """The state of streams of which nothing was heard, with room for so much past; in dtype and device of `like`."""
    heads = (shape.num_heads, past, shape.width // shape.num_heads)
    sizes = CausalStem.sizes(shape)[:-1]
    return StreamState(
        stem=tuple(like.new_zeros(num_rows, channels, MARGIN, bins) for channels, bins in sizes),
        keys=like.new_zeros(num_rows, shape.num_layers, *heads),
        values=like.new_zeros(num_rows, shape.num_layers, *heads),
        convolution=like.new_zeros(num_rows, shape.num_layers, shape.width, shape.kernel_size - 1),
        num_past=torch.zeros(num_rows, dtype=torch.long, device=like.device),
    )
