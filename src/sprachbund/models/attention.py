"""The common part of families with an attention decoder.

Shapes: B utterances, R rows, Q tokens, T frames, H heads, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sprachbund.models.base import Memory, Target
from sprachbund.models.splitting import start_route
from sprachbund.nn.decoder import DecoderCache


class DecodesByAttention:
    """Methods of `sprachbund.models.base.Family` for models with a decoder like `sprachbund.nn.decoder.TextDecoder`.

    Attributes:
        decoder: whole or packed; its feed-forwards may be split by language.
        max_tokens: longest row, the prompt included.
    """

    decoder: Any
    max_tokens: int

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """An empty cache for R rows.

        Args:
            memory: memory of B utterances.
            rows_per_memory: rows for each utterance; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            targets: targets of the R rows; only a decoder that is split by language needs them.
        """
        return self.decoder.start(
            memory.states,
            memory.num_frames,
            rows_per_memory=rows_per_memory,
            capacity=self.max_tokens if capacity is None else capacity,
            route=start_route(self, targets, memory.states.device),
        )

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q).

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: each layer's cross-attention weights (R, H, Q, T) are appended to it, if given.
        """
        return self.decoder.step(tokens, cache, weights)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """None: most have no token for it."""
        return None
