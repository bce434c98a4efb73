"""Live text of models that write one token for every frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.languages import IdentifiedLanguage
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, FrameDecoder, FrameState
from sprachbund.streaming.by_frames import FrameWriter
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import FrameStream
from sprachbund.streaming.writing import PendingStretch


@dataclass(kw_only=True)
class TokenStream(FrameStream):
    """How far a stretch has come.

    Attributes:
        state: one row of the decoder.
    """

    state: FrameState


class TokenWriter(FrameWriter[TokenStream]):
    """Writes for the sessions of one model.

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
        """Of the job's stretch, begun if it is new."""
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
