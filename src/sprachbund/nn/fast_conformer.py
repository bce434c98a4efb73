"""FastConformer encoder (arXiv 2305.05084) that hears whole utterances, as Parakeet and Canary have it.

An eighth of the mel frames is left by depthwise convolutions; attention is by content and by distance, as in
`sprachbund.nn.streaming_conformer`, and sees the whole utterance. Padding changes nothing: an utterance gives the same
states alone and in a batch. Shapes: B rows, T frames, M mel bins, D width, K kernel size.
"""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.feed_forward import FeedForward, Route
from sprachbund.nn.limits import Flag, Heads, InnerWidth, Kernel, MelBins, SomeLayers, Width
from sprachbund.nn.streaming_conformer import RelativeAttention, distance_signals

NUM_HALVINGS = 3
SUBSAMPLING = 2**NUM_HALVINGS
"""Mel frames of a frame."""


class FastConformerShape(BaseModel):
    """Sizes; the defaults are those of Parakeet 0.6B.

    Attributes:
        num_mel_bins: M.
        width: D.
        num_heads: number of heads of the attention.
        num_layers: number of layers of the encoder.
        feed_forward_width: hidden width of each half-step feed-forward.
        kernel_size: K of the depthwise convolutions, odd.
        stem_channels: channels of the subsampling.
        scale_input: whether what enters the first layer is multiplied by the root of D.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_mel_bins: MelBins = 128
    width: Width = 1024
    num_heads: Heads = 8
    num_layers: SomeLayers = 24
    feed_forward_width: InnerWidth = 4096
    kernel_size: Kernel = 9
    stem_channels: Width = 256
    scale_input: Flag = False


class Stem(nn.Module):
    """A convolution and two separable ones, each of stride 2 over time and frequency: (B, T, M) to (B, T / 8, D)."""

    def __init__(self, shape: FastConformerShape) -> None:
        super().__init__()
        channels = shape.stem_channels
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
            for _ in range(NUM_HALVINGS - 1)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(NUM_HALVINGS - 1))
        self.out = nn.Linear(channels * (shape.num_mel_bins // SUBSAMPLING), shape.width)

    def forward(self, mel: Tensor, num_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shorter sequence and its valid lengths (B,), each length divided by 8 and rounded up."""
        x, lengths = _masked(mel[:, None], num_mel), num_mel
        for number in range(NUM_HALVINGS):
            lengths = (lengths + 1) // 2
            x = self.first(x) if number == 0 else self.depthwise[number - 1](x)
            if number > 0:
                # A bias alone would let padding sound.
                x = self.pointwise[number - 1](_masked(x, lengths))
            x = F.relu(_masked(x, lengths))
        return self.out(x.transpose(1, 2).flatten(2)), lengths


def _masked(x: Tensor, num_frames: Tensor) -> Tensor:
    """x (B, c, T, m) with zeros behind the first `num_frames` (B,) frames."""
    return x * valid_frames(num_frames, x.shape[2])[:, None, :, None]


class Convolution(nn.Module):
    """Gated pointwise, depthwise over both sides, batch norm, pointwise (arXiv 2005.08100, section 2.1.2)."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=(kernel_size - 1) // 2, groups=width)
        self.inner_norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D), of which `valid` (B, T) frames count, to (B, T, D)."""
        x = F.glu(self.gate(self.norm(x))) * valid[..., None]
        x = self.inner_norm(self.depthwise(x.transpose(1, 2)))
        return self.out(F.silu(x).transpose(1, 2))

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the batch norm keeps its statistics, which padding and small batches would move."""
        super().train(mode)
        self.inner_norm.eval()
        return self


class FastConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (arXiv 2005.08100, equation 1)."""

    def __init__(self, shape: FastConformerShape) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(shape.width, shape.feed_forward_width)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = RelativeAttention(shape.width, shape.num_heads)
        self.convolution = Convolution(shape.width, shape.kernel_size)
        self.feed_forward_out = FeedForward(shape.width, shape.feed_forward_width)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor, valid: Tensor, signals: Tensor, route: Route | None = None) -> Tensor:
        """States (B, T, D) of states (B, T, D).

        Args:
            x: (B, T, D).
            valid: boolean (B, T), the frames that count.
            signals: (2 T - 1, D), see `RelativeAttention`.
            route: languages of the rows, where feed-forwards are split by them.
        """
        x = x + 0.5 * self.feed_forward_in(x, route)
        normed = self.attention_norm(x)
        keys = self.attention.split_heads(self.attention.key(normed))
        values = self.attention.split_heads(self.attention.value(normed))
        x = x + self.attention(normed, keys, values, signals, valid[:, None, None])
        x = x + self.convolution(x, valid)
        return self.norm(x + 0.5 * self.feed_forward_out(x, route))


class FastConformerEncoder(nn.Module):
    """Log-mel (B, T, M) to states (B, T / 8, D).

    Args:
        shape: its sizes.

    Raises:
        ValueError: sizes that fit no such encoder.
    """

    def __init__(self, shape: FastConformerShape) -> None:
        super().__init__()
        if shape.kernel_size % 2 == 0 or shape.num_mel_bins % SUBSAMPLING or shape.width % 2:
            raise ValueError(
                f"kernel_size {shape.kernel_size} has to be odd, num_mel_bins {shape.num_mel_bins} a multiple of "
                f"{SUBSAMPLING}, and width {shape.width} even"
            )
        self.shape = shape
        self.stem = Stem(shape)
        self.layers = nn.ModuleList(FastConformerLayer(shape) for _ in range(shape.num_layers))

    def forward(self, mel: Tensor, num_mel: Tensor, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """States (B, T / 8, D) of log-mel (B, T, M), and how many of them are valid (B,).

        Args:
            mel: log-mel.
            num_mel: valid frames (B,).
            route: languages of the rows, where feed-forwards are split by them.
        """
        x, num_frames = self.stem(mel, num_mel)
        if self.shape.scale_input:
            x = x * math.sqrt(self.shape.width)
        valid = valid_frames(num_frames, x.shape[1])
        signals = distance_signals(x.shape[1] - 1, 1 - x.shape[1], self.shape.width).to(x)
        for layer in self.layers:
            x = layer(x, valid, signals, route)
        return x, num_frames
