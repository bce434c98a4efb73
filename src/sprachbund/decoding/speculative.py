"""Greedy search with guesses: one pass of the model confirms several tokens of every row.

The model reads the newest token of each row and the guesses behind it in one pass, and every guess that it would have
written itself stands. So the tokens are those of greedy search whatever the draft guesses (arXiv 2508.11189, section
2.3, at k = 1; arXiv 2211.17192 without sampling). Rows keep what they have each won: nobody is taken back to the
slowest. Shapes: R rows, K guesses, Q = K + 1 tokens of a pass, U tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.decoding.draft import NO_GUESS, DraftRun, RowsSoFar, Stepper
from sprachbund.decoding.options import Accept
from sprachbund.decoding.rows import Hypothesis, Rows, worth_dropping
from sprachbund.decoding.rules import Rules
from sprachbund.models.family import Family

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
    checked: Tensor
    accepted: Tensor
    passes: int = 0

    @classmethod
    def begin(
        cls, run: DraftRun, prompts: Sequence[Sequence[int]], *, guesses: int, accept: Accept = "exact"
    ) -> "Guessing":
        """With nothing counted yet."""
        zeros = torch.zeros(len(prompts), dtype=torch.long)
        return cls(
            run=run,
            prompts=prompts,
            guesses=guesses,
            accept=accept,
            checked=zeros,
            accepted=zeros.clone(),
        )


def speculative_search(family: Family, rows: Rows, guessing: Guessing) -> list[Hypothesis]:
    """Finish all `rows` (R); one hypothesis per row, in their order, with the tokens of `greedy_search`."""
    return _Search(family, rows, guessing).finish()


def stands(log_probs: Tensor, guesses: Tensor, accept: Accept) -> Tensor:
    """Which guesses (..., K) stand, boolean, by the model's log-probabilities (..., K, V) in their places."""
    if accept == "exact":
        return log_probs.argmax(-1) == guesses
    own = log_probs.gather(-1, guesses.clamp(min=0)[..., None])
    stand = (own[..., 0] > -torch.inf) & (guesses != NO_GUESS)
    rank = _RANKS[accept]
    return stand if rank is None else stand & ((log_probs > own).sum(-1) < rank)


def ragged_log_probs(rules: Rules, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Log-probabilities (R, V) over what the rules allow after rows of different lengths.

    Args:
        rules: of the R rows.
        logits: (R, V).
        tokens: (R, U), padded on the right.
        lengths: (R,) tokens in each, one at least.
    """
    logits = logits.float()
    early = (lengths < rules.min_tokens)[:, None]
    ends = torch.arange(logits.shape[1], device=logits.device) == rules.end_token
    logits = logits.masked_fill(early & ends, -torch.inf)
    tokens = tokens[:, : max(1, int(lengths.max()))]
    if rules.times is not None:
        # The rules on timestamps look at the last tokens, so rows have to end together. A row of times begins with
        # one, and what stands for nothing before it is to look like the end of a pair: the earliest time does.
        places = lengths[:, None] + torch.arange(-tokens.shape[1], 0, device=tokens.device)
        before = places < 0
        tokens = tokens.gather(1, places.clamp(min=0)).masked_fill(before, rules.times.first)
    return replace(rules, min_tokens=0).log_probs(logits, tokens)


class _Search:
    """The rows still under way; each has its own length."""

    def __init__(self, family: Family, rows: Rows, guessing: Guessing) -> None:
        self.rows, self.guessing = rows, guessing
        self._stepper = guessing.run if isinstance(guessing.run, Stepper) else family
        cache = rows.cache
        device, num_rows = rows.tokens.device, cache.num_rows
        self.prompt_lengths = cache.lengths
        self.so_far = begin_rows(rows, guessing.prompts)
        self.original = torch.arange(num_rows, device=device)
        self.sums = torch.zeros(num_rows, device=device, dtype=torch.float64)
        self.finished = torch.zeros(num_rows, device=device, dtype=torch.bool)
        self.done: list[Hypothesis | None] = [None] * num_rows

    def finish(self) -> list[Hypothesis]:
        """Go on until every row has ended or reached its limit."""
        first = self.rows.rules.log_probs(self.rows.logits, self.rows.tokens)
        self._write(first.argmax(-1)[:, None], first[:, None], torch.ones_like(self.original))
        while not bool(self.finished.all()):
            self._drop_finished()
            guesses = propose(self.guessing, self.so_far)
            newest = self.so_far.last(1)
            given = torch.cat([newest, guesses.clamp(min=0)], dim=1)
            logits = self._stepper.step(given, self.rows.cache)
            self.guessing.passes += 1
            self._judge(guesses, logits)
        return [hypothesis for hypothesis in self.done if hypothesis is not None]

    def _judge(self, guesses: Tensor, logits: Tensor) -> None:
        """Write what stands of `guesses` (R, K), and the model's own token behind it; logits are (R, Q, V)."""
        held = self.so_far.lengths - 1
        log_probs = self._log_probs(guesses, logits)
        stand = stands(log_probs[:, :-1], guesses, self.guessing.accept)
        num_standing = stand.long().cumprod(1).sum(1)
        places = torch.arange(guesses.shape[1] + 1, device=guesses.device)
        own = log_probs.argmax(-1)
        tokens = torch.where(places < num_standing[:, None], F.pad(guesses, (0, 1)), own)
        written = self._write(tokens, log_probs, num_standing + 1)
        self._count(guesses, num_standing, written)
        self.guessing.run.observe((written - 1).clamp(min=0))
        # The cache holds every token but the newest. Of a finished row nothing is needed any more, and it must not
        # take room from the others.
        self.rows.cache.rewind(torch.where(self.finished, 0, held + written))

    def _log_probs(self, guesses: Tensor, logits: Tensor) -> Tensor:
        """(R, Q, V), in each place as if the guesses before it had been written."""
        num_rows, num_places, _ = logits.shape
        texts, lengths = self._texts()
        longer = torch.cat([texts, texts[:, :1].expand(-1, num_places)], dim=1)
        spots = lengths[:, None] + torch.arange(num_places - 1, device=texts.device)
        longer = longer.scatter(1, spots, guesses.clamp(min=0))
        each = torch.arange(num_rows, device=texts.device).repeat_interleave(num_places)
        rules = replace(self.rows.rules)
        rules.take(each)
        so_far = (lengths[:, None] + torch.arange(num_places, device=texts.device)).flatten()
        return ragged_log_probs(rules, logits.flatten(0, 1), longer[each], so_far).unflatten(
            0, (num_rows, -1)
        )

    def _texts(self) -> tuple[Tensor, Tensor]:
        """Tokens (R, U) behind the prompts, padded on the right, and how many there are (R,)."""
        lengths = (self.so_far.lengths - self.prompt_lengths).clamp(min=1)
        places = self.prompt_lengths[:, None] + torch.arange(int(lengths.max()), device=lengths.device)
        return self.so_far.tokens.gather(1, places.clamp(max=self.so_far.tokens.shape[1] - 1)), lengths

    def _write(self, tokens: Tensor, log_probs: Tensor, counts: Tensor) -> Tensor:
        """Append the first `counts` (R,) of `tokens` (R, Q), up to the end token or the limit; how many were (R,)."""
        rules, so_far = self.rows.rules, self.so_far
        places = torch.arange(tokens.shape[1], device=tokens.device)
        length = so_far.lengths - self.prompt_lengths
        ends = (tokens == rules.end_token) & (places < counts[:, None])
        first_end = torch.where(ends, places, tokens.shape[1]).amin(1)
        counts = torch.minimum(torch.minimum(counts, first_end + 1), rules.limits - length)
        counts = counts.masked_fill(self.finished, 0)
        new = places < counts[:, None]
        scores = log_probs.gather(-1, tokens[..., None])[..., 0]
        self.sums = self.sums + scores.masked_fill(~new, 0.0).double().sum(1)
        row, column = new.nonzero(as_tuple=True)
        so_far.tokens[row, so_far.lengths[row] + column] = tokens[row, column]
        so_far.lengths = so_far.lengths + counts
        ended = (first_end < counts) & ~self.finished
        full = (length + counts >= rules.limits) & ~self.finished
        self._finish_rows(ended, ended | full)
        return counts

    def _finish_rows(self, ended: Tensor, over: Tensor) -> None:
        """Take down the rows that are `over`, of which some have `ended` by themselves."""
        for row in over.nonzero().flatten().tolist():
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
        self.so_far.lengths = torch.where(self.finished, 1, self.so_far.lengths)

    def _count(self, guesses: Tensor, num_standing: Tensor, written: Tensor) -> None:
        places = torch.arange(guesses.shape[1], device=guesses.device)
        looked_at = (places < written[:, None]) & (guesses != NO_GUESS)
        stood = looked_at & (places < num_standing[:, None])
        original = self.original.cpu()
        self.guessing.checked.index_add_(0, original, looked_at.sum(1).cpu())
        self.guessing.accepted.index_add_(0, original, stood.sum(1).cpu())

    def _drop_finished(self) -> None:
        """Drop memories whose rows are all finished, when that pays."""
        memories = self.finished.view(self.rows.num_memories, -1)
        if not worth_dropping(memories.all(1)):
            return
        left = (~memories.all(1)).nonzero().flatten()
        group = memories.shape[1]
        kept = (left[:, None] * group + torch.arange(group, device=left.device)).flatten()
        self.rows.keep(left)
        self.so_far.take(kept)
        self.guessing.run.keep(left, kept)
        self.prompt_lengths, self.original = self.prompt_lengths[kept], self.original[kept]
        self.sums, self.finished = self.sums[kept], self.finished[kept]


def begin_rows(rows: Rows, prompts: Sequence[Sequence[int]]) -> RowsSoFar:
    """Rows that hold their prompts, with room for all that the cache has room for."""
    tokens = torch.zeros(len(prompts), rows.cache.capacity + 1, dtype=torch.long, device=rows.tokens.device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(list(prompt))
    return RowsSoFar(
        cache=rows.cache,
        tokens=tokens,
        lengths=rows.cache.lengths.clone(),
        suppressed=rows.rules.suppressed.each(),
    )


def propose(guessing: Guessing, rows: RowsSoFar) -> Tensor:
    """Guesses (R, k): as many as the cache has room for, without places in which no row has one."""
    room = rows.cache.capacity - int(rows.cache.lengths.max()) - 1
    count = min(guessing.guesses, room)
    if count < 1:
        return rows.tokens[:, :0]
    guesses = guessing.run.propose(rows, count)
    made = (guesses != NO_GUESS).any(0).long()
    return guesses[:, : int(made.cumprod(0).sum())]
