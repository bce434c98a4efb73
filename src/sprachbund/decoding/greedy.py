"""Greedy search: the likeliest token of every row at every step. The default, because it is fast and
deterministic."""

import torch
from torch import Tensor

from sprachbund.decoding.rows import Hypothesis, Rows, worth_dropping
from sprachbund.models.family import Family


def greedy_search(family: Family, rows: Rows) -> list[Hypothesis]:
    """Finish all `rows` (R); one hypothesis per row, in their order."""
    device = rows.tokens.device
    original = torch.arange(rows.cache.num_rows, device=device)
    sums = torch.zeros(rows.cache.num_rows, device=device, dtype=torch.float64)
    finished = torch.zeros_like(original, dtype=torch.bool)
    done: list[Hypothesis | None] = [None] * rows.cache.num_rows
    while True:
        log_probs, tokens = rows.rules.log_probs(rows.logits, rows.tokens).max(-1)
        sums = sums + log_probs.masked_fill(finished, 0.0)
        ended = tokens == rows.rules.end_token
        full = rows.tokens.shape[1] + 1 >= rows.rules.limits
        for row in ((ended | full) & ~finished).nonzero().flatten().tolist():
            emitted = rows.tokens[row].tolist() + ([] if ended[row] else [int(tokens[row])])
            index = int(original[row])
            done[index] = _hypothesis(emitted, float(sums[row]), bool(ended[row]), rows.no_speech[index])
        finished = finished | ended | full
        if bool(finished.all()):
            return [hypothesis for hypothesis in done if hypothesis is not None]
        kept = _drop_finished(rows, finished)
        original, sums, finished, tokens = original[kept], sums[kept], finished[kept], tokens[kept]
        rows.advance(family, tokens, finished)


def _drop_finished(rows: Rows, finished: Tensor) -> Tensor:
    """Drop memories whose rows are all finished, when that pays; returns the indices of the rows left."""
    memories = finished.view(rows.num_memories, -1)
    group = memories.shape[1]
    if not worth_dropping(memories.all(1)):
        return torch.arange(finished.shape[0], device=finished.device)
    left = (~memories.all(1)).nonzero().flatten()
    rows.keep(left)
    return (left[:, None] * group + torch.arange(group, device=left.device)).flatten()


def _hypothesis(tokens: list[int], total: float, finished: bool, no_speech: float | None) -> Hypothesis:
    return Hypothesis(
        tokens=tuple(tokens),
        log_probability=total,
        finished=finished,
        no_speech_log_probability=no_speech,
        score=total,
    )
