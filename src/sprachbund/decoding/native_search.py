"""Greedy search inside the native engine: all rows to their ends in one call, with or without a draft.

Between two passes nothing returns to Python, which takes longer than a pass of a small decoder. The first token of
every row is chosen here, by the same rules as in every other search; the kernels choose the others, of which they know
the tokens that are never written, the fewest tokens of a row and the rules on timestamps. Scores of CTC and hot
words they do not know: such rows are searched from Python, as are beams.

Rows need not begin together: `RunningSearch` has slots for rows that join while others are under way and leave when
they end, so that a row waits for nobody's end (continuous batching; Yu et al. 2022, Orca, section 3.1, there a token at
a time). A row's tokens are those that it has alone. Shapes: R rows, U tokens, K draft tokens, S slots, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.drafts.base import DraftRun, Integers, NativeRun
from sprachbund.decoding.drafts.whole_text import WholeTextRun
from sprachbund.decoding.logits_process import LogitsProcessor, likeliest
from sprachbund.decoding.options import MAX_DRAFT_TOKENS, Accept
from sprachbund.decoding.state import Hypothesis, HypothesisBatch
from sprachbund.engines.extension import enough_memory, native
from sprachbund.engines.native_engine import NativeCache, NativeDecoder
from sprachbund.engines.packing import BLOCK
from sprachbund.models.base import Family


def searches_natively(
    family: Family, batch: HypothesisBatch, run: DraftRun | None = None, accept: Accept = "exact"
) -> bool:
    """Whether the kernels can search these rows.

    Args:
        family: the model.
        batch: rows that have read their prompts.
        run: the draft at work on them, if there is one.
        accept: rule that accepts draft tokens.
    """
    processor = batch.processor
    return (
        isinstance(family.capabilities.decoder, NativeDecoder)
        and isinstance(batch.cache, NativeCache)
        and type(processor) is LogitsProcessor
        and processor.hot_words is None
        and not _writes_behind_times(processor)
        and accept == "exact"
        and (run is None or isinstance(run, NativeRun))
    )


def _writes_behind_times(processor: LogitsProcessor) -> bool:
    """Whether rows with timestamps may hold tokens behind those, which the kernels take for timestamps too."""
    times = processor.times
    return times is not None and not bool(processor.suppressed.masks[:, times.stop :].all())


class NativeSearch:
    """The rows of a batch, and what the kernels write of them.

    Args:
        batch: R rows, prompts read; `searches_natively` says yes to them.
        prompts: prompts of the rows.

    Attributes:
        batch: as given.
        tokens: (R, U) prompts and what was written behind them.
        lengths: (R,) tokens of each row.
        prompt_lengths: (R,) of which its prompt has so many.
        log_probs: (R,) sums over what was written.
        ended: (R,) rows that wrote the end token.
        suppressed, begins: tokens never to be written, in lists that begin at these indices.
        checked: (R,) draft tokens that the model has checked.
        accepted: (R, K + 1) passes of a row in which at least 0, 1, .. draft tokens were accepted.
        passes: passes of the model, behind the prompts.
    """

    def __init__(self, batch: HypothesisBatch, prompts: Sequence[Sequence[int]]) -> None:
        self.batch, processor = batch, batch.processor
        log_probs = processor.log_probs(batch.logits, batch.tokens)
        first = likeliest(log_probs)
        self.log_probs = log_probs.gather(1, first[:, None])[:, 0].double().numpy()
        self.prompt_lengths = np.array([len(prompt) for prompt in prompts])
        self.tokens = np.zeros((len(prompts), batch.cache.capacity + 1), np.int64)
        for row, (prompt, token) in enumerate(zip(prompts, first.tolist(), strict=True)):
            self.tokens[row, : len(prompt) + 1] = [*prompt, token]
        self.lengths = self.prompt_lengths + 1
        self.ended = first.numpy() == processor.end_token
        self._limits: Integers = processor.limits.numpy()
        masks = [mask.nonzero().flatten() for mask in processor.suppressed.masks]
        self.suppressed = torch.cat(masks)
        self.begins = np.cumsum([0, *map(len, masks)])
        self.checked: Integers = np.zeros(len(prompts), np.int64)
        self.accepted: Integers = np.zeros((len(prompts), 1), np.int64)
        self.passes = 0

    @property
    def num_rows(self) -> int:
        """Number R of rows."""
        return len(self.lengths)

    @property
    def list_of(self) -> Integers:
        """(R,) the list of suppressed tokens of each row."""
        lists: Integers = self.batch.processor.suppressed.mask_of.numpy()
        return lists

    def draft_of(self, run: NativeRun | None) -> Any:
        """The engine's own draft on the rows; None without a run."""
        return None if run is None else run.native_draft(self.prompt_lengths.tolist())

    @property
    def room(self) -> Integers:
        """(R,) most tokens that are still to come; 0 for a row that has ended."""
        left: Integers = np.where(self.ended, 0, self._limits - (self.lengths - self.prompt_lengths))
        return left

    def finish(
        self,
        decoder: NativeDecoder,
        run: NativeRun | None = None,
        num_draft_tokens: int = 0,
        most_passes: int = 2**31,
    ) -> list[Hypothesis]:
        """Go on until every row has ended or reached its limit; one hypothesis per row, in their order.

        Args:
            decoder: decoder of the model.
            run: the draft at work on the rows.
            num_draft_tokens: K, most draft tokens a pass.
            most_passes: after which rows are left as they are, unfinished.
        """
        cache = self.batch.cache
        assert isinstance(cache, NativeCache)
        self.accepted = np.zeros((self.num_rows, num_draft_tokens + 1), np.int64)
        processor = self.batch.processor
        self.passes += decoder.search(
            cache,
            tokens=self.tokens,
            lengths=self.lengths,
            room=self.room,
            log_probs=self.log_probs,
            ended=self.ended,
            suppressed=self.suppressed,
            begins=self.begins,
            list_of=processor.suppressed.mask_of,
            end_token=processor.end_token,
            earliest_end=self.prompt_lengths + processor.min_tokens,
            most=num_draft_tokens,
            most_passes=most_passes,
            checked=self.checked,
            accepted=self.accepted,
            until_end=False,
            first_time=-1 if processor.times is None else processor.times.first,
            latest_time=processor.latest,
            prompts=self.prompt_lengths,
            draft=self.draft_of(run),
        )
        return self.hypotheses()

    def hypotheses(self) -> list[Hypothesis]:
        """Return the hypothesis of each row."""
        return [self._hypothesis(row) for row in range(len(self.tokens))]

    def _hypothesis(self, row: int) -> Hypothesis:
        ended, total = bool(self.ended[row]), float(self.log_probs[row])
        stop = int(self.lengths[row]) - ended
        return Hypothesis(
            tokens=tuple(self.tokens[row, int(self.prompt_lengths[row]) : stop].tolist()),
            log_probability=total,
            finished=ended,
            no_speech_log_probability=self.batch.no_speech[row],
            score=total,
        )


class RunningSearch:
    """Slots for the rows of any number of searches; between two calls of `run`, searches join and leave.

    A search brings what its prompts left in its own cache, which is copied into its slots. Slots are made as they are
    needed, as long as the longest row and memory so far, and given back when the last search has left.

    Args:
        decoder: decoder of the model.
        num_slots: S, most rows under way.

    Attributes:
        passes: passes of the model, so far.
    """

    def __init__(self, decoder: NativeDecoder, num_slots: int) -> None:
        self._decoder, self._size = decoder, num_slots
        self._entries: list[_Entry] = []
        self._free: list[int] = []
        self._rows: _Slots | None = None
        self.passes = 0

    @property
    def num_free(self) -> int:
        """Rows that may still join."""
        return self._size - sum(len(entry.slots) for entry in self._entries)

    @enough_memory()
    def add(self, search: NativeSearch, run: NativeRun | None = None, num_draft_tokens: int = 0) -> None:
        """Let the rows of a search join; there has to be a slot for each. One that cannot join takes none.

        Args:
            search: prompts read, nothing written behind the first token.
            run: the draft at work on its rows; see `joins`.
            num_draft_tokens: K, most draft tokens a pass.
        """
        if search.num_rows > self.num_free:
            raise ValueError(f"{search.num_rows} rows for {self.num_free} slots")
        if self._rows is None:
            self._rows, self._free = _Slots(self._decoder, self._size), list(range(self._size))[::-1]
        slots = self._free[-search.num_rows :]
        entry = _Entry(search, slots, search.draft_of(run), num_draft_tokens)
        self._rows.enter(search, slots)
        del self._free[-search.num_rows :]
        self._entries.append(entry)

    def remove(self, search: NativeSearch) -> None:
        """Let the rows of a search leave unfinished; they keep what was written."""
        self._leave(next(entry for entry in self._entries if entry.search is search))

    def run(self, most_passes: int) -> list[NativeSearch]:
        """Go on until a search has ended, or for so many passes; the searches that ended, which have left."""
        if self._rows is None:
            return []
        if not (ended := self._ended()):
            self.passes += self._rows.search(self._decoder, self._entries, most_passes)
            ended = self._ended()
        for entry in ended:
            self._leave(entry)
        return [entry.search for entry in ended]

    def _ended(self) -> list["_Entry"]:
        assert self._rows is not None
        room = self._rows.room
        return [entry for entry in self._entries if not room[entry.slots].any()]

    def _leave(self, entry: "_Entry") -> None:
        assert self._rows is not None
        self._rows.leave(entry.search, entry.slots)
        self._entries.remove(entry)
        self._free += entry.slots
        if not self._entries:
            self._rows = None


@dataclass(frozen=True, eq=False)
class _Entry:
    """A search under way: its slots, the engine's draft on its rows, and K."""

    search: NativeSearch
    slots: list[int]
    draft: Any
    num_draft_tokens: int


class _Slots:
    """The rows of a running search (S), which `NativeSearch` has too, and their cache.

    A free slot is a row of one token that has no room for another.
    """

    def __init__(self, decoder: NativeDecoder, size: int) -> None:
        self._max_tokens = decoder.max_tokens
        self._tokens = np.zeros((size, decoder.max_tokens + 1), np.int64)
        self._lengths, self._prompt_lengths = np.ones(size, np.int64), np.zeros(size, np.int64)
        self._log_probs, self._ended = np.zeros(size), np.zeros(size, np.bool_)
        self._earliest_end, self._latest = np.zeros(size, np.int64), np.full(size, -1)
        self._checked = np.zeros(size, np.int64)
        self._accepted = np.zeros((size, MAX_DRAFT_TOKENS + 1), np.int64)
        self.room = np.zeros(size, np.int64)
        self._end_token, self._first_time = 0, -1
        self._cache: NativeCache | None = None

    def enter(self, search: NativeSearch, slots: list[int]) -> None:
        """Copy the rows of a search into slots."""
        processor, cache = search.batch.processor, search.batch.cache
        assert isinstance(cache, NativeCache)
        own = self._cache_for(cache)
        used, group = -(-cache.used // BLOCK), cache.num_rows // len(cache.frames)
        memories = [row // group for row in range(cache.num_rows)]
        own.own[:, :, slots, :, :used] = cache.own[:, :, :, :, :used]
        own.cross[:, :, slots, :, : cache.cross.shape[4]] = cache.cross[:, :, memories]
        own.frames[slots] = cache.frames[memories]
        if own.scales is not None and cache.scales is not None:
            own.scales[:, :, slots, :, : cache.scales.shape[4]] = cache.scales[:, :, memories]
        # Behind all that may lack memory: a slot with room is searched.
        self._tokens[slots, : search.tokens.shape[1]] = search.tokens
        self._lengths[slots], self._prompt_lengths[slots] = search.lengths, search.prompt_lengths
        self._log_probs[slots], self._ended[slots] = search.log_probs, search.ended
        self._earliest_end[slots] = search.prompt_lengths + processor.min_tokens
        self._latest[slots], self.room[slots] = processor.latest.numpy(), search.room
        self._checked[slots], self._accepted[slots] = 0, 0
        self._end_token = processor.end_token
        if processor.times is not None:
            self._first_time = processor.times.first

    def leave(self, search: NativeSearch, slots: list[int]) -> None:
        """Give what was written to the search, and free its slots."""
        search.tokens[:] = self._tokens[slots, : search.tokens.shape[1]]
        search.lengths, search.log_probs = self._lengths[slots], self._log_probs[slots]
        search.ended = self._ended[slots]
        search.checked += self._checked[slots]
        search.accepted = self._accepted[slots]
        self._lengths[slots], self._prompt_lengths[slots], self.room[slots] = 1, 0, 0
        self._tokens[slots, 0], self._latest[slots] = 0, -1

    def search(self, decoder: NativeDecoder, entries: Sequence[_Entry], most_passes: int) -> int:
        """Write on until a row ends, or for so many passes; how many there were."""
        assert self._cache is not None
        suppressed, begins = [torch.zeros(0, dtype=torch.long)], [np.zeros(1, np.int64)]
        list_of = np.zeros(len(self.room), np.int64)
        for entry in entries:
            list_of[entry.slots] = entry.search.list_of + sum(map(len, begins)) - 1
            begins.append(entry.search.begins[1:] + sum(map(len, suppressed)))
            suppressed.append(entry.search.suppressed)
        parts = [
            (entry.draft, entry.slots, entry.num_draft_tokens)
            for entry in entries
            if entry.draft is not None and self.room[entry.slots].any()
        ]
        before = self._lengths.copy()
        most = max((most for _, _, most in parts), default=0)
        accepted = np.zeros((len(self.room), most + 1), np.int64)
        passes = decoder.search(
            self._cache,
            tokens=self._tokens,
            lengths=self._lengths,
            room=self.room,
            log_probs=self._log_probs,
            ended=self._ended,
            suppressed=torch.cat(suppressed),
            begins=np.concatenate(begins),
            list_of=list_of,
            end_token=self._end_token,
            earliest_end=self._earliest_end,
            most=most,
            most_passes=most_passes,
            checked=self._checked,
            accepted=accepted,
            until_end=True,
            first_time=self._first_time,
            latest_time=self._latest,
            prompts=self._prompt_lengths,
            draft=native().JoinedDraft(parts) if parts else None,
        )
        self._accepted[:, : most + 1] += accepted
        self.room = np.where(self._ended, 0, self.room - (self._lengths - before))
        return passes

    def _cache_for(self, other: NativeCache) -> NativeCache:
        """The cache, with room for rows and memories as long as those of another."""
        old, size = self._cache, len(self.room)
        if old is not None and all(
            mine.shape[4] >= its.shape[4] for mine, its in ((old.own, other.own), (old.cross, other.cross))
        ):
            return old

        def longer(its: Tensor, mine: Tensor | None) -> Tensor:
            length = its.shape[4] if mine is None else max(its.shape[4], mine.shape[4])
            made = its.new_zeros(*its.shape[:2], size, its.shape[3], length, *its.shape[5:])
            if mine is not None:
                made[:, :, :, :, : mine.shape[4]] = mine
            return made

        own = longer(other.own, None if old is None else old.own)
        cross = longer(other.cross, None if old is None else old.cross)
        scales = None if other.scales is None else longer(other.scales, None if old is None else old.scales)
        self._cache = NativeCache(
            own,
            cross,
            scales,
            torch.zeros(size, dtype=torch.long) if old is None else old.frames,
            num_frames=cross.shape[4] * BLOCK,
            limit=min(own.shape[4] * BLOCK, self._max_tokens),
            route=None,
        )
        return self._cache


TIMED_PASSES = (1, 5)
"""Passes of a short and of a longer search: what they differ by are passes alone."""


def seconds_of_passes(
    decoder: NativeDecoder,
    batch: HypothesisBatch,
    prompts: Sequence[Sequence[int]],
    num_draft_tokens: int,
    most_passes: int,
    run: NativeRun | None = None,
) -> tuple[int, float]:
    """Passes over the newest token of every row and so many draft tokens behind it, and seconds of the whole search.

    Fewer draft tokens, and fewer passes, where rows have no room for them. The rows and what their cache holds are left
    as they were.

    Args:
        decoder: decoder of the model.
        batch: rows that have read their prompts; `searches_natively` says yes to them.
        prompts: prompts of the rows.
        num_draft_tokens: draft tokens of a pass.
        most_passes: after which the search is broken off.
        run: makes the draft tokens; they are looked up if None.
    """
    # The end token, which none of the rows may write then, is a draft token that is never accepted.
    processor = replace(batch.processor, min_tokens=decoder.max_tokens + 1)
    if run is None and num_draft_tokens:
        run = WholeTextRun([[processor.end_token] * (most_passes + num_draft_tokens + 1)] * len(prompts))
    began = time.perf_counter()
    search = NativeSearch(replace(batch, processor=processor), prompts)
    search.finish(decoder, run, num_draft_tokens, most_passes=most_passes)
    return search.passes, time.perf_counter() - began
