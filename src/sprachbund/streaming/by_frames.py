"""Live text of models with a transducer: every chunk is encoded once, and its text is committed at once.

Nothing is attempted twice. Streams with a chunk ready go through the model together.
"""

from collections.abc import Sequence

import torch

from sprachbund.audio.constants import HOP, SAMPLE_RATE, VAD_WINDOW, WINDOW
from sprachbund.audio.features import LogMelStream
from sprachbund.decoding.languages import IdentifiedLanguage, identify
from sprachbund.decoding.transducer import start_by_frames, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.streaming_conformer import LEAD, SUBSAMPLING, StreamState, Tier
from sprachbund.nn.transducer import TransducerState
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import FrameStream
from sprachbund.streaming.writing import PendingStretch, news

_LAG_S = (WINDOW // 2) / SAMPLE_RATE
"""A mel frame looks so far ahead: with that much more than a chunk, its frames are surely there."""

LEAD_S = LEAD * HOP / SAMPLE_RATE - _LAG_S
"""The first chunk of a stretch needs so much less sound than the others."""

_KEPT = 2 * SAMPLE_RATE
"""Samples that were read are dropped when there are so many."""


class FrameWriter:
    """Writes for the sessions of one model.

    Args:
        family: a conformer with a streaming encoder and a transducer.

    Raises:
        SprachbundError: for a model that has no such parts.
    """

    def __init__(self, family: Family) -> None:
        if (streaming := family.capabilities.streaming) is None:
            raise SprachbundError(
                f"the encoder of {family.name} hears whole recordings only; live text by frames needs one that streams"
            )
        self.family, self.encoder = family, streaming.encoder
        self.transducer, self._front_end = streaming.transducer, streaming.front_end
        self.fuse = family.capabilities.fuse_language

    def tier(self, options: LiveOptions) -> Tier:
        """The tier that a session asks for. Raises SprachbundError for one that the model was not trained for."""
        known = {tier.right: tier for tier in self.encoder.tiers}
        right = self.encoder.tier.right if options.right_context is None else options.right_context
        if right not in known:
            raise SprachbundError(
                f"there is no tier of {right} frames ahead; this model was trained for "
                f"{', '.join(map(str, sorted(known)))} frames of 80 ms"
            )
        return known[right]

    def chunk_s(self, options: LiveOptions) -> float:
        """Seconds of a chunk."""
        return self.tier(options).chunk * SUBSAMPLING * HOP / SAMPLE_RATE

    @torch.inference_mode()
    def write(self, jobs: Sequence[PendingStretch]) -> list[tuple[PendingStretch, LiveText]]:
        """Decode all whole chunks of stretches; their texts, in order of the stretches."""
        before = {id(job): {t: len(tokens) for t, tokens in self._stream(job).tokens.items()} for job in jobs}
        for job in jobs:
            self._hear(job)
        while ready := [job for job in jobs if self._is_ready(job)]:
            right = self.tier(ready[0].options).right
            self._pass([job for job in ready if self.tier(job.options).right == right])
        for job in jobs:
            waiting_s = len(self._stream(job).waiting) * HOP / SAMPLE_RATE
            job.stretch.attempted_s = job.stretch.span.end_s - waiting_s + _LAG_S
        return [
            (job, text)
            for job in jobs
            for target, number in before[id(job)].items()
            if (text := self._text(job, target, number)) is not None
        ]

    def _stream(self, job: PendingStretch) -> FrameStream:
        """Of the job's stretch, begun if it is new."""
        stretch = job.stretch
        if stretch.stream is None:
            asked = [Target(language=target) for target in job.session.targets]
            stretch.stream = FrameStream(
                mel=LogMelStream(self.encoder.shape.num_mel_bins, self._front_end),
                fed=round(stretch.span.start_s * SAMPLE_RATE),
                waiting=torch.zeros(LEAD, self.encoder.shape.num_mel_bins),
                encoder=self.encoder.start(1, self.tier(job.options)),
                writers=start_by_frames(self.family, asked),
                tokens={target: [] for target in job.session.targets},
                heard=torch.zeros(self.encoder.shape.width),
            )
        return stretch.stream

    def _hear(self, job: PendingStretch) -> None:
        """New sound to mel frames; what was heard need not be kept by the session."""
        stream, stretch = self._stream(job), job.stretch
        begin = round(stretch.span.start_s * SAMPLE_RATE)
        new = stretch.samples[max(0, stream.fed - begin) :]
        stream.fed += len(new)
        frames = [stream.waiting, stream.mel.push(new)]
        if stretch.closed and not stream.ended:
            stream.ended = True
            frames.append(stream.mel.finish())
        stream.waiting = torch.cat(frames)
        if not stretch.closed and stream.fed - begin > _KEPT:
            job.session.cut(stretch, (stream.fed // VAD_WINDOW * VAD_WINDOW - begin) / SAMPLE_RATE)

    def _is_ready(self, job: PendingStretch) -> bool:
        stream = self._stream(job)
        whole = len(stream.waiting) >= self.tier(job.options).chunk * SUBSAMPLING
        return whole or (stream.ended and len(stream.waiting) >= SUBSAMPLING)

    def _pass(self, jobs: Sequence[PendingStretch]) -> None:
        """One chunk of every stretch, all of one tier."""
        tier, streams = self.tier(jobs[0].options), [self._stream(job) for job in jobs]
        size = tier.chunk * SUBSAMPLING
        pieces = [stream.waiting[:size] for stream in streams]
        num_mel = torch.tensor([len(piece) for piece in pieces])
        mel = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, size - len(p))) for p in pieces])
        states, num_frames, after = self.encoder.stream(
            mel, num_mel, StreamState.stack([stream.encoder for stream in streams]), tier
        )
        rows = torch.tensor([b for b, job in enumerate(jobs) for _ in job.session.targets])
        writers = TransducerState.stack([stream.writers for stream in streams])
        read = states[rows]
        if self.fuse is not None:
            read = self.fuse(read, [Target(language=to) for job in jobs for to in job.session.targets])
        hypotheses, writers = transducer_greedy(self.transducer, read, num_frames[rows], writers)
        row = 0
        for b, stream in enumerate(streams):
            count = int(num_frames[b])
            stream.waiting = stream.waiting[size:]
            stream.encoder = after.take(torch.tensor([b]))
            stream.writers = writers.take(torch.arange(row, row + len(stream.tokens)))
            stream.heard, stream.num_heard = stream.heard + states[b, :count].sum(0), stream.num_heard + count
            for tokens in stream.tokens.values():
                tokens += hypotheses[row].tokens
                row += 1

    def _text(self, job: PendingStretch, target: str, number: int) -> LiveText | None:
        """What the tokens from `number` on add; the end of a stretch makes an event in any case."""
        tokens, line = self._stream(job).tokens[target], job.stretch.lines[target]
        if len(tokens) == number and not job.stretch.closed:
            return None
        text = self.family.decode_text(tokens).strip()
        while text.endswith("\ufffd") and not job.stretch.closed:  # bytes of a character still to come
            text = text[:-1]
        piece = text[len(line.written) :]
        line.written = text
        job.language = self._language(job)
        return news(job, target, target, piece, 0, final=job.stretch.closed)

    def _language(self, job: PendingStretch) -> IdentifiedLanguage:
        """Given, or by all that was heard of the stretch."""
        stream = self._stream(job)
        if job.session.source is not None:
            return IdentifiedLanguage(language=job.session.source, probability=1.0)
        mean = stream.heard[None, None] / max(1, stream.num_heard)
        memory = Memory(states=mean, num_frames=torch.ones(1, dtype=torch.long))
        log_probs = self.family.language_log_probs(memory)
        return identify(log_probs, self.family.source_languages, job.session.request.allowed)
