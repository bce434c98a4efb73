"""Greedy search with guesses: one pass of the model confirms several tokens of every row.

The model reads the newest token of each row and the guesses behind it in one pass, and every guess that it would have
written itself stands. So the tokens are those of greedy search whatever the draft guesses (arXiv 2508.11189, section
2.3, at k = 1; arXiv 2211.17192 without sampling). Rows keep what they have each won: nobody is taken back to the
slowest. Of every pass a few numbers come back from the device in one piece; all that follows from them is done on
arrays, for on tensors it would cost as much as a layer or two of a small decoder. Shapes: R rows, K guesses, Q = K + 1
tokens of a pass, U tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.decoding.drafts.base import NO_GUESS, DraftRun, Integers, RowsSoFar, Stepper, no_guesses
from sprachbund.decoding.logits_process import forbid_timestamps, likeliest
from sprachbund.decoding.options import Accept
from sprachbund.decoding.state import Hypothesis, Rows, rows_left
from sprachbund.models.base import Family

_RANKS: dict[Accept, int | None] = {"top-2": 2, "top-3": 3, "unchecked": None}


@dataclass(kw_only=True)
class Guessing:
    """A draft at work, and what came of it.

    Attributes:
        run: makes the guesses.
        prompts: of the rows.
        guesses: most guesses a pass.
        accept: which of them stand.
        checked: (R,) guesses that the model has looked at, by the rows at the start.
        accepted: (R,) those of them that stood.
        passes: of the model, behind the prompts.
    """

    run: DraftRun
    prompts: Sequence[Sequence[int]]
    guesses: int
    accept: Accept
    checked: Integers
    accepted: Integers
    passes: int = 0

    @classmethod
    def begin(
        cls, run: DraftRun, prompts: Sequence[Sequence[int]], *, guesses: int, accept: Accept = "exact"
    ) -> "Guessing":
        """With nothing counted yet."""
        zeros = np.zeros(len(prompts), np.int64)
        return cls(
            run=run,
            prompts=prompts,
            guesses=guesses,
            accept=accept,
            checked=zeros,
            accepted=zeros.copy(),
        )


def speculative_search(family: Family, rows: Rows, guessing: Guessing) -> list[Hypothesis]:
    """Finish all `rows` (R); one hypothesis per row, in their order, with the tokens of `greedy_search`."""
    return SpeculativeSearch(family, rows, guessing).finish()


def stands(log_probs: Tensor, own: Tensor, guesses: Tensor, accept: Accept) -> Tensor:
    """Which guesses (..., K) stand, boolean.

    Args:
        log_probs: (..., K, V), the model's in their places.
        own: (..., K) likeliest tokens there.
        guesses: (..., K).
        accept: which are good enough.
    """
    if accept == "exact":
        return own == guesses
    score = log_probs.gather(-1, guesses.clamp(min=0)[..., None])
    stand = (score[..., 0] > -torch.inf) & (guesses != NO_GUESS)
    rank = _RANKS[accept]
    return stand if rank is None else stand & ((log_probs > score).sum(-1) < rank)


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What the model thinks of guesses, in the computer's own memory.

    Attributes:
        tokens: (R, Q) the guess in each place where it stands, else the model's own token.
        scores: (R, Q) their log-probabilities.
        guesses: (R, K).
    """

    tokens: Integers
    scores: NDArray[np.float64]
    guesses: Integers

    @classmethod
    def of(cls, log_probs: Tensor, guesses: Tensor, accept: Accept) -> "_Verdict":
        """From log-probabilities (R, Q, V) and guesses (R, K)."""
        own, num_places = likeliest(log_probs), log_probs.shape[1]
        stand = stands(log_probs[:, :-1], own[:, :-1], guesses, accept)
        tokens = torch.cat([torch.where(stand, guesses, own[:, :-1]), own[:, -1:]], dim=1)
        scores = log_probs.gather(-1, tokens[..., None])[..., 0]
        # In one piece, so that the device is waited for once; tokens are far from where doubles skip a number.
        found = torch.cat([scores.double(), tokens, guesses], dim=1).numpy(force=True)
        numbers = found[:, num_places:].astype(np.int64)
        return cls(
            tokens=numbers[:, :num_places], scores=found[:, :num_places], guesses=numbers[:, num_places:]
        )


class SpeculativeSearch:
    """The rows still under way; each has its own length."""

    def __init__(self, family: Family, rows: Rows, guessing: Guessing) -> None:
        self.rows, self.guessing = rows, guessing
        self._stepper = guessing.run if isinstance(guessing.run, Stepper) else family
        num_rows = rows.cache.num_rows
        self.so_far = begin_rows(rows, guessing.prompts)
        self.prompt_lengths = self.so_far.lengths
        self.limits: Integers = rows.rules.limits.numpy(force=True)
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
        log_probs = self.rows.rules.log_probs(self.rows.logits, self.rows.tokens)[:, None]
        self._write(_Verdict.of(log_probs, no_guesses(self.so_far), "exact"))

    def round(self) -> None:
        """Guess, let the model read the guesses, write those that stand and the model's own token behind them."""
        guesses = propose(self.guessing, self.so_far, int(self.so_far.lengths.max()) - 1)
        logits = self._stepper.step(given(self.so_far.newest(), guesses), self.rows.cache)
        self.guessing.passes += 1
        log_probs = self._log_probs(guesses, logits)
        written = self._write(_Verdict.of(log_probs, guesses, self.guessing.accept))
        self.guessing.run.observe(np.maximum(written - 1, 0))

    def _log_probs(self, guesses: Tensor, logits: Tensor) -> Tensor:
        """(R, Q, V) over what the rules allow, in each place as if the guesses before it had been written."""
        rules, num_places = self.rows.rules, logits.shape[1]
        logits = rules.suppressed(logits.float())
        written = self.so_far.lengths - self.prompt_lengths
        if rules.min_tokens > written.min():
            early = written[:, None] + np.arange(num_places) < rules.min_tokens
            logits[..., rules.end_token].masked_fill_(self.so_far.on_device(early), -torch.inf)
        if rules.times is not None:
            forbid_timestamps(
                logits.view(-1, logits.shape[2]),
                self._texts(guesses, rules.times.first).flatten(0, 1),
                times=rules.times,
                latest=rules.latest.repeat_interleave(num_places),
                end_token=rules.end_token,
            )
        return logits.log_softmax(-1)

    def _texts(self, guesses: Tensor, nothing: int) -> Tensor:
        """Tokens (R, Q, U) before each place, all ending together, for the rules on timestamps look at the last ones.

        A row of times begins with one, and what stands for `nothing` before it is to look like the end of a pair: the
        earliest time does.
        """
        width = int((self.so_far.lengths - self.prompt_lengths).max()) + guesses.shape[1]
        places = self.so_far.lengths[:, None] + np.arange(-width, 0)
        texts = np.where(places < self.prompt_lengths[:, None], nothing, self.so_far.last(width))
        return torch.cat([self.so_far.on_device(texts), guesses.clamp(min=0)], dim=1).unfold(1, width, 1)

    def _write(self, verdict: _Verdict) -> Integers:
        """Append the guesses that stand and one token more, up to the end token or the limit; how many (R,)."""
        so_far, end_token = self.so_far, self.rows.rules.end_token
        num_places = verdict.tokens.shape[1]
        num_standing = (verdict.tokens[:, :-1] == verdict.guesses).cumprod(1).sum(1)
        ends = verdict.tokens == end_token
        until_end = np.where(ends.any(1), ends.argmax(1) + 1, num_places)
        room = np.where(self.finished, 0, self.limits - (so_far.lengths - self.prompt_lengths))
        counts = np.minimum(np.minimum(num_standing + 1, until_end), room)
        new = np.arange(num_places) < counts[:, None]
        self.guessing.checked[self.original] += (new[:, :-1] & (verdict.guesses != NO_GUESS)).sum(1)
        self.guessing.accepted[self.original] += np.minimum(num_standing, counts)
        self.sums += np.where(new, verdict.scores, 0.0).sum(1)
        so_far.append(verdict.tokens, counts)
        ended = (ends & new).any(1)
        self._finish_rows(ended, (ended | (counts == room)) & ~self.finished)
        # The cache holds every token but the newest. Of a finished row nothing is needed any more, and it must not
        # take room from the others.
        self.rows.cache.rewind(torch.from_numpy(so_far.lengths - 1))
        return counts

    def _finish_rows(self, ended: NDArray[np.bool_], over: NDArray[np.bool_]) -> None:
        """Take down the rows that are `over`, of which some have `ended` by themselves."""
        for row in over.nonzero()[0].tolist():
            stop = int(self.so_far.lengths[row]) - int(ended[row])
            index, total = int(self.original[row]), float(self.sums[row])
            self.done[index] = Hypothesis(
                tokens=tuple(self.so_far.tokens[row, int(self.prompt_lengths[row]) : stop].tolist()),
                log_probability=total,
                finished=bool(ended[row]),
                no_speech_log_probability=self.rows.no_speech[index],
                score=total,
            )
        self.finished = self.finished | over
        self.so_far.lengths = np.where(self.finished, 1, self.so_far.lengths)

    def _drop_finished(self) -> None:
        """Drop memories whose rows are all finished, when that pays."""
        left = rows_left(self.finished, self.rows.num_memories, self.rows.tokens.device)
        if left is None:
            return
        memories, rows = left
        self.rows.keep(memories)
        self.so_far.take(rows)
        self.guessing.run.keep(memories, rows)
        order = rows.numpy(force=True)
        self.prompt_lengths, self.limits = self.prompt_lengths[order], self.limits[order]
        self.original, self.sums, self.finished = self.original[order], self.sums[order], self.finished[order]


def begin_rows(rows: Rows, prompts: Sequence[Sequence[int]]) -> RowsSoFar:
    """Rows that hold their prompts, with room for all that the cache has room for."""
    tokens = np.zeros((len(prompts), rows.cache.capacity + 1), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return RowsSoFar(
        cache=rows.cache,
        tokens=tokens,
        lengths=np.array([len(prompt) for prompt in prompts]),
        suppressed=rows.rules.suppressed,
    )


def propose(guessing: Guessing, rows: RowsSoFar, held: int) -> Tensor:
    """Guesses (R, k): as many as the cache has room for, of which the fullest row has `held` tokens."""
    count = min(guessing.guesses, rows.cache.capacity - held - 1)
    return guessing.run.propose(rows, count) if count > 0 else no_guesses(rows)


def given(newest: Tensor, guesses: Tensor) -> Tensor:
    """What the model reads (R, Q): the newest tokens (R, 1) and the guesses (R, K) behind them."""
    return torch.cat([newest, guesses.clamp(min=0)], dim=1)


# Beam search with guesses: the same beam search, on rows that sometimes know their next step already.
#
# One pass reads the newest token of every hypothesis and the guesses behind it. When all hypotheses that
# the search goes on with are what was guessed, the next step needs no pass; else the guesses are
# forgotten. So the draft only proposes and the hypotheses are those without it. Shapes: R rows
# (hypotheses), K guesses, V vocabulary.


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
        return cls(
            **vars(rows),
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
