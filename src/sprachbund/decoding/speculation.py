"""Chooses the draft and the number of draft tokens of each search, and counts the accepted ones by language pair.

The choice is made before each search from measured times of rounds on this machine and the share of draft tokens
accepted so far. It changes the speed only, unless a lossy way of accepting was asked for by name.

Whether speculation pays depends on the machine: on a CPU a pass over five tokens costs little more than one over one,
on a large batch it costs more. So whole rounds are measured, because a draft that is run on its own again and again
has its weights in the processor's cache, and in a search it does not. The rounds measured follow a round of the same
kind, as they do in a search. Shapes: R rows.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from sprachbund.decoding.autoregressive import GreedySearch
from sprachbund.decoding.drafts import load_draft
from sprachbund.decoding.drafts.base import Draft, DraftRun
from sprachbund.decoding.drafts.listed import TextDraft
from sprachbund.decoding.drafts.model import NativeModelRun
from sprachbund.decoding.drafts.network import InsideSearch, MedusaDraft, ParasiteDraft
from sprachbund.decoding.languages import UNDETERMINED
from sprachbund.decoding.native_search import searches_natively, seconds_of_pass
from sprachbund.decoding.options import AUTO, MAX_DRAFT_TOKENS, NONE, Accept, DecodingOptions
from sprachbund.decoding.result import SpeculationReport
from sprachbund.decoding.speculative import DraftState, SpeculativeSearch
from sprachbund.decoding.state import HypothesisBatch, whole_prompt
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target

# Costs of rounds, measured.

MEASURED_COUNTS = (1, 2, 4, MAX_DRAFT_TOKENS)
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Measured times for one number of rows.

    Attributes:
        plain_s: seconds of a round without draft tokens: a pass over the newest token, and the choice of the next.
        drafted_s: seconds of a round with 1, 2, .. draft tokens: drafting, a pass over them, and their acceptance.
    """

    plain_s: float
    drafted_s: tuple[float, ...]

    def gain(self, acceptance: float, num_draft_tokens: int) -> float:
        """Predicted tokens per second against those without a draft, at so many draft tokens a round.

        (1 - p^(k+1)) / (1 - p) tokens a round (arXiv 2211.17192, equation 1) over its time, against one token over the
        time of a round without draft tokens.
        """
        return (
            tokens_per_round(acceptance, num_draft_tokens)
            * self.plain_s
            / self.drafted_s[num_draft_tokens - 1]
        )

    def best(self, acceptance: float, most: int = MAX_DRAFT_TOKENS) -> tuple[int, float]:
        """The number of draft tokens with the greatest gain, up to `most`, and that gain."""
        options = [(self.gain(acceptance, k), -k) for k in range(1, most + 1)]
        gain, num_draft_tokens = max(options)
        return -num_draft_tokens, gain


def tokens_per_round(acceptance: float, num_draft_tokens: int) -> float:
    """Expected tokens of a round, when each draft token is accepted with that probability if those before it were."""
    return float(sum(acceptance**k for k in range(num_draft_tokens + 1)))


def measure_rounds(
    family: Family,
    batch: HypothesisBatch,
    run: DraftRun,
    prompts: Sequence[Sequence[int]],
    accept: Accept = "exact",
    most: int = MAX_DRAFT_TOKENS,
) -> RoundCosts:
    """Time the second round behind the prompts; the rows and their cache are left as they were.

    In a first round a draft has no state from the round before, so the second counts, unless the first ends a row.
    A few numbers of draft tokens are measured, as medians over alternating repeats, and those between interpolated.
    Numbers that the cache has no room for cost as much as the largest that fits. Where the kernels make the whole
    search, so do these rounds: passes of `seconds_of_pass`.

    Args:
        family: the model.
        batch: rows that have read their prompts.
        run: the draft at work on them.
        prompts: of the R rows.
        accept: which draft tokens are accepted.
        most: largest number of draft tokens.
    """
    device = batch.cache.lengths.device
    held = batch.cache.lengths.cpu()
    counts = [count for count in MEASURED_COUNTS if count <= most]
    decoder = family.capabilities.decoder
    natively = searches_natively(family, batch, run, accept)

    def plain() -> float:
        search = GreedySearch(replace(batch))
        tokens = search.choose()
        for _ in range(2):
            seconds = timed(lambda: search.round(family, tokens), device)
            batch.cache.rewind(held)
        return seconds

    def drafted(count: int) -> float:
        draft_state = DraftState.begin(run, prompts, num_draft_tokens=count, accept=accept)
        search = SpeculativeSearch(family, replace(batch), draft_state)
        search.begin()
        seconds = timed(search.round, device)
        if not search.finished.any():  # a finished row would be written over
            seconds = timed(search.round, device)
        batch.cache.rewind(held)
        return seconds

    times: dict[int, list[float]] = {count: [] for count in (0, *counts)}
    for count, seconds in [*times.items()] * _REPEATS:
        if natively and isinstance(decoder, NativeDecoder):
            network = run if isinstance(run, InsideSearch | NativeModelRun) else None  # all else is looked up
            seconds.append(seconds_of_pass(decoder, batch, prompts, count, network))
        else:
            seconds.append(drafted(count) if count else plain())
    drafted_s = np.interp(range(1, most + 1), counts, [median(times[count]) for count in counts])
    return RoundCosts(plain_s=median(times[0]), drafted_s=tuple(drafted_s.tolist()))


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
"""Draft tokens that the acceptance known before counts for, against those seen since."""

_measured: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[int, RoundCosts]]] = WeakKeyDictionary()
"""Times of rounds by model, draft and size of batch, measured once in a process."""
_loaded: WeakKeyDictionary[Any, dict[str, Draft | SprachbundError]] = WeakKeyDictionary()


class Speculation:
    """A draft for a model through any number of searches.

    Args:
        draft: checked to fit the model.
        num_draft_tokens: a pass; None chooses the number with the greatest gain.
        accept: see `sprachbund.decoding.options.Accept`.
        may_stop: go on without the draft where the predicted gain is under 1.

    Attributes:
        notes: sentences that the user should see.
        num_draft_tokens: of the latest search; 0 where it went without.
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
        self._checked: Counter[tuple[str, str]] = Counter()
        self._accepted: Counter[tuple[str, str]] = Counter()
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
            memory: of B utterances.
            targets: of the R rows.
            batch: the rows, prompts read.
            beam_size: of the search.

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

    def add(self, targets: Sequence[Target], draft_state: DraftState) -> None:
        """Count what came of a search."""
        counts = zip(targets, draft_state.checked.tolist(), draft_state.accepted.tolist(), strict=True)
        for target, checked, accepted in counts:
            pair = (target.source or UNDETERMINED, target.language)
            self._checked[pair] += checked
            self._accepted[pair] += accepted

    @property
    def acceptance(self) -> float:
        """Expected of the next draft token: the share known of the draft, weighted with the one seen so far."""
        known = self.draft.acceptance.values()
        before = sum(known) / len(known) if known else _EXPECTED
        return (before * _WEIGHT + self._accepted.total()) / (_WEIGHT + self._checked.total())

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
        return self._known.gain(self.acceptance, self.num_draft_tokens)

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
        self._known = costs = self.costs(family, memory, targets, batch, prompts)
        self.num_draft_tokens = self._fixed or costs.best(self.acceptance)[0]
        gain = costs.gain(self.acceptance, self.num_draft_tokens)
        # What was measured on other data is no reason to give up before the first try.
        if self._may_stop and gain < 1 and self._checked.total() >= _WEIGHT:
            self._stopped, self.num_draft_tokens = True, 0
            self._gain = gain
            self.notes.append(
                f"the {self.draft.name} draft was switched off: with {self.acceptance:.0%} of its tokens accepted "
                f"it would give {gain:.2f} of the speed without it on this machine"
            )

    def costs(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        batch: HypothesisBatch,
        prompts: Sequence[Sequence[int]],
    ) -> RoundCosts:
        """Times of rounds for about so many rows; measured at the first call.

        Args:
            family: the model.
            memory: of B utterances.
            targets: of the R rows.
            batch: the rows, prompts read.
            prompts: their tokens.
        """
        known = _measured.setdefault(family, WeakKeyDictionary()).setdefault(self.draft, {})
        key = (len(targets) - 1).bit_length()
        if key not in known:
            run = self.draft.start(family, memory, targets, batch.cache.capacity)
            try:
                known[key] = measure_rounds(family, batch, run, prompts, self._accept)
            finally:
                run.close()
        return known[key]


def speculation_for(
    family: Family, options: DecodingOptions, notes: list[str] | None = None
) -> Speculation | None:
    """The draft that the options ask for; None for "none", or where "auto" has no usable draft among the model's files.

    Args:
        family: the model.
        options: how to decode.
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
