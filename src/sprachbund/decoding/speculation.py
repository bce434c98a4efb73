"""Whether, with which draft and how far ahead to guess; and what came of it, pair by pair.

The choice is made before each search from what was measured: times of rounds on this machine, and how many guesses
were accepted so far. It changes the speed only, unless a lossy way of accepting was asked for by name.
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
from sprachbund.decoding.languages import UNDETERMINED
from sprachbund.decoding.options import AUTO, MAX_DRAFT_TOKENS, NONE, Accept, DecodingOptions
from sprachbund.decoding.result import SpeculationReport
from sprachbund.decoding.speculative import Guessing, SpeculativeSearch
from sprachbund.decoding.state import Rows, whole_prompt
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target

# What a round of the search costs here and now, with and without guesses, and what guessing is to gain by
# it.
#
# Whether speculation pays is a matter of the machine: on a CPU a pass over five tokens costs little more
# than one over one, on a large batch it does not. So it is measured before it is used: whole rounds, since
# a draft that is asked again and again finds its weights in the processor's cache, and in a search the
# model's pass lies between; and rounds behind one of their own kind, since a search goes on in the way it
# began. Shapes: R rows.

MEASURED_GUESSES = (1, 2, 4, MAX_DRAFT_TOKENS)
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Measured times for one number of rows.

    Attributes:
        plain_s: seconds of a round without guesses: a pass over the newest token, and the choice of the next.
        drafted_s: seconds of a round with 1, 2, .. guesses: making them, a pass over them, and what stands of them.
    """

    plain_s: float
    drafted_s: tuple[float, ...]

    def gain(self, acceptance: float, guesses: int) -> float:
        """Predicted tokens per second against those without a draft, at so many guesses a round.

        (1 - p^(k+1)) / (1 - p) tokens a round (arXiv 2211.17192, equation 1) over its time, against one token over the
        time of a round without guesses.
        """
        return tokens_per_round(acceptance, guesses) * self.plain_s / self.drafted_s[guesses - 1]

    def best(self, acceptance: float, most: int = MAX_DRAFT_TOKENS) -> tuple[int, float]:
        """How many guesses gain most, and how much."""
        options = [(self.gain(acceptance, k), -k) for k in range(1, most + 1)]
        gain, guesses = max(options)
        return -guesses, gain


def tokens_per_round(acceptance: float, guesses: int) -> float:
    """Expected tokens of a round, when each guess is accepted with that probability if those before it were."""
    return float(sum(acceptance**k for k in range(guesses + 1)))


def measure_rounds(
    family: Family,
    rows: Rows,
    run: DraftRun,
    prompts: Sequence[Sequence[int]],
    accept: Accept = "exact",
    most: int = MAX_DRAFT_TOKENS,
) -> RoundCosts:
    """Seconds of the second rounds behind the prompts (R); the rows and their cache are left as they were.

    In a first round a draft has nothing to remember. Where it ends a row already, it is the one that counts.
    A few numbers of guesses are measured, as medians over alternating repeats, and those between interpolated. Numbers
    that the cache has no room for cost as much as the largest there is room for.
    """
    device = rows.cache.lengths.device
    held = rows.cache.lengths.cpu()
    counts = [count for count in MEASURED_GUESSES if count <= most]

    def plain() -> float:
        search = GreedySearch(replace(rows))
        tokens = search.choose()
        for _ in range(2):
            seconds = timed(lambda: search.round(family, tokens), device)
            rows.cache.rewind(held)
        return seconds

    def drafted(count: int) -> float:
        guessing = Guessing.begin(run, prompts, guesses=count, accept=accept)
        search = SpeculativeSearch(family, replace(rows), guessing)
        search.begin()
        seconds = timed(search.round, device)
        if not search.finished.any():  # a finished row would be written over
            seconds = timed(search.round, device)
        rows.cache.rewind(held)
        return seconds

    times: dict[int, list[float]] = {count: [] for count in (0, *counts)}
    for count, seen in [*times.items()] * _REPEATS:
        seen.append(drafted(count) if count else plain())
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


_EXPECTED = 0.6
"""Acceptance of a draft of which nothing is known."""
_WEIGHT = 20.0
"""Guesses that what was known before counts for, against those seen since."""

_measured: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[int, RoundCosts]]] = WeakKeyDictionary()
"""Times of rounds by model, draft and size of batch: they are facts of the machine, and measured once."""
_loaded: WeakKeyDictionary[Any, dict[str, Draft | SprachbundError]] = WeakKeyDictionary()


class Speculation:
    """A draft for a model through any number of searches.

    Args:
        draft: checked to fit the model.
        guesses: a pass; None chooses as many as gain most.
        accept: see `sprachbund.decoding.options.Accept`.
        may_stop: go on without the draft where the predicted gain is under 1.

    Attributes:
        notes: sentences that the user should see.
        guesses: of the latest search; 0 where it went without.
    """

    def __init__(
        self, draft: Draft, *, guesses: int | None = None, accept: Accept = "exact", may_stop: bool = False
    ) -> None:
        self.draft = draft
        self.notes: list[str] = []
        self.guesses = guesses or 0
        self._fixed, self._accept, self._may_stop = guesses, accept, may_stop
        self._checked: Counter[tuple[str, str]] = Counter()
        self._accepted: Counter[tuple[str, str]] = Counter()
        self._known: RoundCosts | None = None
        self._gain: float | None = None  # at which it was switched off
        self._stopped = False

    def begin(self, family: Family, memory: Memory, targets: Sequence[Target], rows: Rows) -> Guessing | None:
        """Guess for the rows of a search, one for each target; None where it is not to gain by it."""
        if self._stopped:
            return None
        prompts = [whole_prompt(family, target) for target in targets]
        self._choose(family, memory, targets, rows, prompts)
        if self._stopped:
            return None
        run = self.draft.start(family, memory, targets, rows.cache.capacity)
        return Guessing.begin(run, prompts, guesses=self.guesses, accept=self._accept)

    def add(self, targets: Sequence[Target], guessing: Guessing) -> None:
        """Count what came of a search."""
        counts = zip(targets, guessing.checked.tolist(), guessing.accepted.tolist(), strict=True)
        for target, checked, accepted in counts:
            pair = (target.source or UNDETERMINED, target.language)
            self._checked[pair] += checked
            self._accepted[pair] += accepted

    @property
    def acceptance(self) -> float:
        """Expected of the next guess: what is known of the draft, and more and more what was seen."""
        known = self.draft.acceptance.values()
        before = sum(known) / len(known) if known else _EXPECTED
        return (before * _WEIGHT + self._accepted.total()) / (_WEIGHT + self._checked.total())

    def report(self) -> tuple[SpeculationReport, ...]:
        """What came of it so far, by pair; a source that nobody named is "und"."""
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
        """By what is known by now; None where nothing was measured."""
        if self._known is None or self._stopped:
            return self._gain
        return self._known.gain(self.acceptance, self.guesses)

    def _choose(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        rows: Rows,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        """How many guesses, and whether at all."""
        if self._fixed is not None and not self._may_stop:
            return
        self._known = costs = self.costs(family, memory, targets, rows, prompts)
        self.guesses = self._fixed or costs.best(self.acceptance)[0]
        gain = costs.gain(self.acceptance, self.guesses)
        # What was measured on other data is no reason to give up before the first try.
        if self._may_stop and gain < 1 and self._checked.total() >= _WEIGHT:
            self._stopped, self.guesses = True, 0
            self._gain = gain
            self.notes.append(
                f"the {self.draft.name} draft was switched off: with {self.acceptance:.0%} of its guesses accepted "
                f"it would give {gain:.2f} of the speed without it on this machine"
            )

    def costs(
        self,
        family: Family,
        memory: Memory,
        targets: Sequence[Target],
        rows: Rows,
        prompts: Sequence[Sequence[int]],
    ) -> RoundCosts:
        """Times for about so many rows; measured when first asked for."""
        known = _measured.setdefault(family, WeakKeyDictionary()).setdefault(self.draft, {})
        key = (len(targets) - 1).bit_length()
        if key not in known:
            run = self.draft.start(family, memory, targets, rows.cache.capacity)
            try:
                known[key] = measure_rounds(family, rows, run, prompts, self._accept)
            finally:
                run.close()
        return known[key]


def speculation_for(
    family: Family, options: DecodingOptions, notes: list[str] | None = None
) -> Speculation | None:
    """What the options ask for; None where it is nothing, or "auto" finds no draft beside the model that can be used.

    `notes` gets a sentence for each draft beside the model that cannot be.

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
        guesses = options.num_draft_tokens or draft.guesses
        return Speculation(draft, guesses=guesses, accept=options.accept)
    for name in family.drafts:
        try:
            return Speculation(_kept(family, name), guesses=options.num_draft_tokens, may_stop=True)
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
    found = known[name]
    if isinstance(found, SprachbundError):
        raise found
    return found
