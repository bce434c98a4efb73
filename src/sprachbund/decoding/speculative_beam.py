"""Beam search with guesses: the same beam search, on rows that sometimes know their next step already.

One pass reads the newest token of every hypothesis and the guesses behind it. When all hypotheses that the search goes
on with are what was guessed, the next step needs no pass; else the guesses are forgotten. So the draft only proposes
and the hypotheses are those without it. Shapes: R rows (hypotheses), K guesses, V vocabulary.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.draft import Integers, RowsSoFar
from sprachbund.decoding.rows import Rows
from sprachbund.decoding.speculative import Guessing, begin_rows, given, propose
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
    held: Integers
    guesses: Tensor
    ahead: Tensor
    origin: Integers
    used: int = 0

    @classmethod
    def around(cls, rows: Rows, guessing: Guessing) -> "DraftedRows":
        """Rows that have read their prompts."""
        own = {field.name: getattr(rows, field.name) for field in fields(rows)}
        return cls(
            **own,
            guessing=guessing,
            so_far=begin_rows(rows, guessing.prompts),
            held=rows.cache.lengths.numpy(force=True),
            guesses=rows.tokens[:, :0],
            ahead=rows.logits[:, None][:, :0],
            origin=np.arange(rows.cache.num_rows),
        )

    def advance(self, family: Family, tokens: Tensor, finished: NDArray[np.bool_]) -> None:
        """Append `tokens` (R,); step unless all of them were guessed. Rows in `finished` (R,) stay where they are."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        chosen, moving = tokens.numpy(force=True), ~finished
        self.so_far.append(chosen[:, None], moving.astype(np.int64))
        # A hypothesis that goes on never ends in the end token: it stands in the places without one.
        if self.guesses.shape[1] and self._was_guessed(chosen, moving & (chosen != self.rules.end_token)):
            self.logits, self.ahead, self.guesses = self.ahead[:, 0], self.ahead[:, 1:], self.guesses[:, 1:]
            self.used += 1
        else:
            self._pass(family, tokens)
        self.held = self.held + moving

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
        order = rows.numpy(force=True)
        self.held, self.origin = self.held[order], self.origin[order]
        self.guesses, self.ahead = self.guesses[rows], self.ahead[rows]

    def _was_guessed(self, tokens: Integers, alive: NDArray[np.bool_]) -> bool:
        guesses = self.guesses[:, 0].numpy(force=True)
        right = bool(((guesses == tokens) | ~alive).all())
        origin = self.origin[alive]
        np.add.at(self.guessing.checked, origin, 1)
        np.add.at(self.guessing.accepted, origin, int(right))
        return right

    def _pass(self, family: Family, tokens: Tensor) -> None:
        self.guessing.run.observe(np.full(len(tokens), self.used))
        self.cache.rewind(torch.from_numpy(self.held))
        self.guesses, self.used = propose(self.guessing, self.so_far, int(self.held.max())), 0
        logits = family.step(given(tokens[:, None], self.guesses), self.cache)
        self.logits, self.ahead = logits[:, 0], logits[:, 1:]
        self.guessing.passes += 1
