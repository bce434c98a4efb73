"""Live text of models that write frame by frame: every frame is encoded once, and its text is committed at once.

Nothing is attempted twice. Streams with frames ready go through the model together.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.decoding.languages import IdentifiedLanguage
from sprachbund.models.base import Family
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import FrameStream
from sprachbund.streaming.writing import PendingStretch, news

_KEPT = 2 * SAMPLE_RATE
"""Samples that were read are dropped when there are so many."""

StreamT = TypeVar("StreamT", bound=FrameStream)


class FrameWriter(Generic[StreamT]):
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

    def step_s(self, options: LiveOptions) -> float:
        """Seconds of sound with which a session goes on. Raises SprachbundError for options that cannot be."""
        raise NotImplementedError

    def stream(self, job: PendingStretch) -> StreamT:
        """Of the job's stretch, begun if it is new."""
        raise NotImplementedError

    def encode_and_write(self, jobs: Sequence[PendingStretch]) -> None:
        """Take all frames that are ready through the model."""
        raise NotImplementedError

    def waiting_s(self, job: PendingStretch) -> float:
        """Seconds of sound that were given and are in no text yet."""
        raise NotImplementedError

    def language(self, job: PendingStretch) -> IdentifiedLanguage:
        """The language of a stretch, where nobody named it."""
        raise NotImplementedError

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
        return [
            (job, text)
            for job in jobs
            for target, number in before[id(job)].items()
            if (text := self._text(job, target, number)) is not None
        ]

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

    def _text(self, job: PendingStretch, target: str, number: int) -> LiveText | None:
        """What the tokens from `number` on add; the end of a stretch makes an event in any case."""
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
        given = job.session.source
        job.language = (
            self.language(job) if given is None else IdentifiedLanguage(language=given, probability=1.0)
        )
        return news(job, target, target, piece, 0, final=job.stretch.closed)
