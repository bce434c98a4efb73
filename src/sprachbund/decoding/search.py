"""One door to the searches: a memory and its targets in, the best row of tokens for each target out."""

from collections.abc import Sequence

import torch

from sprachbund.decoding.autoregressive import beam_search, greedy_search
from sprachbund.decoding.ctc import join_ctc, search_by_ctc
from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.decoding.speculative import DraftedRows, Guessing, speculative_search
from sprachbund.decoding.state import Hypothesis, Rows, start_rows
from sprachbund.decoding.transducer import search_by_frames
from sprachbund.engines.native_engine import one_torch_thread_beside
from sprachbund.models.base import Family, Memory, Target


@torch.inference_mode()
def search(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions | None = None,
    durations_s: Sequence[float] | None = None,
    speculation: Speculation | None = None,
) -> list[list[Hypothesis]]:
    """Decode every memory into each of its targets; the encoder's work is shared by all targets.

    Args:
        family: the model.
        memory: B encoded utterances.
        targets: B lists of equal length n; rows of one memory may have prompts of different lengths.
        options: beam size, length penalty and limits; greedy by default.
        durations_s: seconds of audio in each memory, so that no timestamp lies behind it; the model's window
            if None.
        speculation: the draft that guesses, kept from search to search with what it has learned; made from the
            options if None.

    Returns:
        B lists of n hypotheses. They depend neither on how utterances are batched nor on what a draft guesses.

    Raises:
        SprachbundError: for a pair the model does not know, a prompt that leaves no room for text, or an option that
            the model cannot serve, see `check_options`.
    """
    options = options or DecodingOptions()
    if not targets or not targets[0]:
        return [[] for _ in targets]
    check_options(family, options)
    able = family.capabilities
    if able.transducer is not None:
        return search_by_frames(family, able.transducer, memory, targets, options)
    if able.ctc is not None:
        return search_by_ctc(family, able.ctc, memory, targets, options)
    rows = start_rows(family, memory, targets, options, durations_s)
    if able.joint_ctc is None:
        speculation = speculation or speculation_for(family, options)
    else:  # CTC does not score guesses
        speculation = None
        join_ctc(able.joint_ctc, memory, targets, options, rows)
    flat = [target for group in targets for target in group]
    guessing = None if speculation is None else speculation.begin(family, memory, flat, rows)
    with one_torch_thread_beside(able.decoder):
        best = _finish(family, rows, options, guessing)
    if speculation is not None and guessing is not None:
        speculation.add(flat, guessing)
    each = len(targets[0])
    return [best[i : i + each] for i in range(0, len(best), each)]


def _finish(
    family: Family, rows: Rows, options: DecodingOptions, guessing: Guessing | None
) -> list[Hypothesis]:
    """The best hypothesis of every row."""
    try:
        if options.beam_size > 1:
            rows = rows if guessing is None else DraftedRows.around(rows, guessing)
            size, penalty = options.beam_size, options.length_penalty
            ranked = beam_search(family, rows, beam_size=size, length_penalty=penalty)
            return [hypotheses[0] for hypotheses in ranked]
        return greedy_search(family, rows) if guessing is None else speculative_search(family, rows, guessing)
    finally:
        if guessing is not None:
            guessing.run.close()
