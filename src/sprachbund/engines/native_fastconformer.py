"""FastConformer encoders that the native kernels compute as a whole: of Parakeet, Canary, Cohere ASR; streaming ones.

Their matrices are packed one by one, as `native_linear` packs them, so that one packed file serves both ways. Norms,
convolutions, biases of the attention and the rates of its signals are small and come from the model; the batch norm
behind a convolution becomes part of its taps, and pointwise convolutions are matrices in 8 bits. Before the layers of
an encoder that streams, torch computes the convolutions: they are small, and remember frames.

Shapes: B rows, T mel frames, S frames, N of them in all rows, M mel bins, C channels, D width, K taps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.engines.extension import enough_memory, native
from sprachbund.engines.native_linear import NativeModule, matrix_of, with_native_linears
from sprachbund.engines.packing import BLOCK, Arrays, pack_matrix, pad, why_not_parts
from sprachbund.nn.encoder import mean_frame
from sprachbund.nn.fast_conformer import (
    NUM_HALVINGS,
    Convolution,
    FastConformerEncoder,
    FastConformerLayer,
    Stem,
)
from sprachbund.nn.feed_forward import FeedForward, Route
from sprachbund.nn.quantized import BlockLinear
from sprachbund.nn.streaming_conformer import (
    LEAD,
    SUBSAMPLING,
    CausalConvolution,
    CausalStem,
    ChunkConvolution,
    ChunkEncoder,
    RelativeAttention,
    StreamingEncoder,
    StreamingLayer,
    StreamState,
    StridingStem,
    Tier,
    distance_rates,
)

_PARTS = (FeedForward, RelativeAttention, nn.LayerNorm, nn.Conv1d, nn.Linear, BlockLinear)
_STEM_PARTS = (nn.ModuleList, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.Linear, BlockLinear)
_Kind = type[nn.Module]
_KINDS: Mapping[_Kind, tuple[tuple[_Kind, ...], _Kind, tuple[_Kind, ...]]] = {
    FastConformerEncoder: ((Stem,), FastConformerLayer, (Convolution, nn.BatchNorm1d)),
    StreamingEncoder: ((CausalStem, StridingStem), StreamingLayer, (CausalConvolution, ChunkConvolution)),
}
"""Encoder to its kinds of convolutions before the layers, of layers, and of what only these have."""


def why_not_fastconformer(module: nn.Module) -> str | None:
    """Reason why the kernels cannot compute an encoder as a whole; None when they can."""
    if not isinstance(module, FastConformerEncoder | StreamingEncoder) or type(module) not in _KINDS:
        return f"it is of the kind {type(module).__name__}"
    stems, layer, own = _KINDS[type(module)]
    before = [module.stem, *list(module.stem.modules())[1:]]
    if unknown := [part for part in before if type(part) not in (*stems, *_STEM_PARTS)]:
        return f"before its layers are parts of the kind {type(unknown[0]).__name__}"
    layers = list(module.layers)
    if strange := [each for each in layers if type(each) is not layer]:
        return f"it has layers of the kind {type(strange[0]).__name__}"
    parts = [part for each in layers for part in list(each.modules())[1:]]
    if (reason := why_not_parts(parts, (*_PARTS, *own))) is not None:
        return reason
    width, heads, kernel_size = module.shape.width, module.shape.num_heads, module.shape.kernel_size
    if width % (BLOCK * heads):
        return f"its heads are {width / heads:g} wide, which is no multiple of {BLOCK}"
    attentions = [part for part in parts if isinstance(part, RelativeAttention)]
    if any(a.content_bias.shape != (heads, width // heads) for a in attentions):
        return "its layers have different heads"
    sizes = {part.kernel_size for part in parts if isinstance(part, nn.Conv1d)}
    return None if sizes == {(kernel_size,)} else "its convolutions have different sizes"


class NativeFastStem(NativeModule):
    """Stands for a `Stem`, utterance by utterance.

    Args:
        stem: gives the convolutions.
        bins: M.
        arrays: its packed linear layer, out.matrix.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(self, stem: Stem, bins: int, arrays: Arrays, team: Any, instruction_set: str) -> None:
        convolutions = _convolutions(stem)
        super().__init__(convolutions)
        channels = stem.first.out_channels
        self.width = channels * bins // 2**NUM_HALVINGS
        copied = with_native_linears(stem, partial(matrix_of, arrays), team, instruction_set)
        self.out = copied.get_submodule("out")
        self._native = native().FastStem(
            convolutions, instruction_set, team, bins=bins, channels=channels, halvings=NUM_HALVINGS
        )

    @enough_memory()
    def forward(self, mel: Tensor, num_mel: Tensor) -> tuple[Tensor, Tensor]:
        """The frames (N, D) of all utterances, one behind the other, and how many each of them has (B,).

        Args:
            mel: log-mel (B, T, M).
            num_mel: valid frames (B,).
        """
        num_frames = num_mel
        for _ in range(NUM_HALVINGS):
            num_frames = (num_frames + 1) // 2
        x = F.pad(mel.detach().float(), (1, 0)).contiguous()
        frames = torch.empty(int(num_frames.sum()), self.width)
        ends = [0, *num_frames.cumsum(0).tolist()]
        for row, count, (begin, end) in zip(x, num_mel.tolist(), pairwise(ends), strict=True):
            self._native.run(row[:count], frames[begin:end])
        return self.out(frames), num_frames


class NativeFastConformer(NativeModule):
    """Stands for a `FastConformerEncoder` whose `why_not_fastconformer` is None; it has no gradient.

    Args:
        encoder: gives the small arrays.
        arrays: its packed linear layers, NAME.matrix; they may be mapped from a file.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(
        self, encoder: FastConformerEncoder, arrays: Arrays, team: Any, instruction_set: str
    ) -> None:
        super().__init__(_of_layers(arrays))
        self.shape = encoder.shape
        self.stem = NativeFastStem(
            encoder.stem, self.shape.num_mel_bins, _of_stem(arrays), team, instruction_set
        )
        self._native = _compiled(encoder, arrays, team, instruction_set)

    @enough_memory()
    def forward(self, mel: Tensor, num_mel: Tensor, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """States (B, S, D) of log-mel (B, T, M), zeros behind the valid ones, and how many of them are valid (B,).

        Args:
            mel: log-mel.
            num_mel: valid frames (B,).
            route: not used.
        """
        x, num_frames = self.stem(mel, num_mel)
        if self.shape.scale_input:
            x *= math.sqrt(self.shape.width)
        self._native.encode(x, num_frames)
        length = -(-mel.shape[1] // 2**NUM_HALVINGS)
        states = mel.new_zeros(len(mel), length, self.shape.width)
        states[torch.arange(length) < num_frames[:, None]] = x.to(mel.dtype)
        return states, num_frames


class NativeStreamingLayers(NativeModule):
    """The layers of an encoder that streams.

    Args:
        encoder: gives the small arrays.
        arrays: its packed linear layers, NAME.matrix; they may be mapped from a file.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(self, encoder: StreamingEncoder, arrays: Arrays, team: Any, instruction_set: str) -> None:
        super().__init__(_of_layers(arrays))
        self.num_layers = encoder.shape.num_layers
        self._native = _compiled(encoder, arrays, team, instruction_set)

    @enough_memory()
    def forward(self, x: Tensor, num_frames: Tensor, tier: Tier, means: list[Tensor] | None = None) -> Tensor:
        """States (B, S, D) of whole utterances (B, S, D), zeros behind their `num_frames` (B,).

        Args:
            x: subsampled frames.
            num_frames: valid ones.
            tier: context that is heard.
            means: takes the means (B, N + 1, D) before and behind each layer.
        """
        compute = partial(self._native.encode, chunk=tier.chunk, before=tier.past // tier.chunk)
        return self._on_valid(x, num_frames, compute, means)

    @enough_memory()
    def step(
        self, x: Tensor, num_frames: Tensor, state: StreamState, means: list[Tensor] | None = None
    ) -> tuple[Tensor, StreamState]:
        """States (B, S, D) of a chunk (B, S, D) of streams, and what these remember then, but for the stem's part.

        Args:
            x: subsampled frames.
            num_frames: valid ones (B,).
            state: state of the streams.
            means: takes the means (B, N + 1, D) before and behind each layer.
        """
        past, chunk = state.keys.shape[3], x.shape[1]
        before = {
            name: tensor.float().contiguous()
            for name, tensor in state.tensors().items()
            if name in ("keys", "values", "convolution")
        }
        after = {name: torch.empty_like(tensor) for name, tensor in before.items()}
        states = self._on_valid(
            x,
            num_frames,
            partial(
                self._native.step,
                chunk=chunk,
                known=state.num_past,
                **before,
                **{f"{name}_after": tensor for name, tensor in after.items()},
            ),
            means,
        )
        return states, StreamState(
            stem=state.stem, **after, num_past=(state.num_past + chunk).clamp(max=past)
        )

    def _on_valid(
        self, x: Tensor, num_frames: Tensor, compute: Callable[..., None], means: list[Tensor] | None
    ) -> Tensor:
        """x (B, S, D), whose valid frames `compute` changes in place, one utterance behind the other."""
        valid = torch.arange(x.shape[1]) < num_frames[:, None]
        frames = x.detach().float()[valid].contiguous()
        if means is None:
            compute(frames, num_frames)
        else:
            behind = torch.zeros(len(x), self.num_layers, x.shape[2])
            compute(frames, num_frames, means=behind)
            means.append(torch.cat([mean_frame(x, valid[..., None])[:, None], behind], dim=1))
        states = torch.zeros_like(x)
        states[valid] = frames.to(x.dtype)
        return states


class NativeStreamingEncoder(ChunkEncoder):
    """Stands for a `StreamingEncoder` whose `why_not_fastconformer` is None; it has no gradient.

    The keys, values and frames that a stream remembers are where they are with torch, so that a stream may go on with
    either. Keys and values are numbers in bf16.

    Args:
        encoder: gives the convolutions before the layers, and the small arrays.
        arrays: its packed linear layers, NAME.matrix; they may be mapped from a file.
        team: threads.
        instruction_set: name of the kernels.
    """

    gives_means = True

    def __init__(self, encoder: StreamingEncoder, arrays: Arrays, team: Any, instruction_set: str) -> None:
        super().__init__(encoder.shape, encoder.tiers)
        self.tier = encoder.tier
        self.stem = with_native_linears(
            encoder.stem, partial(matrix_of, _of_stem(arrays)), team, instruction_set
        )
        self.layers = NativeStreamingLayers(encoder, arrays, team, instruction_set)

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
        """As `ChunkEncoder.forward`, with the same arguments; no layer is split, so the route is not used."""
        start = self.start(mel.shape[0], Tier(), keep=0)
        x, _ = self._subsampled(F.pad(mel, (0, 0, LEAD, 0)), start)
        num_frames = (num_mel + LEAD) // SUBSAMPLING
        return self.layers(x, num_frames, tier or self.tier, means), num_frames

    def step(
        self,
        mel: Tensor,
        num_mel: Tensor,
        state: StreamState,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, StreamState]:
        """As `ChunkEncoder.step`, with the same arguments; no layer is split, so the route is not used."""
        x, stem = self._subsampled(mel, state)
        num_frames = num_mel // SUBSAMPLING
        states, after = self.layers.step(x, num_frames, state, means)
        return states, num_frames, replace(after, stem=stem)

    def _subsampled(self, mel: Tensor, state: StreamState) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Frames before the layers, and what the convolutions remember."""
        x, stem = self.stem(mel, state.stem, state.num_past == 0)
        if self.shape.scale_input:
            x = x * math.sqrt(self.shape.width)
        return x, tuple(tensor.contiguous() for tensor in stem)


def _of_layers(arrays: Arrays) -> Arrays:
    return {name: a for name, a in arrays.items() if name.startswith("layers.")}


def _of_stem(arrays: Arrays) -> Arrays:
    return {name.removeprefix("stem."): a for name, a in arrays.items() if name.startswith("stem.")}


def _compiled(
    encoder: FastConformerEncoder | StreamingEncoder, arrays: Arrays, team: Any, instruction_set: str
) -> Any:
    first: Any = encoder.layers[0]
    return native().FastConformer(
        _of_layers(arrays) | _small(encoder),
        instruction_set,
        team,
        width=encoder.shape.width,
        heads=encoder.shape.num_heads,
        num_layers=encoder.shape.num_layers,
        kernel_size=encoder.shape.kernel_size,
        activation=first.feed_forward_in.activation,
        convolution=encoder.shape.convolution if isinstance(encoder, StreamingEncoder) else "around",
    )


def _convolutions(stem: Stem) -> Arrays:
    """The first convolution and depthwise ones as NAME.taps (9, C padded) and NAME.bias, pointwise ones as matrices."""
    arrays: Arrays = {}
    squares = {"first": stem.first}
    for i in range(NUM_HALVINGS - 1):
        pointwise: Any = stem.pointwise[i]
        arrays |= pack_matrix(f"pointwise.{i}", pointwise.weight[:, :, 0, 0], pointwise.bias)
        squares[f"depthwise.{i}"] = stem.depthwise[i]  # type: ignore[assignment]
    for name, part in squares.items():
        bias = torch.zeros(part.out_channels) if part.bias is None else part.bias
        taps = part.weight.detach().float().flatten(1).T
        arrays[f"{name}.taps"] = pad(taps, 1, BLOCK).contiguous()
        arrays[f"{name}.bias"] = pad(bias.detach().float(), 0, BLOCK).contiguous()
    return arrays


def _small(encoder: FastConformerEncoder | StreamingEncoder) -> Arrays:
    """Norms as NAME.gain and NAME.bias, taps (K, D) and biases of convolutions, vectors of the attention, rates."""
    arrays = {"rates": distance_rates(encoder.shape.width)}
    for name, part in encoder.layers.named_modules(prefix="layers"):
        if isinstance(part, nn.LayerNorm):
            arrays |= {f"{name}.gain": part.weight, f"{name}.bias": part.bias}
        elif isinstance(part, RelativeAttention):
            biases = {"content_bias": part.content_bias, "distance_bias": part.distance_bias}
            arrays |= {f"{name}.{key}": bias.flatten() for key, bias in biases.items()}
        elif isinstance(part, Convolution):
            taps, bias = _folded(part.depthwise, part.inner_norm)
            arrays |= {f"{name}.taps": taps, f"{name}.bias": bias}
        elif isinstance(part, CausalConvolution):
            depthwise = part.depthwise
            bias = torch.zeros(depthwise.out_channels) if depthwise.bias is None else depthwise.bias
            arrays |= {f"{name}.taps": depthwise.weight[:, 0].T, f"{name}.bias": bias}
    return {name: a.detach().float().contiguous() for name, a in arrays.items()}


def _folded(depthwise: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Taps (K, D) and bias (D,) of a convolution and the batch norm behind it, by its stored statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = -norm.running_mean if depthwise.bias is None else depthwise.bias - norm.running_mean
    return depthwise.weight[:, 0].T * factor, bias * factor + norm.bias
