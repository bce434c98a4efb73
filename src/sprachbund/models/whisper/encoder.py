"""Whisper's audio encoder, and what has to be masked so that short utterances in a batch do not see padding.

Shapes: B utterances, T log-mel frames, S memory frames (half of T, rounded up), M mel bins, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.shared_private import run_layers

_MAX_TIMESCALE = 10_000.0


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed positions (length, D): sines in the first half of the width, cosines in the second."""
    steps = math.log(_MAX_TIMESCALE) / (width // 2 - 1)
    rates = torch.exp(-steps * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def memory_frames(num_frames: Tensor) -> Tensor:
    """How many memory frames `num_frames` log-mel frames give: the second convolution has stride two."""
    return (num_frames + 1) // 2


class WhisperEncoder(nn.Module):
    """Two convolutions, positions, pre-norm layers (arXiv 2212.04356, section 2.2)."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)
        # Not learned, but stored by checkpoints and free to differ there. Computing them on the meta device would
        # import torch's compiler: a second at every start.
        positions = torch.empty(config.max_frames, config.width)
        if not positions.is_meta:
            positions = sinusoids(config.max_frames, config.width)
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.width,
                config.encoder_heads,
                config.encoder_feed_forward_width,
                dropout=config.dropout,
            )
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, features: Tensor, num_frames: Tensor | None = None, route: Route | None = None
    ) -> Tensor:
        """Encode log-mel features (B, T, M) into (B, S, D).

        With `num_frames` (B,), frames after it are kept out of the convolutions and of the attention, so a
        row gives what it would give alone. Rows of a whole window, as Whisper was trained, need none.
        A route of n B rows gives the states under n routes, (n B, S, D); see `run_layers`.
        """
        x = _silence_padding(features.transpose(1, 2), num_frames)
        x = _silence_padding(F.gelu(self.conv1(x)), num_frames)
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        allowed = None
        if num_frames is not None:
            allowed = _valid(memory_frames(num_frames), x.shape[1])[:, None, None, :]
        return self.norm(run_layers(self.layers, x, allowed, route))


def _valid(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def _silence_padding(x: Tensor, num_frames: Tensor | None) -> Tensor:
    """Zero the frames after the end of each row of x (B, D, T): what a convolution sees beyond an edge."""
    if num_frames is None:
        return x
    return x * _valid(num_frames, x.shape[2])[:, None, :].to(x.dtype)
