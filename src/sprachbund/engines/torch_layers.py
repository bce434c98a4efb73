"""The torch engine: faster linear layers, CUDA graphs, and the decoder and encoder layers that use them.

- Linear layers and precision: a step of a decoder multiplies one row, or a few, and its time is that of reading
  weights. On CPUs `nn.Linear` reads them once for every row in fp32, and lays them out anew at each call in bf16;
  oneDNN's product with weights laid out beforehand (`PackedLinear`) does neither. In 8 bits FBGEMM's dynamically
  quantized product is fastest (`Int8Linear`); it takes one scale for all rows of a call, so every row is brought to its
  own scale first, and a row comes out the same whatever it is batched with. `recast` copies a module in another
  precision.
- CUDA graphs: `RecordedStep` repeats a step as one launch in place of some hundred small ones. A graph repeats kernels
  on the same addresses, so its tensors may not move and nothing may be read on the host meanwhile.
- Layers: fused projections, one cache from start to end, attention by dtype. They have the methods of the modules that
  they replace, so searches and drafts see the same model.

Shapes: N rows of a product, I inputs, O outputs; B memories, R rows (row r reads memory r // (R/B)), Q tokens per step,
C cache capacity, T frames, L layers, D width, H heads, V vocabulary.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import quantize_rows
from sprachbund.nn.attention import attend
from sprachbund.nn.decoder import DecoderCache, DecoderLayer, TextDecoder, allowed_frames
from sprachbund.nn.encoder import EncoderLayer
from sprachbund.nn.feed_forward import Route
from sprachbund.util.devices import has_bf16

# Linear layers and precision.

Module = TypeVar("Module", bound=nn.Module)
Precision = Literal["fp32", "bf16", "int8"]
"""Weights as the model has them; weights and computation in bf16; 8-bit weights beside attention in bf16, or in fp32 on
devices without instructions for bf16."""
_KERNELS = ("fbgemm", "qnnpack")
_PACKED_FOR_ROWS = 16
"""Rows at a time that weights are laid out for; fewer cost no more."""
_WORTH_PACKING: dict[torch.dtype, int] = {torch.float32: 2**18, torch.bfloat16: 0}
"""Numbers in a weight from which on packing pays: a packed product in fp32 takes ten microseconds to begin."""


class Int8Linear(nn.Module):
    """Stands for an `nn.Linear`; weights in 8 bits with a scale per row, inputs in 8 bits with a scale per row.

    Args:
        weight: (O, I).
        bias: (O,), or none.

    Attributes:
        num_bytes: bytes of the packed weight and its scales.

    Raises:
        SprachbundError: torch has no 8-bit kernels for this processor, or the weight is not on one.
    """

    _ends: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, scale = quantize_rows(weight)
        with _kernels(weight.device), warnings.catch_warnings():
            # Torch means to drop tensors of this kind one day; it has no kernels as fast without them yet.
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(len(scale), dtype=torch.long)
            quantized = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.num_bytes = values.nbytes + scale.nbytes
        # A row that spans the whole range makes all rows be rounded in the same steps.
        ends = torch.zeros(1, self.in_features)
        ends[0, :2] = torch.tensor([1.0, -1.0])[: self.in_features]
        self.register_buffer("_ends", ends, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O) in fp32."""
        rows = x.reshape(-1, self.in_features).float()
        peak = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = torch.cat([rows / peak, self._ends])
        y = torch.ops.quantized.linear_dynamic(scaled, self._packed, _seven_bits())[:-1]
        y = y * peak if self.bias is None else torch.addcmul(self.bias, y, peak)
        return y.unflatten(0, x.shape[:-1]) if x.ndim != 2 else y


class PackedLinear(nn.Module):
    """Stands for an `nn.Linear` on a CPU, the weight laid out as oneDNN reads it.

    Args:
        weight: (O, I), in fp32 or bf16.
        bias: (O,), or none.

    Attributes:
        num_bytes: bytes of the packed weight.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.num_bytes = weight.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> nn.Module:
    """A product of that precision with a weight (O, I) and a bias (O,), by the fastest way there is."""
    if precision == "int8":
        return Int8Linear(weight, bias)
    if precision == "bf16":
        weight, bias = _bf16(weight), None if bias is None else _bf16(bias)
    return PackedLinear(weight, bias) if _worth_packing(weight) else plain_linear(weight, bias)


def plain_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An `nn.Linear` around a weight (O, I) and a bias (O,)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _worth_packing(weight: Tensor) -> bool:
    """Whether a weight (O, I) is packed: by its size, and where this torch and this processor can."""
    if weight.device.type != "cpu" or weight.numel() < _WORTH_PACKING.get(weight.dtype, sys.maxsize):
        return False
    return _packs(weight.dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    operations = torch.ops.mkldnn
    try:  # a build of torch lists its operations nowhere else
        _ = operations._reorder_linear_weight, operations._linear_pointwise
    except AttributeError:
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(operations._is_mkldnn_bf16_supported())


def fused(parts: list[nn.Linear], precision: Precision) -> nn.Module:
    """One product in place of several of the same inputs; outputs one after another."""
    biases: list[Tensor] = [
        torch.zeros(p.out_features, dtype=p.weight.dtype, device=p.weight.device)
        if p.bias is None
        else p.bias
        for p in parts
    ]
    return linear(torch.cat([p.weight.detach() for p in parts]), torch.cat(biases), precision)


def recast(
    module: nn.Module, precision: Precision, swap: Callable[[nn.Module], nn.Module | None]
) -> nn.Module:
    """A copy of a module in another precision; the original is left as it is, and shares what does not differ.

    Args:
        module: any.
        precision: precision of every `nn.Linear`, which `linear` exchanges; bf16 casts all other floating-point numbers
            too.
        swap: returns the replacement of a part, copied from the original; None where the part needs no special one.
    """
    if (other := swap(module)) is not None:
        return other
    if type(module) is nn.Linear:
        return linear(module.weight, module.bias, precision)
    copied = copy.copy(module)
    copied._modules = {
        n: None if m is None else recast(m, precision, swap) for n, m in module._modules.items()
    }
    if precision == "bf16":
        copied._parameters = {n: _parameter(p) for n, p in module._parameters.items()}
        copied._buffers = {n: None if b is None else _bf16(b) for n, b in module._buffers.items()}
    return copied


def with_submodules(module: Module, **parts: nn.Module) -> Module:
    """A copy of a module that shares everything with its original but these parts of it."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **parts}
    return copied


def keep(module: nn.Module) -> None:
    """Replacement for `recast` that replaces no part."""


def num_bytes(module: nn.Module) -> int:
    """Bytes of all weights."""
    numbers = (*module.parameters(), *module.buffers())
    packed = (m.num_bytes for m in module.modules() if isinstance(m, Int8Linear | PackedLinear))
    return sum(x.nbytes for x in numbers) + sum(packed)


def in_precision(parameter: Tensor, precision: Precision) -> nn.Parameter:
    """Numbers as a step of that precision adds them to others: in bf16 for bf16, else as they are."""
    kept = parameter.detach()
    return nn.Parameter(_bf16(kept) if precision == "bf16" else kept, requires_grad=False)


def _parameter(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(_bf16(parameter.detach()), requires_grad=False)


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16) if x.is_floating_point() else x


@contextmanager
def _kernels(device: torch.device) -> Iterator[None]:
    """Torch's 8-bit kernels of this processor."""
    if device.type != "cpu":
        raise SprachbundError(f"8-bit weights on torch are for CPUs, not for {device}; use torch-bf16")
    known = [name for name in _KERNELS if name in torch.backends.quantized.supported_engines]
    if not known:
        raise SprachbundError("torch was built without 8-bit kernels for this processor; use torch-bf16")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = known[0]
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@cache
def _seven_bits() -> bool:
    """Whether inputs must leave out a bit: without dot products, sums of two products would not fit into 16."""
    try:
        return not torch.cpu._is_vnni_supported()
    except AttributeError:  # private: a later torch may drop it
        return True


# CUDA graphs.

Logits = Callable[[Tensor, Tensor], Tensor]
"""Logits (R, Q, V) after tokens (R, Q) in rows that hold `lengths` (R,) already; nothing is read from the host."""

PLAIN_STEPS = 4
"""Steps for one number of tokens that run before one is recorded: recording takes about as long as some steps."""
_WARM_UPS = 3


class RecordedStep:
    """A step as a CUDA graph, with buffers of its own for what goes in.

    Args:
        step: step to be recorded; may be repeated without harm.
        tokens: (R, Q) on the device, as later calls give them.
        lengths: (R,) as later calls give them.
    """

    def __init__(self, step: Logits, tokens: Tensor, lengths: Tensor) -> None:
        self._tokens, self._lengths = tokens.clone(), lengths.clone()
        side_stream = torch.cuda.Stream(tokens.device)
        side_stream.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.stream(side_stream):  # libraries allocate what they need at their first call
            for _ in range(_WARM_UPS):
                step(self._tokens, self._lengths)
        torch.cuda.current_stream(tokens.device).wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do on the device meanwhile, such as loading a model, is no part of it and no error.
        capture = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
        with torch.cuda.device(tokens.device), capture:
            self._logits = step(self._tokens, self._lengths)

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, Q, V); the caller's own, the next call does not write to them."""
        self._tokens.copy_(tokens)
        self._lengths.copy_(lengths)
        self._graph.replay()
        return self._logits.clone()


@dataclass(kw_only=True)
class Recorder:
    """The recorded steps of one cache, by the number of tokens at once; `forget` them when its tensors move.

    Attributes:
        record: makes a recorded step of a step; another one in tests, where there is no GPU.
    """

    record: Callable[[Logits, Tensor, Tensor], Logits] = RecordedStep
    _seen: dict[int, int] = field(default_factory=dict)
    _recorded: dict[int, Logits] = field(default_factory=dict)

    def run(self, step: Logits, tokens: Tensor, lengths: Tensor) -> Tensor | None:
        """Logits (R, Q, V) by a recorded step; None as long as too few steps of its kind were run.

        Args:
            step: as it would run without a graph.
            tokens: (R, Q).
            lengths: (R,) tokens in the cache.
        """
        num_queries = tokens.shape[1]
        if num_queries not in self._recorded:
            self._seen[num_queries] = self._seen.get(num_queries, 0) + 1
            if self._seen[num_queries] <= PLAIN_STEPS:
                return None
            self._recorded[num_queries] = self.record(step, tokens, lengths)
        return self._recorded[num_queries](tokens, lengths)

    def forget(self) -> None:
        """Tensors of the cache were exchanged for others: record anew."""
        self._seen.clear()
        self._recorded.clear()


# Layers.

_QUERIES = 128
"""Queries at a time, so that their scores stay in the processor's cache."""


def attend_in_bf16(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """The same as `attend`, in bf16 on a CPU: plain products, which are faster there than torch's fused kernel.

    Args:
        query: (B, H, Q, D/H), of any precision; it is that of the result.
        key: (B, H, T, D/H) in bf16.
        value: (B, H, T, D/H) in bf16.
        allowed: boolean, broadcastable to (B, H, 1, T); None shows all.
    """
    scaled = (query * query.shape[-1] ** -0.5).to(key.dtype)
    mixed = []
    for part in scaled.split(_QUERIES, dim=2):
        scores = part @ key.transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        mixed.append(scores.softmax(-1) @ value)
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)).to(query.dtype)


def _attention_dtype(precision: Precision, weight: Tensor) -> torch.dtype:
    """What keys and values are kept in, beside a weight that is not in 8 bits."""
    if precision == "bf16" or (precision == "int8" and has_bf16(weight.device)):
        return torch.bfloat16
    return weight.dtype


class StaticCache(DecoderCache):
    """A `DecoderCache` whose rows are moved within the same tensors.

    Attributes:
        recorder: recorder of its steps as CUDA graphs, which hold while its tensors stay where they are; None without.
    """

    recorder: Recorder | None = None

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        super().keep(memories)
        self._moved_away()

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        for kept in (self.self_keys, self.self_values):
            for i, x in enumerate(kept):
                kept[i] = self._moved(x, rows)
        self.rewind(self.lengths[rows])
        self.route = None if self.route is None else self.route.take(rows)

    def _moved(self, x: Tensor, rows: Tensor) -> Tensor:
        taken = x[rows, :, : self.used]
        if len(rows) != len(x):
            self._moved_away()
            x = x.new_zeros(len(rows), *x.shape[1:])
        x[:, :, : self.used] = taken
        return x

    def _moved_away(self) -> None:
        if self.recorder is not None:
            self.recorder.forget()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Inputs that all layers share in one step: positions (R, Q) of its tokens, and the mask (R, 1, Q, C), or None.

    A step over `whole_cache` of the cache is the same whatever the cache holds.
    """

    cache: DecoderCache
    positions: Tensor
    allowed: Tensor | None
    weights: list[Tensor] | None = None
    whole_cache: bool = False

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (R, H, Q, D/H) into the cache; all those to attend to."""
        if self.whole_cache:
            return self.cache.store(layer, self.positions, self.cache.capacity, keys, values)
        return self.cache.write(layer, self.positions, keys, values)


class FusedDecoderLayer(nn.Module):
    """Stands for a `DecoderLayer`; queries, keys and values of a token are one product.

    Args:
        layer: its weights are shared where they stay as they are.
        precision: see `Precision`.

    Attributes:
        memory_width: width of the memory that keys and values are made from.
    """

    def __init__(self, layer: DecoderLayer, precision: Precision) -> None:
        super().__init__()
        own, cross = layer.self_attention, layer.cross_attention
        self.num_heads, self.memory_width = own.num_heads, cross.key.in_features
        self.self_norm = recast(layer.self_norm, precision, keep)
        self.cross_norm = recast(layer.cross_norm, precision, keep)
        self.own = fused([own.query, own.key, own.value], precision)
        self.own_out = linear(own.out.weight, own.out.bias, precision)
        self.cross = linear(cross.query.weight, cross.query.bias, precision)
        self.cross_out = linear(cross.out.weight, cross.out.bias, precision)
        self.memory = fused([cross.key, cross.value], precision)
        self.feed_forward = _feed_forward(layer, precision)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory (B, T, D), each (B, H, T, D/H)."""
        keys, values = self.memory(memory).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, layer: int, step: _Step) -> Tensor:
        """Run the layer.

        Args:
            x: (R, Q, D).
            layer: index of the layer in the cache.
            step: positions and mask of the step, and the cache.
        """
        cache = step.cache
        query, keys, values = (self._heads(part) for part in self.own(self.self_norm(x)).chunk(3, dim=-1))
        keys, values = step.write(layer, keys, values)
        x = x + self.own_out(_joined(attend(query, keys, values, step.allowed)))
        query = self.cross(self.cross_norm(x)).view(len(cache.cross_keys[layer]), -1, x.shape[2])
        mixed = _read(self._heads(query), cache, layer, step.weights)
        x = x + self.cross_out(_joined(mixed).view(x.shape))
        return x + cast(Tensor, self.feed_forward(x, cache.route))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TorchDecoder(TextDecoder):
    """Stands for a `TextDecoder` when rows are stepped; it has no gradient.

    Args:
        decoder: its weights are shared where they stay as they are.
        precision: see `Precision`.
        cuda_graphs: on a GPU, record steps that come again and again as graphs.

    Attributes:
        precision: as given.
        step_bytes: bytes of weights that each step reads.
        memory_dtype: dtype of the keys and values of memories.
    """

    def __init__(self, decoder: TextDecoder, precision: Precision, *, cuda_graphs: bool = True) -> None:
        with torch.device("meta"):  # all of it is replaced below
            super().__init__(
                vocabulary_size=0,
                max_tokens=0,
                width=decoder.embedding.embedding_dim,
                num_heads=1,
                num_layers=0,
            )
        self.precision = precision
        self.embedding = cast(nn.Embedding, recast(decoder.embedding, precision, keep))
        self.norm = cast(nn.LayerNorm, recast(decoder.norm, precision, keep))
        self.positions = in_precision(decoder.positions, precision)
        layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        self.layers = nn.ModuleList(FusedDecoderLayer(layer, precision) for layer in layers)
        untied = decoder.output_head is not None
        self.output_head = plain_linear(in_precision(decoder.output_matrix, precision)) if untied else None
        self.output = linear(decoder.output_matrix, None, precision)
        self.memory_dtype = _attention_dtype(precision, self.positions)
        self._records = cuda_graphs and self.positions.device.type == "cuda"
        self.eval()

    @property
    def step_bytes(self) -> int:  # noqa: D102 - see above
        layers = num_bytes(self.layers) - sum(num_bytes(layer.memory) for layer in self._fused())
        return layers + num_bytes(self.norm) + num_bytes(self.output)

    def start(
        self,
        memory: Tensor,
        num_frames: Tensor | None,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        route: Route | None = None,
    ) -> StaticCache:
        """As `TextDecoder.start`, with the same arguments."""
        capacity = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        pairs = [layer.keys_values(memory) for layer in self._fused()]
        num_rows, heads, width = len(memory) * rows_per_memory, pairs[0][0].shape[1], pairs[0][0].shape[3]
        own = pairs[0][0].new_zeros(2, len(pairs), num_rows, heads, capacity, width)
        cross = [[x.to(self.memory_dtype).contiguous() for x in kind] for kind in zip(*pairs, strict=True)]
        cache = StaticCache(
            self_keys=list(own[0]),
            self_values=list(own[1]),
            cross_keys=cross[0],
            cross_values=cross[1],
            memory_allowed=allowed_frames(memory, num_frames),
            lengths=torch.zeros(num_rows, dtype=torch.long, device=memory.device),
            route=route,
        )
        if self._records and route is None:  # which languages the rows have is asked on the host
            cache.recorder = Recorder()
        return cache

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """As `TextDecoder.step`, with the same arguments."""
        recorder = cache.recorder if isinstance(cache, StaticCache) and weights is None else None
        if recorder is not None and cache.used + tokens.shape[1] <= cache.capacity:
            logits = recorder.run(partial(self.step_over_all, cache), tokens, cache.lengths)
            if logits is not None:
                cache.grow(tokens.shape[1])
                return logits
        return self.logits(self.states(tokens, cache, weights))

    def step_over_all(self, cache: DecoderCache, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (R, Q, V) of a step in which a whole cache is read, and positions not filled are masked.

        It can be recorded: it reads nothing on the host, takes the lengths of rows from `lengths` (R,), and writes only
        to the cache's own tensors. The cache does not count the tokens.
        """
        slots = torch.arange(cache.capacity, device=tokens.device)
        positions = lengths[:, None] + slots[: tokens.shape[1]]
        allowed = slots <= positions[:, None, :, None]
        return self.logits(
            self._through(tokens, _Step(cache=cache, positions=positions, allowed=allowed, whole_cache=True))
        )

    def states(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """A step that stops before the last norm: (R, Q, D), for `logits`; arguments and errors as for `step`."""
        positions, allowed = self.query_positions(tokens, cache)
        x = self._through(tokens, _Step(cache=cache, positions=positions, allowed=allowed, weights=weights))
        cache.grow(tokens.shape[1])
        return x

    def _through(self, tokens: Tensor, step: _Step) -> Tensor:
        """States (R, Q, D) after all layers."""
        x: Tensor = self.embedding(tokens) + self.positions[step.positions]
        for i, layer in enumerate(self._fused()):
            x = layer(x, i, step)
        return x

    def outputs(self, x: Tensor) -> Tensor:
        """As `TextDecoder.outputs`."""
        return cast(Tensor, self.output(x))

    def forward(self, *args: Any, **more: Any) -> Tensor:
        """Not there: an engine has no gradient."""
        raise NotImplementedError("an engine only steps; compute whole rows with the model itself")

    def _fused(self) -> list[FusedDecoderLayer]:
        return [cast(FusedDecoderLayer, layer) for layer in self.layers]


class FusedEncoderLayer(nn.Module):
    """Stands for an `EncoderLayer`, with attention in bf16 where the device computes products in it."""

    def __init__(self, layer: EncoderLayer, precision: Precision) -> None:
        super().__init__()
        attention = layer.self_attention
        self.num_heads = attention.num_heads
        self.self_norm = recast(layer.self_norm, precision, keep)
        self.own = fused([attention.query, attention.key, attention.value], precision)
        self.own_out = linear(attention.out.weight, attention.out.bias, precision)
        self.feed_forward = _feed_forward(layer, precision)
        self._dtype = _attention_dtype(precision, attention.query.weight)

    def forward(self, x: Tensor, allowed: Tensor | None = None, route: Route | None = None) -> Tensor:
        """As `EncoderLayer.forward`, with the same arguments."""
        parts = self.own(self.self_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.own_out(_joined(_attend(query, key.to(self._dtype), value.to(self._dtype), allowed)))
        return x + cast(Tensor, self.feed_forward(x, route))


def _read(query: Tensor, cache: DecoderCache, layer: int, weights: list[Tensor] | None) -> Tensor:
    """Attention of queries (B, H, R/B Q, D/H) to the memories."""
    keys, values, allowed = cache.cross_keys[layer], cache.cross_values[layer], cache.memory_allowed
    if weights is not None:
        return attend(query, keys.to(query.dtype), values.to(query.dtype), allowed, weights)
    return _attend(query, keys, values, allowed)


def _attend(query: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
    """Attention in the precision of the keys."""
    if keys.dtype == torch.bfloat16 and keys.device.type == "cpu":
        return attend_in_bf16(query, keys.contiguous(), values.contiguous(), allowed)
    return attend(query, keys, values, allowed)


def _joined(x: Tensor) -> Tensor:
    """(B, H, Q, D/H) to (B, Q, D)."""
    return x.transpose(1, 2).flatten(2)


def _feed_forward(layer: DecoderLayer | EncoderLayer, precision: Precision) -> nn.Module:
    part: nn.Module = layer.feed_forward  # of any kind, split by language too
    return recast(part, precision, keep)
