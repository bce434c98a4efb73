"""Protocols of drafts: a draft proposes the next tokens of every row, and the model accepts or rejects them.

A draft can be anything, because a draft token only counts where the model would have written it (arXiv 2211.17192).
The tokens written so far are NumPy arrays on the host: reading them waits for no device and costs a fraction of a
tensor operation.

Shapes: B memories, R rows (row r reads memory r // (R/B)), K draft tokens, U tokens of a row with its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.logits_process import Suppressed
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.drafts import DraftCard
from sprachbund.nn.decoder import DecoderCache, TextDecoder

NO_DRAFT_TOKEN = -1
"""Stands where a draft proposes no token."""

Integers = NDArray[np.int64]


@dataclass(kw_only=True)
class DecodingState:
    """The tokens of all rows so far, with what a draft needs to continue them.

    Attributes:
        cache: cache of the model; it holds every token of a row but the newest.
        tokens: (R, U) prompts and the tokens written after them, padded on the right.
        lengths: (R,) tokens in each row.
        suppressed: tokens that a row never holds.
    """

    cache: DecoderCache
    tokens: Integers
    lengths: Integers
    suppressed: Suppressed

    def last(self, count: int) -> Integers:
        """The last tokens (R, count) of every row, newest at the end; rows of fewer begin with `NO_DRAFT_TOKEN`."""
        positions = self.lengths[:, None] + np.arange(-count, 0)
        last = self.tokens[np.arange(len(positions))[:, None], np.maximum(positions, 0)]
        last[positions < 0] = NO_DRAFT_TOKEN
        return last

    def newest(self) -> Tensor:
        """The last token (R, 1) of every row, for the model to read."""
        return self.on_device(self.last(1))

    def on_device(self, values: NDArray[Any]) -> Tensor:
        """Values as a tensor on the model's device."""
        return torch.from_numpy(values).to(self.cache.lengths.device)

    def append(self, tokens: Integers, counts: Integers) -> None:
        """Write the first `counts` (R,) of `tokens` (R, Q) behind each row."""
        row, column = (np.arange(tokens.shape[1]) < counts[:, None]).nonzero()
        self.tokens[row, self.lengths[row] + column] = tokens[row, column]
        self.lengths = self.lengths + counts

    def take(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`, in all but the cache."""
        order = rows.numpy(force=True)
        self.tokens, self.lengths = self.tokens[order], self.lengths[order]
        self.suppressed = self.suppressed.take(rows)


class DraftRun(Protocol):
    """A draft at work on the rows of one search."""

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """Draft tokens (R, k), k at most `count`, that may follow each row; `NO_DRAFT_TOKEN` where there is none.

        A column without a draft token in any row costs as much as any other, so there should be none.
        """
        ...

    def observe(self, last_query: Integers) -> None:
        """Called after a step; query `last_query[r]` (R,) of the step came right before the newest token."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by what row `rows[r]` (R,) was; rows may only come from the same memory."""
        ...

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Drop all but the `memories` (b,), with all but their `rows`."""
        ...

    def close(self) -> None:
        """The search is over."""
        ...


@runtime_checkable
class Stepper(Protocol):
    """A run that makes the model's pass itself, because drafting has done most of it already."""

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As the model's: logits (R, Q, V) after the newest token of each row and the draft tokens behind it."""
        ...


@runtime_checkable
class NativeRun(Protocol):
    """A run that the native engine can make itself, so that its search needs no Python between two passes."""

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """The engine's own draft on the rows of the search, which begin with prompts of so many tokens."""
        ...


class MeasuredDraft:
    """A draft that comes from a file, whose card says what was measured of it.

    Args:
        card: card of the file.
    """

    def __init__(self, card: DraftCard) -> None:
        self.card = card

    @property
    def acceptance(self) -> dict[str, float]:
        """See `Draft`."""
        return self.card.acceptance

    @property
    def typical_length(self) -> int | None:
        """See `Draft`."""
        return self.card.typical_length


@runtime_checkable
class Draft(Protocol):
    """Drafts tokens for one model.

    `acceptance` is the share of its draft tokens expected to be accepted, by "source>target", where it was measured;
    `typical_length` is the median of tokens of the texts that it was measured on, None where it was not;
    `num_draft_tokens` is the best number of tokens at a time, None where that is to be measured.
    """

    @property
    def name(self) -> str:
        """Name of the kind of draft."""
        ...

    @property
    def acceptance(self) -> dict[str, float]:
        """See above."""
        ...

    @property
    def typical_length(self) -> int | None:
        """See above."""
        ...

    @property
    def num_draft_tokens(self) -> int | None:
        """See above."""
        ...

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        ...

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> DraftRun:
        """Start a run on the rows of a search, whose prompts the model has read.

        Args:
            family: the model that is drafted for.
            memory: memory of B utterances.
            targets: targets of the R rows.
            capacity: most tokens of a row, its prompt included.
        """
        ...


class StatelessRun:
    """A run without state of its own: the base of runs that read the rows alone."""

    def observe(self, last_query: Integers) -> None:
        """Nothing to remember."""

    def reorder(self, rows: Tensor) -> None:
        """Nothing to move."""

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Nothing to drop."""

    def close(self) -> None:
        """Nothing to give back."""


def no_draft_tokens(state: DecodingState) -> Tensor:
    """Draft tokens (R, 0): a proposal of none."""
    return state.on_device(state.tokens[:, :0])


def torch_decoder(family: Family, draft: str) -> TextDecoder:
    """The family's decoder, for drafts that read its hidden states or its cache.

    Raises:
        SprachbundError: a decoder that does not show them, such as the native engine's.
    """
    decoder = family.capabilities.decoder
    if not isinstance(decoder, TextDecoder):
        raise SprachbundError(
            f"the {draft} draft reads inside the decoder, which {type(decoder).__name__} does not show; "
            "use the torch engine (--engine torch), or a token-map or a model as the draft"
        )
    if (dtype := decoder.positions.dtype) not in (torch.float32, torch.bfloat16):
        raise SprachbundError(
            f"the {draft} draft computes in fp32 or bf16, the decoder in {str(dtype).removeprefix('torch.')}; use the "
            "engine torch-bf16, or a token-map or a model as the draft"
        )
    return decoder


def check_vocabulary(family: Family, draft: str, vocabulary_size: int) -> None:
    """Raise a SprachbundError when a draft has another vocabulary than the model.

    Args:
        family: the model.
        draft: its kind, for the message.
        vocabulary_size: V of the draft.
    """
    if (own := vocabulary_size_of(family)) not in (None, vocabulary_size):
        raise SprachbundError(
            f"the {draft} draft was made for {vocabulary_size} tokens, the model has {own}; "
            "make a draft for this model with `sprachbund train`"
        )


def vocabulary_size_of(family: Family) -> int | None:
    """V of a family; None when only running it would show it."""
    decoder = family.capabilities.decoder
    if isinstance(decoder, TextDecoder):
        return decoder.embedding.num_embeddings
    return decoder.shape.vocabulary_size if isinstance(decoder, NativeDecoder) else None


def check_cache(cache: DecoderCache, *, num_layers: int, heads: int, head_width: int, draft: str) -> None:
    """Raise a SprachbundError when a cache is not of the shape that a draft was made to read.

    Args:
        cache: cache of the model.
        num_layers: layers that the draft reads.
        heads: heads of each layer.
        head_width: head width of a head.
        draft: its kind, for the message.
    """
    seen = (len(cache.self_keys), cache.self_keys[0].shape[1], cache.self_keys[0].shape[3])
    if seen != (num_layers, heads, head_width):
        raise SprachbundError(
            f"the {draft} draft reads a cache of {num_layers} layers x {heads} heads x {head_width}, this one has "
            f"{' x '.join(map(str, seen))}; make a draft for this model with `sprachbund train`"
        )
