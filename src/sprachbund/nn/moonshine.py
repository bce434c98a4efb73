"""Encoders and decoder of Moonshine (arXiv 2410.15608) and streaming Moonshine, which hear samples, not log-mel.

Moonshine's encoder attends by rotary positions to the whole utterance; the streaming one has no positions, and each of
its layers sees a window of frames, a few or none of them ahead. The decoder is the same. Modules have the names that
their weights have in files of transformers. Padding changes nothing: an utterance gives the same alone and in a batch.

Shapes: B rows, N samples, T frames, D width, H heads, E width of a head, R rows of text, Q tokens of a step, U tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.attention import attend
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.decoder import DecoderCache, allowed_frames
from sprachbund.nn.feed_forward import ACTIVATIONS, Activation, Route

FRAME_SAMPLES = 384
"""Samples of a frame: the strides of the three convolutions."""
MIN_SAMPLES = 895
"""The fewest that give a frame."""
SHORT_FRAME, STREAMING_FRAME = 80, 320
"""Samples that the streaming encoder reads at once, and those of one of its frames."""


class InterleavedRotary(nn.Module):
    """Turns neighbouring dimensions of heads by angles that grow with the position (arXiv 2104.09864).

    Args:
        head_width: E.
        share: share of E that is turned, the first dimensions.
        base: base of the rates.
    """

    rates: Tensor

    def __init__(self, head_width: int, share: float, base: float) -> None:
        super().__init__()
        turned = int(head_width * share)
        with torch.device("cpu"):  # never stored, so it has to be real in a model built on meta too
            rates = 1.0 / base ** (torch.arange(0, turned, 2, dtype=torch.float) / turned)
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Heads (R, H, Q, E) at `positions` (R, Q) or (Q,), turned."""
        angles = positions[..., None].float() * self.rates
        cosines, sines = (
            part.repeat_interleave(2, dim=-1).to(x.dtype).unsqueeze(-3)
            for part in (angles.cos(), angles.sin())
        )
        turned = x[..., : cosines.shape[-1]]
        pairs = turned.unflatten(-1, (-1, 2))
        other = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        return torch.cat([turned * cosines + other * sines, x[..., cosines.shape[-1] :]], dim=-1)


class RotaryAttention(nn.Module):
    """Projections around `attend`, with keys and values passed in.

    Args:
        width: D.
        num_heads: H.
        head_width: E.
    """

    def __init__(self, width: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_width
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H E) to (B, H, T, E)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, E) of x (B, T, D)."""
        return self.split_heads(self.k_proj(x)), self.split_heads(self.v_proj(x))

    def mixed(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the attended values (R, Q, D), where R is a multiple of B and row r reads memory r // (R / B).

        Args:
            query: (R, H, Q, E).
            keys: (B, H, T, E).
            values: (B, H, T, E).
            allowed: boolean, broadcastable to (B, 1, Q, T); with R > B the same for all queries.
            weights: the attention weights (R, H, Q, T) are appended to it, if given.
        """
        num_rows, heads, num_queries, width = query.shape
        group = num_rows // len(keys)
        together = query.unflatten(0, (-1, group)).transpose(1, 2).reshape(len(keys), heads, -1, width)
        seen: list[Tensor] | None = None if weights is None else []
        out = attend(together, keys, values, allowed, seen).unflatten(2, (group, num_queries))
        if weights is not None and seen is not None:
            weights.append(seen[0].unflatten(2, (group, num_queries)).transpose(1, 2).flatten(0, 1))
        projected: Tensor = self.o_proj(out.permute(0, 2, 3, 1, 4).reshape(num_rows, num_queries, -1))
        return projected


class OffsetNorm(nn.Module):
    """Layer norm whose scale is stored less one, and which has no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return F.layer_norm(x, x.shape[-1:]) * (self.gamma + 1.0)


class Mlp(nn.Module):
    """Expansion, activation, contraction; gated in the decoder.

    Args:
        width: D.
        inner_width: width between the matrices.
        activation: activation of the gate, or of all.
        gated: whether the expansion has a gate beside it.
    """

    def __init__(self, width: int, inner_width: int, activation: Activation, *, gated: bool = False) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gated = gated
        self.fc1 = nn.Linear(width, inner_width * (2 if gated else 1))
        self.fc2 = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x, act = self.fc1(x), ACTIVATIONS[self.activation]
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.fc2(act(gate) * x)
        return self.fc2(act(x))


class MoonshineEncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward.

    Args:
        width: D.
        num_heads: H.
        head_width: E.
        inner_width: inner width of the feed-forward.
        activation: activation of the feed-forward.
        offset_norm: whether norms store their scale less one.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_width: int,
        inner_width: int,
        activation: Activation,
        *,
        offset_norm: bool,
    ) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(width, num_heads, head_width)
        self.mlp = Mlp(width, inner_width, activation)
        self.input_layernorm = _norm(width, offset_norm)
        self.post_attention_layernorm = _norm(width, offset_norm)

    def forward(self, x: Tensor, allowed: Tensor | None, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """States (B, T, D) of states (B, T, D).

        Args:
            x: (B, T, D).
            allowed: boolean, broadcastable to (B, 1, T, T).
            turn: queries and keys (B, H, T, E) to what has their positions.
        """
        normed, attention = self.input_layernorm(x), self.self_attn
        keys, values = attention.keys_values(normed)
        query = attention.split_heads(attention.q_proj(normed))
        x = x + attention.mixed(turn(query), turn(keys), values, allowed)
        return x + self.mlp(self.post_attention_layernorm(x))


def _norm(width: int, offset: bool) -> nn.Module:
    return OffsetNorm(width) if offset else nn.LayerNorm(width, bias=False)


class MoonshineEncoder(nn.Module):
    """Samples (B, N) to states (B, T, D), a frame for every `FRAME_SAMPLES`.

    Args:
        width: D.
        num_heads: H.
        num_layers: number of layers of the encoder.
        inner_width: inner width of the feed-forwards.
        activation: activation of the feed-forwards.
        rotary: positions.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_layers: int,
        inner_width: int,
        activation: Activation,
        rotary: InterleavedRotary,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, width, 127, stride=64, bias=False)
        self.conv2 = nn.Conv1d(width, 2 * width, 7, stride=3)
        self.conv3 = nn.Conv1d(2 * width, width, 3, stride=2)
        self.groupnorm = nn.GroupNorm(1, width, eps=1e-5)
        self.layers = nn.ModuleList(
            MoonshineEncoderLayer(
                width, num_heads, width // num_heads, inner_width, activation, offset_norm=False
            )
            for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(width, bias=False)
        self.rotary = rotary

    def forward(self, samples: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, D) of samples (B, N), and how many of them are valid (B,).

        Args:
            samples: (B, N), at 16 kHz.
            num_samples: valid samples (B,), at least `MIN_SAMPLES`.
        """
        first = (num_samples - 127) // 64 + 1
        x = torch.tanh(self.conv1(samples[:, None]))
        x = F.gelu(self.conv2(self._normed(x, valid_frames(first, x.shape[2])[:, None])))
        x = F.gelu(self.conv3(x)).transpose(1, 2)
        num_frames = ((first - 7) // 3 + 1 - 3) // 2 + 1
        allowed = allowed_frames(x, num_frames)
        turn = partial(self.rotary, positions=torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            x = layer(x, allowed, turn)
        return self.layer_norm(x), num_frames

    def _normed(self, x: Tensor, valid: Tensor) -> Tensor:
        """x (B, D, T) normed over width and the valid frames (B, 1, T) of its row: padding does not count."""
        count = valid.sum(2, keepdim=True) * x.shape[1]
        mean = (x * valid).sum((1, 2), keepdim=True) / count
        variance = ((x - mean).square() * valid).sum((1, 2), keepdim=True) / count
        normed = (x - mean) / (variance + self.groupnorm.eps).sqrt()
        return normed * self.groupnorm.weight[:, None] + self.groupnorm.bias[:, None]


class CausalConv1d(nn.Conv1d):
    """A convolution of kernel 5 and stride 2 over time that sees what is past alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) to (B, D', (T + 1) / 2)."""
        return super().forward(F.pad(x, (4, 0)))


class AsinhCompression(nn.Module):
    """Samples of a frame to asinh(k x)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_k = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return torch.asinh(torch.exp(self.log_k) * x)


class Embedder(nn.Module):
    """Samples to frames: 80 of them, normed and compressed, are projected, and two causal convolutions follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.comp = AsinhCompression()
        self.conv1 = CausalConv1d(width, 2 * width)
        self.conv2 = CausalConv1d(2 * width, width)
        self.linear = nn.Linear(SHORT_FRAME, width, bias=False)

    def forward(self, samples: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D) of samples (B, N), N a multiple of 80, and how many of them are valid (B,)."""
        pieces = samples.unflatten(1, (-1, SHORT_FRAME))
        centred = pieces - pieces.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        x = F.silu(self.linear(self.comp(normed)))
        # A piece that is not whole is silent, though it counts as a frame.
        x = (x * valid_frames(num_samples // SHORT_FRAME, x.shape[1])[..., None]).transpose(1, 2)
        num_frames = (num_samples + SHORT_FRAME - 1) // SHORT_FRAME
        x = self.conv2(F.silu(self.conv1(x))).transpose(1, 2)
        return x, ((num_frames + 1) // 2 + 1) // 2


class StreamingMoonshineEncoder(nn.Module):
    """Samples (B, N) to states (B, T, D), a frame for every `STREAMING_FRAME`.

    Args:
        width: D.
        num_heads: H.
        head_width: E.
        inner_width: inner width of the feed-forwards.
        activation: activation of the feed-forwards.
        windows: windows of each layer: frames that one sees, itself and the past, and one more than those ahead.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_width: int,
        inner_width: int,
        activation: Activation,
        windows: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.embedder = Embedder(width)
        self.layers = nn.ModuleList(
            MoonshineEncoderLayer(width, num_heads, head_width, inner_width, activation, offset_norm=True)
            for _ in windows
        )
        self.final_norm = OffsetNorm(width)

    def forward(self, samples: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, D) of samples (B, N), and how many of them are valid (B,).

        Args:
            samples: (B, N), at 16 kHz, N a multiple of `SHORT_FRAME`.
            num_samples: valid samples (B,).
        """
        x, num_frames = self.embedder(samples, num_samples)
        positions = torch.arange(x.shape[1], device=x.device)
        behind = positions[:, None] - positions
        valid = allowed_frames(x, num_frames)
        assert valid is not None
        for layer, (left, right) in zip(self.layers, self.windows, strict=True):
            seen = ((behind >= 0) & (behind < left)) | ((behind < 0) & (-behind < right))
            x = layer(x, valid & seen, _as_it_is)
        return self.final_norm(x), num_frames


def _as_it_is(x: Tensor) -> Tensor:
    return x


class MoonshineDecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and gated feed-forward."""

    def __init__(
        self, width: int, num_heads: int, head_width: int, inner_width: int, activation: Activation
    ) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(width, num_heads, head_width)
        self.encoder_attn = RotaryAttention(width, num_heads, head_width)
        self.mlp = Mlp(width, inner_width, activation, gated=True)
        self.input_layernorm = nn.LayerNorm(width, bias=False)
        self.post_attention_layernorm = nn.LayerNorm(width, bias=False)
        self.final_layernorm = nn.LayerNorm(width, bias=False)


class MoonshineDecoder(nn.Module):
    """Tokens and a memory in, logits out; rotary positions.

    Args:
        vocabulary_size: V.
        max_tokens: longest row, U.
        width: D.
        num_heads: H.
        head_width: E.
        num_layers: number of layers of the decoder.
        inner_width: inner width of the feed-forwards.
        activation: activation of their gates.
        rotary: positions.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_tokens: int,
        width: int,
        num_heads: int,
        head_width: int,
        num_layers: int,
        inner_width: int,
        activation: Activation,
        rotary: InterleavedRotary,
    ) -> None:
        super().__init__()
        self.max_tokens, self.rotary = max_tokens, rotary
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(vocabulary_size, width), freeze=False)
        self.layers = nn.ModuleList(
            MoonshineDecoderLayer(width, num_heads, head_width, inner_width, activation)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)

    def start(
        self,
        memory: Tensor,
        num_frames: Tensor | None,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        route: Route | None = None,
    ) -> DecoderCache:
        """An empty cache over a memory (B, T, D) of which the first `num_frames` (B,) frames are valid.

        Args:
            memory: (B, T, D).
            num_frames: valid frames (B,); all if None.
            rows_per_memory: rows for each utterance; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            route: not used here.
        """
        num_rows = len(memory) * rows_per_memory
        capacity = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        cross = [layer.encoder_attn.keys_values(memory) for layer in self._layers()]
        heads, width = cross[0][0].shape[1], cross[0][0].shape[3]
        shape = (num_rows, heads, capacity, width)
        return DecoderCache(
            self_keys=[memory.new_zeros(shape) for _ in cross],
            self_values=[memory.new_zeros(shape) for _ in cross],
            cross_keys=[keys.contiguous() for keys, _ in cross],
            cross_values=[values.contiguous() for _, values in cross],
            memory_allowed=allowed_frames(memory, num_frames),
            lengths=torch.zeros(num_rows, dtype=torch.long, device=memory.device),
            route=route,
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """States (R, Q, D) behind the last norm, after each of `tokens` (R, Q), which follow what the cache holds.

        Args:
            tokens: (R, Q).
            cache: cache of the R rows; the tokens are added to it.
            weights: each layer's cross-attention weights (R, H, Q, T) are appended to it, if given.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        used = cache.used + tokens.shape[1]
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        columns = torch.arange(used, device=tokens.device)
        positions = cache.lengths[:, None] + columns[: tokens.shape[1]]
        allowed = columns <= positions[:, None, :, None]
        x = self.embed_tokens(tokens)
        for number, layer in enumerate(self._layers()):
            normed, attention = layer.input_layernorm(x), layer.self_attn
            keys, values = attention.keys_values(normed)
            keys, values = cache.write(number, positions, self.rotary(keys, positions), values)
            query = self.rotary(attention.split_heads(attention.q_proj(normed)), positions)
            x = x + attention.mixed(query, keys, values, allowed)
            cross = layer.encoder_attn
            query = cross.split_heads(cross.q_proj(layer.post_attention_layernorm(x)))
            x = x + cross.mixed(
                query, cache.cross_keys[number], cache.cross_values[number], cache.memory_allowed, weights
            )
            x = x + layer.mlp(layer.final_layernorm(x))
        cache.grow(tokens.shape[1])
        normed_x: Tensor = self.norm(x)
        return normed_x

    def _layers(self) -> list[MoonshineDecoderLayer]:
        return list(self.layers)  # type: ignore[arg-type]
