"""A few rows of the output matrix apart from the others, and what it gains to read those alone.

A list of rows, such as the tokens that ever occur in the target language, proposes tokens one after another; the
states that the proposals came from are kept, and after some steps all of them are multiplied by the whole matrix at
once, which costs little more than one of them. `sprachbund.decoding.drafts.listed` does that. Shapes: R rows,
Q positions, D width, V vocabulary, N listed tokens.
"""

import copy
from typing import Any, Protocol

from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.nn.decoder import DecoderCache, TextDecoder
from sprachbund.runtime.native_parts import NativeDecoder
from sprachbund.runtime.packing import BLOCK, Arrays, pad
from sprachbund.runtime.torch_linear import num_bytes
from sprachbund.runtime.torch_parts import TorchDecoder

CHECK_EVERY = 8
"""Tokens proposed between checks; what follows a wrong one is lost."""


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
        self._decoder, self._matrix = decoder, decoder.output_matrix[rows]
        if isinstance(decoder, TorchDecoder):
            self._states = decoder.states
            return
        without_output = copy.copy(decoder)
        without_output.__class__ = _WithoutOutput
        self._states = without_output.step

    def states(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """As in `OutputRows`."""
        return self._states(tokens, cache)

    def listed(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.norm(states) @ self._matrix.T

    def everything(self, states: Tensor) -> Tensor:
        """As in `OutputRows`."""
        return self._decoder.logits(states)


def output_rows(decoder: Any, rows: Tensor) -> OutputRows:
    """The listed rows of a decoder's output matrix.

    Raises:
        SprachbundError: a decoder whose states cannot be had.
    """
    if isinstance(decoder, NativeDecoder):
        return NativeRows(decoder, rows)
    if isinstance(decoder, TextDecoder):
        return TorchRows(decoder, rows)
    raise SprachbundError(
        f"a list of tokens cannot be used with a decoder of the kind {type(decoder).__name__}; leave it out"
    )


def bytes_of_a_token(
    decoder: NativeDecoder | TextDecoder, num_listed: int, missing: float, num_frames: int
) -> tuple[float, float]:
    """What a token reads without a list, W + V, and with one, (k (W + N) + V) / a.

    Args:
        decoder: of the model.
        num_listed: rows in the list.
        missing: probability that a token is not in the list.
        num_frames: of the memory.
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
    fused = isinstance(decoder, TorchDecoder)
    output = num_bytes(decoder.output) if isinstance(decoder, TorchDecoder) else decoder.output_matrix.nbytes
    size = 2 if fused else decoder.embedding.weight.element_size()
    memory = 2 * size * len(decoder.layers) * decoder.embedding.embedding_dim * num_frames
    layers = decoder.step_bytes - output if isinstance(decoder, TorchDecoder) else num_bytes(decoder.layers)
    return layers, output, decoder.embedding.num_embeddings, memory


def take_rows(packed: Arrays, rows: Tensor) -> Arrays:
    """Some rows (N,) of a packed matrix as a packed matrix "matrix": the same numbers, so the same products."""
    values = packed["values"].transpose(1, 2).flatten(0, 1)[rows]  # (N, inputs / 4, 4)
    blocks = pad(values, 0, BLOCK).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
    each = {name: pad(packed[name][rows], 0, BLOCK).contiguous() for name in ("scale", "offset", "bias")}
    return {f"matrix.{name}": array for name, array in ({"values": blocks} | each).items()}
