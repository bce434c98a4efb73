"""What every model family offers, so that searches, commands and the service need to know only this.

Shapes: B utterances, T frames, M mel bins, D width, R rows, Q tokens of a step, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sprachbund.nn.decoder import DecoderCache


@dataclass(frozen=True, kw_only=True)
class Features:
    """Log-mel of several utterances: `values` (B, T, M) and how many frames of each are valid, (B,)."""

    values: Tensor
    num_frames: Tensor


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What an encoder made of the features: `states` (B, T, D) and valid frames (B,); None if all are valid."""

    states: Tensor
    num_frames: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of the decoder for one row.

    Attributes:
        language: BCP-47 tag of the text wanted.
        source: BCP-47 tag of the speech, None when unknown.
        context: text that came before, or a glossary; shown to the model where the family has room for it.
        timestamps: whether the row is to hold timestamp tokens (families that have them).
    """

    language: str
    source: str | None = None
    context: str = ""
    timestamps: bool = False


@runtime_checkable
class Family(Protocol):
    """A speech-to-text model with an attention decoder.

    A family may have more, which searches use where it is there: `tokens.timestamps` (a range of tokens, one for
    each `frame_s`), `alignment_heads` (pairs of layer and head that follow the speech), `begin_suppressed` (tokens
    forbidden at the first step).
    """

    @property
    def name(self) -> str:
        """Of the family."""
        ...

    @property
    def source_languages(self) -> tuple[str, ...]:
        """BCP-47 tags it hears, in the order of `language_log_probs`."""
        ...

    @property
    def end_token(self) -> int:
        """Ends a row."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest row, the prompt included."""
        ...

    @property
    def max_window_s(self) -> float:
        """Longest speech it takes at once."""
        ...

    @property
    def frame_s(self) -> float:
        """Seconds of a memory frame."""
        ...

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) the model knows; (x, x) is transcription of x."""
        ...

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel of utterances given as 16 kHz mono float32 samples."""
        ...

    def encode(self, features: Features) -> Memory:
        """Run the encoder."""
        ...

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, len(source_languages)) of the language spoken."""
        ...

    def prompt(self, target: Target) -> list[int]:
        """Tokens that a row starts with. Raises SprachbundError for a pair the model does not know."""
        ...

    def start(self, memory: Memory, *, rows_per_memory: int = 1, capacity: int | None = None) -> DecoderCache:
        """An empty cache; row r reads memory r // rows_per_memory."""
        ...

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q)."""
        ...

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): tokens never to be emitted for this target (special tokens, other languages' tags)."""
        ...

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """Log-probability (R,) of "no speech" read off the first step's logits (R, V); None without such a token."""
        ...

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...
