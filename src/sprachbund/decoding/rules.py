"""What a row may emit next, and the likeliest of it.

A vocabulary has tens of thousands of tokens and a step of a small model takes a millisecond, so every pass over the
logits counts: nothing here makes more of them than it has to. Shapes: R rows, U tokens so far, K tokens wanted, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.decoding.timestamps import TimestampTokens, forbid_timestamps

_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Suppressed:
    """Tokens never to be emitted; rows that want the same share a mask.

    Attributes:
        masks: boolean (M, V).
        mask_of: (R,) the mask of each row.
        ids: what a single mask holds, for that is quicker to write; None where there are several masks.
    """

    masks: Tensor
    mask_of: Tensor
    ids: Tensor | None

    @classmethod
    def of(cls, masks: Sequence[Tensor], device: torch.device) -> "Suppressed":
        """From one mask (V,) for each row; equal ones are the same tensor."""
        distinct = list({id(mask): mask for mask in masks}.values())
        place = {id(mask): i for i, mask in enumerate(distinct)}
        stacked = torch.stack(distinct).to(device)
        return cls(
            masks=stacked,
            mask_of=torch.tensor([place[id(mask)] for mask in masks], device=device),
            ids=stacked[0].nonzero().flatten() if len(distinct) == 1 else None,
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """A copy of logits (R, ..., V) without these tokens."""
        if self.ids is not None:
            return logits.index_fill(-1, self.ids, -torch.inf)
        return logits.masked_fill(self.each()[(slice(None), *[None] * (logits.ndim - 2))], -torch.inf)

    def take(self, rows: Tensor) -> "Suppressed":
        """Those of the rows at the indices `rows` (r,)."""
        return Suppressed(masks=self.masks, mask_of=self.mask_of[rows], ids=self.ids)

    def each(self) -> Tensor:
        """One mask for every row, (R, V)."""
        return self.masks[self.mask_of]


@dataclass(kw_only=True)
class Rules:
    """What a row may emit next.

    Attributes:
        suppressed: tokens never to be emitted.
        begin_suppressed: (V,) tokens not to be emitted first; None in families without such a list.
        begun: (R,) rows whose first token is not their text's first, for it goes on from a prefix.
        limits: (R,) most tokens.
        latest: (R,) last timestamp allowed; -1 in rows without timestamps.
        times: the timestamp tokens; None when no row has any.
        end_token: what ends a row.
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

    def log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities (R, V) over the allowed tokens, from logits (R, V) after `tokens` (R, U)."""
        logits = self.suppressed(logits.float())  # a copy, so that it may be written to
        if tokens.shape[1] < self.min_tokens:
            logits[:, self.end_token] = -torch.inf
        if tokens.shape[1] == 0 and self.begin_suppressed is not None:
            logits.masked_fill_(self.begin_suppressed & ~self.begun[:, None], -torch.inf)
        if self.times is not None:
            forbid_timestamps(logits, tokens, times=self.times, latest=self.latest, end_token=self.end_token)
        return logits.log_softmax(-1)

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        self.suppressed, self.limits = self.suppressed.take(rows), self.limits[rows]
        self.latest, self.begun = self.latest[rows], self.begun[rows]


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
        found = scores.topk(min(count, scores.shape[1]))
        return found.values, found.indices
    chunks = scores[:, :whole].unflatten(1, (-1, _CHUNK)).amax(-1).topk(count).indices
    places = (chunks[..., None] * _CHUNK + torch.arange(_CHUNK)).flatten(1)
    rest = torch.arange(whole, scores.shape[1]).expand(len(scores), -1)
    places = torch.cat([places, rest], dim=1)
    found = scores.gather(1, places).topk(count)
    return found.values, places.gather(1, found.indices)
