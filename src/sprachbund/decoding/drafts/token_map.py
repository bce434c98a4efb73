"""A draft without a model: the token that most often followed the last three, two or one in texts of the language.

It costs next to nothing and pays on repetitive text: commands, forms, phrasebooks, weather. Contexts are numbers in one
sorted array per order, so that a map is read from its file without being built.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sprachbund.decoding.drafts.base import (
    NO_DRAFT_TOKEN,
    DecodingState,
    MeasuredDraft,
    StatelessRun,
    check_vocabulary,
)
from sprachbund.engines.extension import native
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.drafts import DraftCard, read_draft, write_draft
from sprachbund.models.weights import check_names
from sprachbund.util.files import validate

KIND = "token-map"
ORDERS = (3, 2, 1)
"""Tokens of a context, longest first: the longest that was seen decides."""


class _MapShape(BaseModel):
    """The metadata of a file of a token map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: tuple[str, ...]
    orders: tuple[Annotated[int, Field(strict=True, ge=1, le=16)], ...] = Field(min_length=1)


class TokenMap:
    """Contexts and what follows them, for each language.

    A context of n tokens in language l is the number with the digits l, t1 .. tn in base V + 1; the digit V stands
    before the first token of a text.

    Attributes:
        languages: BCP-47 tags.
        vocabulary_size: V.
        tables: order to (contexts, sorted, int64; tokens that follow, int32).
    """

    def __init__(
        self,
        languages: Sequence[str],
        vocabulary_size: int,
        tables: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int32]]],
    ) -> None:
        self.languages = tuple(languages)
        self.vocabulary_size = vocabulary_size
        self.tables = dict(sorted(tables.items(), reverse=True))

    @classmethod
    def fit(
        cls,
        texts: Mapping[str, Iterable[Sequence[int]]],
        vocabulary_size: int,
        *,
        orders: Sequence[int] = ORDERS,
        min_count: int = 1,
    ) -> "TokenMap":
        """Count what follows what in texts.

        Args:
            texts: BCP-47 tag to texts as tokens, each with its end token; how often a text stands there counts.
            vocabulary_size: V.
            orders: lengths of contexts.
            min_count: contexts whose likeliest follower was seen more rarely are left out.
        """
        _check_room(len(texts), vocabulary_size, max(orders))
        empty: NDArray[np.int64] = np.empty((0, max(orders) + 2), np.int64)
        windows = [
            _windows(number, rows, vocabulary_size, max(orders)) for number, rows in enumerate(texts.values())
        ]
        every = np.concatenate([empty, *windows])
        tables = {n: _likeliest(every[:, [0, *range(-n - 1, 0)]], vocabulary_size, min_count) for n in orders}
        return cls(tuple(texts), vocabulary_size, tables)

    def __len__(self) -> int:
        return sum(len(contexts) for contexts, _ in self.tables.values())

    @cached_property
    def native(self) -> Any:
        """The map as the native engine reads it; its arrays are shared."""
        return native().TokenMap(self.tables, self.vocabulary_size)

    def follow(self, language: int, last: Sequence[int]) -> int:
        """The token after the context `last`; `NO_DRAFT_TOKEN` where nothing like it was seen.

        One context at a time in plain Python: for the few rows of a search that is faster than any batch of them.

        Args:
            language: index into `languages`; -1 for one that the map does not know.
            last: the last tokens, newest at the end, as many as the longest order; V where a text has not begun yet.
        """
        if language < 0:
            return NO_DRAFT_TOKEN
        for order, (contexts, followers) in self.tables.items():
            number = language
            for token in last[-order:]:
                number = number * (self.vocabulary_size + 1) + token
            index = int(contexts.searchsorted(number))
            if index < len(contexts) and contexts[index] == number:
                return int(followers[index])
        return NO_DRAFT_TOKEN


class TokenMapDraft(MeasuredDraft):
    """A token map as a draft for one model."""

    name = KIND
    num_draft_tokens: int | None = None

    def __init__(self, token_map: TokenMap, card: DraftCard | None = None) -> None:
        shape = {"languages": list(token_map.languages), "orders": list(token_map.tables)}
        super().__init__(card or DraftCard(kind=KIND, vocabulary_size=token_map.vocabulary_size, shape=shape))
        self.token_map = token_map

    @classmethod
    def load(cls, path: Path) -> "TokenMapDraft":
        """Read a file written by `save`. Raises SprachbundError when it does not hold what its head says."""
        card, arrays = read_draft(path)
        shape = validate(_MapShape, card.shape, f"{path}: shape")
        wanted = [f"{what}.{n}" for n in shape.orders for what in ("contexts", "followers")]
        check_names(arrays, wanted, path)
        tables = {n: (arrays[f"contexts.{n}"], arrays[f"followers.{n}"]) for n in shape.orders}
        for n, (contexts, followers) in tables.items():
            sound = (
                (contexts.dtype, followers.dtype) == (torch.int64, torch.int32)
                and contexts.ndim == 1
                and contexts.shape == followers.shape
                and bool((contexts[1:] > contexts[:-1]).all())
                and bool(((followers >= 0) & (followers < card.vocabulary_size)).all())
            )
            if not sound:
                raise SprachbundError(f"{path}: the contexts of {n} tokens are damaged; copy it again")
        as_arrays = {n: (contexts.numpy(), followers.numpy()) for n, (contexts, followers) in tables.items()}
        return cls(TokenMap(shape.languages, card.vocabulary_size, as_arrays), card)

    def save(self, path: Path) -> None:
        """Write the map."""
        arrays: dict[str, Tensor] = {}
        for n, (contexts, followers) in self.token_map.tables.items():
            arrays |= {
                f"contexts.{n}": torch.from_numpy(contexts),
                f"followers.{n}": torch.from_numpy(followers),
            }
        write_draft(path, self.card, arrays)

    def check(self, family: Family) -> None:
        """Raise the SprachbundError that names what does not fit."""
        check_vocabulary(family, KIND, self.token_map.vocabulary_size)

    def start(
        self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int
    ) -> "TokenMapRun":
        """See `sprachbund.decoding.drafts.base.Draft`, arguments included."""
        known = self.token_map.languages
        numbers = [known.index(t.language) if t.language in known else -1 for t in targets]
        prompts = [len(family.prompt(target)) for target in targets]
        return TokenMapRun(self.token_map, numbers, prompts)


class TokenMapRun(StatelessRun):
    """A token map on the rows of one search."""

    def __init__(self, token_map: TokenMap, languages: Sequence[int], prompts: Sequence[int]) -> None:
        self._map, self._languages, self._prompts = token_map, list(languages), list(prompts)
        self._order = max(token_map.tables)

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """Draft tokens (R, k): what followed in the texts, and so on from there, until no row has a follower."""
        lengths, last = state.lengths.tolist(), state.last(self._order).tolist()
        draft_tokens = [
            self._chain(language, length - prompt, tokens, count)
            for language, prompt, length, tokens in zip(
                self._languages, self._prompts, lengths, last, strict=True
            )
        ]
        longest = max(map(len, draft_tokens))
        padded = [[*row, *[NO_DRAFT_TOKEN] * (longest - len(row))] for row in draft_tokens]
        return state.on_device(np.array(padded, np.int64).reshape(len(draft_tokens), longest))

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`; the prompts here are without a prefix, which is text."""
        return native().TokenMapDraft(self._map.native, self._languages, self._prompts)

    def reorder(self, rows: Tensor) -> None:
        """Follow the rows."""
        order = rows.tolist()
        self._languages = [self._languages[r] for r in order]
        self._prompts = [self._prompts[r] for r in order]

    def keep(self, memories: Tensor, rows: Tensor) -> None:
        """Follow the rows."""
        self.reorder(rows)

    def _chain(self, language: int, written: int, last: Sequence[int], count: int) -> list[int]:
        """Up to `count` draft tokens behind the `last` tokens, of which `written` are text and not prompt."""
        before = max(0, self._order - max(0, written))
        context = [*[self._map.vocabulary_size] * before, *last[before:]]
        for _ in range(count):
            token = self._map.follow(language, context[-self._order :])
            if token == NO_DRAFT_TOKEN:
                break
            context.append(token)
        return context[self._order :]


def _check_room(num_languages: int, vocabulary_size: int, order: int) -> None:
    if max(1, num_languages) * (vocabulary_size + 1) ** order >= 2**63:
        raise SprachbundError(
            f"contexts of {order} among {vocabulary_size} tokens do not fit into 64 bits; ask for shorter ones"
        )


def _windows(
    language: int, rows: Iterable[Sequence[int]], vocabulary_size: int, order: int
) -> NDArray[np.int64]:
    """Every token behind its `order` predecessors and the language: (N, 1 + order + 1)."""
    stretches = [np.array([*[vocabulary_size] * order, *row], np.int64) for row in rows if len(row)]
    if not stretches:
        return np.empty((0, order + 2), np.int64)
    views = [np.lib.stride_tricks.sliding_window_view(stretch, order + 1) for stretch in stretches]
    every = np.concatenate(views)
    return np.concatenate([np.full((len(every), 1), language), every], axis=1)


def _numbers(
    languages: NDArray[np.int64], tokens: NDArray[np.int64], vocabulary_size: int
) -> NDArray[np.int64]:
    number = languages
    for column in tokens.T:
        number = number * (vocabulary_size + 1) + column
    return number


def _likeliest(
    windows: NDArray[np.int64], vocabulary_size: int, min_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct contexts, sorted, and the token that followed each most often; the smaller token of equals."""
    contexts = _numbers(windows[:, 0], windows[:, 1:-1], vocabulary_size)
    pairs, counts = np.unique(np.stack([contexts, windows[:, -1]], axis=1), axis=0, return_counts=True)
    # Of every context the most frequent follower comes first.
    order = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    pairs, counts = pairs[order], counts[order]
    kept, first = np.unique(pairs[:, 0], return_index=True)
    often = counts[first] >= min_count
    return kept[often], pairs[first, 1][often].astype(np.int32)
