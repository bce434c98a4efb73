"""Beam search of a transducer, frame by frame, in which paths that wrote the same tokens are one hypothesis.

Time-synchronous: at every frame each hypothesis may write tokens, one after another, before the blank takes it to the
next frame; there the probabilities of equal token sequences are added (arXiv 1211.3711, section 2.6, with the order of
steps of time-synchronous decoding). With a beam that nothing falls out of, a score is the exact log-probability of its
tokens. Shapes: B rows, T frames, D width of the encoder, H hypotheses of all rows, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.transducer_greedy import MAX_SYMBOLS, TransducerHypothesis, check_chunk
from sprachbund.nn.transducer import Transducer, TransducerState


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Hypotheses of one stream, best first.

    Attributes:
        hypotheses: over all chunks so far.
        path_scores: log-probability of the likeliest path of each, the one that its frames are of.
        state: one row for each of them.
    """

    hypotheses: tuple[TransducerHypothesis, ...]
    path_scores: tuple[float, ...]
    state: TransducerState

    @property
    def best(self) -> TransducerHypothesis:
        """The likeliest."""
        return self.hypotheses[0]

    def settle(self) -> tuple[TransducerHypothesis, "Beam"]:
        """What all hypotheses begin with, and the beam without it: a stream of any length in flat memory.

        The search goes on as it would have: what all share decides nothing between them. Scores stay with the beam.
        """
        together = zip(*(hypothesis.tokens for hypothesis in self.hypotheses), strict=False)
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))
        settled = TransducerHypothesis(tokens=self.best.tokens[:shared], frames=self.best.frames[:shared])
        left = tuple(replace(h, tokens=h.tokens[shared:], frames=h.frames[shared:]) for h in self.hypotheses)
        return settled, replace(self, hypotheses=left)


@dataclass(frozen=True, kw_only=True)
class _Path:
    """A hypothesis within a frame: whose it is, which row of the state holds it, the score of its likeliest path."""

    row: int
    place: int
    first_frame: int
    found: TransducerHypothesis
    path_score: float


_Merged = dict[int, dict[tuple[int, ...], _Path]]
"""For each row, the one path of each token sequence."""


@torch.no_grad()
def transducer_beam(
    transducer: Transducer,
    encoded: Tensor,
    num_frames: Tensor,
    beams: Sequence[Beam] | None = None,
    *,
    beam_size: int = 8,
    max_symbols: int = MAX_SYMBOLS,
) -> list[Beam]:
    """The best hypotheses of every row after this chunk; give them back with the next one.

    Frames of tokens are those of the likeliest path kept. Chunks of any sizes give what the whole gives at once.

    Args:
        transducer: the part behind the encoder.
        encoded: (B, T, D), the encoder's frames of this chunk.
        num_frames: (B,), 0 to T: how many of them are real.
        beams: what the chunk before returned, one for each row; None at the start of streams.
        beam_size: hypotheses kept for each row, 1 or more.
        max_symbols: most tokens at one frame, 1 or more.

    Raises:
        ValueError: for states of another model, or numbers out of range.
    """
    check_chunk(encoded, num_frames, max_symbols)
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; give 1 or more")
    beams = _started(transducer, len(encoded)) if beams is None else beams
    if len(beams) != len(encoded):
        raise ValueError(f"{len(beams)} beams for {len(encoded)} rows; give one for each")
    for beam in beams:
        transducer.check_state(beam.state, len(beam.hypotheses))
    state = TransducerState.stack([beam.state for beam in beams])
    search = _Frames(transducer, encoded, state, beam_size, max_symbols)
    paths = _paths(beams)
    lengths = num_frames.tolist()
    for t in range(max(lengths, default=0)):
        paths = search.step(t, paths, [length > t for length in lengths])
    return _beams(paths, search.state, num_frames.to(encoded.device))


class _Frames:
    """Takes all hypotheses of all rows through one frame at a time."""

    def __init__(
        self,
        transducer: Transducer,
        encoded: Tensor,
        state: TransducerState,
        beam_size: int,
        max_symbols: int,
    ) -> None:
        self.transducer, self.state = transducer, state
        self.encoded = transducer.joint.encoder(encoded)
        self.size, self.max_symbols = beam_size, max_symbols

    def step(self, t: int, paths: list[_Path], live: Sequence[bool]) -> list[_Path]:
        """Paths behind frame t; those of rows that are not `live` stay as they are."""
        done = [path for path in paths if not live[path.row]]
        current = [path for path in paths if live[path.row]]
        merged: _Merged = {path.row: {} for path in current}
        states, offset = [self.state], 0
        for symbols in range(self.max_symbols + 1):
            here = states[-1].take(self._indices(path.place - offset for path in current))
            log_probs = self._log_probs(t, current, here)
            _take_blank(merged, current, log_probs[:, self.transducer.shape.blank].tolist())
            parents, current = self._write(t, current, log_probs, merged)
            if not current or symbols == self.max_symbols:
                break
            offset += len(states[-1].num_frames)
            current = [replace(path, place=offset + i) for i, path in enumerate(current)]
            tokens = self._indices(path.found.tokens[-1] for path in current)
            states.append(self.transducer.advance(tokens, here.take(self._indices(parents))))
        kept = done + [path for row in merged.values() for path in _best(row, self.size)]
        self.state = TransducerState.stack(states).take(self._indices(path.place for path in kept))
        return [replace(path, place=i) for i, path in enumerate(kept)]

    def _indices(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=self.encoded.device)

    def _log_probs(self, t: int, paths: list[_Path], here: TransducerState) -> Tensor:
        """(H, V) of what may come next at frame t."""
        rows = self._indices(path.row for path in paths)
        return self.transducer.joint(self.encoded[rows, t], here.predicted).float().log_softmax(-1).double()

    def _write(
        self, t: int, paths: list[_Path], log_probs: Tensor, merged: _Merged
    ) -> tuple[list[int], list[_Path]]:
        """The best continuations of each row by one token, and which of `paths` they continue."""
        log_probs[:, self.transducer.shape.blank] = -math.inf
        best, tokens = log_probs.topk(min(self.size, log_probs.shape[1]), dim=1)
        candidates: dict[int, list[tuple[float, int, int]]] = {row: [] for row in merged}
        for i, (path, gains, words) in enumerate(zip(paths, best.tolist(), tokens.tolist(), strict=True)):
            candidates[path.row] += [(gain, i, word) for gain, word in zip(gains, words, strict=True)]
        parents, written = [], []
        for row, found in candidates.items():
            # What is below the last of a full beam can only fall further.
            ahead = _best(merged[row], self.size)
            floor = ahead[-1].found.score if len(ahead) == self.size else -math.inf
            found.sort(key=lambda c: -(paths[c[1]].found.score + c[0]))
            for gain, i, word in found[: self.size]:
                path = _written(paths[i], word, t, gain)
                if path.found.score > floor:
                    parents.append(i)
                    written.append(path)
        return parents, written


def _written(path: _Path, token: int, t: int, gain: float) -> _Path:
    later = TransducerHypothesis(tokens=(token,), frames=(path.first_frame + t,), score=gain)
    return replace(path, found=path.found.then(later), path_score=path.path_score + gain)


def _best(merged: dict[tuple[int, ...], _Path], size: int) -> list[_Path]:
    return sorted(merged.values(), key=lambda path: -path.found.score)[:size]


def _take_blank(merged: _Merged, paths: list[_Path], blanks: Sequence[float]) -> None:
    """Move paths to the next frame, adding the probabilities of those that wrote the same."""
    for path, blank in zip(paths, blanks, strict=True):
        moved = replace(
            path,
            found=replace(path.found, score=path.found.score + blank),
            path_score=path.path_score + blank,
        )
        own = merged[path.row]
        other = own.get(path.found.tokens, moved)
        if other is not moved:
            likelier = max(moved, other, key=lambda each: each.path_score)
            total = float(np.logaddexp(moved.found.score, other.found.score))
            moved = replace(likelier, found=replace(likelier.found, score=total))
        own[path.found.tokens] = moved


def _started(transducer: Transducer, num_rows: int) -> list[Beam]:
    state = transducer.start(1)
    return [Beam(hypotheses=(TransducerHypothesis(),), path_scores=(0.0,), state=state)] * num_rows


def _paths(beams: Sequence[Beam]) -> list[_Path]:
    paths: list[_Path] = []
    for row, beam in enumerate(beams):
        first = int(beam.state.num_frames[0])
        for found, score in zip(beam.hypotheses, beam.path_scores, strict=True):
            paths.append(_Path(row=row, place=len(paths), first_frame=first, found=found, path_score=score))
    return paths


def _beams(paths: Sequence[_Path], state: TransducerState, num_frames: Tensor) -> list[Beam]:
    beams = []
    for row in range(len(num_frames)):
        own = sorted((path for path in paths if path.row == row), key=lambda path: -path.found.score)
        kept = state.take(torch.tensor([path.place for path in own], device=num_frames.device))
        beams.append(
            Beam(
                hypotheses=tuple(path.found for path in own),
                path_scores=tuple(path.path_score for path in own),
                state=replace(kept, num_frames=kept.num_frames + num_frames[row]),
            )
        )
    return beams
