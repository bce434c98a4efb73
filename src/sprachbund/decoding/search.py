"""One door to the searches: a memory and its targets in, the best row of tokens for each target out."""

from collections.abc import Sequence

import torch

from sprachbund.decoding.beam import beam_search
from sprachbund.decoding.greedy import greedy_search
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.rows import Hypothesis, start_rows
from sprachbund.models.family import Family, Memory, Target


@torch.inference_mode()
def search(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions | None = None,
    durations_s: Sequence[float] | None = None,
) -> list[list[Hypothesis]]:
    """Decode every memory into each of its targets; the encoder's work is shared by all targets.

    Args:
        family: the model.
        memory: B encoded utterances.
        targets: B lists of equal length n; rows of one memory may have prompts of different lengths.
        options: beam size, length penalty and limits; greedy by default.
        durations_s: seconds of audio in each memory, so that no timestamp lies behind it; the model's window
            if None.

    Returns:
        B lists of n hypotheses. They do not depend on how utterances are batched.

    Raises:
        SprachbundError: for a pair the model does not know, or a prompt that leaves no room for text.
    """
    options = options or DecodingOptions()
    if not targets or not targets[0]:
        return [[] for _ in targets]
    rows = start_rows(family, memory, targets, options, durations_s)
    if options.beam_size == 1:
        best = greedy_search(family, rows)
    else:
        ranked = beam_search(family, rows, beam_size=options.beam_size, length_penalty=options.length_penalty)
        best = [hypotheses[0] for hypotheses in ranked]
    each = len(targets[0])
    return [best[i : i + each] for i in range(0, len(best), each)]
