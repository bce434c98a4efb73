"""Logits processor: masks the tokens that a row may not emit next; and the choice of the likeliest tokens.

A vocabulary has tens of thousands of tokens and a step of a small model takes a millisecond, so every pass over the
logits counts, and this module makes as few as possible.

Timestamp tokens follow Whisper (arXiv 2212.04356, sections 2.3 and 4.5): they come in pairs around each segment's text,
never run backwards, and the first lies within the first second. One constraint is added: none lies behind the audio.

Shapes: R rows, U tokens so far, K tokens wanted, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.hot_words import HotWords
from sprachbund.models.base import TimestampTokens

# Timestamp tokens.

MAX_INITIAL_S = 1.0
"""Latest first timestamp; a later one tends to skip speech."""


def forbid_timestamps(
    logits: Tensor, tokens: Tensor, *, times: TimestampTokens, latest: Tensor, end_token: int
) -> Tensor:
    """Set the logits of tokens that may not follow `tokens` (R, U) to -inf; the logits (R, V) again.

    Args:
        logits: (R, V), already masked otherwise; they are written to.
        tokens: (R, U) emitted so far.
        times: the timestamp tokens.
        latest: (R,) last timestamp token allowed; a row with a value below `times.first` is without
            timestamps.
        end_token: id of the end token.
    """
    stamps = logits[:, times.first : times.stop]
    texts = [part for part in (logits[:, : times.first], logits[:, times.stop :]) if part.shape[1]]
    ids = torch.arange(times.first, times.stop, device=logits.device)
    state = _PairState(tokens, times)
    bad = (ids < state.earliest()[:, None]) | (ids > latest[:, None]) | state.text_due[:, None]
    if tokens.shape[1] == 0:
        bad = bad | (ids > times.last_within(MAX_INITIAL_S))
    stamps.masked_fill_(bad, -torch.inf)
    timed = latest >= times.first
    no_text = timed & (state.opening | state.time_or_end_due)
    ends = logits[:, end_token].masked_fill(no_text & ~state.time_or_end_due, -torch.inf)
    _forbid(texts, no_text)
    logits[:, end_token] = ends
    # Text is forbidden too where all timestamps together are likelier than the likeliest text token.
    likeliest_text = torch.stack([part.amax(-1) for part in texts]).amax(0)
    _forbid(texts, timed & (stamps.logsumexp(-1) > likeliest_text))
    return logits


def _forbid(parts: Sequence[Tensor], rows: Tensor) -> None:
    if bool(rows.any()):  # most steps have none, and a pass over all logits is slow
        for logits in parts:
            logits.masked_fill_(rows[:, None], -torch.inf)


class _PairState:
    """The state of each row within its timestamp pairs."""

    def __init__(self, tokens: Tensor, times: TimestampTokens) -> None:
        num_rows, length = tokens.shape
        yes = torch.ones(num_rows, dtype=torch.bool, device=tokens.device)
        timed = (tokens >= times.first) & (tokens < times.stop)
        last = timed[:, -1] if length else ~yes
        second_last = timed[:, -2] if length > 1 else yes
        self.opening = yes if length == 0 else ~yes
        self.text_due = last & second_last
        self.time_or_end_due = last & ~second_last
        self._first = times.first
        self._stamps = tokens.masked_fill(~timed, times.first - 1)

    def earliest(self) -> Tensor:
        """First timestamp (R,) that does not run backwards; segments are never empty."""
        if self._stamps.shape[1] == 0:
            return torch.full((self._stamps.shape[0],), self._first, device=self._stamps.device)
        return (self._stamps.amax(1) + (~self.time_or_end_due).long()).clamp(min=self._first)


def cut_by_timestamps(
    tokens: Sequence[int], times: TimestampTokens, duration_s: float
) -> list[tuple[float, float, list[int]]]:
    """Cut a row of tokens at its timestamps.

    Text without a closing timestamp lasts to the end of the audio; text without an opening one starts where the last
    piece ended.

    Args:
        tokens: tokens of the row, timestamps among them.
        times: the timestamp tokens.
        duration_s: length of the audio.

    Returns:
        Pieces (start_s, end_s, text tokens) in order, inside [0, `duration_s`], not overlapping.
    """
    pieces: list[tuple[float, float, list[int]]] = []
    start_s, text = 0.0, list[int]()
    for token in tokens:
        if token not in times:
            text.append(token)
            continue
        time_s = min(max(times.seconds(token), start_s), duration_s)
        if text:
            pieces.append((start_s, time_s, text))
            text = []
        start_s = time_s
    if text:
        pieces.append((start_s, duration_s, text))
    return pieces


# The processor of all rows.

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Suppressed:
    """Tokens never to be emitted; rows that want the same share a mask.

    Attributes:
        masks: boolean (M, V).
        mask_of: (R,) the mask of each row.
        ids: tokens of a single mask, which is faster to apply; None where there are several masks.
    """

    masks: Tensor
    mask_of: Tensor
    ids: Tensor | None

    @classmethod
    def of(cls, masks: Sequence[Tensor], device: torch.device) -> "Suppressed":
        """Tokens suppressed by one mask (V,) for each row; equal masks are the same tensor."""
        distinct = list({id(mask): mask for mask in masks}.values())
        index_of = {id(mask): i for i, mask in enumerate(distinct)}
        stacked = torch.stack(distinct).to(device)
        return cls(
            masks=stacked,
            mask_of=torch.tensor([index_of[id(mask)] for mask in masks], device=device),
            ids=stacked[0].nonzero().flatten() if len(distinct) == 1 else None,
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """A copy of logits (R, ..., V) without these tokens."""
        if self.ids is not None:
            return logits.index_fill(-1, self.ids, -torch.inf)
        return logits.masked_fill(self.each()[(slice(None), *[None] * (logits.ndim - 2))], -torch.inf)

    def take(self, rows: Tensor) -> "Suppressed":
        """Return the suppressed tokens of the rows at the indices `rows` (r,)."""
        return Suppressed(masks=self.masks, mask_of=self.mask_of[rows], ids=self.ids)

    def each(self) -> Tensor:
        """One mask for every row, (R, V)."""
        return self.masks[self.mask_of]


@dataclass(kw_only=True)
class LogitsProcessor:
    """Masks the tokens that each row may not emit next.

    Searches with a draft read several positions of a row in one pass, searches without one read one; the rules are the
    same code, so that both write the same text. The kernels of the native engine have rules of their own: a new rule
    goes there too, or `sprachbund.decoding.native_search.searches_natively` leaves its rows to the search from Python.

    Attributes:
        suppressed: tokens never to be emitted.
        begin_suppressed: (V,) tokens not to be emitted first; None in families without such a list.
        begun: (R,) rows whose first token is not their text's first, for it goes on from a prefix.
        limits: (R,) most tokens.
        latest: (R,) last timestamp allowed; -1 in rows without timestamps.
        times: the timestamp tokens; None when no row has any.
        end_token: token that ends a row.
        min_tokens: the end token is forbidden before.
    """

    suppressed: Suppressed
    begin_suppressed: Tensor | None
    begun: Tensor
    limits: Tensor
    latest: Tensor
    times: TimestampTokens | None
    end_token: int
    min_tokens: int
    hot_words: HotWords | None = None

    def log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (R, V) over the allowed tokens, from logits (R, V) after `tokens` (R, U).

        Those of hot words have their bonus.
        """
        lengths = np.full((len(tokens), 1), tokens.shape[1])
        return self.log_probs_at(logits[:, None], lengths, lambda padding: tokens[:, None])[:, 0]

    def log_probs_at(
        self, logits: Tensor, lengths: NDArray[np.int64], texts: Callable[[int], Tensor]
    ) -> Tensor:
        """Log-probabilities (R, Q, V) over the allowed tokens, each after a text of its own.

        Args:
            logits: (R, Q, V).
            lengths: (R, Q) tokens of each text, on the host; none is empty unless all are.
            texts: called with a token for padding where there are timestamps or hot words; the texts (R, Q, U), aligned
                at their ends, since timestamps depend on the last tokens. Timestamps take the first of them for
                padding: a row with timestamps begins with one, so the padding has to look like the end of a pair.
        """
        logits = self.suppressed(logits.float())  # a copy, so that it may be written to
        early, first = lengths < self.min_tokens, lengths == 0
        if early.any():
            logits[..., self.end_token].masked_fill_(_on(early, logits), -torch.inf)
        if first.any() and self.begin_suppressed is not None:
            begins = _on(first, logits) & ~self.begun[:, None]
            logits.masked_fill_(begins[..., None] & self.begin_suppressed, -torch.inf)
        if self.times is not None:
            forbid_timestamps(
                logits.flatten(0, 1),
                texts(self.times.first).flatten(0, 1),
                times=self.times,
                latest=self.latest.repeat_interleave(logits.shape[1]),
                end_token=self.end_token,
            )
        scores = logits.log_softmax(-1)
        return scores if self.hot_words is None else scores + self.hot_words.scores(texts(-1), scores)

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        self.suppressed, self.limits = self.suppressed.take(rows), self.limits[rows]
        self.latest, self.begun = self.latest[rows], self.begun[rows]


def _on(mask: NDArray[np.bool_], like: Tensor) -> Tensor:
    """A mask of the host on the device of a tensor."""
    return torch.from_numpy(mask).to(like.device)


def likeliest(scores: Tensor) -> Tensor:
    """The best token (...) of scores (..., V); the first of several that are equal."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    return torch.from_numpy(scores.numpy().argmax(-1))  # a tenth of the time of torch's


def best_tokens(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best `count` scores of every row of (R, V), best first, and their tokens; both (R, K).

    On CPUs only those chunks are sorted that hold the greatest maxima: all of the best are in them.
    """
    whole = scores.shape[1] // _CHUNK * _CHUNK
    if scores.device.type != "cpu" or whole < 4 * _CHUNK * count:
        best = scores.topk(min(count, scores.shape[1]))
        return best.values, best.indices
    chunks = scores[:, :whole].unflatten(1, (-1, _CHUNK)).amax(-1).topk(count).indices
    columns = (chunks[..., None] * _CHUNK + torch.arange(_CHUNK)).flatten(1)
    rest = torch.arange(whole, scores.shape[1]).expand(len(scores), -1)
    columns = torch.cat([columns, rest], dim=1)
    best = scores.gather(1, columns).topk(count)
    return best.values, columns.gather(1, best.indices)
