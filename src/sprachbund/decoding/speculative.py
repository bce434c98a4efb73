"""Speculative search: one pass of the model accepts several draft tokens of every row; greedy, and with a beam.

Greedy: the model reads the newest token of each row and the draft tokens behind it in one pass, and accepts every draft
token that it would have written itself. So the tokens are those of greedy search, whatever the draft (arXiv 2508.11189,
section 2.3, at k = 1; arXiv 2211.17192 without sampling). Every row keeps all tokens accepted in it; rows differ in
length. Of every pass a few numbers are copied from the device at once; what follows from them is computed in NumPy,
because on tensors it would cost as much as a layer or two of a small decoder.

Beam: one pass reads the newest token of every hypothesis and the draft tokens behind it. When all hypotheses that the
search goes on with equal the draft tokens, the next step needs no pass; else the draft tokens are discarded. The
hypotheses are those without a draft.

Shapes: R rows (hypotheses), K draft tokens, Q = K + 1 tokens of a pass, U tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.drafts.base import (
    NO_DRAFT_TOKEN,
    DecodingState,
    DraftRun,
    Integers,
    Stepper,
    no_draft_tokens,
)
from sprachbund.decoding.logits_process import likeliest
from sprachbund.decoding.options import Accept
from sprachbund.decoding.state import Hypothesis, HypothesisBatch, unfinished_rows
from sprachbund.models.base import Family

_RANKS: dict[Accept, int | None] = {"top-2": 2, "top-3": 3, "unchecked": None}


@dataclass(kw_only=True)
class DraftState:
    """The draft of one search, and how many of its tokens were accepted.

    Attributes:
        run: proposes draft tokens.
        prompts: prompts of the rows.
        num_draft_tokens: most draft tokens a pass.
        accept: rule that accepts them.
        checked: (R,) draft tokens that the model has checked, by the rows at the start.
        accepted: (R, K + 1) passes of a row in which at least 0, 1, .. draft tokens were accepted.
        passes: passes of the model, behind the prompts.
    """

    run: DraftRun
    prompts: Sequence[Sequence[int]]
    num_draft_tokens: int
    accept: Accept
    checked: Integers
    accepted: Integers
    passes: int = 0

    @classmethod
    def begin(
        cls,
        run: DraftRun,
        prompts: Sequence[Sequence[int]],
        *,
        num_draft_tokens: int,
        accept: Accept = "exact",
    ) -> "DraftState":
        """Start with nothing counted.

        Args:
            run: run of the draft, on the rows of the search.
            prompts: prompts of the rows.
            num_draft_tokens: most draft tokens a pass.
            accept: rule that accepts them.
        """
        return cls(
            run=run,
            prompts=prompts,
            num_draft_tokens=num_draft_tokens,
            accept=accept,
            checked=np.zeros(len(prompts), np.int64),
            accepted=np.zeros((len(prompts), num_draft_tokens + 1), np.int64),
        )


# Greedy search.


def speculative_search(family: Family, batch: HypothesisBatch, draft_state: DraftState) -> list[Hypothesis]:
    """Finish all rows with the tokens of `greedy_search`.

    Args:
        family: the model.
        batch: R rows, prompts read.
        draft_state: the draft, started on these rows.

    Returns:
        One hypothesis per row, in their order.
    """
    return SpeculativeSearch(family, batch, draft_state).finish()


def stands(log_probs: Tensor, own: Tensor, draft_tokens: Tensor, accept: Accept) -> Tensor:
    """Boolean (..., K): draft tokens that are accepted.

    Args:
        log_probs: (..., K, V), the model's at their positions.
        own: (..., K) likeliest tokens there.
        draft_tokens: (..., K).
        accept: rule of acceptance.
    """
    if accept == "exact":
        return own == draft_tokens
    score = log_probs.gather(-1, draft_tokens.clamp(min=0)[..., None])
    stand = (score[..., 0] > -torch.inf) & (draft_tokens != NO_DRAFT_TOKEN)
    rank = _RANKS[accept]
    return stand if rank is None else stand & ((log_probs > score).sum(-1) < rank)


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """The tokens of a pass after checking, on the host.

    Attributes:
        tokens: (R, Q) the draft token at each position where it is accepted, else the model's own token.
        scores: (R, Q) their log-probabilities.
        draft_tokens: (R, K).
    """

    tokens: Integers
    scores: NDArray[np.float64]
    draft_tokens: Integers

    @classmethod
    def of(cls, log_probs: Tensor, draft_tokens: Tensor, accept: Accept) -> "_Verdict":
        """Check draft tokens.

        Args:
            log_probs: (R, Q, V) of the pass.
            draft_tokens: (R, K).
            accept: rule that accepts them.
        """
        own, num_positions = likeliest(log_probs), log_probs.shape[1]
        stand = stands(log_probs[:, :-1], own[:, :-1], draft_tokens, accept)
        tokens = torch.cat([torch.where(stand, draft_tokens, own[:, :-1]), own[:, -1:]], dim=1)
        scores = log_probs.gather(-1, tokens[..., None])[..., 0]
        # One copy, so that the device is waited for once; token ids are exact in doubles.
        copied = torch.cat([scores.double(), tokens, draft_tokens], dim=1).numpy(force=True)
        numbers = copied[:, num_positions:].astype(np.int64)
        return cls(
            tokens=numbers[:, :num_positions],
            scores=copied[:, :num_positions],
            draft_tokens=numbers[:, num_positions:],
        )


class SpeculativeSearch:
    """The rows still under way; each has its own length."""

    def __init__(self, family: Family, batch: HypothesisBatch, draft_state: DraftState) -> None:
        self.batch, self.draft_state = batch, draft_state
        self._stepper = draft_state.run if isinstance(draft_state.run, Stepper) else family
        num_rows = batch.cache.num_rows
        self.state = begin_state(batch, draft_state.prompts)
        self.prompt_lengths = self.state.lengths
        self.limits: Integers = batch.processor.limits.numpy(force=True)
        self.original = np.arange(num_rows)
        self.sums = np.zeros(num_rows)
        self.finished = np.zeros(num_rows, np.bool_)
        self.done: list[Hypothesis | None] = [None] * num_rows

    def finish(self) -> list[Hypothesis]:
        """Go on until every row has ended or reached its limit."""
        self.begin()
        while not self.finished.all():
            self._drop_finished()
            self.round()
        return [hypothesis for hypothesis in self.done if hypothesis is not None]

    def begin(self) -> None:
        """Write the token behind every prompt."""
        log_probs = self.batch.processor.log_probs(self.batch.logits, self.batch.tokens)[:, None]
        self._write(_Verdict.of(log_probs, no_draft_tokens(self.state), "exact"), of_pass=False)

    def round(self) -> None:
        """Draft, run the model on the draft tokens, write the accepted ones and the model's own token behind them."""
        draft_tokens = propose(self.draft_state, self.state, int(self.state.lengths.max()) - 1)
        logits = self._stepper.step(with_draft(self.state.newest(), draft_tokens), self.batch.cache)
        self.draft_state.passes += 1
        log_probs = self._log_probs(draft_tokens, logits)
        written = self._write(_Verdict.of(log_probs, draft_tokens, self.draft_state.accept))
        self.draft_state.run.observe(np.maximum(written - 1, 0))

    def _log_probs(self, draft_tokens: Tensor, logits: Tensor) -> Tensor:
        """(R, Q, V) over the allowed tokens, at each position as if the draft tokens before it had been written."""
        lengths = (self.state.lengths - self.prompt_lengths)[:, None] + np.arange(logits.shape[1])
        return self.batch.processor.log_probs_at(
            logits, lengths, lambda padding: self._texts(draft_tokens, padding)
        )

    def _texts(self, draft_tokens: Tensor, padding: int) -> Tensor:
        """Tokens (R, Q, U) before each position, aligned at their ends; shorter texts begin with `padding`."""
        width = int((self.state.lengths - self.prompt_lengths).max()) + draft_tokens.shape[1]
        positions = self.state.lengths[:, None] + np.arange(-width, 0)
        texts = np.where(positions < self.prompt_lengths[:, None], padding, self.state.last(width))
        return torch.cat([self.state.on_device(texts), draft_tokens.clamp(min=0)], dim=1).unfold(1, width, 1)

    def _write(self, verdict: _Verdict, *, of_pass: bool = True) -> Integers:
        """Append the accepted draft tokens and one token more, up to the end token or the limit; how many (R,)."""
        state, end_token = self.state, self.batch.processor.end_token
        num_positions = verdict.tokens.shape[1]
        num_standing = (verdict.tokens[:, :-1] == verdict.draft_tokens).cumprod(1).sum(1)
        ends = verdict.tokens == end_token
        until_end = np.where(ends.any(1), ends.argmax(1) + 1, num_positions)
        room = np.where(self.finished, 0, self.limits - (state.lengths - self.prompt_lengths))
        counts = np.minimum(np.minimum(num_standing + 1, until_end), room)
        new = np.arange(num_positions) < counts[:, None]
        self.draft_state.checked[self.original] += (
            new[:, :-1] & (verdict.draft_tokens != NO_DRAFT_TOKEN)
        ).sum(1)
        if of_pass:
            accepted = np.minimum(num_standing, counts)[:, None]
            at_least = np.arange(self.draft_state.accepted.shape[1]) <= accepted
            self.draft_state.accepted[self.original] += at_least & (counts > 0)[:, None]
        self.sums += np.where(new, verdict.scores, 0.0).sum(1)
        state.append(verdict.tokens, counts)
        ended = (ends & new).any(1)
        self._finish_rows(ended, (ended | (counts == room)) & ~self.finished)
        # The cache holds every token but the newest. A finished row needs none of them, and must not take room from
        # the others.
        self.batch.cache.rewind(torch.from_numpy(state.lengths - 1))
        return counts

    def _finish_rows(self, ended: NDArray[np.bool_], over: NDArray[np.bool_]) -> None:
        """Record the rows that are `over`; those that `ended` wrote the end token."""
        for row in over.nonzero()[0].tolist():
            stop = int(self.state.lengths[row]) - int(ended[row])
            index, total = int(self.original[row]), float(self.sums[row])
            self.done[index] = Hypothesis(
                tokens=tuple(self.state.tokens[row, int(self.prompt_lengths[row]) : stop].tolist()),
                log_probability=total,
                finished=bool(ended[row]),
                no_speech_log_probability=self.batch.no_speech[index],
                score=total,
            )
        self.finished = self.finished | over
        self.state.lengths = np.where(self.finished, 1, self.state.lengths)

    def _drop_finished(self) -> None:
        """Drop memories whose rows are all finished, when that pays."""
        left = unfinished_rows(self.finished, self.batch.num_memories, self.batch.tokens.device)
        if left is None:
            return
        memories, rows = left
        self.batch.keep(memories)
        self.state.take(rows)
        self.draft_state.run.keep(memories, rows)
        order = rows.numpy(force=True)
        self.prompt_lengths, self.limits = self.prompt_lengths[order], self.limits[order]
        self.original, self.sums, self.finished = self.original[order], self.sums[order], self.finished[order]


def begin_state(batch: HypothesisBatch, prompts: Sequence[Sequence[int]]) -> DecodingState:
    """The decoding state of rows that hold their prompts, with the capacity of the cache."""
    tokens = np.zeros((len(prompts), batch.cache.capacity + 1), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return DecodingState(
        cache=batch.cache,
        tokens=tokens,
        lengths=np.array([len(prompt) for prompt in prompts]),
        suppressed=batch.processor.suppressed,
    )


def propose(draft_state: DraftState, state: DecodingState, held: int) -> Tensor:
    """Draft tokens (R, k), as many as the cache has room for.

    Args:
        draft_state: the draft.
        state: state of the rows.
        held: tokens in the cache of the fullest row.
    """
    count = min(draft_state.num_draft_tokens, state.cache.capacity - held - 1)
    return draft_state.run.propose(state, count) if count > 0 else no_draft_tokens(state)


def with_draft(newest: Tensor, draft_tokens: Tensor) -> Tensor:
    """The input of a pass (R, Q): the newest tokens (R, 1) and the draft tokens (R, K) behind them."""
    return torch.cat([newest, draft_tokens.clamp(min=0)], dim=1)


# Beam search.


@dataclass(kw_only=True)
class DraftedBatch(HypothesisBatch):
    """A batch of hypotheses with draft tokens behind them.

    Attributes:
        draft_state: the draft.
        state: tokens of the rows, as the draft reads them.
        held: (R,) tokens of each row in the cache; those behind them are draft tokens.
        draft_tokens: (R, K) in the cache, not used yet.
        ahead: (R, K, V) logits behind each of them.
        origin: (R,) the row at the start that each comes from.
        used: draft tokens accepted since the last pass.
    """

    draft_state: DraftState
    state: DecodingState
    held: Integers
    draft_tokens: Tensor
    ahead: Tensor
    origin: Integers
    used: int = 0

    @classmethod
    def from_batch(cls, batch: HypothesisBatch, draft_state: DraftState) -> "DraftedBatch":
        """Make a drafted batch of one that has read its prompts."""
        return cls(
            **vars(batch),
            draft_state=draft_state,
            state=begin_state(batch, draft_state.prompts),
            held=batch.cache.lengths.numpy(force=True),
            draft_tokens=batch.tokens[:, :0],
            ahead=batch.logits[:, None][:, :0],
            origin=np.arange(batch.cache.num_rows),
        )

    def advance(self, family: Family, tokens: Tensor, finished: NDArray[np.bool_]) -> None:
        """As `HypothesisBatch.advance`, with the same arguments; no pass where all tokens equal the draft tokens."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        chosen, moving = tokens.numpy(force=True), ~finished
        self.state.append(chosen[:, None], moving.astype(np.int64))
        # A hypothesis that goes on never ends in the end token, which marks the slots without a hypothesis.
        if self.draft_tokens.shape[1] and self._was_drafted(
            chosen, moving & (chosen != self.processor.end_token)
        ):
            self.logits, self.ahead, self.draft_tokens = (
                self.ahead[:, 0],
                self.ahead[:, 1:],
                self.draft_tokens[:, 1:],
            )
            self.used += 1
        else:
            np.add.at(self.draft_state.accepted[:, 0], self.origin[moving], 1)
            self._pass(family, tokens)
        self.held = self.held + moving

    def reorder(self, rows: Tensor) -> None:
        """Replace row r by row `rows[r]`; rows may only come from the same memory."""
        super().reorder(rows)
        self.draft_state.run.reorder(rows)

    def keep(self, memories: Tensor) -> None:
        """Drop every memory that is not among the indices `memories` (b,), with its rows."""
        group = self.cache.num_rows // self.num_memories
        rows = (memories[:, None] * group + torch.arange(group, device=memories.device)).flatten()
        super().keep(memories)
        self.draft_state.run.keep(memories, rows)

    def _take(self, rows: Tensor) -> None:
        super()._take(rows)
        self.state.take(rows)
        order = rows.numpy(force=True)
        self.held, self.origin = self.held[order], self.origin[order]
        self.draft_tokens, self.ahead = self.draft_tokens[rows], self.ahead[rows]

    def _was_drafted(self, tokens: Integers, alive: NDArray[np.bool_]) -> bool:
        draft_tokens = self.draft_tokens[:, 0].numpy(force=True)
        right = bool(((draft_tokens == tokens) | ~alive).all())
        origin = self.origin[alive]
        np.add.at(self.draft_state.checked, origin, 1)
        np.add.at(self.draft_state.accepted[:, self.used + 1], origin, int(right))
        return right

    def _pass(self, family: Family, tokens: Tensor) -> None:
        self.draft_state.run.observe(np.full(len(tokens), self.used))
        self.cache.rewind(torch.from_numpy(self.held))
        self.draft_tokens, self.used = propose(self.draft_state, self.state, int(self.held.max())), 0
        logits = family.step(with_draft(tokens[:, None], self.draft_tokens), self.cache)
        self.logits, self.ahead = logits[:, 0], logits[:, 1:]
        self.draft_state.passes += 1
