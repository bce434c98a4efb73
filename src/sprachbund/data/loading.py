"""From manifests to batches: features, SpecAugment, speed, and a choice of target languages for each utterance.

Every random choice is drawn from (seed, epoch, utterance), so a batch is the same whichever process makes it,
and after a resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.data.examples import Examples, Row
from sprachbund.data.live import LiveEdition
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.data.plan import PlanOptions, epoch_indices, plan_epoch
from sprachbund.errors import SprachbundError


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """How an utterance becomes an example.

    Attributes:
        rows_per_utterance: G, target languages drawn for each utterance.
        targets: languages that are drawn; all that the model writes if empty.
        max_tokens: longer texts are left out of the draw; as many as the model holds if None.
        speeds: factors one of which changes tempo and pitch of a whole batch together.
        time_masks: SpecAugment's time masks (arXiv 1904.08779).
        max_time_mask_s: longest time mask; never more than a sixth of the utterance.
        frequency_masks: SpecAugment's frequency masks.
        max_frequency_mask: widest frequency mask in mel bins.
        same_language: share of the utterances that are to be transcribed, the others not; None draws their own
            language as it does any other.
        spoken: whether an example holds what was said in the tokens that the model writes.
        seed: of every draw.
    """

    rows_per_utterance: int = 3
    targets: tuple[str, ...] = ()
    max_tokens: int | None = None
    speeds: tuple[float, ...] = (1.0,)
    time_masks: int = 2
    max_time_mask_s: float = 0.3
    frequency_masks: int = 2
    max_frequency_mask: int = 15
    same_language: float | None = None
    spoken: bool = False
    seed: int = 0


Source = Manifest | LiveEdition

Place = tuple[int, int, float]
"""Epoch, index of the utterance, speed."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance made ready: features (T, M), tokens of the transcript and of each row.

    `num_frames` of the features are the utterance's own; all of them if None. `spoken` is the transcript as the model
    would write it, without its end.
    """

    features: Tensor
    source_language: int
    transcript: list[int]
    rows: list[Row]
    num_frames: int | None = None
    spoken: list[int] = field(default_factory=list)


def spec_augment(features: Tensor, rng: np.random.Generator, options: ExampleOptions) -> Tensor:
    """Mask stretches of time and frequency with the mean, arXiv 1904.08779, section 2; features (T, M)."""
    features = features.clone()
    mean = features.mean()
    longest = min(int(options.max_time_mask_s * 100), features.shape[0] // 6)
    for _ in range(options.time_masks):
        width = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, features.shape[0] - width + 1))
        features[start : start + width] = mean
    for _ in range(options.frequency_masks):
        width = int(rng.integers(0, options.max_frequency_mask + 1))
        start = int(rng.integers(0, features.shape[1] - width + 1))
        features[:, start : start + width] = mean
    return features


class Corpus(Dataset[Example]):
    """Several manifests, each repeated so many times an epoch, as examples.

    Args:
        parts: (manifest or live edition, repeats) pairs.
        examples: how the model's family makes features and tokens.
        options: how an utterance becomes an example.

    Raises:
        SprachbundError: speech in a language that the model does not hear, or a target that it does not write.
    """

    def __init__(
        self, parts: Sequence[tuple[Source, float]], examples: Examples, options: ExampleOptions
    ) -> None:
        self._sources = [source for source, _ in parts]
        self.manifests = [source.at() for source in self._sources]
        self.repeats = [repeats for _, repeats in parts]
        self.examples = examples
        self.options = options
        self.targets = options.targets or tuple(examples.target_languages)
        if strange := sorted(set(self.targets) - set(examples.target_languages)):
            raise SprachbundError(
                f"the model does not write {', '.join(strange)}; it writes {', '.join(examples.target_languages)}"
            )
        unknown = {str(tag) for m in self.manifests for tag in set(m.languages.tolist())}
        if unknown := unknown - {"", *examples.source_languages}:
            raise SprachbundError(
                f"data hold speech in {', '.join(sorted(unknown))}, the model hears only "
                f"{', '.join(examples.source_languages)}; add the language to the recipe or drop the data"
            )

    def enter(self, epoch: int) -> None:
        """Take up what is new in an epoch, and make it first where it is not there yet."""
        self.manifests = [source.at(epoch) for source in self._sources]
        for name in ("counts", "durations_s"):
            self.__dict__.pop(name, None)

    @cached_property
    def counts(self) -> list[int]:
        """Utterances of each manifest."""
        return [len(manifest) for manifest in self.manifests]

    @cached_property
    def durations_s(self) -> np.ndarray:
        """Lengths of all utterances, manifests end to end."""
        return np.concatenate([manifest.durations_s for manifest in self.manifests])

    def utterance(self, index: int) -> tuple[Utterance, np.ndarray]:
        """An utterance and its samples by global index."""
        for manifest, count in zip(self.manifests, self.counts, strict=True):
            if index < count:
                return manifest[index], manifest.samples(index)
            index -= count
        raise IndexError(index)

    def __getitem__(self, place: Place) -> Example:
        epoch, index, speed = place
        rng = np.random.default_rng([self.options.seed, epoch, index])
        utterance, samples = self.utterance(index)
        spoken = self.spoken(utterance) if self.options.spoken else []
        augment = partial(spec_augment, rng=rng, options=self.options)
        features, num_frames = self.examples.features(_change_speed(samples, speed), augment)
        return Example(
            features=features,
            source_language=self.examples.number(utterance.language) if utterance.language else NO_LANGUAGE,
            transcript=self.examples.transcript(utterance.text),
            rows=[] if spoken is None else self.rows(utterance, rng),
            num_frames=num_frames,
            spoken=spoken or [],
        )

    def rows(self, utterance: Utterance, rng: np.random.Generator) -> list[Row]:
        """Rows in target languages drawn for an utterance, at most as many as the options say."""
        limit = self.options.max_tokens or self.examples.max_tokens
        rows: list[Row] = []
        for language in self._drawn(utterance, rng):
            text = utterance.text_in(language) if utterance.language else ""
            row = None if text is None else self.examples.row(text, utterance.language or None, language)
            if row is not None and len(row[1]) <= limit:
                rows.append(row)
            if len(rows) == self.options.rows_per_utterance:
                break
        return rows

    def spoken(self, utterance: Utterance) -> list[int] | None:
        """What was said in the tokens that the model writes; None where that is too long for it."""
        language = utterance.language
        row = self.examples.row(utterance.text, language, language) if language else None
        if row is None:
            return []
        tokens = row[1][:-1]
        return tokens if len(tokens) <= self.examples.max_tokens else None

    def _drawn(self, utterance: Utterance, rng: np.random.Generator) -> list[str]:
        """Target languages in the order in which they are tried."""
        drawn: list[str] = rng.permutation(list(self.targets)).tolist()
        share, own = self.options.same_language, utterance.language
        if share is None or own not in drawn:
            return drawn
        others = [language for language in drawn if language != own]
        return [own, *others] if rng.random() < share else others

    def plan(self, options: PlanOptions, epoch: int) -> list[np.ndarray]:
        """An epoch's batches as global indices into what was entered last."""
        options = replace(options, max_duration_s=self.longest_s(options.max_duration_s))
        indices = epoch_indices(self.counts, self.repeats, options.seed, epoch)
        window_s = self.examples.max_window_s
        if window_s is None or not self.examples.whole_windows:
            return plan_epoch(self.durations_s, indices, options, epoch)
        indices = indices[self.durations_s[indices] <= options.max_duration_s]
        costs_s = np.full_like(self.durations_s, window_s)
        return plan_epoch(costs_s, indices, replace(options, max_duration_s=window_s), epoch)

    def longest_s(self, max_duration_s: float) -> float:
        """Longest utterance that is used: the model's window has to hold it at the slowest speed too."""
        window_s = self.examples.max_window_s
        return (
            max_duration_s if window_s is None else min(max_duration_s, window_s * min(self.options.speeds))
        )


def collate(examples: Sequence[Example], rows_per_utterance: int, round_frames: int = 16) -> Batch:
    """Pad examples into a batch; lengths are rounded up so that few distinct shapes occur.

    An utterance with fewer rows than `rows_per_utterance` gets rows that do not count.
    """
    own = [e.features.shape[0] if e.num_frames is None else e.num_frames for e in examples]
    longest = max(e.features.shape[0] for e in examples)
    longest = -(-longest // round_frames) * round_frames
    features = torch.zeros(len(examples), longest, examples[0].features.shape[1])
    for i, example in enumerate(examples):
        features[i, : example.features.shape[0]] = example.features
    rows = [row for e in examples for row in (e.rows + [(0, [])] * rows_per_utterance)[:rows_per_utterance]]
    transcripts = [e.transcript for e in examples]
    return Batch(
        features=features,
        num_frames=torch.tensor(own),
        source_language=torch.tensor([e.source_language for e in examples]),
        transcripts=_pad(transcripts),
        num_transcript=torch.tensor([len(t) for t in transcripts]),
        targets=_pad([tokens for _, tokens in rows]),
        num_targets=torch.tensor([len(tokens) for _, tokens in rows]),
        target_language=torch.tensor([language for language, _ in rows]),
        spoken=_pad([e.spoken for e in examples]),
        num_spoken=torch.tensor([len(e.spoken) for e in examples]),
    )


def batches(
    corpus: Corpus,
    options: PlanOptions,
    epoch: int,
    first: int = 0,
    *,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The epoch's batches from number `first` on, the same ones whoever asks.

    Of each batch a process takes the utterances `share[0], share[0] + share[1], ...`.
    """
    rank, count = share
    corpus.enter(epoch)
    plan = corpus.plan(options, epoch)
    # One speed for a batch, or its lengths would no longer fit together.
    speeds = np.random.default_rng([options.seed, epoch, 2]).choice(corpus.options.speeds, size=len(plan))
    places: list[list[Place]] = [
        [(epoch, int(i), float(speed)) for i in batch[rank::count]]
        for batch, speed in zip(plan[first:], speeds[first:], strict=True)
    ]
    loader: DataLoader[Any] = DataLoader(
        corpus,
        batch_sampler=places,
        num_workers=num_workers,
        collate_fn=_Collate(corpus.options.rows_per_utterance),
        worker_init_fn=_single_thread,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Collate:
    rows_per_utterance: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self.rows_per_utterance)


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return samples
    import soxr

    resampled: np.ndarray = soxr.resample(samples, 16_000 * factor, 16_000, quality="LQ")
    return resampled
