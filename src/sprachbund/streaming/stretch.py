"""A stretch of speech under way, and what has been written of it in each language."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span
from sprachbund.decoding.language import IdentifiedLanguage
from sprachbund.text.languages import writes_spaces

if TYPE_CHECKING:
    from sprachbund.streaming.by_frames import FrameStream

Samples = NDArray[np.float32]


@dataclass(kw_only=True)
class Line:
    """The text of a stretch in one language.

    Attributes:
        prefix: committed tokens whose audio is still held; what comes next is decoded behind them.
        written: all committed text.
        tentative: what is shown behind it.
        attempts: words behind the prefix in earlier attempts, the newest last.
    """

    prefix: tuple[int, ...] = ()
    written: str = ""
    tentative: str = ""
    attempts: list[list[str]] = field(default_factory=list)

    def behind(self, piece: str, language: str) -> str:
        """A piece of text as it is to stand behind what is written."""
        if not self.written:
            return piece.strip()
        if piece.strip() and not self.prefix and writes_spaces(language):
            return (
                f" {piece.strip()}"  # the tokens before, behind which it would have had its space, are gone
            )
        return piece.rstrip()

    def commit(self, piece: str, language: str) -> str:
        """Append a piece of text; the characters that it adds."""
        piece = self.behind(piece, language)
        self.written += piece
        return piece

    def show(self, tentative: str, committed: str) -> int:
        """Replace the tentative text; how many words of the one before are no longer there."""
        before, now = self.tentative.split(), f"{committed}{tentative}".split()
        self.tentative = tentative
        kept = sum(old == new for old, new in zip(before, now, strict=False))
        return len(before) - kept


@dataclass(kw_only=True)
class Stretch:
    """Speech between two pauses, as far as it has been heard.

    Attributes:
        number: counts up over a session.
        begin_s: where it began.
        span: what is still held of it.
        samples: of the span.
        closed: whether all of it has been heard.
        lines: by target.
        language: the language spoken, once text rests on it.
        attempted_s: audio up to here has been attempted.
        stream: what a model that writes frame by frame has made of it.
    """

    number: int
    begin_s: float
    span: Span
    samples: Samples
    closed: bool = False
    lines: dict[str, Line]
    language: IdentifiedLanguage | None = None
    attempted_s: float
    stream: "FrameStream | None" = None

    @property
    def duration_s(self) -> float:
        """Of the audio held."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def untouched(self) -> bool:
        """Whether nothing of it was written."""
        return not any(line.written for line in self.lines.values())
