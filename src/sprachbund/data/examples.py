"""How a family turns utterances into what it learns from: the one thing that differs between families in the data.

Everything else (which utterances, in which order, which target languages, the masks) is the same for all of them,
see `loading`. Shapes: T frames of 10 ms, M mel bins.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from sprachbund.audio.logmel import log_mel
from sprachbund.audio.mel_stream import StreamedNormalisation
from sprachbund.text.tokenizer import END, Tokenizer

Row = tuple[int, list[int]]
"""Language token and the tokens to be learned, the end included; what a row starts with is not among them."""
Augment = Callable[[Tensor], Tensor]
"""Changes log-mel (T, M) of an utterance without its padding."""


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
        """Frames in a second of `features`."""
        ...

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        ...

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Features (T, M) of 16 kHz samples (num_samples,), and how many frames are the utterance's own."""
        ...

    def transcript(self, text: str) -> list[int]:
        """Tokens for a CTC head; none where there is no such head."""
        ...

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """A row to be learned; None for a pair that the model cannot be asked for. No source: nobody speaks."""
        ...


class PieceExamples:
    """`Examples` of the conformer: its own log-mel, pieces, any language to any other.

    Args:
        tokenizer: of what the model writes.
        transcript_tokenizer: of the transcripts.
        languages: spoken and drawn as targets.
        known: the model's source languages; `languages` if None.
        num_mel_bins: M.
        front_end: normalisation of the log-mel that the model takes.
        max_tokens: most tokens of a row.
        only_spoken: whether the model writes what is spoken, so that transcripts are all it can be taught.
    """

    frames_per_s = 100
    whole_windows = False
    max_window_s: float | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        transcript_tokenizer: Tokenizer,
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
        self.source_languages = self.target_languages = list(languages)
        self.num_mel_bins, self.front_end = num_mel_bins, front_end
        self.max_tokens, self.only_spoken = max_tokens, only_spoken
        self._known = list(known or languages)

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._known.index(language)

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Log-mel (T, M) of 16 kHz samples (num_samples,), and T."""
        features = augment(log_mel(samples, self.num_mel_bins, normalise=self.front_end).T)
        return features, features.shape[0]

    def transcript(self, text: str) -> list[int]:
        """Pieces for the CTC head."""
        return self.transcript_tokenizer.encode(text)

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """Language token and pieces; where nobody speaks the row ends at once."""
        if self.only_spoken and source not in (None, target):
            return None
        return self.tokenizer.language_id(target), [*self.tokenizer.encode(text), END]
