"""Live text of models that write frame by frame: every frame is encoded once, and its text is committed at once.

Nothing is attempted twice. Streams with frames ready go through the model together.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sprachbund.audio.constants import HOP, SAMPLE_RATE, VAD_WINDOW, WINDOW
from sprachbund.audio.features import LogMelStream
from sprachbund.decoding.domain import out_of_domain
from sprachbund.decoding.languages import IdentifiedLanguage, identify
from sprachbund.decoding.recordings import given_language
from sprachbund.decoding.transducer import (
    TransducerHypothesis,
    hypothesis_of,
    start_by_frames,
    transducer_greedy,
)
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, FrameDecoder, FrameState, Memory, StreamingTransducer, Target
from sprachbund.nn.streaming_conformer import LEAD, SUBSAMPLING, StreamState, Tier
from sprachbund.nn.transducer import TransducerState
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import FrameStream
from sprachbund.streaming.writing import PendingStretch, news

_KEPT = 2 * SAMPLE_RATE
"""Samples that were read are dropped when there are so many."""

StreamT = TypeVar("StreamT", bound=FrameStream)


class FrameWriter(ABC, Generic[StreamT]):
    """Writes for the sessions of one model; a kind of model says how its frames are encoded and written.

    Args:
        family: the model.

    Attributes:
        lead_s: the first chunk of a stretch needs so much less sound than the others.
    """

    lead_s = 0.0

    def __init__(self, family: Family) -> None:
        self.family = family

    # What a kind has to say.

    @abstractmethod
    def step_s(self, options: LiveOptions) -> float:
        """Seconds of sound with which a session goes on. Raises SprachbundError for options that cannot be."""

    @abstractmethod
    def stream(self, job: PendingStretch) -> StreamT:
        """Stream of the job's stretch, begun if it is new."""

    @abstractmethod
    def encode_and_write(self, jobs: Sequence[PendingStretch]) -> None:
        """Take all frames that are ready through the model."""

    @abstractmethod
    def waiting_s(self, job: PendingStretch) -> float:
        """Seconds of sound that were given and are in no text yet."""

    @abstractmethod
    def language(self, job: PendingStretch) -> IdentifiedLanguage:
        """The language of a stretch, where nobody named it."""

    def doubts(self, job: PendingStretch) -> Mapping[str, float]:
        """For each target the probability that the text of an ended stretch is not what was said.

        Empty where nobody can know.
        """
        return {}

    # What they have in common.

    @torch.inference_mode()
    def write(self, jobs: Sequence[PendingStretch]) -> list[tuple[PendingStretch, LiveText]]:
        """Decode all that is ready of stretches; their texts, in order of the stretches."""
        before = {id(job): {t: len(tokens) for t, tokens in self.stream(job).tokens.items()} for job in jobs}
        for job in jobs:
            self._hear(job)
        self.encode_and_write(jobs)
        for job in jobs:
            job.stretch.attempted_s = job.stretch.span.end_s - self.waiting_s(job)
        doubts = {id(job): self.doubts(job) for job in jobs if job.stretch.closed}
        return [
            (job, text)
            for job in jobs
            for target, number in before[id(job)].items()
            if (text := self._text(job, target, number, doubts.get(id(job), {}))) is not None
        ]

    def spoken(self, job: PendingStretch) -> IdentifiedLanguage:
        """The language that was named, else that of the stretch."""
        if (given := given_language(job.session.source)) is not None:
            return given
        return self.language(job)

    def _hear(self, job: PendingStretch) -> None:
        """New sound to frames; what was heard need not be kept by the session."""
        stream, stretch = self.stream(job), job.stretch
        begin = round(stretch.span.start_s * SAMPLE_RATE)
        new = stretch.samples[max(0, stream.fed - begin) :]
        stream.fed += len(new)
        frames = [stream.waiting, stream.front_end.push(new)]
        if stretch.closed and not stream.ended:
            stream.ended = True
            frames.append(stream.front_end.finish())
        stream.waiting = torch.cat(frames)
        if not stretch.closed and stream.fed - begin > _KEPT:
            job.session.cut(stretch, (stream.fed // VAD_WINDOW * VAD_WINDOW - begin) / SAMPLE_RATE)

    def _text(
        self, job: PendingStretch, target: str, number: int, doubts: Mapping[str, float]
    ) -> LiveText | None:
        """Return the text that the tokens from `number` on add; the end of a stretch makes an event in any case."""
        tokens, line = self.stream(job).tokens[target], job.stretch.lines[target]
        if len(tokens) == number and not job.stretch.closed:
            return None
        text = self.family.decode_text(tokens).strip()
        while text.endswith("\ufffd") and not job.stretch.closed:  # bytes of a character still to come
            text = text[:-1]
        piece = text[len(line.written) :]
        if not piece and not job.stretch.closed:
            return None
        line.written = text
        job.language = self.spoken(job)
        doubt = doubts.get(target)
        return news(job, target, target, piece, 0, final=job.stretch.closed, out_of_domain=doubt)


# Models with a transducer, chunk by chunk.

_LAG_S = (WINDOW // 2) / SAMPLE_RATE
"""A mel frame looks so far ahead: with that much more than a chunk, its frames are surely there."""
_LATEST = 375
"""Frames by which a stretch is doubted, half a minute: a stream needs no more memory the longer it runs."""


class LatestChunks:
    """The last chunks of a stretch: as few as hold half a minute. Each is a memory of one row, without padding."""

    def __init__(self) -> None:
        self._chunks: deque[Memory] = deque()
        self.num_frames = 0

    def add(self, chunk: Memory) -> None:
        """Note a chunk, and forget those that are no longer needed."""
        self._chunks.append(chunk)
        self.num_frames += chunk.states.shape[1]
        while self.num_frames - self._chunks[0].states.shape[1] >= _LATEST:
            self.num_frames -= self._chunks.popleft().states.shape[1]

    def memory(self) -> Memory:
        """The memory of one utterance of these chunks. There has to be one with a frame."""
        # A mean over all frames weighs those of the chunks by their frames.
        sums = [one.states.shape[1] * one.layer_means for one in self._chunks if one.layer_means is not None]
        return Memory(
            states=torch.cat([chunk.states for chunk in self._chunks], dim=1),
            num_frames=torch.tensor([self.num_frames]),
            layer_means=torch.stack(sums).sum(0) / self.num_frames if sums else None,
        )


@dataclass(kw_only=True)
class TransducerStream(FrameStream):
    """The state of a stretch in a model with a transducer; frames are of log-mel.

    Attributes:
        encoder: its state.
        writers: states of the transducer, one row for each target.
        heard: (D,) sum of the encoder's states, by which the language is known.
        num_heard: frames in it.
        latest: what a calibrated model tells by whether it understands; empty of others.
        scores: log-probability of the text of each target.
    """

    encoder: StreamState
    writers: TransducerState
    heard: Tensor
    scores: dict[str, float]
    num_heard: int = 0
    latest: LatestChunks = field(default_factory=LatestChunks)


class TransducerWriter(FrameWriter[TransducerStream]):
    """Writes for the sessions of one model, chunk by chunk.

    Args:
        family: the model.
        streaming: its encoder and transducer.
        max_symbols: most tokens at one frame; those of the model if None.
    """

    lead_s = LEAD * HOP / SAMPLE_RATE - _LAG_S

    def __init__(
        self, family: Family, streaming: StreamingTransducer, *, max_symbols: int | None = None
    ) -> None:
        super().__init__(family)
        self.max_symbols, self._streaming = max_symbols, streaming
        self.encoder, self.transducer = streaming.encoder, streaming.transducer
        self._front_end, self.fuse = streaming.front_end, family.capabilities.fuse_language

    def tier(self, options: LiveOptions) -> Tier:
        """The tier that a session asks for. Raises SprachbundError for one that the model was not trained for."""
        right = options.right_context
        return self.encoder.tier if right is None else self._streaming.tier_of(right)

    def step_s(self, options: LiveOptions) -> float:
        """Seconds of a chunk."""
        return self.tier(options).chunk * SUBSAMPLING * HOP / SAMPLE_RATE

    def stream(self, job: PendingStretch) -> TransducerStream:
        """Stream of the job's stretch, begun if it is new."""
        stretch = job.stretch
        if stretch.stream is None:
            asked = [Target(language=target) for target in job.session.targets]
            stretch.stream = TransducerStream(
                front_end=LogMelStream(self.encoder.shape.num_mel_bins, self._front_end),
                fed=round(stretch.span.start_s * SAMPLE_RATE),
                waiting=torch.zeros(LEAD, self.encoder.shape.num_mel_bins),
                encoder=self.encoder.start(1, self.tier(job.options)),
                writers=start_by_frames(self.family, asked),
                tokens={target: [] for target in job.session.targets},
                heard=torch.zeros(self.encoder.shape.width),
                scores=dict.fromkeys(job.session.targets, 0.0),
            )
        assert isinstance(stretch.stream, TransducerStream)
        return stretch.stream

    def encode_and_write(self, jobs: Sequence[PendingStretch]) -> None:
        """Take all whole chunks through the model, those of one tier together."""
        while ready := [job for job in jobs if self._is_ready(job)]:
            right = self.tier(ready[0].options).right
            self._pass([job for job in ready if self.tier(job.options).right == right])
        for job in jobs if self.family.capabilities.hears_language else ():
            if job.stretch.closed and self.stream(job).num_heard:  # a stretch may be shorter than a frame
                tracker, log_probs = job.session.tracker, self._language_log_probs(job)[0]
                if job.session.source is None:
                    tracker.push(log_probs)  # for its warning; what is answered is of this stretch alone
                else:
                    tracker.compare(log_probs)

    def waiting_s(self, job: PendingStretch) -> float:
        """Seconds of log-mel frames that are no whole chunk, less those by which they look ahead."""
        return len(self.stream(job).waiting) * HOP / SAMPLE_RATE - _LAG_S

    def language(self, job: PendingStretch) -> IdentifiedLanguage:
        """Language by all that was heard of the stretch."""
        log_probs = self._language_log_probs(job)
        return identify(log_probs, self.family.source_languages, job.session.request.allowed)

    def doubts(self, job: PendingStretch) -> Mapping[str, float]:
        """As the text of a recording is doubted, by the last half minute of the stretch."""
        stream, stretch, targets = self.stream(job), job.stretch, job.session.targets
        if not stream.latest.num_frames:  # a stretch may be shorter than a frame
            return {}
        latest_s = stream.latest.num_frames * self.family.frame_s
        written = {
            target: TransducerHypothesis(tokens=tuple(stream.tokens[target]), score=stream.scores[target])
            for target in targets
        }
        (row,) = out_of_domain(
            self.family,
            stream.latest.memory(),
            [self.spoken(job).language],
            [[hypothesis_of(written[target]) for target in targets]],
            [min(stretch.span.end_s - stretch.begin_s, latest_s)],
            [targets],
            [job.session.latest],
            [True],
        )
        return {target: doubt for target, doubt in zip(targets, row, strict=True) if doubt is not None}

    def _language_log_probs(self, job: PendingStretch) -> Tensor:
        """Log-probabilities (1, L) of the language of all that was heard of the stretch."""
        stream = self.stream(job)
        mean = stream.heard[None, None] / max(1, stream.num_heard)
        memory = Memory(states=mean, num_frames=torch.ones(1, dtype=torch.long))
        return self.family.language_log_probs(memory)

    def _is_ready(self, job: PendingStretch) -> bool:
        stream = self.stream(job)
        whole = len(stream.waiting) >= self.tier(job.options).chunk * SUBSAMPLING
        return whole or (stream.ended and len(stream.waiting) >= SUBSAMPLING)

    def _pass(self, jobs: Sequence[PendingStretch]) -> None:
        """One chunk of every stretch, all of one tier."""
        tier, streams = self.tier(jobs[0].options), [self.stream(job) for job in jobs]
        size = tier.chunk * SUBSAMPLING
        pieces = [stream.waiting[:size] for stream in streams]
        num_mel = torch.tensor([len(piece) for piece in pieces])
        mel = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, size - len(p))) for p in pieces])
        calibrated = self.family.calibration.domain is not None
        means: list[Tensor] | None = [] if calibrated and self.encoder.gives_means else None
        before = StreamState.stack([stream.encoder for stream in streams])
        states, num_frames, after = self.encoder.stream(mel, num_mel, before, tier, means=means)
        rows = torch.tensor([b for b, job in enumerate(jobs) for _ in job.session.targets])
        writers = TransducerState.stack([stream.writers for stream in streams])
        read = states[rows]
        if self.fuse is not None:
            read = self.fuse(read, [Target(language=to) for job in jobs for to in job.session.targets])
        hypotheses, writers = transducer_greedy(
            self.transducer, read, num_frames[rows], writers, max_symbols=self.max_symbols
        )
        row = 0
        for b, stream in enumerate(streams):
            count = int(num_frames[b])
            stream.waiting = stream.waiting[size:]
            stream.encoder = after.take(torch.tensor([b]))
            stream.writers = writers.take(torch.arange(row, row + len(stream.tokens)))
            stream.heard, stream.num_heard = stream.heard + states[b, :count].sum(0), stream.num_heard + count
            if calibrated:
                own = None if means is None else means[0][b : b + 1]
                stream.latest.add(
                    Memory(
                        states=states[b : b + 1, :count], num_frames=num_frames[b : b + 1], layer_means=own
                    )
                )
            for target, tokens in stream.tokens.items():
                tokens += hypotheses[row].tokens
                stream.scores[target] += hypotheses[row].score
                row += 1


# Models that write one token for every frame.


@dataclass(kw_only=True)
class TokenStream(FrameStream):
    """The state of a stretch in a model that writes a token for every frame.

    Attributes:
        state: one row of the decoder.
    """

    state: FrameState


class TokenWriter(FrameWriter[TokenStream]):
    """Writes for the sessions of one model, a token for every frame.

    Args:
        family: the model.
        decoder: its frame decoder.
    """

    def __init__(self, family: Family, decoder: FrameDecoder) -> None:
        super().__init__(family)
        self.decoder = decoder

    def step_s(self, options: LiveOptions) -> float:
        """Seconds of a frame. Raises SprachbundError for a tier."""
        if options.right_context is not None:
            raise SprachbundError(
                f"the text of {self.family.name} is {self.decoder.delay} frames behind, as its config.json says, and a "
                f"tier of {options.right_context} frames ahead was asked for; leave the tier out"
            )
        return self.decoder.frame_s

    def stream(self, job: PendingStretch) -> TokenStream:
        """Stream of the job's stretch, begun if it is new."""
        stretch = job.stretch
        if stretch.stream is None:
            front_end = self.decoder.front_end()
            stretch.stream = TokenStream(
                front_end=front_end,
                fed=round(stretch.span.start_s * SAMPLE_RATE),
                waiting=front_end.push(stretch.samples[:0]),
                state=self.decoder.start_frames(1),
                tokens={target: [] for target in job.session.targets},
            )
        assert isinstance(stretch.stream, TokenStream)
        return stretch.stream

    def encode_and_write(self, jobs: Sequence[PendingStretch]) -> None:
        """Take all frames through the model; streams go together for as many frames as all of them have."""
        streams = [self.stream(job) for job in jobs]
        while ready := [stream for stream in streams if len(stream.waiting)]:
            count = min(len(stream.waiting) for stream in ready)
            frames = torch.stack([stream.waiting[:count] for stream in ready])
            state = type(ready[0].state).stack([stream.state for stream in ready])
            states, state = self.decoder.encode_frames(frames, state)
            written, state = self.decoder.write_frames(states, state)
            is_text = self.decoder.is_text(written.tokens)
            for row, stream in enumerate(ready):
                stream.waiting = stream.waiting[count:]
                stream.state = state.take(torch.tensor([row]))
                for tokens in stream.tokens.values():
                    tokens += written.tokens[row][is_text[row]].tolist()

    def waiting_s(self, job: PendingStretch) -> float:
        """None: what the front end keeps is less than a frame."""
        return 0.0

    def language(self, job: PendingStretch) -> IdentifiedLanguage:
        """The one that was asked for, since it writes what is spoken."""
        return IdentifiedLanguage(language=job.session.targets[0], probability=1.0)
