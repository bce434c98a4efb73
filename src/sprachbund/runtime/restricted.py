"""Greedy decoding that reads few rows of the output matrix, with exactly the tokens of reading all.

A list of rows, such as the tokens that ever occur in the target language, proposes tokens one after another; the
states that the proposals came from are kept, and after some steps all of them are multiplied by the whole matrix at
once, which costs little more than one of them. What the whole matrix would not have chosen is taken back. The list
thus decides about speed alone. Shapes: R rows, Q positions, U tokens, D width, V vocabulary, N listed tokens.
"""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.runtime.native_parts import NativeDecoder
from sprachbund.runtime.packing import BLOCK, Arrays, pad

CHECK_EVERY = 8
"""Tokens proposed between checks; what follows a wrong one is lost."""


@dataclass(frozen=True, kw_only=True)
class GreedyRows:
    """What came out.

    Attributes:
        tokens: of each row, the end token left out.
        log_probabilities: sum over each row's tokens and its end token, over all that was not forbidden.
        num_steps: of the decoder, those taken back included.
        num_checks: products with the whole matrix.
    """

    tokens: list[list[int]]
    log_probabilities: list[float]
    num_steps: int
    num_checks: int


class OutputRows(Protocol):
    """A decoder whose states and output matrix can be had apart."""

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """What goes into the last norm (R, Q, D or more), after each of `tokens` (R, Q)."""

    def listed(self, states: Tensor) -> Tensor:
        """Logits (R, Q, N) of the listed tokens."""

    def everything(self, states: Tensor) -> Tensor:
        """Logits (R, Q, V) of all tokens."""


class NativeRows:
    """The native decoder; logits of single tokens and of several at once are the same to the bit.

    Args:
        decoder: with its packed weights.
        rows: (N,) tokens, each once.
    """

    def __init__(self, decoder: NativeDecoder, rows: Tensor) -> None:
        self._decoder, self._matrix, self._count = decoder, take_rows(decoder.vocabulary, rows), len(rows)

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.states(tokens, cache)  # type: ignore[arg-type]

    def listed(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.logits(states, self._matrix, self._count)

    def everything(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.logits(states)


class _WithoutOutput(TextDecoder):
    """A decoder that stops before its last norm."""

    def logits(self, x: Tensor) -> Tensor:
        return x


class TorchRows:
    """The torch decoder; where two logits differ by less than rounding, several tokens at once may decide otherwise.

    Args:
        decoder: with its weights.
        rows: (N,) tokens, each once.
    """

    def __init__(self, decoder: TextDecoder, rows: Tensor) -> None:
        self._decoder, self._matrix = decoder, decoder.embedding.weight[rows]
        self._without_output = copy.copy(decoder)
        self._without_output.__class__ = _WithoutOutput

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As in `OutputRows`."""
        return self._without_output.step(tokens, cache)

    def listed(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.norm(states) @ self._matrix.T

    def everything(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.logits(states)


@torch.inference_mode()
def restricted_greedy(
    output: OutputRows,
    cache: DecoderCache,
    states: Tensor,
    *,
    rows: Tensor,
    forbidden: Tensor,
    end_token: int,
    max_tokens: int,
    check_every: int = CHECK_EVERY,
) -> GreedyRows:
    """The likeliest token of every row at every step, as if all rows of the output matrix were read each time.

    Args:
        output: of the decoder whose rows are listed.
        cache: holds the prompts.
        states: (R, 1, D or more) of `output.states` after the prompts.
        rows: (N,) the tokens listed, as `output` was made with.
        forbidden: boolean (V,) or (R, V), tokens never to be emitted.
        end_token: what ends a row.
        max_tokens: most tokens of a row.
        check_every: tokens proposed between two products with the whole matrix.

    Raises:
        SprachbundError: `max_tokens` or `check_every` below 1, or nothing listed that is not forbidden.
    """
    if min(max_tokens, check_every) < 1:
        raise SprachbundError(f"max_tokens is {max_tokens} and check_every {check_every}; give 1 or more")
    forbidden = forbidden.expand(len(states), -1)
    if bool(forbidden[:, rows].all(1).any()):
        raise SprachbundError("every listed token is forbidden; list tokens that may come")
    sums, tokens = _likeliest(output.everything(states), forbidden)
    found = _Found(len(states), end_token, max_tokens)
    found.take(tokens, sums, tokens.new_full((len(states), 1), -1))
    while not all(found.done):
        done = torch.tensor(found.done, device=cache.lengths.device)
        cache.rewind(cache.lengths.masked_fill(done, 0))  # rows that are done must not run out of room
        before, count = cache.lengths, min(check_every, found.room())
        proposed, kept = _propose(output, cache, found.last(), rows, forbidden, count)
        sums, tokens = _likeliest(output.everything(kept), forbidden)
        used = found.take(tokens, sums, proposed)
        cache.rewind(before + torch.tensor(used, device=before.device))
        found.num_steps, found.num_checks = found.num_steps + count, found.num_checks + 1
    return GreedyRows(
        tokens=[[t for t in row if t != end_token] for row in found.tokens],
        log_probabilities=found.sums,
        num_steps=found.num_steps,
        num_checks=found.num_checks,
    )


def take_rows(packed: Arrays, rows: Tensor) -> Arrays:
    """Some rows (N,) of a packed matrix as a packed matrix "matrix": the same numbers, so the same products."""
    values = packed["values"].transpose(1, 2).flatten(0, 1)[rows]  # (N, inputs / 4, 4)
    blocks = pad(values, 0, BLOCK).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
    each = {name: pad(packed[name][rows], 0, BLOCK).contiguous() for name in ("scale", "offset", "bias")}
    return {f"matrix.{name}": array for name, array in ({"values": blocks} | each).items()}


class _Found:
    """Tokens of every row so far; the last of each is not yet in the cache."""

    def __init__(self, num_rows: int, end_token: int, max_tokens: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.sums, self.done = [0.0] * num_rows, [False] * num_rows
        self.end_token, self.max_tokens = end_token, max_tokens
        self.num_steps = self.num_checks = 0

    def take(self, tokens: Tensor, log_probs: Tensor, proposed: Tensor) -> list[int]:
        """Append each row's tokens (R, Q) up to the first that is not as proposed; how many that were."""
        rows = zip(tokens.tolist(), log_probs.tolist(), proposed.tolist(), strict=True)
        return [self._take_row(r, *row) for r, row in enumerate(rows)]

    def _take_row(self, r: int, tokens: list[int], log_probs: list[float], proposed: list[int]) -> int:
        if self.done[r]:
            return 0
        for i, token in enumerate(tokens):
            self.tokens[r].append(token)
            self.sums[r] += log_probs[i]
            self.done[r] = token == self.end_token or len(self.tokens[r]) == self.max_tokens
            if self.done[r] or token != proposed[i]:
                return i + 1
        return len(tokens)

    def last(self) -> Tensor:
        return torch.tensor([row[-1] for row in self.tokens])

    def room(self) -> int:
        """Tokens that every unfinished row may still get."""
        return min(
            self.max_tokens - len(t) for t, done in zip(self.tokens, self.done, strict=True) if not done
        )


def _propose(
    output: OutputRows, cache: DecoderCache, tokens: Tensor, rows: Tensor, forbidden: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Tokens (R, Q) of the list that follow `tokens` (R,) one by one, and the states (R, Q, D) they came from."""
    proposed, kept = [tokens.to(rows.device)], list[Tensor]()
    for _ in range(count):
        kept.append(output.states(proposed[-1][:, None], cache))
        logits = output.listed(kept[-1])[:, -1].masked_fill(forbidden[:, rows], -torch.inf)
        proposed.append(rows[logits.argmax(-1)])
    return torch.stack(proposed[1:], 1), torch.cat(kept, 1)


def _likeliest(logits: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (R, Q) and number (R, Q) of the likeliest token allowed, from logits (R, Q, V)."""
    best = logits.float().masked_fill(forbidden[:, None], -torch.inf).log_softmax(-1).max(-1)
    return best.values, best.indices
