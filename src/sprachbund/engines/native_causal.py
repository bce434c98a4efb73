"""A causal language model whose layers the native kernels compute as a whole: norms, positions, attention, gates too.

Its matrices are packed one by one, as `native_linear` packs them, so that one packed file serves both ways. What they
have in common is computed together: queries, keys and values of a step, and gate and values of a feed-forward, without
a wait between them. Norms and frequencies are small and come from the model.

Shapes: R rows, P prefix positions, Q tokens of a step, L layers, K heads of keys and values, C blocks of 16 positions,
E width of a head, W the same padded to 16, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.engines.extension import enough_memory, native
from sprachbund.engines.native_linear import NativeModule
from sprachbund.engines.packing import BLOCK, Arrays, pad
from sprachbund.nn.causal_lm import (
    CausalLayer,
    CausalLM,
    CausalShape,
    EmbedsTokens,
    GroupedAttention,
    PrefixCache,
    RMSNorm,
    SwiGLU,
)
from sprachbund.nn.quantized import BlockLinear

_PARTS = (GroupedAttention, SwiGLU, RMSNorm, nn.Linear, BlockLinear)


def why_not_causal(module: nn.Module) -> str | None:
    """Reason why the kernels cannot compute a language model as a whole; None when they can."""
    if not isinstance(module, CausalLM) or type(module) is not CausalLM:
        return f"it is of the kind {type(module).__name__}"
    if strange := [layer for layer in module.layers if type(layer) is not CausalLayer]:
        return f"it has layers of the kind {type(strange[0]).__name__}"
    parts = [part for layer in module.layers for part in list(layer.modules())[1:]]
    if other := [part for part in parts if type(part) not in _PARTS]:
        return f"its layers have parts of the kind {type(other[0]).__name__}"
    if type(module.norm) is not RMSNorm:
        return f"its last norm is of the kind {type(module.norm).__name__}"
    return None


class NativePrefixCache(PrefixCache):
    """The same cache as `PrefixCache`, with keys and values in bf16 as the kernels lay them out.

    Args:
        own: (L, 2, R, K, C, 16 W) keys and values of the rows, bf16 in 16-bit integers; zeros.
        prefix: positions (R,) before the first token.
        slots: positions that a row can hold in all.
        num_memories: utterances that the rows belong to.

    Attributes:
        own: as given.
        self_keys: one (R, K, C, 16 W) per layer, a part of `own`; so are `self_values`.
    """

    def __init__(self, own: Tensor, *, prefix: Tensor, slots: int, num_memories: int) -> None:
        super().__init__(
            self_keys=list(own[:, 0]),
            self_values=list(own[:, 1]),
            cross_keys=[],
            cross_values=[],
            memory_allowed=None,
            lengths=torch.zeros_like(prefix),
            prefix=prefix,
            slots=slots,
            num_memories=num_memories,
        )
        self.own = own

    @property
    def held(self) -> Tensor:
        """Positions (R,) of prefix and tokens."""
        return self.prefix + self.lengths

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        used = -(-int(self.held.max()) // BLOCK)
        if len(rows) != self.num_rows:
            before, sizes = self.own, self.own.shape
            self.own = before.new_zeros(*sizes[:2], len(rows), *sizes[3:])
            self.own[..., :used, :] = before[:, :, rows, :, :used]
            self.self_keys, self.self_values = list(self.own[:, 0]), list(self.own[:, 1])
        elif len(moved := (rows != torch.arange(len(rows))).nonzero().flatten()):
            self.own[:, :, moved, :, :used] = self.own[:, :, rows[moved], :, :used]
        self.rewind(self.lengths[rows])
        self.prefix = self.prefix[rows]


class NativeCausalLM(EmbedsTokens, NativeModule):
    """Stands for a `CausalLM` whose `why_not_causal` is None, when it reads prefixes and steps; it has no gradient.

    Args:
        model: gives norms, frequencies and the embedding, which stays as it is stored.
        arrays: its packed linear layers, NAME.matrix; they may be mapped from a file.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(self, model: CausalLM, arrays: Arrays, team: Any, instruction_set: str) -> None:
        super().__init__(arrays)
        self.shape, self.embed_tokens = model.shape, model.embed_tokens
        self._native = native().CausalLM(arrays | _small(model), instruction_set, team, **_sizes(model.shape))

    @enough_memory()
    def start(
        self, prefixes: Sequence[Tensor], *, capacity: int, num_memories: int, copies: int = 1
    ) -> NativePrefixCache:
        """Read prefixes, each of its own length, into a new cache.

        Args:
            prefixes: embeddings (P, D) of each.
            capacity: tokens that fit behind the longest.
            num_memories: B utterances that the rows belong to.
            copies: rows of each prefix, one behind the other: R is `copies` times the number of prefixes.
        """
        shape, lengths = self.shape, torch.tensor([len(p) for p in prefixes])
        slots = int(lengths.max()) + capacity
        head = BLOCK * -(-shape.head_width // BLOCK) * BLOCK
        sizes = (shape.num_layers, 2, len(prefixes), shape.num_key_heads, -(-slots // BLOCK), head)
        cache = NativePrefixCache(
            torch.zeros(sizes, dtype=torch.int16), prefix=lengths, slots=slots, num_memories=num_memories
        )
        self._pass(torch.cat(list(prefixes)), lengths, torch.zeros_like(lengths), cache, None)
        if copies > 1:
            cache.reorder(torch.arange(len(prefixes)).repeat_interleave(copies))
        return cache

    @enough_memory()
    def step(self, tokens: Tensor, cache: NativePrefixCache) -> Tensor:
        """Logits (R, Q, V) in single precision after each of `tokens` (R, Q), which follow what the cache holds.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        num_new = tokens.shape[1]
        if (used := cache.used + num_new) > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        logits = torch.empty(*tokens.shape, self.vocabulary_size)
        counts = torch.full((len(tokens),), num_new)
        self._pass(self.embed(tokens).flatten(0, 1), counts, cache.held, cache, logits.flatten(0, 1))
        cache.grow(num_new)
        return logits if self.shape.logits_scale == 1 else logits.div_(self.shape.logits_scale)

    def _pass(
        self, embedded: Tensor, counts: Tensor, held: Tensor, cache: NativePrefixCache, logits: Tensor | None
    ) -> None:
        """Write the keys and values of new positions into the cache, and logits behind them.

        Args:
            embedded: (N, D), row by row.
            counts: new positions (R,).
            held: positions (R,) that the rows hold.
            cache: cache of the R rows.
            logits: (N, V).
        """
        self._native.step(embedded.detach().float().contiguous(), counts, held, cache.own, logits)


def _small(model: CausalLM) -> Arrays:
    """Norms as NAME.gain, and frequencies."""
    norms = {name: part.weight for name, part in model.named_modules() if isinstance(part, RMSNorm)}
    arrays = {f"{name}.gain": pad(gain.detach().float(), 0, BLOCK).clone() for name, gain in norms.items()}
    return arrays | {"frequencies": model.shape.rotary.frequencies(model.shape.head_width).contiguous()}


def _sizes(shape: CausalShape) -> dict[str, Any]:
    """As keyword arguments of the compiled class."""
    scale = shape.attention_scale
    return {
        "width": shape.width,
        "inner_width": shape.inner_width,
        "heads": shape.num_heads,
        "key_heads": shape.num_key_heads,
        "head_width": shape.head_width,
        "num_layers": shape.num_layers,
        "vocabulary_size": shape.vocabulary_size,
        "norm_epsilon": shape.norm_epsilon,
        "head_norms": shape.head_norms,
        "embedding_scale": shape.embedding_scale,
        "residual_scale": shape.residual_scale,
        "attention_scale": 1 / math.sqrt(shape.head_width) if scale is None else scale,
    }
