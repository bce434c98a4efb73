"""The dataset of models with token input: sentences that were spoken or written, and batches of one kind each.

Speech and text come from the same triples of units, transcript and translation; further text from outside. A kind
decides only how the source becomes tokens. Every random choice is drawn from (seed, epoch, sentence), as in
`sprachbund.data.loading`, so a resumed run gets the same batches. A "second" is the mean number of source tokens of a
second of the speech; text, which is made as long as speech, is measured by the same.
Shapes: B rows, S source tokens, U target tokens.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sprachbund.data.batch import Batch
from sprachbund.data.batching import BatchingOptions, plan_epoch
from sprachbund.data.bitext import Bitext
from sprachbund.data.loading import ExampleOptions, SampleKey, pad, transcripts_of
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.config import MbartConfig, TokenConfig
from sprachbund.models.tokens.reader import UnitReader
from sprachbund.models.tokens.text_input import WrittenTokens
from sprachbund.units.encoded import EncodedCorpus, UnitUtterance
from sprachbund.units.lengths import TooLong, too_long_for_ctc

# Sentences.

Kind = Literal["speech", "text", "bitext"]


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A source and its translation.

    Attributes:
        name: for messages.
        source: units as characters where it was spoken, else text.
        spoken: whether `source` is units.
        source_language: BCP-47 tag.
        target: text.
        target_language: BCP-47 tag.
        transcript: transcript of the speech; empty where it is not known, and of text.
    """

    name: str
    source: str
    spoken: bool
    source_language: str
    target: str
    target_language: str
    transcript: str = ""


class SpokenSentences:
    """Sentences of a corpus as units, one for each utterance and each of its translations that is wanted.

    Args:
        encoded: the corpus.
        pairs: (source, target) languages wanted.
        as_text: their transcripts in the place of their units.
        keep_repeats: a unit for every frame.
        hours: hours of speech taken, spread at random, smaller amounts a part of larger ones; all if None.

    Attributes:
        missing: utterances in a source language that lack a translation, or as text a transcript.

    Raises:
        SprachbundError: an utterance without units.
    """

    def __init__(
        self,
        encoded: EncodedCorpus,
        pairs: Sequence[tuple[str, str]],
        *,
        as_text: bool = False,
        keep_repeats: bool = False,
        hours: float | None = None,
    ) -> None:
        self.kind: Kind = "text" if as_text else "speech"
        self._encoded, self._keep_repeats = encoded, keep_repeats
        self._pairs: list[tuple[int, str]] = []
        self.missing = 0
        self.seconds = 0.0
        taken = within_hours(encoded, {source for source, _ in pairs}, hours)
        for number, utterance in enumerate(encoded):
            if number not in taken:
                continue
            if not utterance.units and utterance.language:
                raise SprachbundError(
                    f"{encoded.directory}: {utterance.id} has no units; encode the corpus again, with --skip-bad"
                )
            for target in (t for s, t in pairs if s == utterance.language):
                if not utterance.text_in(target) or (as_text and not utterance.text):
                    self.missing += 1
                    continue
                self._pairs.append((number, target))
                self.seconds += utterance.duration_s

    @property
    def digest(self) -> str:
        """SHA-256 of the shards of units."""
        return hashlib.sha256("".join(shard.hash for shard in self._encoded.info.shards).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> TokenPair:
        number, target = self._pairs[index]
        utterance = self._encoded[number]
        as_text = self.kind == "text"
        return TokenPair(
            name=f"{utterance.id} ({target})",
            source=utterance.text if as_text else self._units(utterance),
            spoken=not as_text,
            source_language=utterance.language,
            target=utterance.text_in(target) or "",
            target_language=target,
            transcript="" if as_text else utterance.text,
        )

    def _units(self, utterance: UnitUtterance) -> str:
        return utterance.with_repeats if self._keep_repeats else utterance.units


def within_hours(encoded: EncodedCorpus, languages: Collection[str], hours: float | None) -> Collection[int]:
    """Numbers of the utterances in some languages that make up so many hours, in a fixed random order; of all if None.

    Args:
        encoded: corpus as units.
        languages: BCP-47 tags that are taken.
        hours: hours of speech; None for all.

    Raises:
        SprachbundError: there are not so many hours.
    """
    durations_s = np.array([u.duration_s if u.language in languages else 0.0 for u in encoded])
    if hours is None:
        return range(len(durations_s))
    order = np.random.default_rng(0).permutation(np.flatnonzero(durations_s))
    if durations_s.sum() < 3600 * hours:
        raise SprachbundError(
            f"{encoded.directory} holds {durations_s.sum() / 3600:.3g} h of speech in {', '.join(sorted(languages))}, "
            f"and {hours:g} are wanted; ask for less"
        )
    behind = np.cumsum(durations_s[order]) - durations_s[order]
    return set(order[behind < 3600 * hours].tolist())


class WrittenSentences:
    """Sentences of a bitext."""

    kind: Kind = "bitext"
    missing = 0
    seconds = 0.0

    def __init__(self, bitext: Bitext) -> None:
        self._bitext = bitext

    @property
    def digest(self) -> str:
        """SHA-256 of the sentences."""
        digest = hashlib.sha256()
        for pair in self._bitext.pairs:
            digest.update(f"{pair.source}\t{pair.target}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._bitext)

    def __getitem__(self, index: int) -> TokenPair:
        pair = self._bitext.pairs[index]
        return TokenPair(
            name=pair.where,
            source=pair.source,
            spoken=False,
            source_language=self._bitext.source_language,
            target=pair.target,
            target_language=self._bitext.target_language,
        )


Sentences = SpokenSentences | WrittenSentences


TOKENS_PER_S = 10
"""Tokens in a second, where there is no speech to measure."""


class Mixing(BaseModel):
    """Options of mixing speech and text (arXiv 2309.15826; the numbers are ours).

    Attributes:
        text: whether transcripts and translations of the speech are also learned as text.
        text_weight: weight of the loss of text beside that of speech.
        external_ratio: most sentences of text without speech in an epoch, for each sentence of speech.
        speech_only_share: last share of the steps, which see speech alone.
        sampling: alpha of sub-word sampling (arXiv 1804.10959) of what is read; 0 takes the likeliest pieces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: bool = True
    text_weight: float = Field(default=0.5, gt=0)
    external_ratio: float = Field(default=2.0, ge=0)
    speech_only_share: float = Field(default=0.0, ge=0, le=1)
    sampling: float = Field(default=0.4, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class TokenExample:
    """One sentence made ready.

    Attributes:
        kind: kind of data that it is of.
        source: tokens read (S,), ended.
        source_language: its index among the model's.
        target: tokens to be written (U,), ended.
        target_language: token of the language wanted.
        transcript: tokens of what was said; none of text.
    """

    kind: Kind
    source: list[int]
    source_language: int
    target: list[int]
    target_language: int
    transcript: list[int]


class TokenDataset:
    """Sentences of several kinds as examples; satisfies `sprachbund.data.loading.TrainingDataset`.

    Args:
        parts: the sentences.
        config: configuration of the model that learns.
        reader: turns their sources into tokens.
        mixing: see `Mixing`.
        seed: seed of every draw.
        sample: whether pieces are drawn, as in training.
        speech_only_from: first epoch of speech alone; None for never.

    Attributes:
        left_out: names of sentences that are longer than the model can read or write.
        too_long: "targets" and "transcripts" that CTC cannot align; these terms are left out of the loss.

    Raises:
        SprachbundError: no sentence is left, or CTC alone is to learn and can align none.
    """

    def __init__(
        self,
        parts: Sequence[Sentences],
        config: TokenConfig | MbartConfig,
        reader: UnitReader,
        mixing: Mixing,
        *,
        seed: int = 0,
        sample: bool = True,
        speech_only_from: int | None = None,
    ) -> None:
        self._parts, self._config, self._reader, self._mixing = list(parts), config, reader, mixing
        self._seed, self._alpha = seed, mixing.sampling if sample else 0.0
        self._written = WrittenTokens(reader.vocabulary)
        self.speech_only_from = speech_only_from
        self.options = ExampleOptions(rows_per_utterance=1, seed=seed)
        self._offsets = np.cumsum([0, *(len(part) for part in parts)])
        self.left_out: list[str] = []
        self.too_long: dict[str, list[TooLong]] = {}
        self._lengths, self._usable = self._look_through()
        if not self._usable.any():
            raise SprachbundError(
                f"none of {len(self._usable)} sentences can be used; look at the languages wanted and their lengths"
            )

    @property
    def durations_s(self) -> np.ndarray:
        """Lengths of all sentences, in seconds of `frames_per_s` tokens."""
        return self._lengths / self.frames_per_s

    @cached_property
    def frames_per_s(self) -> int:
        """Source tokens of a second of the speech."""
        seconds = sum(part.seconds for part in self._parts if part.kind == "speech")
        if not seconds:
            return TOKENS_PER_S
        tokens = sum(
            self._lengths[self._range(n)].sum() for n, part in enumerate(self._parts) if part.kind == "speech"
        )
        return max(1, round(float(tokens) / seconds))

    @property
    def collate(self) -> "Collate":
        """Makes a batch of examples."""
        return Collate(self._mixing.text_weight)

    def counts(self) -> dict[Kind, int]:
        """Usable sentences of each kind."""
        counts: dict[Kind, int] = {}
        for number, part in enumerate(self._parts):
            counts[part.kind] = counts.get(part.kind, 0) + int(self._usable[self._range(number)].sum())
        return counts

    def lines(self, max_duration_s: float) -> list[str]:
        """Return the report before a run: the amount of data, and everything that is left out, counted and named.

        Args:
            max_duration_s: longer sources are left out of every epoch's plan.
        """
        lines = [", ".join(f"{count} sentences of {kind}" for kind, count in self.counts().items())]
        if missing := sum(part.missing for part in self._parts):
            lines.append(f"{missing} utterances lack a translation or transcript that is wanted: left out")
        if longer := int((self.durations_s[self._usable] > max_duration_s).sum()):
            lines.append(
                f"{longer} sources are longer than {max_duration_s * self.frames_per_s:g} tokens: left out"
            )
        if self.left_out:
            lines.append(
                f"{len(self.left_out)} sentences are longer than the model reads or writes "
                f"({self._config.max_tokens} tokens), the first is {self.left_out[0]}: left out"
            )
        for what, long in self.too_long.items():
            first = long[0]
            lines.append(
                f"{len(long)} {what} are longer than CTC can align, the first is {first.name} ({first.needed} frames "
                f"wanted, {first.available} there): without their CTC loss"
            )
        return lines

    windows = 1

    @property
    def digest(self) -> str:
        """SHA-256 of all lengths and texts."""
        digest = hashlib.sha256(self.durations_s.tobytes())
        for part in self._parts:
            digest.update(part.digest.encode())
        return digest.hexdigest()

    def enter(self, epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        """Every epoch has the same sentences.

        Args:
            epoch: number of the epoch.
            share: all sentences are at hand for every process.
        """

    def plan(self, options: BatchingOptions, epoch: int) -> list[np.ndarray]:
        """An epoch's batches, each of one kind, in random order."""
        batches: list[np.ndarray] = []
        for number, part in enumerate(self._parts):
            if part.kind == "speech" or not self._speech_only(epoch):
                own = replace(options, seed=options.seed * len(self._parts) + number)
                batches += plan_epoch(self.durations_s, self._indices(number, epoch), own, epoch)
        order = np.random.default_rng([options.seed, epoch, 3]).permutation(len(batches))
        return [batches[i] for i in order]

    def speech_share(self, options: BatchingOptions) -> float:
        """Share of an epoch's batches that are of speech, while it is mixed with text.

        Raises:
            SprachbundError: all speech is too long for a batch.
        """
        kinds = [self._sentence(int(batch[0]))[0].kind for batch in self.plan(options, 0)]
        if "speech" not in kinds:
            raise SprachbundError(
                f"no speech has {options.max_duration_s * self.frames_per_s:g} tokens or fewer, so that no step is on "
                "speech; set training.max_duration_s higher"
            )
        return kinds.count("speech") / len(kinds)

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, key: SampleKey) -> TokenExample:
        epoch, index = key[:2]
        rng = np.random.default_rng([self._seed, epoch, index]) if self._alpha else None
        part, sentence = self._sentence(index)
        return self._example(part.kind, sentence, rng)

    @property
    def _longest(self) -> float:
        """Most source tokens that the model reads, the end included."""
        return self._config.max_source_tokens or np.inf

    def _example(self, kind: Kind, sentence: TokenPair, rng: np.random.Generator | None) -> TokenExample:
        read = self._reader.of_string if sentence.spoken else self._reader.of_text
        vocabulary, written = self._reader.vocabulary, self._written
        source = read(sentence.source, rng, self._alpha)
        if len(source) + 1 > self._longest:  # drawn pieces are more than the likeliest ones, which fit
            source = read(sentence.source)
        target = written.of(vocabulary.encode_text(sentence.target))
        transcript = vocabulary.encode_text(sentence.transcript)
        return TokenExample(
            kind=kind,
            source=[*source, vocabulary.end],
            source_language=self._config.source_languages.index(sentence.source_language),
            target=[*target[: self._config.max_tokens - 1], written.end],
            target_language=written.language(sentence.target_language),
            transcript=written.of(transcript),
        )

    def _look_through(self) -> tuple[np.ndarray, np.ndarray]:
        """Source length (N,) of every sentence, and whether it can be used (N,); notes what is too long."""
        lengths, usable = np.zeros(self._offsets[-1]), np.ones(self._offsets[-1], bool)
        long: dict[str, list[TooLong]] = {"targets": [], "transcripts": []}
        for index in range(len(lengths)):
            part, sentence = self._sentence(index)
            example = self._example(part.kind, sentence, None)
            lengths[index] = len(example.source)
            target = self._reader.vocabulary.encode_text(sentence.target)
            if len(target) > self._config.max_tokens - 1 or len(example.source) > self._longest:
                usable[index] = False
                self.left_out.append(sentence.name)
                continue
            for what, tokens in (("targets", example.target[:-1]), ("transcripts", example.transcript)):
                long[what] += self._unaligned(what, sentence.name, len(example.source), tokens)
        self.too_long = {what: listed for what, listed in long.items() if listed}
        if self._config.head == "ctc" and len(long["targets"]) == usable.sum() > 0:
            raise SprachbundError(
                f"CTC can align none of {int(usable.sum())} targets, the first is {long['targets'][0].name}; make "
                "model.strides smaller, or use units of an encoder with more frames"
            )
        return lengths, usable

    def _unaligned(self, what: str, name: str, length: int, tokens: list[int]) -> list[TooLong]:
        config = self._config
        asked = config.head != "attention" if what == "targets" else config.source_ctc_weight > 0
        return too_long_for_ctc([name], [length], [tokens], stride=2**config.strides) if asked else []

    def _indices(self, number: int, epoch: int) -> np.ndarray:
        """Sentences of a part that an epoch takes, in random order: of texts from outside only so many, others next."""
        usable = np.flatnonzero(self._usable[self._range(number)]) + self._offsets[number]
        rng = np.random.default_rng([self._seed, epoch, 4, number])
        speech, texts = (self.counts().get(kind, 0) for kind in ("speech", "bitext"))
        # All texts from outside together are in proportion to speech, and each has its share of that.
        most = round(self._mixing.external_ratio * speech * len(usable) / max(1, texts))
        if self._parts[number].kind != "bitext" or not speech or most >= len(usable):
            return rng.permutation(usable)
        always = np.random.default_rng([self._seed, 5, number]).permutation(usable)
        return rng.permutation(np.take(always, range(epoch * most, (epoch + 1) * most), mode="wrap"))

    def _speech_only(self, epoch: int) -> bool:
        return self.speech_only_from is not None and epoch >= self.speech_only_from

    def _range(self, number: int) -> slice:
        return slice(int(self._offsets[number]), int(self._offsets[number + 1]))

    def _sentence(self, index: int) -> tuple[Sentences, TokenPair]:
        number = int(np.searchsorted(self._offsets, index, side="right")) - 1
        part = self._parts[number]
        return part, part[index - int(self._offsets[number])]


@dataclass(frozen=True)
class Collate:
    """Pads examples into a batch; those of text weigh `text_weight`."""

    text_weight: float

    def __call__(self, examples: Sequence[TokenExample]) -> Batch:
        """The batch of examples of one kind."""
        kind = examples[0].kind
        return Batch(
            features=pad([e.source for e in examples]),
            num_frames=_lengths([e.source for e in examples]),
            source_language=torch.tensor([e.source_language for e in examples]),
            targets=pad([e.target for e in examples]),
            num_targets=_lengths([e.target for e in examples]),
            target_language=torch.tensor([e.target_language for e in examples]),
            transcripts=transcripts_of([e.transcript for e in examples]),
            kind=kind,
            weight=1.0 if kind == "speech" else self.text_weight,
        )


def first_epoch_behind(dataset: TokenDataset, options: BatchingOptions, step: int) -> int:
    """The first epoch that begins at a step or behind it, steps counted from 0.

    Args:
        dataset: sentences.
        options: sizes of batches.
        step: step, counted from 0.
    """
    epoch = done = 0
    while done < step:
        done += max(1, len(dataset.plan(options, epoch)))
        epoch += 1
    return epoch


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows])
