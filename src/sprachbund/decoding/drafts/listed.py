"""A text as a draft: only the tokens that occur in it are scored, by their rows of the output matrix.

The draft tokens come from the model's own states, so each is right unless the model would have written a token that the
text does not contain. The states are kept, and after some steps all of them are multiplied by the whole matrix at once,
which costs little more than one of them. What is saved is reading the rows of all other tokens at every step; whether
that pays is predicted from bytes.

Shapes: R rows, Q positions, K draft tokens, D width, V vocabulary, N listed tokens.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.decoding.drafts.base import DecodingState, StatelessRun
from sprachbund.decoding.logits_process import likeliest
from sprachbund.engines.native_engine import NativeDecoder
from sprachbund.engines.packing import BLOCK, Arrays, pad
from sprachbund.engines.torch_layers import TorchDecoder, num_bytes
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.util.files import read_text

# Rows of the output matrix apart from the others, and what reading those alone gains.

CHECK_EVERY = 8
"""Tokens proposed between checks; what follows a wrong one is lost."""


class OutputRows(Protocol):
    """A decoder whose states and output matrix can be had apart."""

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Return the input of the last norm (R, Q, D or more), after each of `tokens` (R, Q)."""

    def listed(self, states: Tensor) -> Tensor:
        """Logits (R, Q, N) of the listed tokens."""

    def everything(self, states: Tensor) -> Tensor:
        """Logits (R, Q, V) of all tokens."""


class NativeRows:
    """The native decoder; logits of single tokens and of several at once are the same to the bit.

    Args:
        decoder: decoder with its packed weights.
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


class TorchRows:
    """The torch decoder; where two logits differ by less than rounding, several tokens at once may decide otherwise.

    Args:
        decoder: decoder with its weights.
        rows: (N,) tokens, each once.
    """

    def __init__(self, decoder: TextDecoder, rows: Tensor) -> None:
        self._decoder, self._matrix = decoder, decoder.output_matrix[rows]
        self._bias = None if decoder.logits_bias is None else decoder.logits_bias[rows]

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.states(tokens, cache)

    def listed(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return F.linear(self._decoder.norm(states), self._matrix, self._bias)

    def everything(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.logits(states)


def output_rows(decoder: nn.Module | None, rows: Tensor) -> OutputRows:
    """The listed rows of a decoder's output matrix.

    Raises:
        SprachbundError: a decoder whose states cannot be had.
    """
    if isinstance(decoder, NativeDecoder):
        return NativeRows(decoder, rows)
    if isinstance(decoder, TextDecoder):
        if not isinstance(decoder.output_head, nn.Linear | None):
            raise SprachbundError(
                f"a list of tokens needs the rows of the output matrix, which this engine keeps as "
                f"{type(decoder.output_head).__name__}; use the engine torch, or leave the list out"
            )
        return TorchRows(decoder, rows)
    raise SprachbundError(
        f"a list of tokens cannot be used with a decoder of the kind {type(decoder).__name__}; leave it out"
    )


def bytes_of_a_token(
    decoder: NativeDecoder | TextDecoder, num_listed: int, missing: float, num_frames: int
) -> tuple[float, float]:
    """Bytes that a token reads without a list, W + V, and with one, (k (W + N) + V) / a.

    Args:
        decoder: decoder of the model.
        num_listed: rows in the list.
        missing: probability that a token is not in the list.
        num_frames: number of frames of the memory.
    """
    layers, output, vocabulary, memory = _bytes(decoder, num_frames)
    kept = 1 - missing
    won = float(CHECK_EVERY) if missing == 0 else (1 - kept**CHECK_EVERY) / missing
    rest, listed = layers + memory, output * num_listed / vocabulary
    return rest + output, (CHECK_EVERY * (rest + listed) + output) / won


def _bytes(decoder: NativeDecoder | TextDecoder, num_frames: int) -> tuple[int, int, int, int]:
    """Bytes that a token reads of layers and of the output matrix; V; and of the memory's keys and values."""
    if isinstance(decoder, NativeDecoder):
        shape = decoder.shape
        output = sum(array.nbytes for array in decoder.vocabulary.values())
        memory = 2 * 2 * shape.num_layers * shape.width * num_frames
        return decoder.step_bytes - output, output, shape.vocabulary_size, memory
    output = num_bytes(decoder.output) if isinstance(decoder, TorchDecoder) else decoder.output_matrix.nbytes
    dtype = decoder.memory_dtype if isinstance(decoder, TorchDecoder) else decoder.embedding.weight.dtype
    memory = 2 * dtype.itemsize * len(decoder.layers) * decoder.embedding.embedding_dim * num_frames
    layers = decoder.step_bytes - output if isinstance(decoder, TorchDecoder) else num_bytes(decoder.layers)
    return layers, output, decoder.embedding.num_embeddings, memory


def take_rows(packed: Arrays, rows: Tensor) -> Arrays:
    """Some rows (N,) of a packed matrix as a packed matrix "matrix": the same numbers, so the same products."""
    values = packed["values"].transpose(1, 2).flatten(0, 1)[rows]  # (N, inputs / 4, 4)
    blocks = pad(values, 0, BLOCK).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
    each = {name: pad(packed[name][rows], 0, BLOCK).contiguous() for name in ("scale", "offset", "bias")}
    return {f"matrix.{name}": array for name, array in ({"values": blocks} | each).items()}


# The draft.

KIND = "text"
SUFFIX = ".txt"
_HELD_OUT = 10  # every tenth line says how often a token is missing from a list made of the others
_LEAST_SAVED_MB = 8.0
"""Megabytes saved for each token: drafting costs some tenths of a millisecond, in which this much is read."""


class ListedRows:
    """Tokens, and what chooses among them alone.

    Args:
        decoder: decoder whose output matrix is meant.
        tokens: (N,) listed, each once.
    """

    def __init__(self, decoder: nn.Module | None, tokens: Tensor) -> None:
        self._tokens, self.output = tokens, output_rows(decoder, tokens)

    def forbidden(self, state: DecodingState) -> Tensor:
        """Boolean (R, N): listed tokens that a row never holds; the same for all draft tokens of a round."""
        return state.suppressed.each()[:, self._tokens]

    def likeliest(self, states: Tensor, forbidden: Tensor) -> Tensor:
        """The likeliest listed token (R, 1) after the last of the states (R, Q, D) that is not forbidden (R, N)."""
        logits = self.output.listed(states[:, -1:])[:, -1].float().masked_fill(forbidden, -torch.inf)
        return self._tokens[likeliest(logits)][:, None]


class TextDraft:
    """The tokens of a text in the languages wanted, for one model.

    Attributes:
        tokens: (N,) listed, among them those that end a row or stand for times.
        missing: share of the tokens of every tenth line that are not in the other nine.
        num_draft_tokens: proposed before the whole matrix is read.
    """

    name = KIND
    num_draft_tokens = CHECK_EVERY - 1
    typical_length: int | None = None

    def __init__(self, family: Family, text: str) -> None:
        lines = [_tokens_of(family, f" {line.strip()}") for line in text.splitlines() if line.strip()]
        if not lines:
            raise SprachbundError("the text is empty; give some hundred lines in the languages wanted")
        known = {token for i, line in enumerate(lines) if i % _HELD_OUT for token in line}
        asked = [token for line in lines[::_HELD_OUT] for token in line]
        self.missing = sum(token not in known for token in asked) / max(1, len(asked))
        everything = known.union(asked, _times(family), [family.end_token])
        self.tokens = torch.tensor(sorted(everything))
        self.acceptance: dict[str, float] = {}
        self._decoder = family.capabilities.decoder
        self._num_frames = round(family.max_window_s / family.frame_s)

    @classmethod
    def read(cls, family: Family, path: Path) -> "TextDraft":
        """Read a draft from a text file in UTF-8. Raises SprachbundError for anything else."""
        return cls(family, read_text(path, advice="give a text in UTF-8"))

    @cached_property
    def rows(self) -> ListedRows:
        """The listed rows."""
        return ListedRows(self._decoder, self.tokens)

    @property
    def saved_mb(self) -> float:
        """Megabytes that a token is predicted to read less, with a memory of the longest speech."""
        decoder = self._decoder
        assert isinstance(decoder, NativeDecoder | TextDecoder)  # `rows` refuses all others
        before, after = bytes_of_a_token(decoder, len(self.tokens), self.missing, self._num_frames)
        return (before - after) / 1e6

    def check(self, family: Family) -> None:
        """Raise a SprachbundError where a list cannot be used, or would only cost."""
        _ = self.rows
        if self.saved_mb < _LEAST_SAVED_MB:
            raise SprachbundError(
                f"with this text a token would read {self.saved_mb:.1f} MB less; it pays from {_LEAST_SAVED_MB:g} on "
                f"({len(self.tokens)} tokens listed, {self.missing:.1%} of every tenth line not in the others); "
                "give more text, or leave it out: small models gain nothing"
            )

    def start(self, family: Family, memory: Memory, targets: Sequence[Target], capacity: int) -> "TextRun":
        """See `sprachbund.decoding.drafts.base.Draft`; the arguments are not needed."""
        return TextRun(self.rows)


class TextRun(StatelessRun):
    """A list of tokens on the rows of one search; drafting is the first part of the model's own pass."""

    def __init__(self, listed: ListedRows) -> None:
        self._listed, self._output = listed, listed.output
        self._states: list[Tensor] = []

    def propose(self, state: DecodingState, count: int) -> Tensor:
        """The likeliest listed tokens, one after the other; (R, count). The cache then holds all but the last."""
        tokens, forbidden = [state.newest()], self._listed.forbidden(state)
        for _ in range(count):
            self._states.append(self._output.states(tokens[-1], state.cache))
            tokens.append(self._listed.likeliest(self._states[-1], forbidden))
        return torch.cat(tokens[1:], dim=1)

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits (R, Q, V) of all rows of the matrix, for the states of the draft tokens and the last one."""
        states, self._states = [*self._states, self._output.states(tokens[:, -1:], cache)], []
        return self._output.everything(torch.cat(states, dim=1))


def _times(family: Family) -> range:
    """Timestamp tokens."""
    times = family.capabilities.timestamps
    return range(0) if times is None else range(times.first, times.stop)


def _tokens_of(family: Family, text: str) -> list[int]:
    if (encode_text := family.capabilities.encode_text) is None:
        raise SprachbundError(
            f"the family {family.name} does not say which tokens a text has; leave the text out"
        )
    return encode_text(text)
