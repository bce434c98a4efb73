"""Live text of models with a transducer, chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.audio.constants import HOP, SAMPLE_RATE, WINDOW
from sprachbund.audio.features import LogMelStream
from sprachbund.decoding.languages import IdentifiedLanguage, identify
from sprachbund.decoding.transducer import start_by_frames, transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, StreamingTransducer, Target
from sprachbund.nn.streaming_conformer import LEAD, SUBSAMPLING, StreamState, Tier
from sprachbund.nn.transducer import TransducerState
from sprachbund.streaming.by_frames import FrameWriter
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import FrameStream
from sprachbund.streaming.writing import PendingStretch

_LAG_S = (WINDOW // 2) / SAMPLE_RATE
"""A mel frame looks so far ahead: with that much more than a chunk, its frames are surely there."""


@dataclass(kw_only=True)
class TransducerStream(FrameStream):
    """How far a stretch has come; frames are of log-mel.

    Attributes:
        encoder: its state.
        writers: states of the transducer, one row for each target.
        heard: (D,) sum of the encoder's states, by which the language is known.
        num_heard: frames in it.
    """

    encoder: StreamState
    writers: TransducerState
    heard: Tensor
    num_heard: int = 0


class TransducerWriter(FrameWriter[TransducerStream]):
    """Writes for the sessions of one model.

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
        self.max_symbols = max_symbols
        self.encoder, self.transducer = streaming.encoder, streaming.transducer
        self._front_end, self.fuse = streaming.front_end, family.capabilities.fuse_language

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

    def step_s(self, options: LiveOptions) -> float:
        """Seconds of a chunk."""
        return self.tier(options).chunk * SUBSAMPLING * HOP / SAMPLE_RATE

    def stream(self, job: PendingStretch) -> TransducerStream:
        """Of the job's stretch, begun if it is new."""
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
            )
        assert isinstance(stretch.stream, TransducerStream)
        return stretch.stream

    def encode_and_write(self, jobs: Sequence[PendingStretch]) -> None:
        """Take all whole chunks through the model, those of one tier together."""
        while ready := [job for job in jobs if self._is_ready(job)]:
            right = self.tier(ready[0].options).right
            self._pass([job for job in ready if self.tier(job.options).right == right])

    def waiting_s(self, job: PendingStretch) -> float:
        """Seconds of log-mel frames that are no whole chunk, less those by which they look ahead."""
        return len(self.stream(job).waiting) * HOP / SAMPLE_RATE - _LAG_S

    def language(self, job: PendingStretch) -> IdentifiedLanguage:
        """By all that was heard of the stretch."""
        stream = self.stream(job)
        mean = stream.heard[None, None] / max(1, stream.num_heard)
        memory = Memory(states=mean, num_frames=torch.ones(1, dtype=torch.long))
        log_probs = self.family.language_log_probs(memory)
        return identify(log_probs, self.family.source_languages, job.session.request.allowed)

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
        states, num_frames, after = self.encoder.stream(
            mel, num_mel, StreamState.stack([stream.encoder for stream in streams]), tier
        )
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
            for tokens in stream.tokens.values():
                tokens += hypotheses[row].tokens
                row += 1
