"""FastConformer encoder that streams: chunk-masked attention, causal convolutions, and caches for all that is past.

With the caches, chunk after chunk gives what one pass over the whole gives under the same mask (arXiv 2312.17279;
FastConformer: 2305.05084); nothing is computed twice. Keys and values are cached rather than the layers' inputs: with
chunks of one frame and 70 frames behind them, projecting the inputs again would be most of the work.

Convolutions may also see the later frames of their chunk (arXiv 2304.09325), and the subsampling may be that of the
offline encoder: then the weights of an offline encoder serve a streaming one, see
`sprachbund.models.conformer.extension.with_streaming_encoder`.

Shapes: B rows, T frames, C frames of a chunk, M mel bins, D width, H heads, L layers, K kernel size, P frames of the
past.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.encoder import mean_frame
from sprachbund.nn.feed_forward import FeedForward, Route
from sprachbund.util.distributed import of_first_rank

__all__ = [
    "LEAD",
    "MARGIN",
    "SUBSAMPLING",
    "CausalConvolution",
    "CausalStem",
    "ChunkConvolution",
    "ChunkEncoder",
    "ConvolutionContext",
    "LayerPast",
    "RelativeAttention",
    "StreamState",
    "StreamingEncoder",
    "StreamingLayer",
    "StreamingShape",
    "StreamingStem",
    "StridingStem",
    "SubsamplingKind",
    "Tier",
    "distance_rates",
    "distance_signals",
]


# The state of a stream, and how far its frames see.
#
# Shapes: B rows, L layers, H heads, P frames of the past, D width, K kernel size, c channels, m bins.

SUBSAMPLING = 8
"""Mel frames of a frame."""

NUM_HALVINGS = 3
LEAD = SUBSAMPLING - 1
"""Frames of zeros before the sound, in the first chunk of a stream.

Frame j depends on mel frames up to 8 j, so C frames need 8 (C - 1) + 1 of them and not 8 C. With the lead, every chunk
has 8 C mel frames, and none waits for the 7 that only the next chunk needs.
"""
MARGIN = 1  # input frames of the chunk before that a convolution of kernel 3 and stride 2 sees

ConvolutionContext = Literal["causal", "chunk"]
"""What a layer's convolution sees besides the frames before: nothing, or the later frames of its chunk."""

SubsamplingKind = Literal["dw_striding", "striding_conv1d"]
"""NeMo's names: depthwise-separable convolutions over time and frequency, or plain ones over time."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The context of a frame (arXiv 2312.17279, section 3.2).

    Attributes:
        left: frames of the past, at most.
        right: frames after it in its chunk; the first of a chunk sees all of these, the last none.
    """

    left: int = 70
    right: int = 13

    def __post_init__(self) -> None:
        if self.right < 0 or self.left < self.chunk:
            raise ValueError(
                f"a tier of {self.left} frames back and {self.right} ahead; back needs a whole chunk"
            )

    @property
    def chunk(self) -> int:
        """Frames of a chunk."""
        return self.right + 1

    @property
    def past(self) -> int:
        """Frames of the past that are kept: whole chunks."""
        return self.left // self.chunk * self.chunk


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """Keys and values (B, H, P, D/H) of one layer, and `StreamingShape.frames_before` inputs of its convolution."""

    keys: Tensor
    values: Tensor
    convolution: Tensor


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """The state of rows between two chunks of their streams. It is never changed in place.

    Attributes:
        stem: last input frames of every convolution of the subsampling, (B, c, 1, m) or (B, c, frames).
        keys: (B, L, H, P, D/H), the newest last.
        values: (B, L, H, P, D/H).
        convolution: (B, L, D, K - 1) inputs of the depthwise convolutions; K // 2 where they see a chunk.
        num_past: (B,) how many of the P are real.
    """

    stem: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor
    convolution: Tensor
    num_past: Tensor

    def take(self, rows: Tensor) -> Self:
        """The rows whose indices are given (b,), in that order."""
        return self.from_tensors({name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, ready for `safetensors.torch.save`."""
        stem = {f"stem.{n}": tensor for n, tensor in enumerate(self.stem)}
        return {
            **stem,
            "keys": self.keys,
            "values": self.values,
            "convolution": self.convolution,
            "num_past": self.num_past,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`.

        Raises:
            ValueError: naming what is missing or too much.
        """
        names = {f"stem.{n}" for n in range(NUM_HALVINGS)} | {"keys", "values", "convolution", "num_past"}
        if different := names ^ set(tensors):
            raise ValueError(f"{', '.join(sorted(different))}: too much or missing in an encoder's state")
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith("stem.")}
        return cls(stem=tuple(tensors[f"stem.{n}"] for n in range(NUM_HALVINGS)), **others)

    @classmethod
    def stack(cls, states: Sequence["StreamState"]) -> Self:
        """Rows of several streams as one batch, in order."""
        parts = [state.tensors() for state in states]
        return cls.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


# Relative attention for chunks behind a cached past (arXiv 1901.02860, section 3.3).


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
            keys: keys of the past and of x.
            values: values of the past and of x.
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
    """Sines and cosines in turn (first - last + 1, D), of the distances from `first` down to `last`.

    Args:
        first: largest distance.
        last: smallest distance.
        width: D, even.
    """
    distances = torch.arange(first, last - 1, -1.0)
    angles = distances[:, None] * distance_rates(width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def distance_rates(width: int) -> Tensor:
    """Radians per frame (D / 2,) of the sines and cosines of `distance_signals`.

    Args:
        width: D, even.
    """
    return torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))


# Sizes, subsampling, causal convolution and layer.


@dataclass(frozen=True, kw_only=True)
class StreamingShape:
    """Sizes of the encoder.

    Attributes:
        width: D.
        feed_forward_width: hidden width of each half-step feed-forward.
        kernel_size: K of the depthwise convolutions; odd where they see a chunk.
        convolution: what these see.
        subsampling: kind of the subsampling.
        stem_channels: channels of a subsampling of the kind dw_striding; one of the other kind has D.
        scale_input: multiply what enters the first layer by the root of D, as NeMo's checkpoints want it.
    """

    num_mel_bins: int = 80
    width: int = 256
    num_heads: int = 4
    num_layers: int = 8
    feed_forward_width: int = 1024
    kernel_size: int = 9
    convolution: ConvolutionContext = "causal"
    subsampling: SubsamplingKind = "dw_striding"
    stem_channels: int = 256
    scale_input: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.convolution == "chunk" and self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size {self.kernel_size} is even; convolutions that see a chunk need a centre"
            )

    @property
    def frames_before(self) -> int:
        """Frames before a chunk that a convolution sees."""
        return self.kernel_size // 2 if self.convolution == "chunk" else self.kernel_size - 1


class StreamingStem(nn.Module):
    """Three convolutions of stride 2 over time, which remember their last inputs; the base of both kinds.

    Time is the third axis of what they compute.

    Args:
        shape: sizes of the encoder.
    """

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__()

    @classmethod
    def past_sizes(cls, shape: StreamingShape) -> list[tuple[int, ...]]:
        """Sizes of the inputs that each convolution remembers, without the batch."""
        raise NotImplementedError

    def forward(
        self, mel: Tensor, before: Sequence[Tensor], is_new: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mel (B, 8 C, M), or fewer frames at the end of a stream, and what came before; frames (B, C, D) and the
        same for the next.

        Args:
            mel: log-mel; a new stream begins with `LEAD` frames of zeros.
            before: last input frames of every convolution.
            is_new: (B,) whether a stream begins here: before its sound, inputs of every convolution are zero.
        """
        x, after, lead = self.opened(mel), [], LEAD
        for number, past in enumerate(before):
            sounding = torch.arange(x.shape[2], device=x.device) >= lead
            heard = (sounding | ~is_new[:, None])[:, None]
            x = x * (heard[..., None] if x.dim() == 4 else heard)
            x = torch.cat([past, x], dim=2)
            after.append(x[:, :, x.shape[2] - past.shape[2] :])
            x, lead = self.halved(number, x), self.lead_behind(lead)
        return self.closed(x), tuple(after)

    def opened(self, mel: Tensor) -> Tensor:
        """Log-mel (B, T, M) as the first convolution reads it."""
        raise NotImplementedError

    def halved(self, number: int, x: Tensor) -> Tensor:
        """What a convolution makes of its inputs, the remembered ones first.

        Args:
            number: number of the convolution.
            x: its inputs.
        """
        raise NotImplementedError

    def closed(self, x: Tensor) -> Tensor:
        """Frames (B, C, D) of what the last convolution gives."""
        raise NotImplementedError

    @staticmethod
    def lead_behind(lead: int) -> int:
        """Outputs of a convolution before the sound, where so many of its inputs are."""
        raise NotImplementedError


class CausalStem(StreamingStem):
    """Depthwise-separable convolutions over time and frequency (arXiv 2305.05084, section 2)."""

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__(shape)
        channels = shape.stem_channels
        self.first = nn.Conv2d(1, channels, 3, stride=2)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, groups=channels) for _ in range(NUM_HALVINGS - 1)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(NUM_HALVINGS - 1))
        self.out = nn.Linear(channels * self.sizes(shape)[-1][1], shape.width)

    @classmethod
    def past_sizes(cls, shape: StreamingShape) -> list[tuple[int, ...]]:
        """Sizes of the inputs that each convolution remembers, without the batch."""
        return [(channels, MARGIN, bins) for channels, bins in cls.sizes(shape)[:-1]]

    @staticmethod
    def sizes(shape: StreamingShape) -> list[tuple[int, int]]:
        """Channels and bins before each convolution, and after the last."""
        frame_sizes = [(1, shape.num_mel_bins)]
        for _ in range(NUM_HALVINGS):
            frame_sizes.append((shape.stem_channels, frame_sizes[-1][1] // 2 + 1))
        return frame_sizes

    def opened(self, mel: Tensor) -> Tensor:
        """(B, 1, T, M)."""
        return mel[:, None]

    def halved(self, number: int, x: Tensor) -> Tensor:
        """(B, c, T, m) to (B, c, T / 2, m / 2 + 1).

        Args:
            number: number of the convolution.
            x: its inputs.
        """
        x = F.pad(x, (2, 1))  # over frequencies, as NeMo's checkpoints do
        if number == 0:
            return F.relu(self.first(x))
        return F.relu(self.pointwise[number - 1](self.depthwise[number - 1](x)))

    def closed(self, x: Tensor) -> Tensor:
        """(B, c, C, m) to (B, C, D)."""
        frames: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return frames

    @staticmethod
    def lead_behind(lead: int) -> int:
        """Half, rounded down: an output that sees a frame of the sound is heard."""
        return lead // 2


class StridingStem(StreamingStem):
    """The subsampling of the offline encoder, one frame later: convolutions over time, and a norm.

    Frame j is what `sprachbund.nn.conformer.Subsampling` gives as frame j - 1, which reads mel frames up to 8 j.
    """

    KERNEL_SIZES = (5, 3, 3)

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__(shape)
        widths = [shape.num_mel_bins] + [shape.width] * NUM_HALVINGS
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, size, stride=2)
            for (a, b), size in zip(pairwise(widths), self.KERNEL_SIZES, strict=True)
        )
        self.norm = nn.LayerNorm(shape.width)

    @classmethod
    def past_sizes(cls, shape: StreamingShape) -> list[tuple[int, ...]]:
        """Sizes of the inputs that each convolution remembers, without the batch."""
        widths = [shape.num_mel_bins] + [shape.width] * (NUM_HALVINGS - 1)
        return [(width, size - 2) for width, size in zip(widths, cls.KERNEL_SIZES, strict=True)]

    def opened(self, mel: Tensor) -> Tensor:
        """(B, M, T)."""
        return mel.transpose(1, 2)

    def halved(self, number: int, x: Tensor) -> Tensor:
        """(B, c, T) to (B, D, T / 2).

        Args:
            number: number of the convolution.
            x: its inputs.
        """
        return F.gelu(self.convolutions[number](x))

    def closed(self, x: Tensor) -> Tensor:
        """(B, D, C) to (B, C, D)."""
        frames: Tensor = self.norm(x.transpose(1, 2))
        return frames

    @staticmethod
    def lead_behind(lead: int) -> int:
        """Half, rounded up: an output is heard from the first one whose centre is sound, as offline."""
        return (lead + 1) // 2


_STEMS: Mapping[SubsamplingKind, type[StreamingStem]] = {
    "dw_striding": CausalStem,
    "striding_conv1d": StridingStem,
}


class CausalConvolution(nn.Module):
    """Gated pointwise, depthwise over the past, pointwise; layer norm in the place of batch norm."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel_size, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, before: Tensor, valid: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, D) of frames (B, T, D), and the inputs (B, D, P) before the next ones.

        Args:
            x: (B, T, D).
            before: inputs (B, D, P) before them; P is `StreamingShape.frames_before`.
            valid: boolean (B, T), frames that are not padding.
            chunk: frames of a chunk; T is that of one, or any number of frames of several.
        """
        x = F.glu(self.gate(self.norm(x))).transpose(1, 2)
        x = torch.cat([before, x], dim=2)
        after = x[:, :, x.shape[2] - before.shape[2] :]
        x = self.convolved(x, valid, chunk).transpose(1, 2)
        return self.out(F.silu(self.inner_norm(x))), after

    def convolved(self, x: Tensor, valid: Tensor, chunk: int) -> Tensor:
        """Outputs (B, D, T) of the depthwise convolution of inputs (B, D, P + T).

        Args:
            x: (B, D, P + T), those before them first.
            valid: boolean (B, T), frames that are not padding; not needed, as padding comes last.
            chunk: frames of a chunk; not needed.
        """
        outputs: Tensor = self.depthwise(x)
        return outputs


class ChunkConvolution(CausalConvolution):
    """The same with a centred kernel, which sees the frames before and the later ones of its chunk (arXiv 2304.09325).

    With one chunk, it is the convolution of an offline encoder.
    """

    def convolved(self, x: Tensor, valid: Tensor, chunk: int) -> Tensor:
        """Outputs (B, D, T) of the depthwise convolution of inputs (B, D, P + T); P is half a kernel.

        Args:
            x: (B, D, P + T), those before them first.
            valid: boolean (B, T), frames that are not padding: these have no part in the outputs of others.
            chunk: frames of a chunk.
        """
        half, length = self.depthwise.kernel_size[0] // 2, valid.shape[1]
        x = x * F.pad(valid, (half, 0), value=True)[:, None]
        if length > chunk:
            x = F.pad(x, (0, -length % chunk)).unfold(2, half + chunk, chunk)  # (B, D, chunks, P + C)
            num_rows, _, num_chunks, _ = x.shape
            x = x.transpose(1, 2).flatten(0, 1)
        outputs: Tensor = self.depthwise(F.pad(x, (0, half)))
        if length > chunk:
            outputs = outputs.unflatten(0, (num_rows, num_chunks)).transpose(1, 2).flatten(2)[..., :length]
        return outputs


_CONVOLUTIONS: Mapping[ConvolutionContext, type[CausalConvolution]] = {
    "causal": CausalConvolution,
    "chunk": ChunkConvolution,
}


class StreamingLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (arXiv 2005.08100, equation 1)."""

    def __init__(self, shape: StreamingShape) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(shape.width, shape.feed_forward_width)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = RelativeAttention(shape.width, shape.num_heads)
        self.convolution = _CONVOLUTIONS[shape.convolution](shape.width, shape.kernel_size)
        self.feed_forward_out = FeedForward(shape.width, shape.feed_forward_width)
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = shape.dropout

    def forward(
        self,
        x: Tensor,
        past: LayerPast,
        signals: Tensor,
        allowed: Tensor,
        valid: Tensor,
        chunk: int,
        route: Route | None,
    ) -> tuple[Tensor, LayerPast]:
        """States (B, T, D) of a chunk or of several, and what the next one reads of them.

        Args:
            x: (B, T, D).
            past: keys, values and frames of the convolution before the first chunk.
            signals: see `RelativeAttention`.
            allowed: see `RelativeAttention`.
            valid: boolean (B, T), frames that are not padding.
            chunk: frames of a chunk.
            route: languages of the rows, where feed-forwards are split by them.
        """
        x = x + 0.5 * self._dropped(self.feed_forward_in(x, route))
        normed = self.attention_norm(x)
        keys = torch.cat([past.keys, self.attention.split_heads(self.attention.key(normed))], dim=2)
        values = torch.cat([past.values, self.attention.split_heads(self.attention.value(normed))], dim=2)
        x = x + self._dropped(self.attention(normed, keys, values, signals, allowed))
        mixed, convolution = self.convolution(x, past.convolution, valid, chunk)
        x = x + self._dropped(mixed)
        x = self.norm(x + 0.5 * self._dropped(self.feed_forward_out(x, route)))
        return x, LayerPast(keys=keys, values=values, convolution=convolution)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def empty_state(shape: StreamingShape, num_rows: int, past: int, like: Tensor) -> StreamState:
    """The state of streams of which nothing was heard, with room for so much past; in dtype and device of `like`.

    Args:
        shape: shape of the encoder.
        num_rows: number of streams.
        past: frames of the past that fit.
        like: tensor of the same dtype and device.
    """
    heads = (shape.num_heads, past, shape.width // shape.num_heads)
    sizes = _STEMS[shape.subsampling].past_sizes(shape)
    return StreamState(
        stem=tuple(like.new_zeros(num_rows, *size) for size in sizes),
        keys=like.new_zeros(num_rows, shape.num_layers, *heads),
        values=like.new_zeros(num_rows, shape.num_layers, *heads),
        convolution=like.new_zeros(num_rows, shape.num_layers, shape.width, shape.frames_before),
        num_past=torch.zeros(num_rows, dtype=torch.long, device=like.device),
    )


class ChunkEncoder(nn.Module):
    """Log-mel to states chunk by chunk, whatever computes them; the base of those of torch and of ONNX Runtime.

    Args:
        shape: its sizes.
        tiers: tiers that it was trained for.

    Attributes:
        tier: tier of whole utterances outside of training; the first of `tiers` unless set.
        gives_means: whether it gives the means of the states of its layers, as `means` asks for.
        origin: what tells the model from others in a saved stream, where an engine has its weights in numbers of its
            own; None where they are as stored.
    """

    gives_means = False
    origin: Mapping[str, str] | None = None

    def __init__(self, shape: StreamingShape, tiers: Sequence[Tier]) -> None:
        super().__init__()
        self.shape, self.tiers, self.tier = shape, tuple(tiers), tiers[0]

    def forward(
        self,
        mel: Tensor,
        num_mel: Tensor,
        route: Route | None = None,
        means: list[Tensor] | None = None,
        *,
        tier: Tier | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Whole utterances (B, T, M) with `num_mel` (B,) valid frames to states (B, T/8, D) and their valid lengths.

        Args:
            mel: log-mel (B, T, M).
            num_mel: valid frames (B,).
            route: languages of the rows, where layers are split by them.
            means: takes the means (B, N + 1, D) over the valid frames of the states before and behind each layer.
            tier: context that is heard; `self.tier` if None, or one drawn in training.
        """
        raise NotImplementedError

    def step(
        self,
        mel: Tensor,
        num_mel: Tensor,
        state: StreamState,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, StreamState]:
        """The same as `stream`, unchecked: the tensors' shapes say how long the chunk and the past are.

        Args:
            mel: log-mel (B, T, M) of a chunk.
            num_mel: frames (B,), the lead included.
            state: state of the B streams.
            route: languages of the rows, where layers are split by them.
            means: takes those of the chunk, as `forward` gives those of an utterance.
        """
        raise NotImplementedError

    def like(self) -> Tensor:
        """A tensor of the dtype and device of its states."""
        raise NotImplementedError

    def start(self, num_rows: int, tier: Tier, *, keep: int | None = None) -> StreamState:
        """The state of streams of which nothing was heard; of `keep` frames of the past, or the tier's.

        Args:
            num_rows: number of streams.
            tier: context that is heard.
            keep: frames of the past that fit; those of the tier if None.
        """
        past = tier.past if keep is None else keep
        return empty_state(self.shape, num_rows, past, self.like())

    def stream(
        self,
        mel: Tensor,
        num_mel: Tensor,
        state: StreamState,
        tier: Tier,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, StreamState]:
        """The next chunk of every row.

        Args:
            mel: (B, 8 C, M); `LEAD` frames of zeros come first in rows that begin here; rows that end here are padded.
            num_mel: (B,) frames, the lead included; fewer than 8 C only where a row's stream ends.
            state: from `start` or from the chunk before. The tier may change where both keep as many frames of the
                past, as the published ones do: a stream can become quicker or more exact while it runs.
            tier: C = `tier.chunk`.
            route: languages of the rows.
            means: takes those of the chunk, as `forward` gives those of an utterance.

        Returns:
            States (B, C, D), how many of them are valid (B,), and the state for the next chunk.

        Raises:
            ValueError: for a chunk of another length, or a state of another model or length of the past.
        """
        self._check(mel, num_mel, state, tier)
        return self.step(mel, num_mel, state, route, means)

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


class StreamingEncoder(ChunkEncoder):
    """Log-mel to states, whole or chunk by chunk.

    One pass over a whole utterance is a stream of one chunk, with a mask that hides what a stream would not have heard.

    Args:
        shape: its sizes.
        tiers: one of them is drawn for every batch in training (arXiv 2312.17279, section 3.3).

    Attributes:
        tier: tier of whole utterances outside of training; the first of `tiers` unless set.
    """

    gives_means = True

    def __init__(self, shape: StreamingShape, tiers: Sequence[Tier] = (Tier(),)) -> None:
        super().__init__(shape, tiers)
        self.stem = _STEMS[shape.subsampling](shape)
        self.layers = nn.ModuleList(StreamingLayer(shape) for _ in range(shape.num_layers))

    def like(self) -> Tensor:
        """A weight, whose device and precision new tensors take."""
        return next(self.stem.parameters())

    def forward(
        self,
        mel: Tensor,
        num_mel: Tensor,
        route: Route | None = None,
        means: list[Tensor] | None = None,
        *,
        tier: Tier | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `ChunkEncoder.forward`, with the same arguments."""
        tier = tier or (self._drawn() if self.training else self.tier)
        start = self.start(mel.shape[0], Tier(left=tier.left, right=tier.left - 1), keep=0).to(mel.device)
        mel = F.pad(mel, (0, 0, LEAD, 0))
        num_frames, length = (num_mel + LEAD) // SUBSAMPLING, mel.shape[1] // SUBSAMPLING
        chunk = torch.arange(length, device=mel.device) // tier.chunk
        behind = chunk[:, None] - chunk
        visible = (behind >= 0) & (behind <= tier.past // tier.chunk)
        valid = valid_frames(num_frames, length)
        allowed = visible & valid[:, None]
        states, _ = self._run(mel, start, allowed[:, None], valid, tier.chunk, route, means)
        return states, num_frames

    def _drawn(self) -> Tier:
        # Processes that share a batch draw differently; the first one's tier is that of the whole batch.
        return self.tiers[int(of_first_rank(torch.randint(len(self.tiers), ())))]

    def step(
        self,
        mel: Tensor,
        num_mel: Tensor,
        state: StreamState,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, StreamState]:
        """As `ChunkEncoder.step`, with the same arguments."""
        past, chunk = state.keys.shape[3], mel.shape[1] // SUBSAMPLING
        num_frames = num_mel // SUBSAMPLING
        real = torch.arange(past, device=mel.device) >= past - state.num_past[:, None]
        valid = valid_frames(num_frames, chunk)
        allowed = torch.cat([real, valid], dim=1)
        states, after = self._run(mel, state, allowed[:, None, None], valid, chunk, route, means)
        num_past = (state.num_past + chunk).clamp(max=past)
        return states, num_frames, _kept(after, past, num_past)

    def _run(
        self,
        mel: Tensor,
        state: StreamState,
        allowed: Tensor,
        valid: Tensor,
        chunk: int,
        route: Route | None,
        means: list[Tensor] | None,
    ) -> tuple[Tensor, StreamState]:
        """All layers; the state holds all keys and values, the past's and the chunk's."""
        x, stem = self.stem(mel, state.stem, state.num_past == 0)
        if self.shape.scale_input:
            x = x * math.sqrt(self.shape.width)
        x = F.dropout(x, self.shape.dropout, self.training)
        past, length = state.keys.shape[3], x.shape[1]
        signals = distance_signals(past + length - 1, 1 - length, self.shape.width).to(x)
        after: list[LayerPast] = []
        of_layers = [] if means is None else [mean_frame(x, valid[..., None])]
        for number, layer in enumerate(self.layers):
            before = LayerPast(
                keys=state.keys[:, number],
                values=state.values[:, number],
                convolution=state.convolution[:, number],
            )
            x, own = layer(x, before, signals, allowed, valid, chunk, route)
            after.append(own)
            if means is not None:
                of_layers.append(mean_frame(x, valid[..., None]))
        if means is not None:
            means.append(torch.stack(of_layers, dim=1))
        return x, StreamState(
            stem=stem,
            keys=torch.stack([own.keys for own in after], dim=1),
            values=torch.stack([own.values for own in after], dim=1),
            convolution=torch.stack([own.convolution for own in after], dim=1),
            num_past=state.num_past,
        )


def _kept(state: StreamState, past: int, num_past: Tensor) -> StreamState:
    first = state.keys.shape[3] - past
    return StreamState(
        stem=tuple(tensor.contiguous() for tensor in state.stem),
        keys=state.keys[:, :, :, first:].contiguous(),
        values=state.values[:, :, :, first:].contiguous(),
        convolution=state.convolution.contiguous(),
        num_past=num_past,
    )
