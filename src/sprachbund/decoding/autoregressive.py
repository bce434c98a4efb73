"""Greedy search and beam search with an attention decoder.

Greedy search, the default, takes the likeliest token of every row at every step. Beam search keeps several hypotheses
per row, ranked by length-normalised log-probability: G groups (one per memory and target) of K hypotheses are
neighbouring rows of one cache. A group is finished when K hypotheses have ended within the best K candidates of their
step; with K = 1 this is greedy search.

Shapes: R rows, G groups, K hypotheses of a group, U tokens so far, V vocabulary.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.logits_process import best_tokens, likeliest
from sprachbund.decoding.sampling import TokenSampler
from sprachbund.decoding.state import Hypothesis, HypothesisBatch, should_drop, unfinished_rows
from sprachbund.models.base import Family


def greedy_search(
    family: Family, batch: HypothesisBatch, sampler: TokenSampler | None = None
) -> list[Hypothesis]:
    """Finish all rows (R) of a batch; one hypothesis per row, in their order.

    Args:
        family: the model.
        batch: one row for each memory and target, prompts read.
        sampler: draws the tokens; None takes the likeliest.
    """
    return GreedySearch(batch, sampler).finish(family)


class GreedySearch:
    """The rows still under way and the token chosen for each."""

    def __init__(self, batch: HypothesisBatch, sampler: TokenSampler | None = None) -> None:
        self.batch, self._sampler = batch, sampler
        device, num_rows = batch.tokens.device, batch.cache.num_rows
        self.original, self.limits = list(range(num_rows)), batch.processor.limits.tolist()
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
        self.batch.advance(family, tokens, self.finished)
        return self.choose()

    def choose(self) -> Tensor:
        """The next token (R,) of every row; rows that end are recorded."""
        batch = self.batch
        log_probs = batch.processor.log_probs(batch.logits, batch.tokens)
        tokens = likeliest(log_probs) if self._sampler is None else self._sampler.draw(log_probs)
        self.sums = self.sums + log_probs.gather(1, tokens[:, None])[:, 0]
        length = batch.tokens.shape[1] + 1
        # Only the tokens are copied from the device at each step.
        for row, token in enumerate(tokens.tolist()):
            ended = token == batch.processor.end_token
            if not self.finished[row] and (ended or length >= self.limits[row]):
                self._finish_row(row, token, ended)
        return tokens

    def _finish_row(self, row: int, token: int, ended: bool) -> None:
        index, total = self.original[row], float(self.sums[row])
        self.finished[row] = True
        self.done[index] = Hypothesis(
            tokens=(*self.batch.tokens[row].tolist(), *([] if ended else [token])),
            log_probability=total,
            finished=ended,
            no_speech_log_probability=self.batch.no_speech[index],
            score=total,
            temperature=0.0 if self._sampler is None else self._sampler.temperature,
        )

    def _drop_finished(self) -> Tensor | None:
        """Drop memories whose rows are all finished, when that pays; the rows left, None where all are."""
        left = unfinished_rows(self.finished, self.batch.num_memories, self.batch.tokens.device)
        if left is None:
            return None
        memories, rows = left
        self.batch.keep(memories)
        self.sums, order = self.sums[rows], rows.tolist()
        self.finished = self.finished[order]
        if self._sampler is not None:
            self._sampler.take(order)
        self.original, self.limits = [self.original[r] for r in order], [self.limits[r] for r in order]
        return rows


# Beam search.


def length_normalised(log_probability: float, num_tokens: int, penalty: float) -> float:
    """log-probability / ((5 + n) / 6) ** p, arXiv 1609.08144, equation 14.

    Args:
        log_probability: sum over the tokens.
        num_tokens: n, the end token included.
        penalty: p.
    """
    return float(log_probability / ((5 + num_tokens) / 6) ** penalty)


@dataclass(kw_only=True)
class _Group:
    """One memory and target: its ended hypotheses."""

    no_speech: float | None
    limit: int
    ended: list[Hypothesis] = field(default_factory=list)


def beam_search(
    family: Family, batch: HypothesisBatch, *, beam_size: int, length_penalty: float
) -> list[list[Hypothesis]]:
    """Finish all rows (G) of a batch.

    Args:
        family: the model.
        batch: one row for each memory and target, prompts read.
        beam_size: K.
        length_penalty: see `length_normalised`.

    Returns:
        For each row its ended hypotheses, best first.
    """
    limits = batch.processor.limits.tolist()
    groups = [_Group(no_speech=n, limit=int(u)) for n, u in zip(batch.no_speech, limits, strict=True)]
    batch.repeat(beam_size)
    search = _Beam(batch=batch, groups=groups, beam_size=beam_size, length_penalty=length_penalty)
    while search.choose():
        search.drop_finished()
        search.advance(family)
    return [sorted(group.ended, key=lambda h: -h.score) for group in groups]


class _Beam:
    """The groups still under way and the tokens chosen for their rows."""

    def __init__(
        self, *, batch: HypothesisBatch, groups: list[_Group], beam_size: int, length_penalty: float
    ) -> None:
        self.batch = batch
        self.live = groups
        self.size = beam_size
        self.penalty = length_penalty
        device = batch.tokens.device
        self.sums = torch.full((len(groups), beam_size), -torch.inf, dtype=torch.float64, device=device)
        self.sums[:, 0] = 0.0
        self.parents = torch.zeros(len(groups), beam_size, dtype=torch.long, device=device)
        self.tokens = torch.zeros_like(self.parents)
        self.done = torch.zeros(len(groups), dtype=torch.bool, device=device)

    def choose(self) -> bool:
        """Pick the next token of every live hypothesis; False when all groups are finished."""
        log_probs = self.batch.processor.log_probs(self.batch.logits, self.batch.tokens)
        # The best of a group are among the best of its rows.
        best, tokens = best_tokens(log_probs, 2 * self.size)
        each = best.shape[1]
        sums = (self.sums[..., None] + best.view(len(self.live), self.size, each)).flatten(1)
        scores, index = sums.topk(min(2 * self.size, sums.shape[1]), dim=1)
        words = tokens.view(len(self.live), -1).gather(1, index)
        choices = zip(scores.tolist(), (index // each).tolist(), words.tolist(), strict=True)
        picked = []
        for g, choice in enumerate(choices):
            candidates = [c for c in zip(*choice, strict=True) if c[0] > -torch.inf]
            picked.append([] if bool(self.done[g]) else self._split(g, candidates))
        self._set_choice(picked)
        return not bool(self.done.all())

    def _split(self, g: int, candidates: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """Move ended candidates of group g to its list; return those to go on with, at most K."""
        group, going = self.live[g], list[tuple[float, int, int]]()
        length = self.batch.tokens.shape[1]
        for rank, (score, parent, token) in enumerate(candidates):
            if token != self.batch.processor.end_token:
                going.append((score, parent, token))
            elif rank < self.size and len(group.ended) < self.size:
                group.ended.append(self._hypothesis(g, score, parent, None))
        going = going[: self.size]
        if length + 1 >= group.limit:
            for score, parent, token in going[: self.size - len(group.ended)]:
                group.ended.append(self._hypothesis(g, score, parent, token))
            going = []
        self.done[g] = len(group.ended) >= self.size or not going
        return going

    def _hypothesis(self, g: int, total: float, parent: int, token: int | None) -> Hypothesis:
        tokens = self.batch.tokens[g * self.size + parent].tolist() + ([] if token is None else [token])
        counted = len(tokens) + (token is None)
        return Hypothesis(
            tokens=tuple(tokens),
            log_probability=total,
            finished=token is None,
            no_speech_log_probability=self.live[g].no_speech,
            score=length_normalised(total, counted, self.penalty),
        )

    def _set_choice(self, picked: list[list[tuple[float, int, int]]]) -> None:
        """Fill sums, parents and tokens; slots without a hypothesis get -inf and can never be chosen."""
        padded = [self._in_parents_slot(p) for p in picked]
        device = self.sums.device
        self.sums = torch.tensor([[c[0] for c in p] for p in padded], dtype=torch.float64, device=device)
        self.parents = torch.tensor([[c[1] for c in p] for p in padded], device=device)
        self.tokens = torch.tensor([[c[2] for c in p] for p in padded], device=device)

    def _in_parents_slot(self, picked: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """One hypothesis for each of the K slots, that of its parent where possible: less of the cache is copied."""
        slots: dict[int, tuple[float, int, int]] = {}
        for choice in picked:
            slots.setdefault(choice[1], choice)
        others = [choice for choice in picked if slots[choice[1]] is not choice]
        for slot in range(self.size):
            if slot not in slots:
                empty = (-torch.inf, slot, self.batch.processor.end_token)
                slots[slot] = others.pop() if others else empty
        return [slots[slot] for slot in range(self.size)]

    def drop_finished(self) -> None:
        """Drop memories whose groups are all finished, when that pays."""
        per_memory = self.done.view(self.batch.num_memories, -1)
        if not should_drop(per_memory.all(1)):
            return
        left = (~per_memory.all(1)).nonzero().flatten()
        each = per_memory.shape[1]
        groups = (left[:, None] * each + torch.arange(each, device=left.device)).flatten()
        self.batch.keep(left)
        self.live = [self.live[g] for g in groups.tolist()]
        self.sums, self.parents = self.sums[groups], self.parents[groups]
        self.tokens, self.done = self.tokens[groups], self.done[groups]

    def advance(self, family: Family) -> None:
        """Follow the chosen parents and step with the chosen tokens."""
        first = torch.arange(len(self.live), device=self.sums.device)[:, None] * self.size
        order = (first + self.parents).flatten()
        if not torch.equal(order, torch.arange(order.shape[0], device=order.device)):
            self.batch.reorder(order)
        finished: Tensor = self.done.repeat_interleave(self.size)
        self.batch.advance(family, self.tokens.flatten(), finished.numpy(force=True))
