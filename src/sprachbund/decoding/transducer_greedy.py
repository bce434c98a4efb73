"""Greedy search of a transducer: at every frame the likeliest tokens until the blank is likelier than any.

Each row walks at its own pace, so a batch takes as many steps as its slowest row, not the sum over frames; and since
most frames hold a blank, a step looks at several at once. Shapes: B rows, T frames, D width of the encoder, J width of
the joint network, K frames looked at in a step, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sprachbund.nn.transducer import Transducer, TransducerState

MAX_SYMBOLS = 10
"""Most tokens at one frame: a model that never chooses the blank must not hold up the stream."""


@dataclass(frozen=True, kw_only=True)
class TransducerHypothesis:
    """What was found in a chunk, or in all chunks so far.

    Attributes:
        tokens: without blanks.
        frames: at which each token came, counted from the start of the stream.
        score: log-probability, blanks included: of the one path of greedy search, of all paths kept in a beam.
    """

    tokens: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    score: float = 0.0

    def then(self, later: "TransducerHypothesis") -> "TransducerHypothesis":
        """This chunk and the one behind it."""
        return TransducerHypothesis(
            tokens=self.tokens + later.tokens,
            frames=self.frames + later.frames,
            score=self.score + later.score,
        )


@torch.no_grad()
def transducer_greedy(
    transducer: Transducer,
    encoded: Tensor,
    num_frames: Tensor,
    state: TransducerState | None = None,
    *,
    max_symbols: int = MAX_SYMBOLS,
    frames_at_once: int = 4,
) -> tuple[list[TransducerHypothesis], TransducerState]:
    """Tokens of every row in this chunk, and the state from which the next chunk goes on.

    Chunks of any sizes, one after another, give what the whole gives at once.

    Args:
        transducer: the part behind the encoder.
        encoded: (B, T, D), the encoder's frames of this chunk.
        num_frames: (B,), 0 to T: how many of them are real.
        state: what the chunk before returned; None at the start of streams.
        max_symbols: most tokens at one frame, 1 or more.
        frames_at_once: K; changes the speed, not the result.

    Raises:
        ValueError: for a state of another model, or numbers out of range.
    """
    check_chunk(encoded, num_frames, max_symbols)
    state = transducer.start(len(encoded)) if state is None else state
    transducer.check_state(state, len(encoded))
    walk = _Walk(transducer, encoded, num_frames.to(encoded.device), state, max_symbols)
    while walk.under_way():
        walk.step(frames_at_once)
    return walk.hypotheses(), walk.end()


class _Walk:
    """Rows on their way through a chunk."""

    def __init__(
        self,
        transducer: Transducer,
        encoded: Tensor,
        length: Tensor,
        state: TransducerState,
        max_symbols: int,
    ) -> None:
        self.transducer, self.state, self.length = transducer, state, length
        self.max_symbols = max_symbols
        self.encoded = transducer.joint.encoder(encoded)
        self.place = torch.zeros_like(length)
        self.symbols = torch.zeros_like(length)
        self.scores = torch.zeros(len(length), dtype=torch.float64, device=length.device)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def under_way(self) -> bool:
        """Whether any row has frames left."""
        return bool((self.place < self.length).any())

    def step(self, frames_at_once: int) -> None:
        """Move every row to its next token, or past the frames looked at."""
        ahead = torch.arange(frames_at_once, device=self.place.device)
        places = self.place[:, None] + ahead
        real = places < self.length[:, None]
        index = places.clamp(max=self.encoded.shape[1] - 1)[..., None]
        frames = self.encoded.gather(1, index.expand(-1, -1, self.encoded.shape[2]))
        logits = self.transducer.joint(frames, self.state.predicted[:, None])
        best, tokens = logits.float().log_softmax(-1).max(-1)
        is_token = (tokens != self.transducer.shape.blank) & real
        emits = is_token.any(1)
        first = torch.where(emits, is_token.int().argmax(1), real.sum(1))
        self.scores += torch.where(real & (ahead <= first[:, None]), best.double(), 0.0).sum(1)
        self._move(first, emits, tokens.gather(1, first.clamp(max=frames_at_once - 1)[:, None])[:, 0])

    def _move(self, first: Tensor, emits: Tensor, tokens: Tensor) -> None:
        frame = self.place + first
        self.symbols = torch.where(emits, torch.where(first > 0, 1, self.symbols + 1), 0)
        full = self.symbols >= self.max_symbols
        self.place = frame + full
        self.symbols = torch.where(full, 0, self.symbols)
        if not emits.any():
            return
        self.found.append((emits, tokens, self.state.num_frames + frame))
        rows = emits.nonzero()[:, 0]
        moved = self.transducer.advance(tokens[rows], self.state.take(rows))
        kept = self.state.tensors()
        self.state = TransducerState(
            **{name: kept[name].index_copy(0, rows, tensor) for name, tensor in moved.tensors().items()}
        )

    def hypotheses(self) -> list[TransducerHypothesis]:
        """What every row found, brought back from the device at once."""
        if not self.found:
            return [TransducerHypothesis(score=score) for score in self.scores.tolist()]
        emits, tokens, frames = (torch.stack(column, dim=1).cpu() for column in zip(*self.found, strict=True))
        return [
            TransducerHypothesis(
                tokens=tuple(tokens[row][emits[row]].tolist()),
                frames=tuple(frames[row][emits[row]].tolist()),
                score=score,
            )
            for row, score in enumerate(self.scores.tolist())
        ]

    def end(self) -> TransducerState:
        """The state behind the chunk."""
        return replace(self.state, num_frames=self.state.num_frames + self.length)


def check_chunk(encoded: Tensor, num_frames: Tensor, max_symbols: int) -> None:
    """See that a chunk is one.

    Raises:
        ValueError: naming what does not fit.
    """
    if encoded.ndim != 3 or num_frames.shape != encoded.shape[:1]:
        raise ValueError(
            f"frames are {tuple(encoded.shape)} and num_frames {tuple(num_frames.shape)}; give (B, T, D) and (B,)"
        )
    lengths: Sequence[int] = num_frames.tolist()
    for length in lengths:
        if not 0 <= length <= encoded.shape[1]:
            raise ValueError(f"num_frames holds {length}; the chunk has {encoded.shape[1]} frames")
    if max_symbols < 1:
        raise ValueError(f"max_symbols is {max_symbols}; give 1 or more")
