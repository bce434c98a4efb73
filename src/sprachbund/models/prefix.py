"""The common part of families whose decoder is a language model that reads request and speech before it writes.

Shapes: B utterances or texts, P tokens of a prefix, R rows, Q tokens of a step, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.nn.causal_lm import PrefixCache


class PrefixReader(Protocol):
    """A causal language model that continues prefixes."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., D) of tokens (...)."""
        ...

    def start(self, prefixes: Sequence[Tensor], *, capacity: int, num_memories: int) -> PrefixCache:
        """A cache of the R rows that holds the prefixes (P, D).

        Args:
            prefixes: (P, D) of each of the R rows.
            capacity: tokens that fit behind the longest prefix.
            num_memories: B utterances or texts that the rows belong to.
        """
        ...

    def step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds."""
        ...


class PrefixFamily(nn.Module):
    """Base of families that ask a language model; `llm` is set by them.

    A prefix differs from target to target, so `start` needs the targets of all rows.
    """

    llm: PrefixReader
    """It is a module, too."""

    @property
    def name(self) -> str:
        """Name of the family."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """Longest row in tokens."""
        raise NotImplementedError

    def prefix(self, memory: Memory, number: int, target: Target) -> Tensor:
        """Embeddings (P, D) of what stands before the tokens of a row.

        Args:
            memory: memory of B utterances or texts.
            number: the row's among them.
            target: target of the row.

        Raises:
            SprachbundError: a pair that the model does not know.
        """
        raise NotImplementedError

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> PrefixCache:
        """A cache that holds the prefix of each row, and no token.

        Args:
            memory: memory of B utterances or texts.
            rows_per_memory: rows for each; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            targets: targets of the R rows, which are needed.

        Raises:
            SprachbundError: no targets, or a pair that the model does not know.
        """
        if targets is None:
            raise SprachbundError(
                f"{self.name} reads the languages before it writes; give the targets of all rows"
            )
        prefixes = [self.prefix(memory, row // rows_per_memory, target) for row, target in enumerate(targets)]
        room = self.max_tokens if capacity is None else min(capacity, self.max_tokens)
        return self.llm.start(prefixes, capacity=room, num_memories=len(memory.states))

    def step(self, tokens: Tensor, cache: Any, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q).

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: has to be None: attention is not shown.

        Raises:
            SprachbundError: attention weights are asked for.
        """
        if weights is not None:
            raise SprachbundError(
                f"{self.name} does not show its attention, so words get no times; leave word timestamps out"
            )
        return self.llm.step(tokens, cache)

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """None: there is no such token."""
        return None


class SpeechPrefixFamily(PrefixFamily):
    """Base of those that hear: the prefix of a row is a part of the prompt, and the speech behind it."""

    def prompt_parts(self, target: Target) -> tuple[list[int], list[int]]:
        """Tokens of the prompt before the speech, and behind it.

        Raises:
            SprachbundError: a pair that the model does not know.
        """
        raise NotImplementedError

    def prompt(self, target: Target) -> list[int]:
        """Tokens behind the speech, before the text. Raises SprachbundError for a pair the model does not know."""
        return self.prompt_parts(target)[1]

    def prefix(self, memory: Memory, number: int, target: Target) -> Tensor:
        """Embeddings (P, D) of the first part of the prompt, and the speech.

        Args:
            memory: memory of B utterances.
            number: the utterance's among them.
            target: target of the row.

        Raises:
            SprachbundError: a pair that the model does not know.
        """
        assert memory.num_frames is not None
        return self._joined(self.prompt_parts(target)[0], memory.states[number, : memory.num_frames[number]])

    def _joined(self, before: Sequence[int], speech: Tensor) -> Tensor:
        """Embeddings of tokens, and the speech behind them."""
        embedded = self.llm.embed(torch.tensor(before, dtype=torch.long, device=speech.device))
        return torch.cat([embedded, speech.to(embedded.dtype)])
