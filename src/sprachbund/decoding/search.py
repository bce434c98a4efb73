"""`search` chooses the search for a model: by attention decoder, CTC or frames, greedy, beam or speculative.

A model that writes one token for every frame has none to choose: the likeliest are taken. A caller with several
searches may let their rows run together: it starts each, and finishes those that can join in one `RunningSearch` (see
`StartedSearch.native_rows`).

Shapes: B memories, n targets of each, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sprachbund.decoding.autoregressive import beam_search, greedy_search
from sprachbund.decoding.ctc import join_ctc, search_by_ctc
from sprachbund.decoding.drafts.base import NativeRun
from sprachbund.decoding.drafts.network import NativeMedusaRun
from sprachbund.decoding.drafts.token_map import TokenMapRun
from sprachbund.decoding.drafts.whole_text import WholeTextRun
from sprachbund.decoding.native_search import NativeSearch, RunningSearch, searches_natively
from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.sampling import TokenSampler, compresses_too_well, mean_with_end, needs_fallback
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.decoding.speculative import DraftedBatch, DraftState, speculative_search
from sprachbund.decoding.state import (
    Hypothesis,
    HypothesisBatch,
    TokenFrames,
    first_tokens,
    start_batch,
    whole_prompt,
    without_bonus,
)
from sprachbund.decoding.transducer import search_by_frames
from sprachbund.engines.native_engine import NativeDecoder, limit_torch_threads
from sprachbund.models.base import Family, FrameDecoder, Memory, Target


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchRequest:
    """A request to `search`; the fields are its arguments."""

    family: Family
    memory: Memory
    targets: Sequence[Sequence[Target]]
    options: DecodingOptions = field(default_factory=DecodingOptions)
    durations_s: Sequence[float] | None = None
    speculation: Speculation | None = None
    utterances: Sequence[int] | None = None

    @torch.inference_mode()
    def start(self) -> "StartedSearch | None":
        """Read the prompts of a search at temperature 0; None of others. Errors are those of `search`."""
        family, able = self.family, self.family.capabilities
        check_options(family, self.options)
        if not self.targets or not self.targets[0] or able.writes_by_frames:
            return None
        if self.options.temperature[0] > 0:
            return None
        batch = start_batch(family, self.memory, self.targets, self.options, self.durations_s)
        speculation = None
        if able.joint_ctc is None:
            speculation = self.speculation or speculation_for(family, self.options)
        else:  # CTC does not score draft tokens
            join_ctc(able.joint_ctc, self.memory, self.targets, self.options, batch)
        flat = [target for group in self.targets for target in group]
        draft_state = None
        if speculation is not None:
            draft_state = speculation.begin(family, self.memory, flat, batch, self.options.beam_size)
        return StartedSearch(
            request=self, batch=batch, targets=flat, speculation=speculation, draft_state=draft_state
        )

    @torch.inference_mode()
    def run(self) -> list[list[Hypothesis]]:
        """`search` with these arguments."""
        if (started := self.start()) is not None:
            return started.finish()
        able, asked = self.family.capabilities, self.targets
        if asked and asked[0] and able.transducer is not None:
            return search_by_frames(self.family, able.transducer, self.memory, asked, self.options)
        if asked and asked[0] and able.ctc is not None:
            return search_by_ctc(self.family, able.ctc, self.memory, asked, self.options)
        if asked and asked[0] and able.frame_decoder is not None:
            return _write_frames(self.family, able.frame_decoder, self.memory, asked, self.options)
        if asked and asked[0]:
            return self.fall_back(self._draw(self.options.temperature[0]))
        return [[] for _ in asked]

    def fall_back(self, first: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """Search again, at the next temperatures, what should not stand of what was found at the first.

        Where nothing stands at any of them, the likeliest is taken, without a loop if there is one without.
        """
        if len(self.options.temperature) == 1:
            return first
        tried = [[[hypothesis] for hypothesis in row] for row in first]
        for temperature in self.options.temperature[1:]:
            again = [b for b, row in enumerate(tried) if not all(self._stands(texts[-1]) for texts in row)]
            if not again:
                break
            for b, row in zip(again, self._part(again)._draw(temperature), strict=True):
                for texts, drawn in zip(tried[b], row, strict=True):
                    if not self._stands(texts[-1]):
                        texts.append(drawn)
        return [[self._best(texts) for texts in row] for row in tried]

    def _stands(self, hypothesis: Hypothesis) -> bool:
        return not needs_fallback(self.family, hypothesis, self.options.guard)

    def _best(self, texts: Sequence[Hypothesis]) -> Hypothesis:
        """The last text, if it stands; else the one that is taken of them."""
        if len(texts) == 1 or self._stands(texts[-1]):
            return texts[-1]
        without_loop = [one for one in texts if not compresses_too_well(self.family, one, self.options.guard)]
        return max(without_loop or texts, key=mean_with_end)

    def _part(self, memories: Sequence[int]) -> "SearchRequest":
        """The same of some memories."""
        names = self._names()
        return replace(
            self,
            memory=self.memory.select(torch.tensor(memories, device=self.memory.states.device)),
            targets=[self.targets[b] for b in memories],
            durations_s=None if self.durations_s is None else [self.durations_s[b] for b in memories],
            utterances=[names[b] for b in memories],
        )

    def _draw(self, temperature: float) -> list[list[Hypothesis]]:
        """At a temperature above 0: neither beams nor drafts, as in Whisper."""
        family, options, each = self.family, self.options, len(self.targets[0])
        batch = start_batch(family, self.memory, self.targets, options, self.durations_s)
        names = [utterance for utterance in self._names() for _ in range(each)]
        flat = [target for group in self.targets for target in group]
        sampler = TokenSampler(temperature, options.sampling_seed, names, flat)
        with limit_torch_threads(family.capabilities.decoder):
            drawn = greedy_search(family, batch, sampler)
        if batch.processor.hot_words is not None:
            drawn = [without_bonus(hypothesis, batch.processor.hot_words) for hypothesis in drawn]
        return [drawn[i : i + each] for i in range(0, len(drawn), each)]

    def _names(self) -> Sequence[int]:
        return range(len(self.targets)) if self.utterances is None else self.utterances


@dataclass(frozen=True, kw_only=True, eq=False)
class StartedSearch:
    """A search with an attention decoder that has read its prompts.

    Attributes:
        request: request of the search.
        batch: its rows.
        targets: targets of the rows.
        speculation: the draft, if any.
        draft_state: the draft at work on the rows.
    """

    request: SearchRequest
    batch: HypothesisBatch
    targets: Sequence[Target]
    speculation: Speculation | None
    draft_state: DraftState | None

    @torch.inference_mode()
    def finish(self) -> list[list[Hypothesis]]:
        """Search by itself."""
        request = self.request
        with limit_torch_threads(request.family.capabilities.decoder):
            best = _finish(request.family, self.batch, self.targets, request.options, self.draft_state)
        return self._grouped(best)

    def native_rows(self) -> NativeSearch | None:
        """The rows, where they can run with those of other searches: greedy ones in the native engine.

        A draft may work on them that reads nothing but their tokens and states.
        """
        run = None if self.draft_state is None else self.draft_state.run
        options, family = self.request.options, self.request.family
        if options.beam_size > 1 or not searches_natively(family, self.batch, run, options.accept):
            return None
        if run is not None and not isinstance(run, JOINING):
            return None
        with limit_torch_threads(family.capabilities.decoder):
            return NativeSearch(self.batch, [whole_prompt(family, target) for target in self.targets])

    def join(self, rows: NativeSearch, running: RunningSearch) -> None:
        """Let rows of `native_rows` run with others."""
        if self.draft_state is None:
            running.add(rows)
        else:
            assert isinstance(self.draft_state.run, NativeRun)
            running.add(rows, self.draft_state.run, self.draft_state.num_draft_tokens)

    def result(self, rows: NativeSearch) -> list[list[Hypothesis]]:
        """The result of `finish`, of rows that have ended among others."""
        if self.draft_state is not None:
            _count(self.draft_state, rows)
            self.draft_state.run.close()
        return self._grouped(rows.hypotheses())

    def _grouped(self, best: Sequence[Hypothesis]) -> list[list[Hypothesis]]:
        if self.speculation is not None and self.draft_state is not None:
            self.speculation.add(self.targets, self.draft_state, [len(row.tokens) for row in best])
        if (hot_words := self.batch.processor.hot_words) is not None:
            best = [without_bonus(hypothesis, hot_words) for hypothesis in best]
        each = len(self.request.targets[0])
        return self.request.fall_back([list(best[i : i + each]) for i in range(0, len(best), each)])


JOINING = (TokenMapRun, WholeTextRun, NativeMedusaRun)
"""Runs of drafts whose rows may join those of others."""


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
            positions in the batch if None.

    Returns:
        B lists of n hypotheses. They depend neither on how utterances are batched nor on the draft.

    Raises:
        SprachbundError: for a pair the model does not know, a prompt that leaves no room for text, or an option that
            the model cannot serve, see `check_options`.
    """
    return SearchRequest(
        family=family,
        memory=memory,
        targets=targets,
        options=options or DecodingOptions(),
        durations_s=durations_s,
        speculation=speculation,
        utterances=utterances,
    ).run()


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
    _count(draft_state, rows)
    return best


def _count(draft_state: DraftState, rows: NativeSearch) -> None:
    draft_state.checked += rows.checked
    draft_state.accepted += rows.accepted[:, : draft_state.accepted.shape[1]]
    draft_state.passes += rows.passes


# Models that write one token for every frame.


def _write_frames(
    family: Family,
    decoder: FrameDecoder,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
) -> list[list[Hypothesis]]:
    """The likeliest token of every frame; those that are text make the text.

    Such a model writes what is spoken, so that all n targets of a memory are alike. Raises SprachbundError for a
    language that it does not write.
    """
    for target in {target for group in targets for target in group}:
        family.prompt(target)
    written, _ = decoder.write_frames(memory.states, decoder.start_frames(len(memory.states)))
    length = memory.states.shape[1]
    num_frames = [length] * len(targets) if memory.num_frames is None else memory.num_frames.tolist()
    is_text = decoder.is_text(written.tokens).cpu()
    tokens, log_probs = written.tokens.cpu(), written.log_probs.cpu().double()
    return [
        [_of_frames(decoder, of_row, scores, text, frames, options.max_tokens)] * len(group)
        for group, of_row, scores, text, frames in zip(
            targets, tokens, log_probs, is_text, num_frames, strict=True
        )
    ]


def _of_frames(
    decoder: FrameDecoder,
    tokens: Tensor,
    log_probs: Tensor,
    is_text: Tensor,
    num_frames: int,
    max_tokens: int | None,
) -> Hypothesis:
    """The hypothesis of a row (T). Frames of tokens are those of the speech: the silence in front of it and the delay
    of the text are taken off."""
    at = is_text[:num_frames].nonzero()[:, 0]
    spoken = [max(0, frame - decoder.lead - decoder.delay) for frame in at.tolist()]
    frames = TokenFrames(
        begins=tuple(spoken),
        ends=tuple(frame + 1 for frame in spoken),
        log_probabilities=tuple(log_probs[at].tolist()),
    )
    whole = Hypothesis(
        tokens=tuple(tokens[at].tolist()),
        # Of the text alone: a pause, however long, does not make it more doubtful.
        log_probability=float(log_probs[at].sum()),
        finished=True,
        no_speech_log_probability=None,
        score=float(log_probs[:num_frames].sum()),
        frames=frames,
    )
    return first_tokens(whole, max_tokens)
