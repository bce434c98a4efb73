"""From manifests to batches: features, SpecAugment, speed, and a choice of target languages for each utterance.

Every random choice is drawn from (seed, epoch, utterance), so a batch is the same whichever process makes it,
and after a resume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sprachbund.audio.logmel import log_mel
from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.data.manifest import Manifest, Utterance
from sprachbund.data.plan import PlanOptions, epoch_indices, plan_epoch
from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import END, Tokenizer


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """How an utterance becomes an example.

    Attributes:
        rows_per_utterance: G, target languages drawn for each utterance.
        max_tokens: longer texts are left out of the draw.
        num_mel_bins: M.
        speeds: factors one of which changes tempo and pitch of a whole batch together.
        time_masks: SpecAugment's time masks (arXiv 1904.08779).
        max_time_mask_s: longest time mask; never more than a sixth of the utterance.
        frequency_masks: SpecAugment's frequency masks.
        max_frequency_mask: widest frequency mask in mel bins.
        seed: of every draw.
    """

    rows_per_utterance: int = 3
    max_tokens: int = 127
    num_mel_bins: int = 80
    speeds: tuple[float, ...] = (1.0,)
    time_masks: int = 2
    max_time_mask_s: float = 0.3
    frequency_masks: int = 2
    max_frequency_mask: int = 15
    seed: int = 0


Place = tuple[int, int, float]
"""Epoch, index of the utterance, speed."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance made ready: log-mel (T, M), tokens of the transcript and of each row."""

    features: Tensor
    source_language: int
    transcript: list[int]
    rows: list[tuple[int, list[int]]]  # language token, tokens


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
        parts: (manifest, repeats) pairs.
        tokenizer: of what the model writes.
        transcript_tokenizer: of the transcripts.
        source_languages: of the model; an utterance in another language is an error.
        target_languages: of the model.
        options: how an utterance becomes an example.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Manifest, float]],
        tokenizer: Tokenizer,
        transcript_tokenizer: Tokenizer,
        source_languages: Sequence[str],
        target_languages: Sequence[str],
        options: ExampleOptions,
    ) -> None:
        self.manifests = [manifest for manifest, _ in parts]
        self.repeats = [repeats for _, repeats in parts]
        self.tokenizer = tokenizer
        self.transcript_tokenizer = transcript_tokenizer
        self.source_languages = list(source_languages)
        self.target_languages = list(target_languages)
        self.options = options
        unknown = {str(tag) for m in self.manifests for tag in set(m.languages.tolist())}
        if unknown := unknown - {"", *source_languages}:
            raise SprachbundError(
                f"data hold speech in {', '.join(sorted(unknown))}, the model hears only "
                f"{', '.join(source_languages)}; add the language to the recipe or drop the data"
            )

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
        samples = _change_speed(samples, speed)
        features = log_mel(samples, self.options.num_mel_bins, normalise="fixed").T
        return Example(
            features=spec_augment(features, rng, self.options),
            source_language=self.source_languages.index(utterance.language)
            if utterance.language
            else NO_LANGUAGE,
            transcript=self.transcript_tokenizer.encode(utterance.text),
            rows=self._rows(utterance, rng),
        )

    def _rows(self, utterance: Utterance, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
        rows = []
        for language in rng.permutation(self.target_languages).tolist():
            text = utterance.text_in(language) if utterance.language else ""
            tokens = None if text is None else [*self.tokenizer.encode(text), END]
            if tokens is not None and len(tokens) <= self.options.max_tokens:
                rows.append((self.tokenizer.language_id(language), tokens))
            if len(rows) == self.options.rows_per_utterance:
                break
        return rows

    def plan(self, options: PlanOptions, epoch: int) -> list[np.ndarray]:
        """The epoch's batches as global indices."""
        indices = epoch_indices(self.counts, self.repeats, options.seed, epoch)
        return plan_epoch(self.durations_s, indices, options, epoch)


def collate(examples: Sequence[Example], rows_per_utterance: int, round_frames: int = 16) -> Batch:
    """Pad examples into a batch; lengths are rounded up so that few distinct shapes occur.

    An utterance with fewer rows than `rows_per_utterance` gets rows that do not count.
    """
    num_frames = torch.tensor([e.features.shape[0] for e in examples])
    longest = -(-int(num_frames.max()) // round_frames) * round_frames
    features = torch.zeros(len(examples), longest, examples[0].features.shape[1])
    for i, example in enumerate(examples):
        features[i, : example.features.shape[0]] = example.features
    rows = [row for e in examples for row in (e.rows + [(0, [])] * rows_per_utterance)[:rows_per_utterance]]
    transcripts = [e.transcript for e in examples]
    return Batch(
        features=features,
        num_frames=num_frames,
        source_language=torch.tensor([e.source_language for e in examples]),
        transcripts=_pad(transcripts),
        num_transcript=torch.tensor([len(t) for t in transcripts]),
        targets=_pad([tokens for _, tokens in rows]),
        num_targets=torch.tensor([len(tokens) for _, tokens in rows]),
        target_language=torch.tensor([language for language, _ in rows]),
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
