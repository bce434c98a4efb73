"""Chooses the draft and the number of draft tokens of each search, and counts the accepted ones by language pair.

The choice is made before each search from measured times of rounds on this machine and the share of draft tokens
accepted so far. It changes the speed only, unless a lossy way of accepting was asked for by name.

Whether speculation pays depends on the machine: on a CPU a pass over five tokens costs little more than one over one,
on a large batch it costs more. So whole rounds are measured, because a draft that is run on its own again and again
has its weights in the processor's cache, and in a search it does not. The rounds measured follow a round of the same
kind, as they do in a search. Shapes: R rows.
"""

import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sprachbund.decoding.autoregressive import GreedySearch
from sprachbund.decoding.drafts import load_draft
from sprachbund.decoding.drafts.base import Draft, DraftRun, Integers
from sprachbund.decoding.drafts.listed import TextDraft
from sprachbund.decoding.drafts.model import NativeModelRun
from sprachbund.decoding.drafts.network import InsideSearch, MedusaDraft, ParasiteDraft
from sprachbund.decoding.languages import UNDETERMINED
from sprachbund.decoding.native_search import TIMED_PASSES, searches_natively, seconds_of_passes
from sprachbund.decoding.options import AUTO, MAX_DRAFT_TOKENS, NONE, Accept, DecodingOptions
from sprachbund.decoding.result import SpeculationReport
from sprachbund.decoding.speculative import DraftState, SpeculativeSearch
from sprachbund.decoding.state import HypothesisBatch, start_batch, whole_prompt
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target

# Costs of rounds, measured.

MEASURED_COUNTS = (1, 2, 4, MAX_DRAFT_TOKENS)
_REPEATS = 3
_MEASURED_S = 0.03
"""So long, at least, rounds are repeated."""
_SHORTEST_S = 1e-9


@dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Measured times for one number of rows.

    Attributes:
        plain_s: seconds of a round without draft tokens: a pass over the newest token, and the choice of the next.
        drafted_s: seconds of a round with 1, 2, .. draft tokens: drafting, a pass over them, and their acceptance.
        start_s: seconds of a search outside its rounds, most of which read the prompts.
        draft_start_s: seconds that a draft adds to these.
    """

    plain_s: float
    drafted_s: tuple[float, ...]
    start_s: float = 0.0
    draft_start_s: float = 0.0

    def gain(self, acceptance: Sequence[float], num_draft_tokens: int, length: float | None = None) -> float:
        """Predicted tokens per second against those without a draft, at so many draft tokens a round.

        In a short text, what comes once counts: the time outside the rounds, and the last round, in which draft tokens
        lie behind the end.

        Args:
            acceptance: acceptance of the first, second, .. draft token of a round, if those before it were accepted.
            num_draft_tokens: k.
            length: mean tokens of a text; without end if None, where only rounds count.
        """
        drafted_s = self.drafted_s[num_draft_tokens - 1]
        if length is None:
            return tokens_per_round(acceptance, num_draft_tokens) * self.plain_s / drafted_s
        # The first token comes from the prompt; behind it as many are left as the text has, the end being one of them.
        rounds = rounds_of_text(acceptance, num_draft_tokens, length)
        plain = self.start_s + length * self.plain_s
        return plain / (self.start_s + self.draft_start_s + rounds * drafted_s)

    def best(
        self, acceptance: Sequence[float], most: int = MAX_DRAFT_TOKENS, length: float | None = None
    ) -> tuple[int, float]:
        """The number of draft tokens with the greatest gain, up to `most`, and that gain.

        Args:
            acceptance: as for `gain`.
            most: draft tokens.
            length: as for `gain`.
        """
        options = [(self.gain(acceptance, k, length), -k) for k in range(1, most + 1)]
        gain, num_draft_tokens = max(options)
        return -num_draft_tokens, gain


def tokens_per_round(acceptance: Sequence[float], num_draft_tokens: int) -> float:
    """Expected tokens of a round: 1 + p_1 + p_1 p_2 + .., with p_j for the draft token at position j.

    With the same p at all positions this is (1 - p^(k+1)) / (1 - p) (arXiv 2211.17192, equation 1).

    Args:
        acceptance: p_1, p_2, ..: each of a draft token if those before it were accepted.
        num_draft_tokens: k, of a round.
    """
    return 1 + sum(accumulate(acceptance[:num_draft_tokens], operator.mul))


def rounds_of_text(acceptance: Sequence[float], num_draft_tokens: int, length: float) -> float:
    """Expected rounds until `length` tokens are written: more than `length` over the tokens of a round.

    The last round writes less than it could. With X the tokens of a round, renewal theory has
    length / E[X] + (E[X^2] - E[X]) / (2 E[X]^2), but for terms that vanish with the length (Feller 1968, chapter XIII).

    Args:
        acceptance: as for `tokens_per_round`.
        num_draft_tokens: k, of a round.
        length: tokens.
    """
    at_least = list(accumulate(acceptance[:num_draft_tokens], operator.mul))  # P(X > j), j = 1, 2, ..
    mean = 1 + sum(at_least)
    square = 1 + sum((2 * j + 1) * share for j, share in enumerate(at_least, 1))
    return max(1.0, length / mean + (square - mean) / (2 * mean**2))


Work = Callable[[], tuple[int, float]]
"""Gives passes and seconds."""


def measure_rounds(
    family: Family,
    batch: HypothesisBatch,
    run: DraftRun,
    prompts: Sequence[Sequence[int]],
    accept: Accept = "exact",
    most: int = MAX_DRAFT_TOKENS,
    length: int = 0,
) -> RoundCosts:
    """Time the second round behind texts of some length; the rows and their cache are left as they were.

    Rounds take longer behind longer texts, so they are timed half-way through one. In a first round a draft has no
    state from the round before, so the second counts, unless the first ends a row. A few numbers of draft tokens are
    measured, the fastest of alternating repeats, and those between interpolated. Numbers that the cache has no room
    for cost as much as the largest that fits. Where the kernels make the whole search, so do these rounds, between a
    search of one pass and one of several; what such a search takes besides is measured with them.

    Args:
        family: the model.
        batch: rows that have read their prompts.
        run: the draft at work on them.
        prompts: prompts of the R rows.
        accept: rule that accepts draft tokens.
        most: largest number of draft tokens.
        length: tokens of a usual text, of which half are put behind the prompts, if they leave room for the rounds.
    """
    device = batch.cache.lengths.device
    held_before = batch.cache.lengths.cpu()
    batch, prompts = _half_way(family, batch, prompts, length // 2, most)
    held = batch.cache.lengths.cpu()
    counts = (0, *(count for count in MEASURED_COUNTS if count <= most))
    decoder = family.capabilities.decoder

    def plain() -> tuple[int, float]:
        search = GreedySearch(replace(batch))
        tokens = search.choose()
        for _ in range(2):
            seconds = timed(lambda: search.round(family, tokens), device)
            batch.cache.rewind(held)
        return 1, seconds

    def drafted(count: int) -> tuple[int, float]:
        draft_state = DraftState.begin(run, prompts, num_draft_tokens=count, accept=accept)
        search = SpeculativeSearch(family, replace(batch), draft_state)
        search.begin()
        seconds = timed(search.round, device)
        if not search.finished.any():  # a finished row would be written over
            seconds = timed(search.round, device)
        batch.cache.rewind(held)
        return 1, seconds

    def inside(decoder: NativeDecoder, count: int, most_passes: int) -> tuple[int, float]:
        # All other drafts are looked up.
        network = run if count and isinstance(run, InsideSearch | NativeModelRun) else None
        return seconds_of_passes(decoder, batch, prompts, count, most_passes, network)

    works: dict[tuple[int, int], Work]
    if isinstance(decoder, NativeDecoder) and searches_natively(family, batch, run, accept):
        works = {
            (count, passes): partial(inside, decoder, count, passes)
            for count in counts
            for passes in TIMED_PASSES
        }
    else:
        works = {(count, 1): partial(drafted, count) if count else plain for count in counts}
    fastest = _fastest(works)
    batch.cache.rewind(held_before)
    costs = [_each_and_around([one for key, one in fastest.items() if key[0] == count]) for count in counts]
    (plain_s, around_s), *of_drafts = costs
    drafted_s = np.interp(range(1, most + 1), counts[1:], [each for each, _ in of_drafts])
    return RoundCosts(
        plain_s=plain_s,
        drafted_s=tuple(drafted_s.tolist()),
        start_s=around_s,
        draft_start_s=median(around for _, around in of_drafts) - around_s,
    )


def _once(work: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """No passes, and the seconds of some work."""
    return 0, timed(work, device)


def _fastest(works: Mapping[Any, Work]) -> dict[Any, tuple[int, float]]:
    """Passes and seconds of the fastest of alternating repeats; the shorter the work, the more there are."""
    began, times = time.perf_counter(), [{key: work() for key, work in works.items()}]
    while len(times) < _REPEATS or time.perf_counter() - began < _MEASURED_S:
        times.append({key: work() for key, work in works.items()})
    return {key: min((one[key] for one in times), key=lambda one: one[1]) for key in works}


def _each_and_around(searches: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a pass, and of what a search takes besides, from a short and a longer search, or from one alone."""
    (few, short_s), (many, long_s) = searches[0], searches[-1]
    if many == few:  # there is no room for more
        return long_s / max(1, many), 0.0
    each_s = max(_SHORTEST_S, (long_s - short_s) / (many - few))
    return each_s, max(0.0, short_s - few * each_s)


def _half_way(
    family: Family, batch: HypothesisBatch, prompts: Sequence[Sequence[int]], length: int, most: int
) -> tuple[HypothesisBatch, list[list[int]]]:
    """Rows that have read `length` tokens more, which mean nothing, with their prompts."""
    held = int(batch.cache.lengths.max())
    limit = int(batch.processor.limits.min())
    room = min(limit, batch.cache.capacity - held) - (_REPEATS + 1) * (most + 1)
    length = max(0, min(length, room))
    texts = [[*prompt, *[prompt[-1]] * length] for prompt in prompts]
    if length:
        family.step(torch.tensor([text[-length:] for text in texts], device=batch.tokens.device), batch.cache)
    limits = batch.processor.limits - length
    return replace(batch, processor=replace(batch.processor, limits=limits)), texts


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


# The choice.

_EXPECTED = 0.6
"""Acceptance of a draft of which nothing is known."""
_WEIGHT = 20.0
"""Passes that the acceptance known before counts for at each position, against those seen since."""
_LEAST_GAIN = 1.05
"""Predicted, for which a draft that nobody named is used: a prediction may be off by as much."""
_TYPICAL_LENGTH = 24
"""Tokens of a text, of which nothing is known."""

_measured: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[int, RoundCosts]]] = WeakKeyDictionary()
"""Times of rounds by model, draft and size of batch, measured once in a process."""
_loaded: WeakKeyDictionary[Any, dict[str, Draft | SprachbundError]] = WeakKeyDictionary()


class Speculation:
    """A draft for a model through any number of searches.

    Args:
        draft: checked to fit the model.
        num_draft_tokens: a pass; None chooses the number with the greatest gain.
        accept: see `sprachbund.decoding.options.Accept`.
        may_stop: go on without the draft where the predicted gain is too small to be sure of.

    Attributes:
        notes: sentences that the user should see.
        num_draft_tokens: draft tokens of the latest search; 0 where it went without.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        num_draft_tokens: int | None = None,
        accept: Accept = "exact",
        may_stop: bool = False,
    ) -> None:
        self.draft = draft
        self.notes: list[str] = []
        self.num_draft_tokens = num_draft_tokens or 0
        self._fixed, self._accept, self._may_stop = num_draft_tokens, accept, may_stop
        self._chosen_for, self._choose_at = 0, 0
        self._checked: Counter[tuple[str, str]] = Counter()
        self._accepted: Counter[tuple[str, str]] = Counter()
        self._at_least: Integers = np.zeros(MAX_DRAFT_TOKENS + 1, np.int64)
        self._lengths: list[int] = []
        self._known: RoundCosts | None = None
        self._gain: float | None = None  # at which it was switched off
        self._stopped = False

    def begin(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        batch: HypothesisBatch,
        beam_size: int = 1,
    ) -> DraftState | None:
        """Start drafting for a search.

        Args:
            family: the model.
            memory: memory of B utterances.
            targets: targets of the R rows.
            batch: the rows, prompts read.
            beam_size: beam size of the search.

        Returns:
            The draft at work; None where no gain is predicted, or where a draft that nobody named works in the
            kernels alone and they cannot make this search.
        """
        if self._stopped:
            return None
        if self._may_stop and self._inside_alone(family, batch, beam_size):
            return None
        prompts = [whole_prompt(family, target) for target in targets]
        self._choose(family, memory, targets, batch, prompts)
        if self._stopped:
            return None
        run = self.draft.start(family, memory, targets, batch.cache.capacity)
        return DraftState.begin(run, prompts, num_draft_tokens=self.num_draft_tokens, accept=self._accept)

    def _inside_alone(
        self,
        family: Family,
        batch: HypothesisBatch,
        beam_size: int,
    ) -> bool:
        """Whether the draft works inside the kernels' search alone, which this one cannot be."""
        if not isinstance(self.draft, MedusaDraft | ParasiteDraft) or not isinstance(
            family.capabilities.decoder, NativeDecoder
        ):
            return False
        return beam_size > 1 or not searches_natively(family, batch, None, self._accept)

    def add(self, targets: Sequence[Target], draft_state: DraftState, lengths: Sequence[int]) -> None:
        """Count what came of a search.

        Args:
            targets: targets of the R rows.
            draft_state: its draft.
            lengths: (R,) tokens of the texts.
        """
        accepted = draft_state.accepted[:, 1:].sum(1)
        for target, checked, right in zip(
            targets, draft_state.checked.tolist(), accepted.tolist(), strict=True
        ):
            pair = (target.source or UNDETERMINED, target.language)
            self._checked[pair] += checked
            self._accepted[pair] += right
        self._at_least[: draft_state.accepted.shape[1]] += draft_state.accepted.sum(0)
        self._lengths.extend(lengths)

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Expected of the first, second, .. draft token of the next pass, if those before it are accepted.

        Each is the share seen so far at its position, weighted with the share that was known of the draft, or that of
        the position before. A pass in which the draft proposes fewer tokens counts like one that rejects the others.
        """
        known = self.draft.acceptance.values()
        before = sum(known) / len(known) if known else _EXPECTED
        shares: list[float] = []
        for reached, accepted in pairwise(self._at_least.tolist()):
            before = (before * _WEIGHT + accepted) / (_WEIGHT + reached)
            shares.append(before)
        return tuple(shares)

    @property
    def typical_length(self) -> int:
        """Median tokens of the texts so far; before the first, of those that the draft was measured on."""
        if self._lengths:
            return max(1, int(median(self._lengths)))
        return self.draft.typical_length or _TYPICAL_LENGTH

    @property
    def mean_length(self) -> float:
        """Mean tokens of the texts so far; before the first, `typical_length`."""
        return fmean(self._lengths) if self._lengths else float(self.typical_length)

    def report(self) -> tuple[SpeculationReport, ...]:
        """Draft tokens checked and accepted so far, by pair; a source that was not given is "und"."""
        return tuple(
            SpeculationReport(
                source_language=source,
                target_language=target,
                draft=self.draft.name,
                checked=checked,
                accepted=self._accepted[source, target],
                predicted_gain=self._predicted(),
            )
            for (source, target), checked in sorted(self._checked.items())
        )

    def _predicted(self) -> float | None:
        """The gain predicted from the current acceptance; None where nothing was measured."""
        if self._known is None or self._stopped:
            return self._gain
        return self._known.gain(self.acceptance, self.num_draft_tokens, self.mean_length)

    def _choose(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        batch: HypothesisBatch,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        """Set the number of draft tokens, or switch the draft off."""
        if self._fixed is not None and not self._may_stop:
            return
        # A choice takes as long as a pass of a small decoder, so it stands for a while.
        key, passes = _rows_key(len(targets)), int(self._at_least[0])
        if self._chosen_for == key and passes < self._choose_at:
            return
        self._chosen_for, self._choose_at = key, passes + max(1, passes // 8)
        self._known = costs = self.costs(family, memory, targets, batch, prompts)
        acceptance, length = self.acceptance, self.mean_length
        self.num_draft_tokens = self._fixed or costs.best(acceptance, length=length)[0]
        gain = costs.gain(acceptance, self.num_draft_tokens, length)
        # What was measured on other data is no reason to give up before the first try.
        if self._may_stop and gain < _LEAST_GAIN and self._checked.total() >= _WEIGHT:
            self._stopped, self.num_draft_tokens = True, 0
            self._gain = gain
            accepted = self._accepted.total() / self._checked.total()
            self.notes.append(
                f"the {self.draft.name} draft was switched off: with {accepted:.0%} of its tokens accepted "
                f"it is predicted to give {gain:.2f} times the speed without it on this machine, and {_LEAST_GAIN} "
                "is the least that is sure to be a gain"
            )

    def costs(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        batch: HypothesisBatch,
        prompts: Sequence[Sequence[int]],
    ) -> RoundCosts:
        """Times of rounds for about so many rows, and of the starts of search and draft; measured at the first call.

        Args:
            family: the model.
            memory: memory of B utterances.
            targets: targets of the R rows.
            batch: the rows, prompts read.
            prompts: their tokens.
        """
        known = _measured.setdefault(family, WeakKeyDictionary()).setdefault(self.draft, {})
        key = _rows_key(len(targets))
        if key in known:
            return known[key]
        device, each = batch.cache.lengths.device, len(targets) // batch.num_memories
        asked = [targets[i : i + each] for i in range(0, len(targets), each)]
        run = self.draft.start(family, memory, targets, batch.cache.capacity)
        try:
            costs = measure_rounds(family, batch, run, prompts, self._accept, length=self.typical_length)
        finally:
            run.close()

        def start_search() -> None:
            start_batch(family, memory, asked, DecodingOptions(draft=NONE), None)

        def start_draft() -> None:
            self.draft.start(family, memory, targets, batch.cache.capacity).close()

        starts = _fastest({work: partial(_once, work, device) for work in (start_search, start_draft)})
        known[key] = replace(
            costs,
            start_s=costs.start_s + starts[start_search][1],
            draft_start_s=max(0.0, costs.draft_start_s + starts[start_draft][1]),
        )
        return known[key]


def _rows_key(num_rows: int) -> int:
    """The same for about as many rows; not 0."""
    return 1 + (num_rows - 1).bit_length()


def speculation_for(
    family: Family, options: DecodingOptions, notes: list[str] | None = None
) -> Speculation | None:
    """The draft that the options ask for; None for "none", or where "auto" has no usable draft among the model's files.

    Args:
        family: the model.
        options: decoding options.
        notes: a sentence is added for each draft of the model that cannot be used.

    Raises:
        SprachbundError: a draft that was named is not there, or belongs to another model.
    """
    if options.draft == NONE:
        return None
    if options.draft != AUTO:
        draft = _kept(family, options.draft)
        if isinstance(draft, TextDraft) and (options.beam_size > 1 or options.accept != "exact"):
            raise SprachbundError(
                "a text as the draft is for greedy search, and changes nothing; leave it out"
            )
        num_draft_tokens = options.num_draft_tokens or draft.num_draft_tokens
        return Speculation(draft, num_draft_tokens=num_draft_tokens, accept=options.accept)
    for name in family.drafts:
        try:
            return Speculation(_kept(family, name), num_draft_tokens=options.num_draft_tokens, may_stop=True)
        except SprachbundError as error:
            if notes is not None:
                notes.append(f"the draft {name} beside the model is not used: {error}")
    return None


def _kept(family: Family, name: str) -> Draft:
    """A draft, loaded once for a model; so is the error of one that cannot be."""
    known = _loaded.setdefault(family, {})
    if name not in known:
        try:
            known[name] = load_draft(family, name)
        except SprachbundError as error:
            known[name] = error
    draft = known[name]
    if isinstance(draft, SprachbundError):
        raise draft
    return draft
