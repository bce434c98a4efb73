"""Transition from one kind of data to another within a run: data of the third stage of a speech LLM (arXiv 2511.10670).

At step u, counted from 0 to U, a batch is one of the previous data and one of the next, whose losses count (1 - u/U)
and u/U ("mixed"), or one of the two, drawn with these probabilities ("sampled"). Both are functions of seed and step,
so that a resumed run sees the same. The formula is a reconstruction; of the paper only the abstract's words
are public.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np
import torch

from sprachbund.data.batch import Batch, Sides
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, Example, ExampleOptions, SampleKey
from sprachbund.errors import SprachbundError
from sprachbund.models.speech_llm.stages import transition_side, transition_weights

Form = Literal["mixed", "sampled"]
PREVIOUS, NEXT = 0, 1


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An utterance of a step: of which side, which pass through it, which one, and what its side counts."""

    side: int
    epoch: int
    index: int
    weights: tuple[float, ...]


class Transition:
    """Stands where a `Corpus` stands; the whole run is one epoch.

    Args:
        previous: data that the run comes from.
        following: data that it arrives at; made with the same options.
        steps: steps of the run; U is the last one's number.
        form: see above; "mixed" has two half batches in each.
        seed: seed of the sampled form.

    Raises:
        SprachbundError: data that are made in different ways.
    """

    def __init__(
        self, previous: Corpus, following: Corpus, *, steps: int, form: Form = "mixed", seed: int = 0
    ) -> None:
        if previous.options != following.options:
            raise SprachbundError("the two sides of a transition have to be made with the same options")
        self.sides, self.steps, self.form, self.seed = (previous, following), steps, form, seed
        self.options: ExampleOptions = previous.options
        self.frames_per_s = previous.frames_per_s
        self._last = max(1, steps - 1)  # the first step is of the previous data alone, the last of the next
        self._entries: list[_Entry] = []

    @property
    def durations_s(self) -> np.ndarray:
        """Lengths of the utterances of all steps, as `plan` numbered them."""
        return np.array([self.sides[e.side].durations_s[e.index] for e in self._entries], np.float32)

    @property
    def collate(self) -> "Callable[[Sequence[tuple[Example, _Entry]]], Batch]":
        """Makes a batch of examples."""
        return _Collate(self.sides[0].collate, sided=self.form == "mixed")

    windows = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the lengths on both sides."""
        return hashlib.sha256("".join(side.digest for side in self.sides).encode()).hexdigest()

    def enter(self, epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        """Enter an epoch: load the data that are new in it.

        Args:
            epoch: number of the epoch.
            share: number of this process, and number of processes.
        """
        for side in self.sides:
            side.enter(epoch, share)

    def plan(self, options: BatchingOptions, epoch: int) -> list[np.ndarray]:
        """The batches of all steps."""
        each = replace(options, batch_s=options.batch_s / 2) if self.form == "mixed" else options
        streams = [_endless(side, each) for side in self.sides]
        self._entries, batches = [], []
        for step in range(self.steps):
            start = len(self._entries)
            for side, weights in self._drawn(step):
                pass_, indices = next(streams[side])
                self._entries += [
                    _Entry(side=side, epoch=pass_, index=int(i), weights=weights) for i in indices
                ]
            batches.append(np.arange(start, len(self._entries)))
        return batches

    def __getitem__(self, key: SampleKey) -> tuple[Example, _Entry]:
        _, number, *rest = key
        entry = self._entries[number]
        own: Any = (entry.epoch, entry.index, *rest)
        return self.sides[entry.side][own], entry

    def _drawn(self, step: int) -> list[tuple[int, tuple[float, ...]]]:
        """The sides that a step sees, with the weights of both."""
        if self.form == "mixed":
            weights = transition_weights(step, self._last)
            return [(PREVIOUS, weights), (NEXT, weights)]
        side = transition_side(step, self._last, seed=self.seed)
        return [(NEXT if side == "next" else PREVIOUS, ())]


def _endless(corpus: Corpus, options: BatchingOptions) -> Iterator[tuple[int, np.ndarray]]:
    """Batch after batch, epoch after epoch, with the epoch's number."""
    for epoch in count():
        batches = corpus.plan(options, epoch)
        if not batches:
            raise SprachbundError(
                "one side of the transition has no utterance that is short enough; see max_duration_s"
            )
        for batch in batches:
            yield epoch, batch


@dataclass(frozen=True)
class _Collate:
    plain: Callable[[Sequence[Example]], Batch]
    sided: bool

    def __call__(self, pairs: Sequence[tuple[Example, _Entry]]) -> Batch:
        batch = self.plain([example for example, _ in pairs])
        if not self.sided:
            return batch
        sides = Sides(torch.tensor([entry.side for _, entry in pairs]), pairs[0][1].weights)
        return replace(batch, sides=sides)
