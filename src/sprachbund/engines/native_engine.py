"""The native engine: a family whose decoder, and encoder where possible, compute in the native kernels.

Of encoders, transducers and language models that the kernels do not know as a whole, they compute the linear layers
(`native_linear`); causal language models of our own (`native_causal`) and FastConformer encoders
(`native_fastconformer`) they do.

`pack` packs the weights of a family, and `with_native_modules` gives the family with native modules in place of the
torch ones. They have the same methods, so searches see the same model.

Shapes: B memories, R rows (row r reads memory r // (R/B)), Q tokens per step, L layers, H heads, C blocks of 16
positions, W width of a head padded to 16, T frames, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sprachbund.engines.extension import enough_memory, native
from sprachbund.engines.native_causal import NativeCausalLM, why_not_causal
from sprachbund.engines.native_fastconformer import (
    NativeFastConformer,
    NativeStreamingEncoder,
    why_not_fastconformer,
)
from sprachbund.engines.native_linear import (
    NativeModule,
    linear_shapes,
    matrix_of,
    pack_linears,
    replace_lstms,
    with_native_linears,
)
from sprachbund.engines.options import NativeOptions, WeightNumbers
from sprachbund.engines.packed_cache import Packed
from sprachbund.engines.packing import (
    BLOCK,
    DECODERS,
    Arrays,
    DecoderShape,
    EncoderShape,
    StemShape,
    decoder_shape,
    encoder_shape,
    pack_decoder,
    pack_encoder,
    pack_parasite,
    pack_stem,
    pad,
    stem_shape,
    why_not,
    why_not_encoder,
)
from sprachbund.engines.torch_layers import with_submodules
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.seamless.layers import SeamlessEncoder
from sprachbund.models.speech_llm.llm import LanguageModel
from sprachbund.models.weights import streaming_origin
from sprachbund.nn.causal_lm import CausalLM
from sprachbund.nn.decoder import DecoderCache, DecoderLayer, TextDecoder
from sprachbund.nn.drafts import Parasite
from sprachbund.nn.encoder import ConvolutionalEncoder, mean_frame
from sprachbund.nn.fast_conformer import FastConformerEncoder
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.streaming_conformer import ChunkEncoder, StreamingEncoder
from sprachbund.util.devices import torch_threads
from sprachbund.util.pages import zeros_in_pages


class NativeCache(DecoderCache):
    """The same cache as `DecoderCache`, with keys and values in bf16 as the kernels lay them out.

    Attributes:
        own: (L, 2, R, H, C, 16 W) keys and values of the rows, bf16 in 16-bit integers.
        cross: (L, 2, B, H, C, 16 W) keys and values of the memories, bf16 or 8-bit integers.
        self_keys: one (R, H, C, 16 W) per layer, a part of `own`; so are `self_values`.
        cross_keys: one (B, H, C, 16 W) per layer, a part of `cross`; so are `cross_values`.
        scales: (L, 3, B, H, 16 C) of keys, offsets of keys, of values in 8 bits; None in bf16.
        frames: (B,) valid frames.
        num_frames: T.
        limit: tokens a row can hold.
    """

    def __init__(
        self,
        own: Tensor,
        cross: Tensor,
        scales: Tensor | None,
        frames: Tensor,
        *,
        num_frames: int,
        limit: int,
        route: Route | None,
    ) -> None:
        super().__init__(
            self_keys=list(own[:, 0]),
            self_values=list(own[:, 1]),
            cross_keys=list(cross[:, 0]),
            cross_values=list(cross[:, 1]),
            memory_allowed=None,
            lengths=torch.zeros(own.shape[2], dtype=torch.long),
            route=route,
        )
        self.own, self.cross, self.scales, self.frames = own, cross, scales, frames
        self.num_frames, self.limit = num_frames, limit

    @property
    def capacity(self) -> int:
        """The number of tokens a row can hold."""
        return self.limit

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        used = -(-self.used // BLOCK)
        moved = (rows != torch.arange(len(rows))).nonzero().flatten() if len(rows) == self.num_rows else None
        if moved is None:
            before, self.own = (
                self.own,
                self.own.new_zeros(*self.own.shape[:2], len(rows), *self.own.shape[3:]),
            )
            self.own[..., :used, :] = before[:, :, rows, :, :used]
            self.self_keys, self.self_values = list(self.own[:, 0]), list(self.own[:, 1])
        else:
            self.own[:, :, moved, :, :used] = self.own[:, :, rows[moved], :, :used]
        self.rewind(self.lengths[rows])
        self.route = None if self.route is None else self.route.take(rows)

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        group = self.num_rows // len(self.frames)
        self.reorder((memories[:, None] * group + torch.arange(group)).flatten())
        self.cross, self.frames = self.cross[:, :, memories], self.frames[memories]
        self.cross_keys, self.cross_values = list(self.cross[:, 0]), list(self.cross[:, 1])
        self.scales = None if self.scales is None else self.scales[:, :, memories]


@contextmanager
def limit_torch_threads(decoder: Any) -> Iterator[None]:
    """Torch computes with one thread while native threads step a decoder.

    Between two steps they wait actively, for microseconds; torch would wake threads of its own to choose a token, which
    then wait for a core: with two cores that cost more than the step. Nothing changes for other decoders.
    """
    if torch.get_num_threads() == 1 or not isinstance(decoder, NativeDecoder | NativeCausalLM):
        yield
        return
    with torch_threads(1):
        yield


class _ReadsMemory(NativeModule):
    """A native module of layers with cross-attention over the encoder's output.

    Args:
        shape: sizes.
        arrays: packed weights.
        options: parts that may be less exact.
        made: the compiled object.
    """

    def __init__(self, shape: DecoderShape, arrays: Arrays, options: NativeOptions, made: Any) -> None:
        super().__init__(arrays)
        self.shape, self.options, self._native = shape, options, made

    @enough_memory()
    def remember(self, memory: Tensor, num_frames: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Keys and values of a memory, their scales in 8 bits, and its valid frames, as `NativeCache` has them.

        Args:
            memory: (B, T, D).
            num_frames: (B,) valid frames; all if None.
        """
        shape, (num_memories, length, _) = self.shape, memory.shape
        head = BLOCK * -(-shape.head_width // BLOCK) * BLOCK
        eight, blocks = self.options.memory == "int8", -(-length // BLOCK)
        sizes = (num_memories, shape.heads, blocks)
        dtype = torch.int8 if eight else torch.int16
        # Zeros, since positions after the last frame are read, though they count for nothing.
        cross = zeros_in_pages(shape.num_layers, 2, *sizes, head, dtype=dtype)
        scales = torch.zeros(shape.num_layers, 3, *sizes[:-1], blocks * BLOCK) if eight else None
        self._native.remember(pad(memory.detach().float(), 2, BLOCK).contiguous(), cross, scales)
        frames = torch.full((num_memories,), length) if num_frames is None else num_frames.long()
        return cross, scales, frames.contiguous()


class NativeParasite(_ReadsMemory):
    """A parasite (`sprachbund.nn.drafts.Parasite`) beside a native decoder, whose keys and values it reads.

    Args:
        parasite: parasite with its weights.
        decoder: decoder of the model; its embeddings, positions and output matrix are the parasite's too.
    """

    def __init__(self, parasite: Parasite, decoder: "NativeDecoder") -> None:
        shape = replace(
            decoder.shape,
            num_layers=parasite.shape.num_blocks,
            activation=parasite.activation,
            memory_width=parasite.shape.memory_width,
        )
        arrays = pack_parasite(parasite)
        shared = {f"vocabulary.{name}": array for name, array in decoder.vocabulary.items()}
        groups = [0, *(group.stop for group in parasite.shape.groups)]
        made = native().Decoder(
            arrays | shared | {"positions": decoder.positions},
            decoder.instruction_set,
            decoder.team,
            **shape.sizes(),
            groups=groups,
        )
        super().__init__(shape, arrays, decoder.options, made)


class NativeDecoder(_ReadsMemory):
    """Stands for a `TextDecoder` when rows are stepped.

    Args:
        shape: sizes.
        arrays: packed weights; they may be mapped from a file.
        team: threads.
        instruction_set: name of the kernels.
        options: parts that may be less exact.

    Attributes:
        team, instruction_set: as given, for another model that shares the threads.
        vocabulary: the packed output matrix.
        step_bytes: bytes of weights that each step reads.
    """

    def __init__(
        self,
        shape: DecoderShape,
        arrays: Arrays,
        team: Any,
        instruction_set: str,
        options: NativeOptions | None = None,
    ) -> None:
        made = native().Decoder(arrays, instruction_set, team, **shape.sizes())
        super().__init__(shape, arrays, options or NativeOptions(), made)
        self.team, self.instruction_set = team, instruction_set
        self.positions = arrays["positions"]
        self.vocabulary = {
            name.removeprefix("vocabulary."): a
            for name, a in arrays.items()
            if name.startswith("vocabulary.")
        }
        at_start_only = ("positions", "cross_memory.")
        self.step_bytes = sum(
            a.nbytes for name, a in arrays.items() if not any(p in name for p in at_start_only)
        )

    @property
    def max_tokens(self) -> int:
        """Longest row the positions allow."""
        return self.shape.max_tokens

    def embedding(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., D) of tokens (...), out of the packed output matrix: some encoders read them too."""
        values = self.vocabulary["values"][tokens // BLOCK, :, tokens % BLOCK].flatten(-2)
        scale = self.vocabulary["scale"][tokens] * self.shape.embedding_scale
        return values[..., : self.shape.width] * scale[..., None]

    @enough_memory()
    def start(
        self,
        memory: Tensor,
        num_frames: Tensor | None,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        route: Route | None = None,
    ) -> NativeCache:
        """An empty cache over a memory.

        Args:
            memory: (B, T, D).
            num_frames: (B,) valid frames; all if None.
            rows_per_memory: R / B.
            capacity: tokens that a row can hold; those of the model by default.
            route: languages of the rows, for models split by language.
        """
        shape, (num_memories, length, _) = self.shape, memory.shape
        cross, scales, frames = self.remember(memory, num_frames)
        limit = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        head = BLOCK * -(-shape.head_width // BLOCK) * BLOCK
        own_shape = (
            shape.num_layers,
            2,
            num_memories * rows_per_memory,
            shape.heads,
            -(-limit // BLOCK),
            head,
        )
        own = torch.zeros(own_shape, dtype=torch.int16)
        return NativeCache(own, cross, scales, frames, num_frames=length, limit=limit, route=route)

    @enough_memory()
    def step(self, tokens: Tensor, cache: NativeCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds.

        As `TextDecoder.step`: when `weights` is a list, each layer's cross-attention weights (B, H, R/B * Q, T) are
        appended.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        logits = torch.empty(*tokens.shape, self.shape.vocabulary_size)
        self._step(tokens, cache, logits, self._attention(tokens, cache, weights), None)
        return logits

    @enough_memory()
    def states(self, tokens: Tensor, cache: NativeCache) -> Tensor:
        """A step that stops before the last norm: (R, Q, D padded to 16), for `logits`. Errors as for `step`."""
        states = torch.empty(*tokens.shape, -(-self.shape.width // BLOCK) * BLOCK)
        self._step(tokens, cache, None, None, states)
        return states

    @enough_memory()
    def search(self, cache: NativeCache, **rows: Any) -> int:
        """Write all rows of a greedy search to their ends, in place; the number of passes.

        Args:
            cache: holds all tokens of the rows but the newest.
            rows: arrays as `sprachbund.decoding.native_search` makes them.
        """
        passes: int = self._native.search(
            **rows,
            capacity=cache.capacity,
            own=cache.own,
            cross=cache.cross,
            scales=cache.scales,
            frames=cache.frames,
        )
        return passes

    def heads_draft(self, heads: Any, planted: list[list[int]], prompts: list[int]) -> Any:
        """Packed Medusa heads as a draft of one search.

        Args:
            heads: packed.
            planted: see `sprachbund.decoding.drafts.network.NativeMedusaRun`.
            prompts: tokens of the rows' prompts.
        """
        return native().HeadsDraft(self._native, heads, planted, prompts)

    def parasite_draft(
        self,
        parasite: NativeParasite,
        memory: tuple[Tensor, Tensor | None, Tensor],
        planted: list[list[int]],
        prompts: list[int],
    ) -> Any:
        """A parasite as a draft of one search.

        Args:
            parasite: parasite made for this decoder.
            memory: see `NativeParasite.remember`.
            planted: as of `heads_draft`.
            prompts: tokens of the rows' prompts.
        """
        return native().ParasiteDraft(self._native, parasite._native, *memory, planted, prompts)

    def model_draft(
        self, smaller: "NativeDecoder", cache: NativeCache, planted: list[list[int]], prompts: list[int]
    ) -> Any:
        """The decoder of a smaller model as a draft of one search.

        Args:
            smaller: on the same threads.
            cache: cache of the smaller decoder, empty.
            planted: as of `heads_draft`.
            prompts: tokens of the rows' prompts.
        """
        memory = (cache.cross, cache.scales, cache.frames.contiguous())
        return native().ModelDraft(
            self._native, smaller._native, cache.own, *memory, cache.capacity, planted, prompts
        )

    @enough_memory()
    def logits(self, states: Tensor, matrix: Arrays | None = None, num_rows: int = 0) -> Tensor:
        """Logits (R, Q, V) of states (R, Q, D padded), or (R, Q, `num_rows`) of another packed "matrix"."""
        num_rows = self.shape.vocabulary_size if matrix is None else num_rows
        logits = torch.empty(*states.shape[:2], num_rows)
        self._native.logits(states.flatten(0, 1), logits.flatten(0, 1), matrix)
        return logits

    def _attention(self, tokens: Tensor, cache: NativeCache, weights: list[Tensor] | None) -> Tensor | None:
        """Room for what is appended to `weights`."""
        if weights is None:
            return None
        num_memories = len(cache.frames)
        group = tokens.numel() // num_memories
        room = torch.empty(self.shape.num_layers, num_memories, self.shape.heads, group, cache.num_frames)
        weights.extend(room)
        return room

    def _step(
        self,
        tokens: Tensor,
        cache: NativeCache,
        logits: Tensor | None,
        attention: Tensor | None,
        states: Tensor | None,
    ) -> None:
        used = cache.used + tokens.shape[1]
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        self._native.step(
            tokens.contiguous(),
            cache.lengths,
            cache.own,
            cache.cross,
            cache.scales,
            cache.frames,
            logits,
            attention,
            states,
        )
        cache.grow(tokens.shape[1])


class NativeStem(NativeModule):
    """Stands for a conformer's `Subsampling`, and for the convolutions before Whisper's layers."""

    def __init__(self, shape: StemShape, arrays: Arrays, team: Any, instruction_set: str) -> None:
        super().__init__(arrays)
        self.shape = shape
        self._native = native().Stem(arrays, instruction_set, team, **shape.sizes())

    @enough_memory()
    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, M) with `num_frames` (B,) valid ones to the shorter sequence (B, T', D) and its valid lengths (B,)."""
        x = pad(features.detach().float(), 2, BLOCK).contiguous()
        length, shorter = torch.tensor(features.shape[1]), num_frames
        for stride in self.shape.strides:
            length, shorter = (-(-n // stride) for n in (length, shorter))
        out = torch.zeros(len(x), int(length), -(-self.shape.width // BLOCK) * BLOCK)
        for b, (before, after) in enumerate(zip(num_frames.tolist(), shorter.tolist(), strict=True)):
            self._native.run(x[b, :before], out[b, :after])
        return out[..., : self.shape.width].to(features.dtype), shorter


class NativeLayers(NativeModule):
    """Stands for all layers of an encoder, and the norm behind a transformer's."""

    def __init__(self, shape: EncoderShape, arrays: Arrays, team: Any, instruction_set: str) -> None:
        super().__init__(arrays)
        self.shape = shape
        self._native = native().Encoder(arrays, instruction_set, team, **shape.sizes())

    @enough_memory()
    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """Run all layers.

        Args:
            x: (B, T, D).
            allowed: boolean (B, 1, 1, T), or (B, T) for conformers: False on padding, which becomes zero.
            route: not used.
        """
        num_frames = [x.shape[1]] * len(x) if allowed is None else allowed.flatten(1).sum(1).tolist()
        return self._run(x, num_frames, [None] * len(x))

    @enough_memory()
    def with_means(self, x: Tensor, visible: Tensor, route: Route | None = None) -> tuple[Tensor, Tensor]:
        """Run all layers, and give the means (B, N + 1, D) as `EncoderLayers.with_means` does.

        Args:
            x: (B, T, D).
            visible: as `allowed` of `forward`.
            route: not used.
        """
        visible = visible.flatten(1)
        padded = -(-x.shape[2] // BLOCK) * BLOCK
        behind = torch.zeros(len(x), self.shape.num_layers, padded)
        out = self._run(x, visible.sum(1).tolist(), list(behind))
        before = mean_frame(x, visible[..., None])
        return out, torch.cat([before[:, None], behind[..., : x.shape[2]]], dim=1)

    def _run(self, x: Tensor, num_frames: Sequence[int], means: Sequence[Tensor | None]) -> Tensor:
        """All layers on the valid frames; what is left becomes zero."""
        out = pad(x.detach().float(), 2, BLOCK).clone(memory_format=torch.contiguous_format)
        for states, count, of_layers in zip(out, num_frames, means, strict=True):
            self._native.encode(states[:count], of_layers)
            states[count:] = 0
        return out[..., : x.shape[2]].to(x.dtype)


class NativeWhisperEncoder(nn.Module):
    """Stands for Whisper's encoder: convolutions, positions, layers; it has no gradient."""

    def __init__(self, stem: NativeStem, positions: Tensor, layers: NativeLayers) -> None:
        super().__init__()
        self.stem, self.positions, self.layers = stem, positions, layers

    def forward(
        self, features: Tensor, num_frames: Tensor | None = None, route: Route | None = None
    ) -> Tensor:
        """Log-mel to states (B, T/2, D).

        Args:
            features: (B, T, M).
            num_frames: (B,) valid frames; all if None.
            route: not used.
        """
        if num_frames is None:
            num_frames = torch.full((len(features),), features.shape[1])
        x, num_frames = self.stem(features, num_frames)
        x = x + self.positions[: x.shape[1]]
        states: Tensor = self.layers(x, torch.arange(x.shape[1]) < num_frames[:, None])
        return states


def why_not_family(family: Family) -> str | None:
    """Reason why the kernels can run nothing of a family; None when they run its decoder, or layers of other parts."""
    able = family.capabilities
    if able.streaming is not None and not isinstance(able.streaming.encoder, StreamingEncoder):
        return f"its encoder is of the kind {type(able.streaming.encoder).__name__}"
    if layered := _by_layers(family):
        devices = {weight.device for part in layered.values() for weight in part.parameters()}
        strange = [str(device) for device in devices if device.type != "cpu"]
        return f"it is on the device {strange[0]}" if strange else None
    return _why_not_decoder(family)


def _why_not_decoder(family: Family) -> str | None:
    """Reason why the kernels cannot run a family's whole decoder; None when they can."""
    able = family.capabilities
    decoder = able.decoder
    if able.writes_by_frames:
        return "it writes frame by frame, and the kernels run attention decoders"
    if (
        not isinstance(family, nn.Module)
        or not isinstance(decoder, TextDecoder)
        or type(decoder) not in DECODERS
    ):
        return f"its decoder is of the kind {type(decoder).__name__}"
    if decoder.output_head is not None:
        return "its decoder has an output matrix of its own"
    if decoder.positions.device.type != "cpu":
        return f"it is on the device {decoder.positions.device}"
    return why_not(list(decoder.layers), DecoderLayer)


def native_parts_of(family: Family) -> str:
    """Parts of a family that the kernels run, in words for users."""
    decoder = _decoder(family)
    if layered := _by_layers(family):
        whole = ["decoder"] * (decoder is not None)
        whole += [name for name, part in layered.items() if _why_not_whole(part) is None]
        by_layers = [name for name in layered if name not in whole]
        parts = [*whole, f"linear layers of {' and '.join(by_layers)}"] if by_layers else whole
        reasons = [
            f", {name} since {_why_not_whole(layered[name])}"
            for name in by_layers
            if isinstance(layered[name], CausalLM | FastConformerEncoder | StreamingEncoder)
        ]
        return f"{', and '.join(parts)}; the rest on torch{''.join(reasons)}"
    reason = why_not_encoder(family.capabilities.encoder)
    return "encoder and decoder" if reason is None else f"decoder; its encoder on torch, since {reason}"


def pack(family: Family, weights: WeightNumbers = "int8") -> Packed:
    """Packed weights of what the kernels compute of a family, in memory.

    Raises:
        SprachbundError: weights that are not finite, which 4 bits cannot hold.
    """
    parts = {name: pack_linears(part, weights) for name, part in _by_layers(family).items()}
    if (decoder := _decoder(family)) is not None:
        parts["decoder"] = pack_decoder(decoder, weights)[1]
    if (encoder := _encoder(family)) is not None:
        parts["encoder"] = pack_encoder(list(encoder.layers), encoder.final_norm, weights)[1]
        parts["stem"] = pack_stem(encoder.convolutions)
    return _packed(parts, shapes_of(family, weights), weights)


def _packed(parts: dict[str, Arrays], shapes: dict[str, dict[str, Any]], weights: WeightNumbers) -> Packed:
    return Packed(
        source="memory",
        shapes=shapes,
        arrays={f"{name}.{key}": array for name, arrays in parts.items() for key, array in arrays.items()},
        weights=weights,
    )


def _why_not_whole(part: nn.Module) -> str | None:
    """Reason why the kernels compute only the linear layers of a part; None when they compute all of its layers."""
    by_distance = isinstance(part, FastConformerEncoder | StreamingEncoder)
    return why_not_fastconformer(part) if by_distance else why_not_causal(part)


_BY_LAYERS = (FastConformerEncoder, SeamlessEncoder)
"""Encoders whose linear layers are packed one by one, beside those of models that stream."""


def _by_layers(family: Family) -> dict[str, nn.Module]:
    """Parts whose linear layers are packed one by one, by the names of modules; else none.

    They are encoder and transducer of a model that streams, encoders of kinds that the kernels do not know as a whole,
    with the transducer behind them, and encoder and language model of a speech LLM.
    """
    able = family.capabilities
    if able.streaming is not None:
        return {"encoder": able.streaming.encoder, "transducer": able.streaming.transducer}
    if not isinstance(family, nn.Module):
        return {}
    chosen: list[nn.Module | None] = []
    if isinstance(able.encoder, _BY_LAYERS):
        chosen += [able.encoder, able.transducer]
    elif isinstance(able.decoder, CausalLM | LanguageModel):
        chosen += [able.encoder, able.decoder]
    return {name: part for name, part in family.named_children() if any(part is one for one in chosen)}


def shapes_of(family: Family, weights: WeightNumbers = "int8") -> dict[str, dict[str, Any]]:
    """Sizes of the parts that `pack` packs."""
    shapes = {name: linear_shapes(part, weights) for name, part in _by_layers(family).items()}
    if (decoder := _decoder(family)) is not None:
        shapes["decoder"] = decoder_shape(decoder).sizes()
    if (encoder := _encoder(family)) is not None:
        shapes["encoder"] = encoder_shape(list(encoder.layers)).sizes()
        shapes["stem"] = stem_shape(encoder.convolutions).sizes()
    return shapes


def with_native_modules(
    family: Family, packed: Packed, team: Any, kernels: str, options: NativeOptions | None = None
) -> Family:
    """The family with native modules in place of those that are packed; the others are shared with it.

    Args:
        family: family with its weights.
        packed: its packed weights.
        team: threads.
        kernels: name of the instruction set.
        options: parts that may be less exact; they have to name the numbers of the packed weights.

    Raises:
        SprachbundError: packed weights of another shape than the model, or in other numbers than asked for.
    """
    if (wanted := (options or NativeOptions()).weights) != packed.weights:
        raise SprachbundError(
            f"the packed weights are in {packed.weights}, asked for are {wanted}; pack again"
        )
    if packed.shapes != shapes_of(family, packed.weights):
        raise SprachbundError("the packed weights have other shapes than the model; delete their file")
    try:
        return _with_native_modules(family, packed, team, kernels, options)
    except ValueError as error:  # the kernels check every array
        raise SprachbundError(
            f"the packed weights do not fit the model ({error}); delete their file"
        ) from error


def _with_native_modules(
    family: Family, packed: Packed, team: Any, kernels: str, options: NativeOptions | None
) -> Family:
    assert isinstance(family, nn.Module)  # `why_not_family` refuses all others
    parts: dict[str, nn.Module] = {
        name: _native_layers(part, packed.part(name), team, kernels)
        for name, part in _by_layers(family).items()
    }
    if _decoder(family) is not None:
        sizes = DecoderShape(**packed.shapes["decoder"])
        parts["decoder"] = NativeDecoder(sizes, packed.part("decoder"), team, kernels, options)
    elif options is not None and options.memory != NativeOptions().memory:
        raise SprachbundError(
            f"memory={options.memory!r} is for decoders with a memory of their own; leave it out"
        )
    if (encoder := _encoder(family)) is not None:
        layers = NativeLayers(EncoderShape(**packed.shapes["encoder"]), packed.part("encoder"), team, kernels)
        stem = NativeStem(StemShape(**packed.shapes["stem"]), packed.part("stem"), team, kernels)
        parts["encoder"] = _native_encoder(encoder, stem, layers)
    if (streaming := family.capabilities.streaming) is not None:
        made = parts["encoder"]
        assert isinstance(made, ChunkEncoder)
        made.origin = streaming_origin(streaming.encoder, streaming.transducer)
    return with_submodules(family, **parts)


def _native_layers(part: nn.Module, arrays: Arrays, team: Any, kernels: str) -> nn.Module:
    """A language model or an encoder as a whole where the kernels can, else with native linear layers and LSTMs."""
    if why_not_causal(part) is None:
        return NativeCausalLM(cast(CausalLM, part), arrays, team, kernels)
    if why_not_fastconformer(part) is None:
        kind = NativeFastConformer if isinstance(part, FastConformerEncoder) else NativeStreamingEncoder
        return kind(cast(Any, part), arrays, team, kernels)
    made = with_native_linears(part, partial(matrix_of, arrays), team, kernels)
    replace_lstms(made, team, kernels)
    return made


def _native_encoder(encoder: ConvolutionalEncoder, stem: NativeStem, layers: NativeLayers) -> nn.Module:
    if (positions := encoder.position_table) is not None:
        # A view of them would keep the file of the weights mapped, of which nothing else is read.
        return NativeWhisperEncoder(stem, positions.detach().to(torch.float32, copy=True), layers)
    return with_submodules(encoder, subsampling=stem, layers=layers)


def _encoder(family: Family) -> ConvolutionalEncoder | None:
    """The encoder where the kernels can run its layers; not without the decoder."""
    encoder = family.capabilities.encoder
    if _decoder(family) is None or why_not_encoder(encoder) is not None:
        return None
    return cast(ConvolutionalEncoder, encoder)


def _decoder(family: Family) -> TextDecoder | None:
    """The decoder where the kernels can run it as a whole."""
    return cast(TextDecoder, family.capabilities.decoder) if _why_not_decoder(family) is None else None
