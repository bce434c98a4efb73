"""Greedy search: the likeliest token of every row at every step. The default, because it is fast and
deterministic."""

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.rows import Hypothesis, Rows, rows_left
from sprachbund.decoding.rules import likeliest
from sprachbund.models.family import Family


def greedy_search(family: Family, rows: Rows) -> list[Hypothesis]:
    """Finish all `rows` (R); one hypothesis per row, in their order."""
    return GreedySearch(rows).finish(family)


class GreedySearch:
    """The rows still under way and the token chosen for each."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        device, num_rows = rows.tokens.device, rows.cache.num_rows
        self.original, self.limits = list(range(num_rows)), rows.rules.limits.tolist()
        self.sums = torch.zeros(num_rows, device=device, dtype=torch.float64)
        self.finished = np.zeros(num_rows, np.bool_)
        self.done: list[Hypothesis | None] = [None] * num_rows

    def finish(self, family: Family) -> list[Hypothesis]:
        """Go on until every row has ended or reached its limit."""
        tokens = self.choose()
        while not self.finished.all():
            kept = self._drop_finished()
            tokens = self.round(family, tokens if kept is None else tokens[kept])
        return [hypothesis for hypothesis in self.done if hypothesis is not None]

    def round(self, family: Family, tokens: Tensor) -> Tensor:
        """Read `tokens` (R,) and choose those after them."""
        self.rows.advance(family, tokens, self.finished)
        return self.choose()

    def choose(self) -> Tensor:
        """The next token (R,) of every row; those that end are taken down."""
        rows = self.rows
        log_probs = rows.rules.log_probs(rows.logits, rows.tokens)
        tokens = likeliest(log_probs)
        self.sums = self.sums + log_probs.gather(1, tokens[:, None])[:, 0]
        length = rows.tokens.shape[1] + 1
        # The tokens are all that has to come back from the device at each step.
        for row, token in enumerate(tokens.tolist()):
            ended = token == rows.rules.end_token
            if not self.finished[row] and (ended or length >= self.limits[row]):
                self._finish_row(row, token, ended)
        return tokens

    def _finish_row(self, row: int, token: int, ended: bool) -> None:
        index, total = self.original[row], float(self.sums[row])
        self.finished[row] = True
        self.done[index] = Hypothesis(
            tokens=(*self.rows.tokens[row].tolist(), *([] if ended else [token])),
            log_probability=total,
            finished=ended,
            no_speech_log_probability=self.rows.no_speech[index],
            score=total,
        )

    def _drop_finished(self) -> Tensor | None:
        """Drop memories whose rows are all finished, when that pays; the rows left, None where all are."""
        left = rows_left(self.finished, self.rows.num_memories, self.rows.tokens.device)
        if left is None:
            return None
        memories, rows = left
        self.rows.keep(memories)
        self.sums, order = self.sums[rows], rows.tolist()
        self.finished = self.finished[order]
        self.original, self.limits = [self.original[r] for r in order], [self.limits[r] for r in order]
        return rows
