"""Conformer encoder, arXiv 2005.08100, with padding that changes nothing.

Every part is either per frame or hides padded frames, so an utterance gives the same states alone and in a
batch. Shapes: B batch, T frames, M mel bins, D width, H heads.
"""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import MultiHeadAttention
from sprachbund.nn.encoder import ConvolutionalEncoder, EncoderLayers
from sprachbund.nn.feed_forward import FeedForward, Route


def valid_frames(num_frames: Tensor, length: int) -> Tensor:
    """Boolean (B, length): True on the first `num_frames` (B,) positions."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]


def sinusoids(length: int, width: int, max_wavelength: float = 10_000.0) -> Tensor:
    """Position signals (length, width), sines then cosines (arXiv 1706.03762, section 3.5).

    Args:
        length: number of positions.
        width: width of a signal, even.
        max_wavelength: wavelength of the slowest pair, in positions over 2 pi.
    """
    rates = torch.exp(-math.log(max_wavelength) * torch.arange(width // 2) / (width // 2 - 1))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Subsampling(nn.Module):
    """Convolutions of stride 2 over time: log-mel (B, T, M) to (B, T / 2**num_layers, D)."""

    def __init__(self, num_mel_bins: int, width: int, num_layers: int = 3) -> None:
        super().__init__()
        sizes = [num_mel_bins] + [width] * num_layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1)
            for i, (a, b) in enumerate(pairwise(sizes))
        )

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shorter sequence and its valid lengths (B,), each length divided by 2 and rounded up."""
        x = features.transpose(1, 2)
        x = x * valid_frames(num_frames, x.shape[2])[:, None]
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
            num_frames = (num_frames + 1) // 2
            x = x * valid_frames(num_frames, x.shape[2])[:, None]
        return x.transpose(1, 2), num_frames


def depthwise(width: int, kernel_size: int) -> nn.Conv1d:
    """A convolution over time of every channel by itself, which keeps the length. The kernel size has to be odd."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel size {kernel_size} is even; it needs a centre")
    return nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise over time, pointwise (arXiv 2005.08100, section 2.1.2).

    Layer norm stands where the paper has batch norm: an utterance must not depend on its neighbours.
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = depthwise(width, kernel_size)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); `valid` (B, T, 1) hides padding from its neighbours."""
        x = F.glu(self.gate(self.norm(x))) * valid
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(self.inner_norm(x)))


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (arXiv 2005.08100, equation 1)."""

    def __init__(
        self, width: int, num_heads: int, feed_forward_width: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(width, feed_forward_width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.convolution = ConvolutionModule(width, kernel_size)
        self.feed_forward_out = FeedForward(width, feed_forward_width)
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout

    def forward(self, x: Tensor, valid: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); `valid` is boolean (B, T), `route` the languages of the rows.

        Args:
            x: (B, T, D).
            valid: boolean (B, T), frames that are not padding.
            route: languages of the rows, where layers are split by them.
        """
        x = x + 0.5 * self.feed_forward_in(x, route)
        normed = self.attention_norm(x)
        x = x + self.attention(normed, *self.attention.keys_values(normed), valid[:, None, None])
        x = x + self.convolution(x, valid[..., None])
        x = x + F.dropout(0.5 * self.feed_forward_out(x, route), self.dropout, self.training)
        return self.norm(x)


class ConformerEncoder(ConvolutionalEncoder):
    """Log-mel to states.

    Absolute positions are added once, after the subsampling: the decoder finds the next word by them long before
    it knows the sounds. The states of speech longer than what was trained on are therefore not to be trusted.

    Attributes:
        first_layer: layers before it are not run, nor is the subsampling; the input then is the states (B, T/8, D)
            behind them. See `behind`.
        gives_means: whether it gives the means of the states of its layers, as `means` asks for.
    """

    first_layer = 0
    gives_means = True

    def __init__(
        self,
        *,
        num_mel_bins: int,
        width: int,
        num_heads: int,
        num_layers: int,
        feed_forward_width: int,
        kernel_size: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.subsampling = Subsampling(num_mel_bins, width)
        self.norm = nn.LayerNorm(width)
        self.layers = EncoderLayers(
            ConformerLayer(width, num_heads, feed_forward_width, kernel_size, dropout)
            for _ in range(num_layers)
        )

    @property
    def convolutions(self) -> list[nn.Conv1d]:
        """The convolutions of the subsampling."""
        known = isinstance(self.subsampling, Subsampling)  # an engine puts its own in the place
        return [c for c in self.subsampling.convolutions if isinstance(c, nn.Conv1d)] if known else []

    def before(self, layer: int) -> "ConformerEncoder":
        """The encoder up to a layer, which is not run any more; with the same weights."""
        part = copy.copy(self)
        part._modules = {**self._modules, "layers": self.layers[:layer]}
        return part

    def behind(self, layer: int) -> "ConformerEncoder":
        """The encoder from a layer on, which takes the states of `before(layer)`; with the same weights and names."""
        part = copy.copy(self)
        part.first_layer = layer
        return part

    def forward(
        self,
        features: Tensor,
        num_frames: Tensor,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, T, M) with `num_frames` (B,) valid ones to states (B, T/8, D) and their valid lengths.

        A route of n B rows gives the states under n routes, (n B, T/8, D); see `EncoderLayers`.

        Args:
            features: (B, T, M).
            num_frames: valid frames (B,).
            route: languages of the rows, where feed-forwards are split by them.
            means: takes the means (n B, N + 1, D) of the states before and behind each layer; see
                `EncoderLayers.with_means`.
        """
        x = features
        if not self.first_layer:
            x, num_frames = self.subsampling(features, num_frames)
            x = self.norm(x) + sinusoids(x.shape[1], x.shape[2]).to(x)
        valid = valid_frames(num_frames, x.shape[1])
        # A native engine's layers cannot be divided.
        layers = EncoderLayers(self.layers[self.first_layer :]) if self.first_layer else self.layers
        if means is None:
            x = layers(x, valid, route)
        else:
            x, of_layers = layers.with_means(x, valid, route)
            means.append(of_layers)
        return x, num_frames.repeat(x.shape[0] // num_frames.shape[0])
