"""A smaller model as a draft, on the memory of the larger one's encoder: Distil-Whisper for Whisper.

Both have to share the prompt, token for token, and the width of the encoder's states. With a large vocabulary, a small
model spends most of its time on the output matrix; it may choose among listed tokens alone, and is then rejected where
another token would be written (arXiv 2502.14856 lists the most frequent ones).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.drafts.base import (
    DecodingState,
    StatelessRun,
    check_vocabulary,
    no_draft_tokens,
    vocabulary_size_of,
)
from sprachbund.decoding.drafts.listed import ListedRows
from sprachbund.decoding.logits_process import likeliest
from sprachbund.decoding.state import PROMPT_CHUNK
from sprachbund.engines.native_engine import NativeCache, NativeDecoder
from sprachbund.engines.torch_layers import FusedDecoderLayer
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.decoder import DecoderCache, DecoderLayer, TextDecoder

KIND = "model"


class ModelDraft:
    """A family whose decoder drafts for another's.

    Args:
        family: the smaller model.
        acceptance: see `Draft`.
        listed: tokens (N,) among which it chooses, each once; all by default.
    """

    name = KIND
    num_draft_tokens: int | None = None
    typical_length: int | None = None

    def __init__(
        self, family: Family, acceptance: dict[str, float] | None = None, *, listed: Tensor | None = None
    ) -> None:
        self.family = family
        self.acceptance = acceptance or {}
        self._listed = None if listed is None else ListedRows(family.capabilities.decoder, listed)

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        own = vocabulary_size_of(self.family)
        if own is not None:
            check_vocabulary(family, KIND, own)
        if self.family.end_token != family.end_token:
            raise SprachbundError("the draft model ends rows by another token; its vocabulary is another")
        widths = _memory_width(self.family), _memory_width(family)
        if None not in widths and widths[0] != widths[1]:
            raise SprachbundError(
                f"the draft model reads memories of width {widths[0]}, the model's encoder makes {widths[1]}; "
                "choose a draft model that was distilled with this encoder"
            )
        for source, target in sorted(family.pairs() & self.family.pairs())[:1]:
            asked = Target(language=target, source=source)
            if self.family.prompt(asked) != family.prompt(asked):
                raise SprachbundError(
                    f"the draft model asks for {source} to {target} by other tokens; its vocabulary is another"
                )

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> "ModelRun":
        """See `sprachbund.decoding.drafts.base.Draft`, arguments included; prompts are read at the first proposal."""
        each = len(targets) // memory.states.shape[0]
        cache = self.family.start(memory, rows_per_memory=each, capacity=capacity, targets=targets)
        decoder, own = family.capabilities.decoder, self.family.capabilities.decoder
        if (
            isinstance(decoder, NativeDecoder)
            and isinstance(own, NativeDecoder)
            and isinstance(cache, NativeCache)
            and self._listed is None
        ):
            return NativeModelRun(self.family, cache, own, decoder)
        return ModelRun(self.family, cache, self._listed)


class ModelRun(StatelessRun):
    """A draft model on the rows of one search, with a cache of its own."""

    def __init__(self, family: Family, cache: DecoderCache, listed: ListedRows | None) -> None:
        self._family, self._cache, self._listed = family, cache, listed
        self._has_begun = self._is_full = False

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """The draft model's likeliest tokens, one after the other; none any more once a row has outgrown its cache.

        It always reads the last two tokens at first: after draft tokens that were all accepted it has not seen the last
        of them, and rows differ in that. Reading one again gives the same keys and values.
        """
        known = np.maximum(state.lengths - 2, 0)
        self._is_full = self._is_full or int(known.max()) + 1 + count > self._cache.capacity
        if self._is_full:
            return no_draft_tokens(state)
        if not self._has_begun:
            self._read(state.on_device(state.tokens[:, : int(known.max())]))
        self._cache.rewind(torch.from_numpy(known))
        tokens = state.on_device(np.maximum(state.last(2), 0))
        choose, draft_tokens = self._choice(state), []
        for _ in range(count):
            tokens = choose(tokens)
            draft_tokens.append(tokens)
        return torch.cat(draft_tokens, dim=1)

    def reorder(self, rows: Tensor) -> None:
        """Follow the rows."""
        self._cache.reorder(rows)

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Follow the memories."""
        self._cache.keep(memories)

    def _choice(self, state: DecodingState) -> Callable[[Tensor], Tensor]:
        """A function from tokens (R, Q) to the likeliest token (R, 1) behind them."""
        if (listed := self._listed) is not None:
            forbidden = listed.forbidden(state)
            return lambda given: listed.likeliest(listed.output.states(given, self._cache), forbidden)

        def among_all(given: Tensor) -> Tensor:
            logits = self._family.step(given, self._cache)[:, -1]
            return likeliest(state.suppressed(logits.float()))[:, None]

        return among_all

    def _read(self, tokens: Tensor) -> None:
        """Read the prompts; the caller rewinds what the padding of shorter ones wrote."""
        self._has_begun = True
        for chunk in tokens.split(PROMPT_CHUNK, dim=1):
            if chunk.shape[1]:
                self._family.step(chunk, self._cache)


class NativeModelRun(ModelRun):
    """A draft model of which the native engine can make the whole search; from Python elsewhere, as with beams.

    Args:
        family: the draft model.
        cache: cache of the draft's rows, empty.
        own: its decoder.
        decoder: decoder that it drafts for.
        planted: a text for every row whose tokens are proposed in place of its own, for measurements; or none.
    """

    def __init__(
        self,
        family: Family,
        cache: NativeCache,
        own: NativeDecoder,
        decoder: NativeDecoder,
        planted: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(family, cache, None)
        self._own_cache, self._own, self._decoder = cache, own, decoder
        self._planted = [list(text) for text in planted]

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        return self._decoder.model_draft(self._own, self._own_cache, self._planted, list(prompts))


def _memory_width(family: Family) -> int | None:
    """Width of the states that a family's decoder reads; None where it does not say."""
    decoder = family.capabilities.decoder
    if isinstance(decoder, NativeDecoder):
        return decoder.shape.memory_width
    layer = decoder.layers[0] if isinstance(decoder, TextDecoder) else None
    if isinstance(layer, FusedDecoderLayer):
        return layer.memory_width
    return layer.cross_attention.key.in_features if isinstance(layer, DecoderLayer) else None
