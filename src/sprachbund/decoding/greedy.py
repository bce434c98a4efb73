"""Greedy search: the likeliest token of every row at every step. The default, because it is fast and
deterministic."""

import torch

from sprachbund.decoding.rows import Hypothesis, Rows, worth_dropping
from sprachbund.decoding.rules import likeliest
from sprachbund.models.family import Family


def greedy_search(family: Family, rows: Rows) -> list[Hypothesis]:
    """Finish all `rows` (R); one hypothesis per row, in their order."""
    device, num_rows = rows.tokens.device, rows.cache.num_rows
    original, limits = list(range(num_rows)), rows.rules.limits.tolist()
    sums = torch.zeros(num_rows, device=device, dtype=torch.float64)
    finished = [False] * num_rows
    done: list[Hypothesis | None] = [None] * num_rows
    while True:
        log_probs = rows.rules.log_probs(rows.logits, rows.tokens)
        tokens = likeliest(log_probs)
        sums = sums + log_probs.gather(1, tokens[:, None])[:, 0]
        length = rows.tokens.shape[1] + 1
        # The tokens are all that has to come back from the device at each step.
        for row, token in enumerate(tokens.tolist()):
            ended = token == rows.rules.end_token
            if finished[row] or not (ended or length >= limits[row]):
                continue
            emitted = rows.tokens[row].tolist() + ([] if ended else [token])
            index, finished[row] = original[row], True
            done[index] = _hypothesis(emitted, float(sums[row]), ended, rows.no_speech[index])
        if all(finished):
            return [hypothesis for hypothesis in done if hypothesis is not None]
        kept = _drop_finished(rows, finished)
        if len(kept) < len(finished):
            index_of = torch.tensor(kept, device=device)
            sums, tokens = sums[index_of], tokens[index_of]
            original, limits = [original[row] for row in kept], [limits[row] for row in kept]
            finished = [finished[row] for row in kept]
        rows.advance(family, tokens, torch.tensor(finished))


def _drop_finished(rows: Rows, finished: list[bool]) -> list[int]:
    """Drop memories whose rows are all finished, when that pays; the rows left."""
    memories = torch.tensor(finished).view(rows.num_memories, -1)
    group = memories.shape[1]
    if not worth_dropping(memories.all(1)):
        return list(range(len(finished)))
    left = (~memories.all(1)).nonzero().flatten()
    rows.keep(left.to(rows.tokens.device))
    return [memory * group + row for memory in left.tolist() for row in range(group)]


def _hypothesis(tokens: list[int], total: float, finished: bool, no_speech: float | None) -> Hypothesis:
    return Hypothesis(
        tokens=tuple(tokens),
        log_probability=total,
        finished=finished,
        no_speech_log_probability=no_speech,
        score=total,
    )
