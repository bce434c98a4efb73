"""`search` chooses the search for a model: attention decoder, CTC or transducer, greedy, beam or speculative."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sprachbund.decoding.autoregressive import beam_search, greedy_search
from sprachbund.decoding.ctc import join_ctc, search_by_ctc
from sprachbund.decoding.drafts.base import NativeRun
from sprachbund.decoding.native_search import NativeSearch, searches_natively
from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.sampling import TokenSampler, needs_fallback
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.decoding.speculative import DraftedBatch, DraftState, speculative_search
from sprachbund.decoding.state import Hypothesis, HypothesisBatch, start_batch, whole_prompt, without_bonus
from sprachbund.decoding.transducer import search_by_frames
from sprachbund.engines.native_engine import NativeDecoder, limit_torch_threads
from sprachbund.models.base import Family, Memory, Target


@torch.inference_mode()
def search(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions | None = None,
    durations_s: Sequence[float] | None = None,
    speculation: Speculation | None = None,
    utterances: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Decode every memory into each of its targets; the encoder's work is shared by all targets.

    Args:
        family: the model.
        memory: B encoded utterances.
        targets: B lists of equal length n; rows of one memory may have prompts of different lengths.
        options: beam size, length penalty and limits; greedy by default.
        durations_s: seconds of audio in each memory, so that no timestamp lies behind it; the model's window
            if None.
        speculation: the draft, kept from search to search with its acceptance so far; made from the options if None.
        utterances: (B,) numbers that tell the memories apart; the draws of a temperature above 0 depend on them. Their
            places in the batch if None.

    Returns:
        B lists of n hypotheses. They depend neither on how utterances are batched nor on the draft.

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
    names = range(len(targets)) if utterances is None else utterances
    first, *others = options.temperature
    best = _search_at(first, family, memory, targets, options, durations_s, speculation, names)
    for temperature in others:
        again = [
            b for b, row in enumerate(best) if any(needs_fallback(family, h, options.guard) for h in row)
        ]
        if not again:
            break
        rows = _search_at(
            temperature,
            family,
            memory.select(torch.tensor(again, device=memory.states.device)),
            [targets[b] for b in again],
            options,
            None if durations_s is None else [durations_s[b] for b in again],
            speculation,
            [names[b] for b in again],
        )
        for b, row in zip(again, rows, strict=True):
            best[b] = [
                new if needs_fallback(family, old, options.guard) else old
                for old, new in zip(best[b], row, strict=True)
            ]
    return best


def _search_at(
    temperature: float,
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
    durations_s: Sequence[float] | None,
    speculation: Speculation | None,
    utterances: Sequence[int],
) -> list[list[Hypothesis]]:
    """As `search`, with an attention decoder, at one temperature."""
    able, batch = family.capabilities, start_batch(family, memory, targets, options, durations_s)
    flat = [target for group in targets for target in group]
    if temperature > 0:  # neither beams nor drafts, as in Whisper
        each = len(targets[0])
        names = [utterance for utterance in utterances for _ in range(each)]
        sampler = TokenSampler(temperature, options.sampling_seed, names, flat)
        with limit_torch_threads(able.decoder):
            drawn = greedy_search(family, batch, sampler)
        if batch.processor.hot_words is not None:
            drawn = [without_bonus(hypothesis, batch.processor.hot_words) for hypothesis in drawn]
        return [drawn[i : i + each] for i in range(0, len(drawn), each)]
    if able.joint_ctc is None:
        speculation = speculation or speculation_for(family, options)
    else:  # CTC does not score draft tokens
        speculation = None
        join_ctc(able.joint_ctc, memory, targets, options, batch)
    draft_state = (
        None if speculation is None else speculation.begin(family, memory, flat, batch, options.beam_size)
    )
    with limit_torch_threads(able.decoder):
        best = _finish(family, batch, flat, options, draft_state)
    if speculation is not None and draft_state is not None:
        speculation.add(flat, draft_state)
    if (hot_words := batch.processor.hot_words) is not None:
        best = [without_bonus(hypothesis, hot_words) for hypothesis in best]
    each = len(targets[0])
    return [best[i : i + each] for i in range(0, len(best), each)]


def _finish(
    family: Family,
    batch: HypothesisBatch,
    targets: Sequence[Target],
    options: DecodingOptions,
    draft_state: DraftState | None,
) -> list[Hypothesis]:
    """The best hypothesis of every row."""
    try:
        if options.beam_size > 1:
            batch = batch if draft_state is None else DraftedBatch.from_batch(batch, draft_state)
            size, penalty = options.beam_size, options.length_penalty
            ranked = beam_search(family, batch, beam_size=size, length_penalty=penalty)
            return [replace(row[0], others=tuple(row[1 : options.nbest])) for row in ranked]
        run = None if draft_state is None else draft_state.run
        if searches_natively(family, batch, run, options.accept):
            return _finish_natively(family, batch, targets, draft_state)
        return (
            greedy_search(family, batch)
            if draft_state is None
            else speculative_search(family, batch, draft_state)
        )
    finally:
        if draft_state is not None:
            draft_state.run.close()


def _finish_natively(
    family: Family, batch: HypothesisBatch, targets: Sequence[Target], draft_state: DraftState | None
) -> list[Hypothesis]:
    decoder = family.capabilities.decoder
    assert isinstance(decoder, NativeDecoder)
    rows = NativeSearch(batch, [whole_prompt(family, target) for target in targets])
    if draft_state is None:
        return rows.finish(decoder)
    assert isinstance(draft_state.run, NativeRun)
    best = rows.finish(decoder, draft_state.run, draft_state.num_draft_tokens)
    draft_state.checked += rows.checked
    draft_state.accepted += rows.accepted
    draft_state.passes += rows.passes
    return best
