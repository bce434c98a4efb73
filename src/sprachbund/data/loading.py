"""From manifests to batches: features, SpecAugment, speed, and a choice of target languages for each utterance.

Every random choice is drawn from (seed, epoch, utterance), so a batch is the same whichever process makes it,
and after a resume.
"""

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.features import StreamedNormalisation, log_mel
from sprachbund.data.batch import NO_LANGUAGE, Augment, Batch, MixedLanguages, Row, Transcripts
from sprachbund.data.batching import BatchingOptions, epoch_indices, plan_lanes
from sprachbund.data.language_spans import languages_in, timed_spans
from sprachbund.data.manifest import Utterance, Utterances
from sprachbund.data.shards import Shards
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import MIXED
from sprachbund.text.tokenizer import END, Tokenizer
from sprachbund.util.jobs import LAST_STEP_S, without_interrupts

# How a family turns utterances into what it learns from: the one thing that differs between families in
# the data.
#
# Everything else (which utterances, in which order, which target languages, the masks) is the same for all
# of them, see `loading`. Shapes: T frames of 10 ms, M mel bins.


class Examples(Protocol):
    """Features and tokens of one family. It holds no weights: worker processes carry it about."""

    @property
    def source_languages(self) -> Sequence[str]:
        """BCP-47 tags that may be spoken in the data."""
        ...

    @property
    def target_languages(self) -> Sequence[str]:
        """BCP-47 tags that are drawn for every utterance."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens of a row; longer ones are left out."""
        ...

    @property
    def max_window_s(self) -> float | None:
        """Longest utterance that the family takes, None where there is no limit."""
        ...

    @property
    def whole_windows(self) -> bool:
        """Whether every utterance costs as much as one of `max_window_s`."""
        ...

    @property
    def frames_per_s(self) -> int:
        """Frames in a second of `features`; 0 of texts alone."""
        ...

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        ...

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Features (T, M) of 16 kHz samples (num_samples,), and how many frames are the utterance's own."""
        ...

    def transcript(self, text: str) -> list[int] | None:
        """Tokens for a CTC head; None where there is no such head."""
        ...

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """A row to be learned; None for a pair that the model cannot be asked for. No source: nobody speaks.

        Args:
            text: target text.
            source: BCP-47 tag of the speech; None without speech.
            target: BCP-47 tag of the text.
        """
        ...


def source_languages_of(languages: Sequence[str]) -> list[str]:
    """Languages of a recipe that are heard: all but `MIXED`, which is a way to write."""
    return [tag for tag in languages if tag != MIXED]


class PieceExamples:
    """`Examples` of the conformer: its own log-mel, pieces, any language to any other.

    Args:
        tokenizer: tokenizer of the texts that the model writes.
        transcript_tokenizer: tokenizer of the transcripts; None for a model without a CTC head that is trained.
        languages: languages spoken and drawn as targets; `MIXED` is a target alone.
        known: the model's source languages; `languages` if None.
        num_mel_bins: M.
        front_end: normalisation of the log-mel that the model takes.
        max_tokens: most tokens of a row.
        only_spoken: whether the model writes what is spoken, so that it can be trained on transcripts alone.
    """

    frames_per_s = 100
    whole_windows = False
    max_window_s: float | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        transcript_tokenizer: Tokenizer | None,
        languages: Sequence[str],
        *,
        known: Sequence[str] | None = None,
        num_mel_bins: int = 80,
        front_end: StreamedNormalisation = "fixed",
        max_tokens: int = 127,
        only_spoken: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.transcript_tokenizer = transcript_tokenizer
        self.source_languages = source_languages_of(languages)
        self.target_languages = list(languages)
        self.num_mel_bins, self.front_end = num_mel_bins, front_end
        self.max_tokens, self.only_spoken = max_tokens, only_spoken
        self._known = list(known or self.source_languages)

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._known.index(language)

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Log-mel (T, M) of 16 kHz samples (num_samples,), and T."""
        features = augment(log_mel(samples, self.num_mel_bins, normalise=self.front_end).T)
        return features, features.shape[0]

    def transcript(self, text: str) -> list[int] | None:
        """Pieces for the CTC head, if one is trained."""
        return None if self.transcript_tokenizer is None else self.transcript_tokenizer.encode(text)

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """Language token and pieces; where nobody speaks the row ends at once.

        Args:
            text: target text.
            source: BCP-47 tag of the speech; None without speech.
            target: BCP-47 tag of the text.
        """
        if self.only_spoken and source not in (None, target):
            return None
        return self.tokenizer.language_id(target), [*self.tokenizer.encode(text), END]


@dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """Options of making an example of an utterance.

    Attributes:
        rows_per_utterance: G, target languages drawn for each utterance.
        targets: languages that are drawn; all that the model writes if empty.
        max_tokens: longer texts are left out of the draw; as many as the model holds if None.
        speeds: factors one of which changes tempo and pitch of a whole batch together.
        time_masks: SpecAugment's time masks (arXiv 1904.08779).
        max_time_mask_s: longest time mask; never more than a sixth of the utterance.
        max_time_mask_share: longest time mask as a share of the utterance, in place of `max_time_mask_s` and the
            sixth (arXiv 1912.05533).
        frequency_masks: SpecAugment's frequency masks.
        max_frequency_mask: widest frequency mask in mel bins.
        same_language: share of the utterances that are to be transcribed, the others not; None draws their own
            language as it does any other. The transcript of mixed speech is asked for as `MIXED`, if that is a target.
        spoken: whether an example holds what was said in the tokens that the model writes.
        mixed: whether an example says which languages occur in it, and where.
        seed: seed of every draw.
    """

    rows_per_utterance: int = 3
    targets: tuple[str, ...] = ()
    max_tokens: int | None = None
    speeds: tuple[float, ...] = (1.0,)
    time_masks: int = 2
    max_time_mask_s: float = 0.3
    max_time_mask_share: float | None = None
    frequency_masks: int = 2
    max_frequency_mask: int = 15
    same_language: float | None = None
    spoken: bool = False
    mixed: bool = False
    seed: int = 0


class UtteranceSource(Protocol):
    """A corpus that training reads: the same in every epoch (`Manifest`), or drawn anew (`LiveEdition`)."""

    def at(self, epoch: int | None = None) -> Utterances:
        """The utterances of an epoch; of any epoch if None."""
        ...


SampleKey = tuple[int, int, float] | tuple[int, int, float, float]
"""Epoch, index of the utterance, speed, and strength of the masks (1 if not given)."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance made ready: features (T, M), and tokens of each row.

    `num_frames` of the features are the utterance's own; all of them if None. `transcript` is that of a CTC head, and
    `spoken` the same as the model would write it, without its end; None where nobody asked. `languages` are the numbers
    of those that occur, and `spans` (start_s, end_s, number) say where; None where nobody asked.
    """

    features: Tensor
    source_language: int
    rows: list[Row]
    num_frames: int | None = None
    transcript: list[int] | None = None
    spoken: list[int] | None = None
    languages: tuple[int, ...] | None = None
    spans: tuple[tuple[float, float, int], ...] = ()


def spec_augment(
    features: Tensor, rng: np.random.Generator, options: ExampleOptions, strength: float = 1.0
) -> Tensor:
    """Mask stretches of time and frequency with the mean, arXiv 1904.08779, section 2; features (T, M).

    Masks are fewer and narrower by `strength`, 0 for none.

    Args:
        features: log-mel features (T, M).
        rng: source of all random choices.
        options: number and size of masks.
        strength: factor of the size of masks; 0 masks nothing.
    """
    features = features.clone()
    mean, num_frames = features.mean(), features.shape[0]
    if options.max_time_mask_share is None:
        longest = min(options.max_time_mask_s * 100, num_frames // 6)
    else:
        longest = options.max_time_mask_share * num_frames
    for _ in range(round(strength * options.time_masks)):
        width = int(rng.integers(0, int(strength * longest) + 1))
        start = int(rng.integers(0, features.shape[0] - width + 1))
        features[start : start + width] = mean
    for _ in range(round(strength * options.frequency_masks)):
        width = int(rng.integers(0, int(strength * options.max_frequency_mask) + 1))
        start = int(rng.integers(0, features.shape[1] - width + 1))
        features[:, start : start + width] = mean
    return features


class TrainingDataset(Protocol):
    """The data of a training run: a `Corpus`, or tokens of speech and text (`sprachbund.units.dataset`)."""

    @property
    def options(self) -> ExampleOptions:
        """The options that examples are made with; a run reads the speeds."""
        ...

    @property
    def durations_s(self) -> np.ndarray:
        """Lengths of all examples."""
        ...

    @property
    def frames_per_s(self) -> int:
        """Frames of a second."""
        ...

    @property
    def collate(self) -> Callable[[Sequence[Any]], Batch]:
        """Makes a batch of examples."""
        ...

    @property
    def windows(self) -> int:
        """Windows of a pass through the data: what `enter` and `plan` call an epoch is one of them."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the data; all processes of one run must have the same."""
        ...

    def enter(self, epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        """Enter an epoch: load the data that are new in it.

        Args:
            epoch: number of the epoch.
            share: number of this process and of all; what the others train on need not be at hand.
        """
        ...

    def plan(self, options: BatchingOptions, epoch: int) -> list[np.ndarray]:
        """Batches of the epoch that was entered, as indices of examples.

        Of each batch, the process with the number r of n gets the utterances r, r + n ...; -1 - i stands for one that
        does not count, in place of which the process may use its utterance i.

        Args:
            options: sizes of batches.
            epoch: number of the epoch.
        """
        ...

    def __getitem__(self, key: SampleKey) -> Any: ...


class Corpus(Dataset[Example]):
    """Several manifests, each repeated so many times an epoch, as examples.

    Args:
        parts: (manifest or live edition, repeats) pairs.
        examples: maker of features and tokens of the model's family.
        options: options of making an example of an utterance.

    Raises:
        SprachbundError: speech in a language that the model does not hear, or a target that it does not write.
    """

    def __init__(
        self, parts: Sequence[tuple[UtteranceSource, float]], examples: Examples, options: ExampleOptions
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
        unknown = {tag for manifest in self.manifests for tag in manifest.spoken}
        if unknown := unknown - {"", *examples.source_languages}:
            raise SprachbundError(
                f"data hold speech in {', '.join(sorted(unknown))}, the model hears only "
                f"{', '.join(examples.source_languages)}; add the language to the recipe or drop the data"
            )

    windows = 1

    @property
    def digest(self) -> str:
        """SHA-256 of all lengths and texts."""
        digest = hashlib.sha256(self.durations_s.tobytes())
        for manifest in self.manifests:
            digest.update(manifest.texts_hash().encode())
        return digest.hexdigest()

    @property
    def corpora(self) -> list[Utterances]:
        """All of the data, whatever was entered."""
        return [source.at() for source in self._sources]

    def enter(self, epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        """Enter an epoch: load the data that are new in it, and make them first where they are missing.

        Args:
            epoch: number of the epoch.
            share: not needed here, all of the data is at hand.
        """
        self._take([source.at(epoch) for source in self._sources])

    def _take(self, manifests: Sequence[Utterances]) -> None:
        """Read from now on of these."""
        self.manifests = list(manifests)
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

    @property
    def frames_per_s(self) -> int:
        """Frames of a second."""
        return self.examples.frames_per_s

    @property
    def collate(self) -> "Callable[[Sequence[Example]], Batch]":
        """Makes a batch of examples."""
        return _Collate(self.options.rows_per_utterance)

    def utterance(self, index: int) -> tuple[Utterance, np.ndarray]:
        """An utterance and its samples by global index."""
        number, index = self._located(index)
        manifest = self.manifests[number]
        return manifest[index], manifest.samples(index)

    def _located(self, index: int) -> tuple[int, int]:
        """The number of a manifest, and an index into it."""
        for number, count in enumerate(self.counts):
            if index < count:
                return number, index
            index -= count
        raise IndexError(index)

    def _features(self, number: int, index: int, speed: float, augment: Augment) -> tuple[Tensor, int]:
        """Features (T, M) of an utterance of the manifest `number`, and how many frames are its own."""
        samples = self.manifests[number].samples(index)
        return self.examples.features(_change_speed(samples, speed), augment)

    def __getitem__(self, key: SampleKey) -> Example:
        epoch, index, speed, *rest = key
        rng = np.random.default_rng([self.options.seed, epoch, index])
        number, index = self._located(index)
        utterance = self.manifests[number][index]
        spoken = self.spoken(utterance) if self.options.spoken else None
        too_long = self.options.spoken and spoken is None
        augment = partial(spec_augment, rng=rng, options=self.options, strength=rest[0] if rest else 1.0)
        features, num_frames = self._features(number, index, speed, augment)
        return Example(
            features=features,
            source_language=self.examples.number(utterance.language) if utterance.language else NO_LANGUAGE,
            transcript=self.examples.transcript(utterance.text),
            rows=[] if too_long else self.rows(utterance, rng),
            num_frames=num_frames,
            spoken=[] if too_long else spoken,
            **self._mixture(utterance, speed),
        )

    def _mixture(self, utterance: Utterance, speed: float) -> dict[str, Any]:
        """Languages of an utterance at a speed, and their times."""
        if not self.options.mixed:
            return {}
        languages, spans = languages_in(utterance), timed_spans(utterance)
        if strange := sorted({*languages, *(s[2] for s in spans)} - set(self.examples.source_languages)):
            raise SprachbundError(
                f"{utterance.id} holds speech in {', '.join(strange)}, the model hears only "
                f"{', '.join(self.examples.source_languages)}; drop the utterance or train a model with that language"
            )
        number = self.examples.number
        return {
            "languages": tuple(number(tag) for tag in languages),
            "spans": tuple((start_s / speed, end_s / speed, number(tag)) for start_s, end_s, tag in spans),
        }

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

    def targets_of(self, utterance: Utterance) -> set[str]:
        """Languages of the rows that an utterance may get, were no text too long; none where nobody speaks."""
        if not utterance.language:
            return set()
        targets, own = self._askable(utterance)
        able = {
            target
            for target in targets
            if utterance.text_in(target) and self.examples.row("", utterance.language, target) is not None
        }
        if self.options.same_language == 0:
            return able - {own}
        only_own = self.options.same_language == 1 and self.options.rows_per_utterance == 1
        return able & {own} if only_own and own in able else able

    def spoken(self, utterance: Utterance) -> list[int] | None:
        """Return the transcript in the tokens that the model writes; None where it is too long for the model."""
        language = utterance.language
        row = self.examples.row(utterance.text, language, language) if language else None
        if row is None:
            return []
        tokens = row[1][:-1]
        return tokens if len(tokens) <= self.examples.max_tokens else None

    def _drawn(self, utterance: Utterance, rng: np.random.Generator) -> list[str]:
        """Target languages in the order in which they are tried."""
        targets, own = self._askable(utterance)
        share, order = self.options.same_language, rng.permutation(list(self.targets)).tolist()
        drawn = [language for language in order if language in targets]
        if share is None or own not in drawn:
            return drawn
        others = [language for language in drawn if language != own]
        return [own, *others] if rng.random() < share else others

    def _askable(self, utterance: Utterance) -> tuple[set[str], str]:
        """Target languages that an utterance may be asked for, and that of its transcript."""
        targets, own = {*self.targets}, utterance.language
        if MIXED in targets and utterance.text_in(MIXED) is not None:
            # Of mixed speech, the transcript belongs to this target; its main language would be another name for it.
            return targets - {own}, MIXED
        return targets, own

    def plan(self, options: BatchingOptions, epoch: int) -> list[np.ndarray]:
        """An epoch's batches as global indices into what was entered last."""
        options = replace(options, max_duration_s=self.longest_s(options.max_duration_s))
        lanes = self._lanes(options.seed, epoch)
        window_s = self.examples.max_window_s
        if window_s is None or not self.examples.whole_windows:
            return plan_lanes(self.durations_s, lanes, options, epoch)
        lanes = [lane[self.durations_s[lane] <= options.max_duration_s] for lane in lanes]
        costs_s = np.full_like(self.durations_s, window_s)
        return plan_lanes(costs_s, lanes, replace(options, max_duration_s=window_s), epoch)

    def _lanes(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Utterances in random order; one lane, since each process has all at hand."""
        return [epoch_indices(self.counts, self.repeats, seed, epoch)]

    def longest_s(self, max_duration_s: float) -> float:
        """Longest utterance that is used: the model's window has to hold it at the slowest speed too."""
        window_s = self.examples.max_window_s
        return (
            max_duration_s if window_s is None else min(max_duration_s, window_s * min(self.options.speeds))
        )


class ShardedCorpus(Corpus):
    """Corpora of tar shards, read one window of shards after the other; each process fetches its own shards alone.

    All shards of a pass are put into a random order, each as often as its corpus is repeated, and are cut into windows.
    A window is what a `Corpus` is in an epoch: its utterances are shuffled, and batches are made of utterances of about
    the same length. So nothing depends on what lies before the window, and a run is resumed at once. The next window's
    shards are fetched while one is trained on.

    Args:
        parts: (shards, repeats) pairs; a fraction of a repeat takes whole shards.
        examples: maker of features and tokens of the model's family.
        options: options of making an example of an utterance.
        window: shards of a window, for all processes together.

    Raises:
        SprachbundError: as of `Corpus`; or only some utterances of a corpus were chosen.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Shards, float]],
        examples: Examples,
        options: ExampleOptions,
        window: int = 16,
    ) -> None:
        super().__init__(parts, examples, options)
        self._shards, self._window, self._share = [shards for shards, _ in parts], window, (0, 1)
        self._entered: int | None = None
        if part := next((shards for shards in self._shards if shards.is_part), None):
            raise SprachbundError(
                f"some utterances of {part.directory} are wanted, and shards are read whole"
            )
        self._num_shards = len(self._order(0))
        self.windows = max(1, self._num_shards // window)

    @property
    def digest(self) -> str:
        """SHA-256 of the indices."""
        return hashlib.sha256("".join(shards.digest for shards in self._shards).encode()).hexdigest()

    def enter(self, epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        """Fetch this process's shards of a window, and begin to fetch those of the next one.

        Args:
            epoch: number of the window, through all passes.
            share: number of this process, and number of processes.

        Raises:
            SprachbundError: fewer shards than processes; a shard that is damaged or cannot be fetched.
        """
        rank, count = share
        if count > (most := min(self._window, self._num_shards)):
            what = "training.window_shards" if most == self._window else "the number of shards in all"
            raise SprachbundError(
                f"{what} is {most}, and {count} processes need a shard each; "
                + ("set it to a multiple of the processes" if most == self._window else "pack smaller shards")
            )
        self._share, entries = share, self._entries(epoch)
        own, coming = entries[rank::count], self._entries(epoch + 1)[rank::count]
        for number, shards in enumerate(self._shards):
            shards.hold([s for part, s in own if part == number], [s for part, s in coming if part == number])
        self._take_window(epoch)

    def plan(self, options: BatchingOptions, epoch: int) -> list[np.ndarray]:
        """Batches of a window, as indices of its utterances; see `TrainingDataset.plan`."""
        if self._entered != epoch:
            self._take_window(epoch)
        return super().plan(options, epoch)

    def _take_window(self, window: int) -> None:
        self._take([self._shards[part].shard(number) for part, number in self._entries(window)])
        self._entered = window

    def _lanes(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Utterances of each process's shards, in random order."""
        count, rng = self._share[1], np.random.default_rng([seed, epoch, 0])
        begins = np.cumsum([0, *self.counts])
        shards = [np.arange(begin, end) for begin, end in pairwise(begins.tolist())]
        return [rng.permutation(np.concatenate(shards[rank::count])) for rank in range(count)]

    def _entries(self, window: int) -> list[tuple[int, int]]:
        """Corpus and number of each shard of a window."""
        passes, number = divmod(window, self.windows)
        order = self._order(passes)
        begin, end = (len(order) * n // self.windows for n in (number, number + 1))
        return [(part, number) for part, number in order[begin:end].tolist()]

    def _order(self, passes: int) -> np.ndarray:
        """Corpus and number of every shard of a pass (shards, 2), in random order."""
        counts = [shards.num_shards for shards in self._shards]
        indices = epoch_indices(counts, self.repeats, self.options.seed, passes)
        begins = np.cumsum([0, *counts])
        parts = np.searchsorted(begins, indices, side="right") - 1
        return np.stack([parts, indices - begins[parts]], axis=1)


def collate(examples: Sequence[Example], rows_per_utterance: int, round_frames: int = 16) -> Batch:
    """Pad examples into a batch; lengths are rounded up so that few distinct shapes occur.

    An utterance with fewer rows than `rows_per_utterance` gets rows that do not count.

    Args:
        examples: examples of a batch.
        rows_per_utterance: target rows of every utterance.
        round_frames: frames are padded to a multiple of this.
    """
    own = [e.features.shape[0] if e.num_frames is None else e.num_frames for e in examples]
    longest = max(e.features.shape[0] for e in examples)
    longest = -(-longest // round_frames) * round_frames
    features = torch.zeros(len(examples), longest, examples[0].features.shape[1])
    for i, example in enumerate(examples):
        features[i, : example.features.shape[0]] = example.features
    rows = [row for e in examples for row in (e.rows + [(0, [])] * rows_per_utterance)[:rows_per_utterance]]
    return Batch(
        features=features,
        num_frames=torch.tensor(own),
        source_language=torch.tensor([e.source_language for e in examples]),
        targets=pad([tokens for _, tokens in rows]),
        num_targets=torch.tensor([len(tokens) for _, tokens in rows]),
        target_language=torch.tensor([language for language, _ in rows]),
        transcripts=transcripts_of([e.transcript for e in examples]),
        spoken=transcripts_of([e.spoken for e in examples]),
        mixture=_mixture(examples),
    )


def transcripts_of(rows: Sequence[Sequence[int] | None]) -> Transcripts | None:
    """Transcripts of utterances, which all have one or, where nobody asked, none."""
    tokens = [row for row in rows if row is not None]
    if len(tokens) < len(rows):
        return None
    return Transcripts(pad(tokens), torch.tensor([len(row) for row in tokens]))


def _mixture(examples: Sequence[Example]) -> MixedLanguages | None:
    """Languages and spans of a batch, where the examples have them."""
    if any(e.languages is None for e in examples):
        return None
    num_languages = 1 + max((number for e in examples for number in e.languages or ()), default=0)
    languages = torch.zeros(len(examples), num_languages, dtype=torch.bool)
    for row, example in zip(languages, examples, strict=True):
        row[list(example.languages or ())] = True
    return MixedLanguages(languages, tuple(e.spans for e in examples))


def batches(
    corpus: TrainingDataset,
    options: BatchingOptions,
    epoch: int,
    first: int = 0,
    *,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
    parts: int = 1,
    strength: Callable[[int], float] = lambda number: 1.0,
) -> Iterator[Batch]:
    """The epoch's batches from number `first` on, the same ones whoever asks.

    Of each batch a process takes the utterances `share[0], share[0] + share[1], ...`; its masks are as strong as
    `strength` says of its number. With `parts`, its utterances of a batch come in so many parts, one after the other. A
    share without an utterance gets one of the batch, or of the process's own, as a placeholder, which does not count:
    all processes see the same number of batches, and none of them is empty.

    Args:
        corpus: dataset.
        options: sizes of batches.
        epoch: number of the epoch, from 0.
        first: first batch that is made.
        num_workers: loading processes; 0 loads in this one.
        share: number of this process, and number of processes.
        parts: parts that a process's share of a batch is made in.
        strength: strength of the masks by number of the batch.
    """
    rank, count = share
    corpus.enter(epoch, share)
    plan = corpus.plan(options, epoch)
    # One speed for a batch, or its lengths would no longer fit together.
    speeds = np.random.default_rng([options.seed, epoch, 2]).choice(corpus.options.speeds, size=len(plan))
    own = [(number, part * count + rank) for number in range(first, len(plan)) for part in range(parts)]
    counted = [_counted(plan[number][start :: count * parts]) for number, start in own]
    is_placeholder = [not len(indices) for indices in counted]
    keys: list[list[SampleKey]] = [
        [
            (epoch, int(i), float(speeds[number]), strength(number))
            for i in (indices if len(indices) else _spare(plan[number], rank))
        ]
        for (number, _), indices in zip(own, counted, strict=True)
    ]
    loaded = _ErrorsAsValues(corpus)
    loader: DataLoader[Any] = DataLoader(
        loaded,  # type: ignore[arg-type]  # a Dataset in all but name
        batch_sampler=keys,
        num_workers=num_workers,
        collate_fn=loaded.collate,
        worker_init_fn=_begin_loading,
        prefetch_factor=4 if num_workers else None,
    )
    with without_interrupts(signal.SIGTERM) if num_workers else nullcontext():  # loading processes start here
        made = map(_batch_or_raise, loader)
    if not any(is_placeholder):
        return made
    return (
        batch.placeholder() if absent else batch for absent, batch in zip(is_placeholder, made, strict=True)
    )


class _ErrorsAsValues:
    """A dataset that gives the project's errors in place of what could not be made.

    A loading process raises an error of its own, whose text is a traceback with the message at its end.
    """

    def __init__(self, corpus: TrainingDataset) -> None:
        self._corpus = corpus

    def __getitem__(self, key: SampleKey) -> Any:
        try:
            return self._corpus[key]
        except SprachbundError as error:
            return error

    def collate(self, examples: list[Any]) -> Batch | SprachbundError:
        """The batch of some examples, or the first error among them."""
        for example in examples:
            if isinstance(example, SprachbundError):
                return example
        try:
            return self._corpus.collate(examples)
        except SprachbundError as error:
            return error


def _batch_or_raise(made: Batch | SprachbundError) -> Batch:
    if isinstance(made, SprachbundError):
        raise made
    return made


def _counted(indices: np.ndarray) -> np.ndarray:
    """Utterances of a share that count."""
    return indices[indices >= 0]


def _spare(batch: np.ndarray, rank: int) -> list[int]:
    """An utterance that a process may use as a placeholder."""
    index = int(batch[rank] if rank < len(batch) else batch[0])
    return [index if index >= 0 else -1 - index]


@dataclass(frozen=True)
class _Collate:
    rows_per_utterance: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self.rows_per_utterance)


def _begin_loading(worker: int) -> None:
    """Set a loading process up: one thread, and time until SIGTERM ends it.

    A cluster sends SIGTERM to all processes at once. The parent then finishes and saves its step, and torch ends that
    step by an error if it sees this process end first.
    """
    torch.set_num_threads(1)
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_STEP_S))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked since this process started


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of tokens as one tensor (B, longest), padded with 0; one wide at least."""
    longest = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return samples
    import soxr

    resampled: np.ndarray = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ")
    return resampled
