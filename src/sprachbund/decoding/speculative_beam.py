"""Beam search with guesses: the same beam search, on rows that sometimes know their next step already.

One pass reads the newest token of every hypothesis and the guesses behind it. When all hypotheses that the search goes
on with are what was guessed, the next step needs no pass; else the guesses are forgotten. So the draft only proposes
and the hypotheses are those without it. Shapes: R rows (hypotheses), K guesses, V vocabulary.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sprachbund.decoding.draft import RowsSoFar
from sprachbund.decoding.rows import Rows
from sprachbund.decoding.speculative import Guessing, begin_rows, propose
from sprachbund.models.family import Family


@dataclass(kw_only=True)
class DraftedRows(Rows):
    """Rows with guesses behind them.

    Attributes:
        guessing: the draft at work.
        so_far: what the draft sees of them.
        held: (R,) tokens of each row in the cache; those behind them are guesses.
        guesses: (R, K) that lie in the cache and were not needed yet.
        ahead: (R, K, V) logits behind each of them.
        origin: (R,) the row at the start that each comes from.
        used: guesses that became tokens since the last pass.
    """

    guessing: Guessing
    so_far: RowsSoFar
    held: Tensor
    guesses: Tensor
    ahead: Tensor
    origin: Tensor
    used: int = 0

    @classmethod
    def around(cls, rows: Rows, guessing: Guessing) -> "DraftedRows":
        """Rows that have read their prompts."""
        own = {field.name: getattr(rows, field.name) for field in fields(rows)}
        return cls(
            **own,
            guessing=guessing,
            so_far=begin_rows(rows, guessing.prompts),
            held=rows.cache.lengths,
            guesses=rows.tokens[:, :0],
            ahead=rows.logits[:, None][:, :0],
            origin=torch.arange(rows.cache.num_rows, device=rows.tokens.device),
        )

    def advance(self, family: Family, tokens: Tensor, finished: Tensor) -> None:
        """Append `tokens` (R,); step unless all of them were guessed. Rows in `finished` (R,) stay where they are."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        self.so_far.tokens.scatter_(1, self.so_far.lengths[:, None], tokens[:, None])
        self.so_far.lengths = self.so_far.lengths + (~finished).long()
        # A hypothesis that goes on never ends in the end token: it stands in the places without one.
        alive = ~finished & (tokens != self.rules.end_token)
        if self.guesses.shape[1] and self._was_guessed(tokens, alive):
            self.logits, self.ahead, self.guesses = self.ahead[:, 0], self.ahead[:, 1:], self.guesses[:, 1:]
            self.used += 1
        else:
            self._pass(family, tokens)
        self.held = torch.where(finished, self.held, self.held + 1)

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`; rows may only come from the same memory."""
        super().reorder(rows)
        self.guessing.run.reorder(rows)

    def keep(self, memories: Tensor) -> None:
        """Drop every memory that is not among the indices `memories` (b,), with its rows."""
        group = self.cache.num_rows // self.num_memories
        rows = (memories[:, None] * group + torch.arange(group, device=memories.device)).flatten()
        super().keep(memories)
        self.guessing.run.keep(memories, rows)

    def _take(self, rows: Tensor) -> None:
        super()._take(rows)
        self.so_far.take(rows)
        self.held, self.origin = self.held[rows], self.origin[rows]
        self.guesses, self.ahead = self.guesses[rows], self.ahead[rows]

    def _was_guessed(self, tokens: Tensor, alive: Tensor) -> bool:
        right = bool(((self.guesses[:, 0] == tokens) | ~alive).all())
        origin = self.origin[alive].cpu()
        one = torch.ones_like(origin)
        self.guessing.checked.index_add_(0, origin, one)
        self.guessing.accepted.index_add_(0, origin, one * right)
        return right

    def _pass(self, family: Family, tokens: Tensor) -> None:
        self.guessing.run.observe(torch.full_like(tokens, self.used))
        self.cache.rewind(self.held)
        self.guesses, self.used = propose(self.guessing, self.so_far), 0
        logits = family.step(torch.cat([tokens[:, None], self.guesses.clamp(min=0)], dim=1), self.cache)
        self.logits, self.ahead = logits[:, 0], logits[:, 1:]
        self.guessing.passes += 1
