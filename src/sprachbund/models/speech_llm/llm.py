"""A decoder language model of transformers behind the cache that this project's searches work with.

Every row has a prefix (its instruction and its speech) of its own length, then its tokens; both lie in one cache, so
rows may differ in everything and are still stepped together. Shapes: R rows, P prefix positions, Q tokens of a step,
C slots of the cache, D width, H heads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.models.speech_llm.foreign import context_of
from sprachbund.nn.decoder import DecoderCache


@dataclass(kw_only=True)
class PrefixCache(DecoderCache):
    """Keys and values of prefixes and tokens; `lengths` and `capacity` count tokens alone.

    Attributes:
        prefix: positions (R,) before the first token.
        slots: positions that a row can hold in all.
        num_memories: utterances that the rows belong to.
    """

    prefix: Tensor
    slots: int
    num_memories: int

    @classmethod
    def empty(cls, prefix: Tensor, slots: int, num_memories: int) -> "PrefixCache":
        """A cache that holds nothing yet; keys and values are laid out when the first ones come."""
        return cls(
            self_keys=[],
            self_values=[],
            cross_keys=[],
            cross_values=[],
            memory_allowed=None,
            lengths=torch.zeros_like(prefix),
            prefix=prefix,
            slots=slots,
            num_memories=num_memories,
        )

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold behind its prefix."""
        return self.slots - int(self.prefix.max())

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) held; rows may only come from the same memory."""
        super().reorder(rows)
        self.prefix = self.prefix[rows]

    def keep(self, memories: Tensor) -> None:
        """Drop every memory, with its rows, that is not among the indices `memories` (b,)."""
        group = self.num_rows // self.num_memories
        self.reorder((memories[:, None] * group + torch.arange(group, device=memories.device)).flatten())
        self.num_memories = len(memories)


class _Pass:
    """One pass of the language model over new positions (R, Q): what transformers takes for its cache."""

    is_compileable = False

    def __init__(self, cache: PrefixCache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions
        self.used = int(positions.max()) + 1

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (R, H, Q, D/H); all of them up to the last."""
        if layer_idx == len(self.cache.self_keys):
            rows, heads, _q, width = keys.shape
            self.cache.self_keys.append(keys.new_zeros(rows, heads, self.cache.slots, width))
            self.cache.self_values.append(values.new_zeros(rows, heads, self.cache.slots, values.shape[-1]))
        return self.cache.store(layer_idx, self.positions, self.used, keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held before the pass, of the longest row."""
        return self.used - self.positions.shape[1]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the scores (R, 1, Q, used): nothing behind a position is seen from it."""
        slots = torch.arange(self.used, device=self.positions.device)
        hidden = slots > self.positions[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
            hidden, torch.finfo(dtype).min
        )


class LanguageModel(nn.Module):
    """Embeddings in, logits out, in whole rows or step by step.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.context = context_of(model)
        config = model.config.get_text_config()
        self.width: int = config.hidden_size
        self.vocabulary_size: int = config.vocab_size

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Its layers, for what measures and recomputes by layers."""
        base = self.model.base_model
        layers: Sequence[nn.Module] = base.layers if hasattr(base, "layers") else base.h
        return layers

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., D) of tokens (...)."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Logits (R, W, V) at the positions `wanted` (W,) of whole rows (R, U, D), padded behind their ends."""
        # Padding stands behind, where causal attention never looks back from: no mask is needed.
        positions = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
        found = self.model(inputs_embeds=rows, position_ids=positions, use_cache=False, logits_to_keep=wanted)
        logits: Tensor = found.logits
        return logits

    def start(self, prefixes: Sequence[Tensor], *, capacity: int, num_memories: int) -> PrefixCache:
        """Read the prefixes (P, D) of the R rows, each of its own length, into a new cache.

        `capacity` tokens fit behind the longest.
        """
        lengths = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        padded = nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
        cache = PrefixCache.empty(lengths, padded.shape[1] + capacity, num_memories)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(len(prefixes), -1)
        self._pass(padded, positions, cache, logits_to_keep=1)
        return cache

    def step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        used = cache.used + tokens.shape[1]
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        places = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        logits = self._pass(self.embed(tokens), places + cache.prefix[:, None], cache, logits_to_keep=0)
        cache.grow(tokens.shape[1])
        return logits

    def _pass(
        self, embedded: Tensor, positions: Tensor, cache: PrefixCache, *, logits_to_keep: int
    ) -> Tensor:
        one = _Pass(cache, positions)
        found = self.model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=one.mask(embedded.dtype),
            past_key_values=one,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        logits: Tensor = found.logits
        return logits
