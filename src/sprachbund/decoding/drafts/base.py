"""What a draft is: something that guesses the next tokens of every row, for the model to confirm or refuse.

A draft can be anything, since no guess counts that the model would not have written itself (arXiv 2211.17192). What
was written is kept as arrays in the computer's own memory, where looking at it waits for no device and costs a fraction
of a tensor operation. Shapes: B memories, R rows (row r reads memory r // (R/B)), K guesses, U tokens of a row with its
prompt.
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
from sprachbund.nn.decoder import DecoderCache, TextDecoder

NO_GUESS = -1
"""In the place of a guess that a draft does not make."""

Integers = NDArray[np.int64]


@dataclass(kw_only=True)
class RowsSoFar:
    """What a draft may look at.

    Attributes:
        cache: of the model; it holds every token of a row but the newest.
        tokens: (R, U) prompts and what was written after them, padded on the right.
        lengths: (R,) tokens in each row.
        suppressed: tokens that a row never holds.
    """

    cache: DecoderCache
    tokens: Integers
    lengths: Integers
    suppressed: Suppressed

    def last(self, count: int) -> Integers:
        """The last tokens (R, count) of every row, newest at the end; rows of fewer begin with `NO_GUESS`."""
        places = self.lengths[:, None] + np.arange(-count, 0)
        found = self.tokens[np.arange(len(places))[:, None], np.maximum(places, 0)]
        found[places < 0] = NO_GUESS
        return found

    def newest(self) -> Tensor:
        """The last token (R, 1) of every row, for the model to read."""
        return self.on_device(self.last(1))

    def on_device(self, values: NDArray[Any]) -> Tensor:
        """Values where the model computes."""
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

    def propose(self, rows: RowsSoFar, count: int) -> Tensor:
        """Guesses (R, k), k at most `count`, at what follows each row; `NO_GUESS` where there is none.

        A place in which no row has a guess costs as much as any other, so there should be none.
        """
        ...

    def observe(self, place: Integers) -> None:
        """The model has taken a step; the query `place[r]` (R,) of it stood right before the newest token."""
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
    """A run that makes the model's pass itself, since its guesses have done most of it."""

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As the model's: logits (R, Q, V) after the newest token of each row and the guesses behind it."""
        ...


@runtime_checkable
class Draft(Protocol):
    """Guesses tokens for one model.

    `acceptance` is the share of its guesses expected to be accepted, by "source>target", where it was measured;
    `guesses` is the number of tokens that it is best asked for at a time, None where that is to be measured.
    """

    @property
    def name(self) -> str:
        """Of the kind."""
        ...

    @property
    def acceptance(self) -> dict[str, float]:
        """See above."""
        ...

    @property
    def guesses(self) -> int | None:
        """See above."""
        ...

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        ...

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> DraftRun:
        """Begin with R rows, prompts read, over B memories; a row never holds more than `capacity` tokens."""
        ...


class StatelessRun:
    """A run that needs to be told nothing: the base of those that look at the rows alone."""

    def observe(self, place: Integers) -> None:
        """Nothing to remember."""

    def reorder(self, rows: Tensor) -> None:
        """Nothing to move."""

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Nothing to drop."""

    def close(self) -> None:
        """Nothing to give back."""


def no_guesses(rows: RowsSoFar) -> Tensor:
    """What a draft proposes (R, 0) that has nothing to say."""
    return rows.on_device(rows.tokens[:, :0])


def torch_decoder(family: Family, draft: str) -> TextDecoder:
    """The family's decoder, for drafts that read what it holds inside.

    Raises:
        SprachbundError: a decoder without such an inside, as the native engine's.
    """
    decoder = family.capabilities.decoder
    if not isinstance(decoder, TextDecoder):
        raise SprachbundError(
            f"the {draft} draft reads inside the decoder, which {type(decoder).__name__} does not show; "
            "use the torch engine, or a token-map or a model as the draft"
        )
    if (dtype := decoder.positions.dtype) not in (torch.float32, torch.bfloat16):
        raise SprachbundError(
            f"the {draft} draft computes in fp32 or bf16, the decoder in {str(dtype).removeprefix('torch.')}; use the "
            "engine torch-bf16, or a token-map or a model as the draft"
        )
    return decoder


def check_vocabulary(family: Family, draft: str, vocabulary_size: int) -> None:
    """Raise a SprachbundError when a draft writes another vocabulary than the model."""
    if (own := vocabulary_size_of(family)) not in (None, vocabulary_size):
        raise SprachbundError(
            f"the {draft} draft was made for {vocabulary_size} tokens, the model has {own}; "
            "make a draft for this model with `sprachbund train`"
        )


def vocabulary_size_of(family: Family) -> int | None:
    """V of a family; None when it cannot be told without running it."""
    decoder = family.capabilities.decoder
    if isinstance(decoder, TextDecoder):
        return decoder.embedding.num_embeddings
    return decoder.shape.vocabulary_size if isinstance(decoder, NativeDecoder) else None


def check_cache(cache: DecoderCache, *, num_layers: int, heads: int, head_width: int, draft: str) -> None:
    """Raise a SprachbundError when a cache is not of the shape that a draft was made to read."""
    seen = (len(cache.self_keys), cache.self_keys[0].shape[1], cache.self_keys[0].shape[3])
    if seen != (num_layers, heads, head_width):
        raise SprachbundError(
            f"the {draft} draft reads a cache of {num_layers} layers x {heads} heads x {head_width}, this one has "
            f"{' x '.join(map(str, seen))}; make a draft for this model with `sprachbund train`"
        )
