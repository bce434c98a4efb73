"""Greedy search inside the native engine: all rows to their ends in one call, with or without a draft.

Between two passes nothing returns to Python, which takes longer than a pass of a small decoder. The first token of
every row is chosen here, by the same rules as in every other search; the kernels choose the others, of which they know
the tokens that are never written and the fewest tokens of a row. Rules on timestamps, scores of CTC and hot words they
do not know: such rows are searched from Python, as are beams.

Shapes: R rows, U tokens, K draft tokens, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sprachbund.decoding.drafts.base import DraftRun, Integers, NativeRun, StatelessRun
from sprachbund.decoding.logits_process import LogitsProcessor, likeliest
from sprachbund.decoding.options import Accept
from sprachbund.decoding.state import Hypothesis, HypothesisBatch
from sprachbund.engines.extension import native
from sprachbund.engines.native_engine import NativeCache, NativeDecoder
from sprachbund.models.base import Family


def searches_natively(
    family: Family, batch: HypothesisBatch, run: DraftRun | None = None, accept: Accept = "exact"
) -> bool:
    """Whether the kernels can search these rows.

    Args:
        family: the model.
        batch: rows that have read their prompts.
        run: the draft at work on them, if there is one.
        accept: which draft tokens are accepted.
    """
    processor = batch.processor
    return (
        isinstance(family.capabilities.decoder, NativeDecoder)
        and isinstance(batch.cache, NativeCache)
        and type(processor) is LogitsProcessor
        and processor.times is None
        and processor.hot_words is None
        and accept == "exact"
        and (run is None or isinstance(run, NativeRun))
    )


class NativeSearch:
    """The rows of a batch, and what the kernels write of them.

    Args:
        batch: R rows, prompts read; `searches_natively` says yes to them.
        prompts: of the rows.

    Attributes:
        checked: (R,) draft tokens that the model has checked.
        accepted: (R,) draft tokens accepted.
        passes: of the model, behind the prompts.
    """

    def __init__(self, batch: HypothesisBatch, prompts: Sequence[Sequence[int]]) -> None:
        self._batch, processor = batch, batch.processor
        log_probs = processor.log_probs(batch.logits, batch.tokens)
        first = likeliest(log_probs)
        self._log_probs = log_probs.gather(1, first[:, None])[:, 0].double().numpy()
        self._prompt_lengths = np.array([len(prompt) for prompt in prompts])
        self._tokens = np.zeros((len(prompts), batch.cache.capacity + 1), np.int64)
        for row, (prompt, token) in enumerate(zip(prompts, first.tolist(), strict=True)):
            self._tokens[row, : len(prompt) + 1] = [*prompt, token]
        self._lengths = self._prompt_lengths + 1
        self._ended = first.numpy() == processor.end_token
        self._room = np.where(self._ended, 0, processor.limits.numpy() - 1)
        masks = [mask.nonzero().flatten() for mask in processor.suppressed.masks]
        self._suppressed = torch.cat(masks)
        self._begins = np.cumsum([0, *map(len, masks)])
        zeros: Integers = np.zeros(len(prompts), np.int64)
        self.checked, self.accepted, self.passes = zeros, zeros.copy(), 0

    def finish(
        self,
        decoder: NativeDecoder,
        run: NativeRun | None = None,
        num_draft_tokens: int = 0,
        most_passes: int = 2**31,
    ) -> list[Hypothesis]:
        """Go on until every row has ended or reached its limit; one hypothesis per row, in their order.

        Args:
            decoder: of the model.
            run: the draft at work on the rows.
            num_draft_tokens: K, most draft tokens a pass.
            most_passes: after which rows are left as they are, unfinished.
        """
        cache, processor = self._batch.cache, self._batch.processor
        assert isinstance(cache, NativeCache)
        self.passes += decoder.search(
            cache,
            tokens=self._tokens,
            lengths=self._lengths,
            room=self._room,
            log_probs=self._log_probs,
            ended=self._ended,
            suppressed=self._suppressed,
            begins=self._begins,
            list_of=processor.suppressed.mask_of,
            end_token=processor.end_token,
            earliest_end=self._prompt_lengths + processor.min_tokens,
            most=num_draft_tokens,
            most_passes=most_passes,
            checked=self.checked,
            accepted=self.accepted,
            draft=None if run is None else run.native_draft(self._prompt_lengths.tolist()),
        )
        return [self._hypothesis(row) for row in range(len(self._tokens))]

    def _hypothesis(self, row: int) -> Hypothesis:
        ended, total = bool(self._ended[row]), float(self._log_probs[row])
        stop = int(self._lengths[row]) - ended
        return Hypothesis(
            tokens=tuple(self._tokens[row, int(self._prompt_lengths[row]) : stop].tolist()),
            log_probability=total,
            finished=ended,
            no_speech_log_probability=self._batch.no_speech[row],
            score=total,
        )


class TextRun(StatelessRun):
    """A whole text for every row as a draft, which the model may write otherwise; it goes on where both agree again.

    Args:
        texts: tokens for each of the R rows, without their prompts.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = [list(text) for text in texts]

    def native_draft(self, prompts: Sequence[int]) -> Any:
        """See `sprachbund.decoding.drafts.base.NativeRun`."""
        return native().TextDraft(self._texts, list(prompts))


_TIMED_PASSES = 4


def seconds_of_pass(
    decoder: NativeDecoder,
    batch: HypothesisBatch,
    prompts: Sequence[Sequence[int]],
    num_draft_tokens: int,
    run: NativeRun | None = None,
) -> float:
    """Seconds of a pass over the newest token of every row and so many draft tokens behind it.

    Fewer draft tokens where rows have no room for them. The rows and what their cache holds are left as they were.

    Args:
        decoder: of the model.
        batch: rows that have read their prompts; `searches_natively` says yes to them.
        prompts: of the rows.
        num_draft_tokens: of a pass.
        run: makes the draft tokens; they are looked up if None.
    """
    # The end token, which none of the rows may write then, is a draft token that is never accepted.
    processor = replace(batch.processor, min_tokens=decoder.max_tokens + 1)
    run = run or TextRun([[processor.end_token] * (_TIMED_PASSES + num_draft_tokens + 1)] * len(prompts))
    search = NativeSearch(replace(batch, processor=processor), prompts)
    began = time.perf_counter()
    search.finish(decoder, run, num_draft_tokens, most_passes=_TIMED_PASSES)
    return (time.perf_counter() - began) / max(1, search.passes)
