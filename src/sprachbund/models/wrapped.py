"""`WrappedFamily`: a family around another one, for what changes little of it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sprachbund.models.base import Capabilities, Family, Features, Memory, Target
from sprachbund.nn.decoder import DecoderCache


class WrappedFamily:
    """Another family under this name; a subclass overrides what it changes. Everything is as `Family` says.

    Args:
        family: not changed.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self.drafts = family.drafts
        self.calibration = family.calibration

    @property
    def capabilities(self) -> Capabilities:
        """See `Family`; so with all that follows."""
        return self._family.capabilities

    @property
    def name(self) -> str:
        """See `Family`."""
        return self._family.name

    @property
    def source_languages(self) -> tuple[str, ...]:
        """See `Family`."""
        return self._family.source_languages

    @property
    def end_token(self) -> int:
        """See `Family`."""
        return self._family.end_token

    @property
    def max_tokens(self) -> int:
        """See `Family`."""
        return self._family.max_tokens

    @property
    def max_window_s(self) -> float:
        """See `Family`."""
        return self._family.max_window_s

    @property
    def frame_s(self) -> float:
        """See `Family`."""
        return self._family.frame_s

    def pairs(self) -> frozenset[tuple[str, str]]:
        """See `Family`."""
        return self._family.pairs()

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """See `Family`."""
        return self._family.features(samples)

    def encode(self, features: Features) -> Memory:
        """See `Family`."""
        return self._family.encode(features)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """See `Family`."""
        return self._family.language_log_probs(memory)

    def prompt(self, target: Target) -> list[int]:
        """See `Family`."""
        return self._family.prompt(target)

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """See `Family`, arguments included."""
        return self._family.start(memory, rows_per_memory=rows_per_memory, capacity=capacity, targets=targets)

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """See `Family`, arguments included."""
        return self._family.step(tokens, cache, weights)

    def suppressed(self, target: Target) -> Tensor:
        """See `Family`."""
        return self._family.suppressed(target)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """See `Family`."""
        return self._family.no_speech_log_prob(logits)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """See `Family`."""
        return self._family.decode_text(tokens)
