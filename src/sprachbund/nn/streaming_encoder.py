"""FastConformer encoder that streams: chunk-masked attention, causal convolutions, and caches for all that is past.

With the caches, chunk after chunk gives what one pass over the whole gives under the same mask (arXiv 2312.17279;
FastConformer: 2305.05084); nothing is computed twice. Keys and values are cached rather than the layers' inputs: with
chunks of one frame and 70 frames behind them, projecting the inputs again would be most of the work.

Shapes: B rows, T frames, C frames of a chunk, M mel bins, D width, H heads, L layers, K kernel size, P frames of the
past.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.streaming_attention import RelativeAttention, distance_signals
from sprachbund.nn.streaming_layers import CausalStem, StreamingLayer, StreamingShape, empty_state
from sprachbund.nn.streaming_state import SUBSAMPLING, LayerPast, StreamState, Tier
from sprachbund.util.distributed import of_first_rank

__all__ = [
    "SUBSAMPLING",
    "CausalStem",
    "LayerPast",
    "RelativeAttention",
    "StreamState",
    "StreamingEncoder",
    "StreamingLayer",
    "StreamingShape",
    "Tier",
    "distance_signals",
]


class StreamingEncoder(nn.Module):
    """Log-mel to states, whole or chunk by chunk.

    One pass over a whole utterance is a stream of one chunk, with a mask that hides what a stream would not have heard.

    Args:
        shape: its sizes.
        tiers: one of them is drawn for every batch in training (arXiv 2312.17279, section 3.3).

    Attributes:
        tier: of whole utterances outside of training; the first of `tiers` unless set.
    """

    def __init__(self, shape: StreamingShape, tiers: Sequence[Tier] = (Tier(),)) -> None:
        super().__init__()
        self.shape, self.tiers, self.tier = shape, tuple(tiers), tiers[0]
        self.stem = CausalStem(shape)
        self.layers = nn.ModuleList(StreamingLayer(shape) for _ in range(shape.num_layers))

    def forward(
        self, mel: Tensor, num_mel: Tensor, route: Route | None = None, *, tier: Tier | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whole utterances (B, T, M) with `num_mel` (B,) valid frames to states (B, T/8, D) and their valid lengths."""
        tier = tier or (self._drawn() if self.training else self.tier)
        start = self.start(mel.shape[0], Tier(left=tier.left, right=tier.left - 1), keep=0).to(mel.device)
        num_frames = _num_frames(num_mel)
        length = -(-mel.shape[1] // SUBSAMPLING)
        chunk = torch.arange(length, device=mel.device) // tier.chunk
        behind = chunk[:, None] - chunk
        visible = (behind >= 0) & (behind <= tier.past // tier.chunk)
        allowed = visible & valid_frames(num_frames, length)[:, None]
        states, _ = self._run(mel, start, allowed[:, None], route)
        return states, num_frames

    def _drawn(self) -> Tier:
        # Processes that share a batch draw differently; the first one's tier is that of the whole batch.
        return self.tiers[int(of_first_rank(torch.randint(len(self.tiers), ())))]

    def start(self, num_rows: int, tier: Tier, *, keep: int | None = None) -> StreamState:
        """The state of streams of which nothing was heard; of `keep` frames of the past, or the tier's."""
        past = tier.past if keep is None else keep
        return empty_state(self.shape, num_rows, past, self.stem.first.weight)

    def stream(
        self, mel: Tensor, num_mel: Tensor, state: StreamState, tier: Tier, route: Route | None = None
    ) -> tuple[Tensor, Tensor, StreamState]:
        """The next chunk of every row.

        Args:
            mel: (B, 8 C, M); padded in rows that end here.
            num_mel: (B,) valid frames; fewer than 8 C only where a row's stream ends.
            state: from `start` or from the chunk before. The tier may change where both keep as many frames of the
                past, as the published ones do: a stream can become quicker or more exact while it runs.
            tier: C = `tier.chunk`.
            route: languages of the rows.

        Returns:
            States (B, C, D), how many of them are valid (B,), and the state for the next chunk.

        Raises:
            ValueError: for a chunk of another length, or a state of another model or length of the past.
        """
        self._check(mel, num_mel, state, tier)
        return self.step(mel, num_mel, state, route)

    def step(
        self, mel: Tensor, num_mel: Tensor, state: StreamState, route: Route | None = None
    ) -> tuple[Tensor, Tensor, StreamState]:
        """As `stream`, unchecked: how long the chunk and the past are, the tensors' shapes say."""
        past, chunk = state.keys.shape[3], mel.shape[1] // SUBSAMPLING
        num_frames = _num_frames(num_mel)
        real = torch.arange(past, device=mel.device) >= past - state.num_past[:, None]
        allowed = torch.cat([real, valid_frames(num_frames, chunk)], dim=1)
        states, after = self._run(mel, state, allowed[:, None, None], route)
        num_past = (state.num_past + chunk).clamp(max=past)
        return states, num_frames, _kept(after, past, num_past)

    def _run(
        self, mel: Tensor, state: StreamState, allowed: Tensor, route: Route | None
    ) -> tuple[Tensor, StreamState]:
        """All layers; the state holds all keys and values, the past's and the chunk's."""
        x, stem = self.stem(mel, state.stem)
        if self.shape.scale_input:
            x = x * math.sqrt(self.shape.width)
        x = F.dropout(x, self.shape.dropout, self.training)
        past, chunk = state.keys.shape[3], x.shape[1]
        signals = distance_signals(past + chunk - 1, 1 - chunk, self.shape.width).to(x)
        after = []
        for number, layer in enumerate(self.layers):
            before = LayerPast(
                keys=state.keys[:, number],
                values=state.values[:, number],
                convolution=state.convolution[:, number],
            )
            x, own = layer(x, before, signals, allowed, route)
            after.append(own)
        return x, StreamState(
            stem=stem,
            keys=torch.stack([own.keys for own in after], dim=1),
            values=torch.stack([own.values for own in after], dim=1),
            convolution=torch.stack([own.convolution for own in after], dim=1),
            num_past=state.num_past,
        )

    def _check(self, mel: Tensor, num_mel: Tensor, state: StreamState, tier: Tier) -> None:
        size = tier.chunk * SUBSAMPLING
        if mel.shape[1] != size:
            raise ValueError(f"a chunk of {mel.shape[1]} mel frames; this tier's have {size}: pad the last")
        if num_mel.numel() and not 0 <= int(num_mel.min()) <= int(num_mel.max()) <= size:
            raise ValueError(f"num_mel holds {num_mel.tolist()}; a chunk of this tier has 0 to {size}")
        wanted = self.start(0, tier).tensors()
        for name, tensor in state.tensors().items():
            if tensor.shape[1:] != wanted[name].shape[1:]:
                raise ValueError(
                    f"the state's {name} are {tuple(tensor.shape[1:])} a row, this model's at this tier "
                    f"{tuple(wanted[name].shape[1:])}: it is of another model, or keeps another past"
                )
        if mel.shape[0] != state.num_past.shape[0]:
            raise ValueError(f"{mel.shape[0]} rows of mel frames and {state.num_past.shape[0]} of state")


def _kept(state: StreamState, past: int, num_past: Tensor) -> StreamState:
    first = state.keys.shape[3] - past
    return StreamState(
        stem=tuple(tensor.contiguous() for tensor in state.stem),
        keys=state.keys[:, :, :, first:].contiguous(),
        values=state.values[:, :, :, first:].contiguous(),
        convolution=state.convolution.contiguous(),
        num_past=num_past,
    )


def _num_frames(num_mel: Tensor) -> Tensor:
    return (num_mel + SUBSAMPLING - 1) // SUBSAMPLING
