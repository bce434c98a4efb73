"""The encoder of Mimi (arXiv 2410.00037, section 3.3), a codec: from samples to codes of a frame, while they come.

Causal convolutions (SEANet, arXiv 2009.02095) make 25 steps a second of the sound, a transformer with a sliding window
follows, one more convolution halves the steps, and residual vector quantisation (arXiv 2107.03312, section III.C)
writes each frame as one code of each codebook. Every part keeps what it needs of the past in a state, so a recording
may come in pieces of any number of frames, and is one piece if it comes whole. Modules have the names that their
weights have in files of transformers. The half of Mimi that makes sound of codes is not built.

Shapes: B rows, N samples, C channels, S steps, T frames, D width, Q codebooks, K codes of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.causal_lm import Angles, CausalLayers, CausalShape, GroupedAttention, Rotary, Store
from sprachbund.nn.sliding_window import SlidingCache, through_window

HALVING = 2
"""Steps of a frame: what the last convolution halves."""


@dataclass(frozen=True, kw_only=True)
class MimiShape:
    """Sizes of the codec.

    Attributes:
        width: D of the transformer and of what is quantised.
        num_filters: channels of the first convolution; each that strides doubles them.
        strides: strides of the convolutions that stride, in order.
        kernel: kernel of the first convolution.
        last_kernel: kernel of the convolution in front of the transformer.
        residual_kernel: kernel of the convolutions in residual blocks.
        num_residual: residual blocks in front of each stride.
        dilation_growth: the dilation of a block is that of the one before, so many times.
        compress: factor by which a residual block has fewer channels inside.
        num_layers: number of layers of the transformer.
        num_heads: number of heads of its attention.
        num_key_heads: heads of keys and values.
        head_width: width of one head.
        inner_width: inner width of its feed-forwards.
        window: steps that one attends to, itself among them.
        norm_epsilon: norm epsilon of its norms.
        rotary: its positions.
        num_semantic: codebooks that quantise by themselves (arXiv 2410.00037, section 3.3.3).
        num_acoustic: codebooks that quantise beside them.
        num_codes: K.
        code_width: width of a code's vector.
        projected: whether a matrix leads from D to the width of codes.
    """

    width: int
    num_filters: int
    strides: tuple[int, ...]
    kernel: int
    last_kernel: int
    residual_kernel: int
    num_residual: int
    dilation_growth: int
    compress: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_width: int
    inner_width: int
    window: int
    norm_epsilon: float
    rotary: Rotary
    num_semantic: int
    num_acoustic: int
    num_codes: int
    code_width: int
    projected: bool

    @property
    def transformer(self) -> CausalShape:
        """Shape of the transformer; there is no vocabulary."""
        return CausalShape(
            vocabulary_size=0,
            width=self.width,
            inner_width=self.inner_width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_key_heads=self.num_key_heads,
            head_width=self.head_width,
            context=self.window,
            norm_epsilon=self.norm_epsilon,
            rotary=self.rotary,
        )


@dataclass(frozen=True, kw_only=True)
class MimiState:
    """The state of rows between two pieces of their sound. It is never written to.

    Attributes:
        convolutions: inputs that each convolution needs again, each (B, C, n), in order.
        attention: attention of the transformer.
    """

    convolutions: tuple[Tensor, ...]
    attention: SlidingCache

    def take(self, rows: Tensor) -> Self:
        """The rows at the indices `rows` (b,)."""
        kept = tuple(one[rows] for one in self.convolutions)
        return type(self)(convolutions=kept, attention=self.attention.take(rows))

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """Rows of several states, one state behind the other."""
        convolutions = zip(*(state.convolutions for state in states), strict=True)
        return cls(
            convolutions=tuple(torch.cat(parts) for parts in convolutions),
            attention=SlidingCache.stack([state.attention for state in states]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name; ready for `safetensors.torch.save`."""
        convolutions = {f"convolutions.{n}": one for n, one in enumerate(self.convolutions)}
        return {**convolutions, **self.attention.tensors()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that gave `tensors`."""
        names = sorted(
            (n for n in tensors if n.startswith("convolutions.")), key=lambda n: int(n.split(".")[1])
        )
        return cls(
            convolutions=tuple(tensors[name] for name in names),
            attention=SlidingCache.from_tensors(
                {name: value for name, value in tensors.items() if name not in names}
            ),
        )


class _Contexts:
    """Gives each convolution of a pass its inputs of before, in order, and keeps those for the next pass."""

    def __init__(self, before: Sequence[Tensor]) -> None:
        self._before, self.kept = iter(before), list[Tensor]()

    def join(self, x: Tensor) -> Tensor:
        """(B, C, S) to (B, C, n + S)."""
        context = next(self._before)
        joined = torch.cat([context, x], dim=-1)
        self.kept.append(joined[..., joined.shape[-1] - context.shape[-1] :])
        return joined


class CausalConv(nn.Module):
    """A convolution that looks back only.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: its size.
        stride: it gives one output for so many inputs.
        dilation: distance of the inputs that it looks at.
        bias: whether it has one.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
        self.num_past = (kernel - 1) * dilation + 1 - stride
        """Inputs that it needs again."""

    def forward(self, x: Tensor, contexts: _Contexts) -> Tensor:
        """(B, C, S), a multiple of the stride, to (B, C', S / stride)."""
        convolved: Tensor = self.conv(contexts.join(x))
        return convolved


class _Elu(nn.Module):
    """Has a number of its own among the layers of a file, and is called as they are."""

    def forward(self, x: Tensor, contexts: _Contexts) -> Tensor:
        """(B, C, S) to (B, C, S)."""
        return F.elu(x)


class _Residual(nn.Module):
    """Two convolutions beside a way that changes nothing."""

    def __init__(self, shape: MimiShape, channels: int, dilation: int) -> None:
        super().__init__()
        inner = channels // shape.compress
        first = CausalConv(channels, inner, shape.residual_kernel, dilation=dilation)
        self.block = nn.ModuleList([_Elu(), first, _Elu(), CausalConv(inner, channels, 1)])

    def forward(self, x: Tensor, contexts: _Contexts) -> Tensor:
        """(B, C, S) to (B, C, S)."""
        inner = x
        for layer in self.block:
            inner = layer(inner, contexts)
        return x + inner


class _Convolutions(nn.Module):
    """From samples (B, 1, N) to steps (B, D, S)."""

    def __init__(self, shape: MimiShape) -> None:
        super().__init__()
        channels = shape.num_filters
        layers: list[nn.Module] = [CausalConv(1, channels, shape.kernel)]
        for stride in shape.strides:
            layers += [
                _Residual(shape, channels, shape.dilation_growth**n) for n in range(shape.num_residual)
            ]
            layers += [_Elu(), CausalConv(channels, 2 * channels, 2 * stride, stride=stride)]
            channels *= 2
        self.layers = nn.ModuleList([*layers, _Elu(), CausalConv(channels, shape.width, shape.last_kernel)])

    def forward(self, x: Tensor, contexts: _Contexts) -> Tensor:
        """(B, 1, N) to (B, D, S)."""
        for layer in self.layers:
            x = layer(x, contexts)
        return x


class _Scale(nn.Module):
    """A weight of each channel of what a layer adds (arXiv 2103.17239, section 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.scale * x


class _FeedForward(nn.Module):
    """Expansion, gelu, contraction."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width, bias=False)
        self.fc2 = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        contracted: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return contracted


class _Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and with a scale."""

    def __init__(self, shape: CausalShape) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)
        self.self_attn = GroupedAttention(shape)
        self.self_attn_layer_scale = _Scale(shape.width)
        self.post_attention_layernorm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)
        self.mlp = _FeedForward(shape.width, shape.inner_width)
        self.mlp_layer_scale = _Scale(shape.width)

    def forward(self, x: Tensor, angles: Angles, store: Store, allowed: Tensor) -> Tensor:
        """One layer on x (B, S, D); arguments as of `GroupedAttention.forward`."""
        attended = self.self_attn(self.input_layernorm(x), angles, store, allowed)
        x = x + self.self_attn_layer_scale(attended)
        mixed: Tensor = x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))
        return mixed


class ResidualQuantizer(nn.Module):
    """Codes of vectors: the nearest of a codebook, then the nearest to what is left, and so on.

    Args:
        shape: shape of the codec.
        num_codebooks: number of codebooks.
    """

    codebooks: Tensor

    def __init__(self, shape: MimiShape, num_codebooks: int) -> None:
        super().__init__()
        self.input_proj = (
            nn.Conv1d(shape.width, shape.code_width, 1, bias=False) if shape.projected else nn.Identity()
        )
        self.register_buffer("codebooks", torch.zeros(num_codebooks, shape.num_codes, shape.code_width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) to codes (B, T, Q)."""
        left = self.input_proj(x).transpose(1, 2)
        codes = []
        for codebook in self.codebooks:
            # |x - c|^2 less |x|^2, which is the same for all codes c.
            distances = codebook.square().sum(-1) - 2 * left @ codebook.T
            nearest = distances.argmin(dim=-1)
            codes.append(nearest)
            left = left - codebook[nearest]
        return torch.stack(codes, dim=-1)


class _SplitQuantizer(nn.Module):
    """Both quantisers, side by side."""

    def __init__(self, shape: MimiShape) -> None:
        super().__init__()
        self.semantic_residual_vector_quantizer = ResidualQuantizer(shape, shape.num_semantic)
        self.acoustic_residual_vector_quantizer = ResidualQuantizer(shape, shape.num_acoustic)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) to codes (B, T, Q)."""
        semantic = self.semantic_residual_vector_quantizer(x)
        return torch.cat([semantic, self.acoustic_residual_vector_quantizer(x)], dim=-1)


class MimiEncoder(nn.Module):
    """An encoder from samples to codes, piece by piece.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: MimiShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _Convolutions(shape)
        self.encoder_transformer = CausalLayers(shape.transformer, _Layer, nn.Identity())
        self.downsample = CausalConv(shape.width, shape.width, 2 * HALVING, stride=HALVING, bias=False)
        self.quantizer = _SplitQuantizer(shape)

    def _convolutions(self) -> Iterator[CausalConv]:
        """In the order in which they are run."""
        return (module for module in self.modules() if isinstance(module, CausalConv))

    def start(self, num_rows: int) -> MimiState:
        """The state of rows in front of their first sample."""
        like = self.downsample.conv.weight
        return MimiState(
            convolutions=tuple(
                like.new_zeros(num_rows, one.conv.in_channels, one.num_past) for one in self._convolutions()
            ),
            attention=SlidingCache.empty(self.encoder_transformer, num_rows),
        )

    def latents(self, samples: Tensor, state: MimiState) -> tuple[Tensor, MimiState]:
        """Return the vectors (B, D, T) of the next samples (B, N), which are quantised, and the state behind them.

        Args:
            samples: samples of whole frames.
            state: state of the B rows.
        """
        *first, last = state.convolutions
        contexts = _Contexts(first)
        steps = self.encoder(samples[:, None], contexts).transpose(1, 2)
        heard, attention = through_window(self.encoder_transformer, steps, state.attention, self.shape.window)
        heard = heard.transpose(1, 2)
        # What lies in front of a row's first step is that step again, where other convolutions have noughts.
        is_new = (state.attention.lengths == 0)[:, None, None]
        halving = _Contexts([torch.where(is_new, heard[..., :1], last)])
        frames = self.downsample(heard, halving)
        return frames, MimiState(convolutions=(*contexts.kept, *halving.kept), attention=attention)

    def forward(self, samples: Tensor, state: MimiState) -> tuple[Tensor, MimiState]:
        """Codes (B, T, Q) of the next samples (B, N) of whole frames, and the state behind them.

        Args:
            samples: samples of whole frames.
            state: state of the B rows.
        """
        latents, state = self.latents(samples, state)
        return self.quantizer(latents), state
