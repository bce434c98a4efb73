"""Search with a transducer: greedy, and a time-synchronous beam.

Greedy: at every frame the likeliest tokens are written until the blank is likelier than any. Each row advances at its
own pace, so a batch takes as many steps as its slowest row, not the sum over frames; and since most frames hold a
blank, a step looks at several frames at once.

A token-and-duration transducer (arXiv 2304.06795) says with each token or blank how many frames it takes, and is
searched greedily alone (section 3.3 there); its scores are those of tokens and blanks, without the durations'.

Beam: at every frame each hypothesis may write tokens, one after another, before the blank takes it to the next frame;
there the probabilities of equal token sequences are added (arXiv 1211.3711, section 2.6, with the order of steps of
time-synchronous decoding). With a beam wide enough to keep everything, a score is the exact log-probability of its
tokens.

Shapes: B rows of a stream (B memories, R rows in `search_by_frames`, n for each memory), T frames, D width of the
encoder, J width of the joint network, K frames of a step, H hypotheses of all rows, V vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.hot_words import HotWords
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.state import Hypothesis, TokenFrames, first_tokens
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.transducer import Transducer, TransducerState

# Greedy search.


@dataclass(frozen=True, kw_only=True)
class TransducerHypothesis:
    """The tokens of a chunk, or of all chunks so far.

    Attributes:
        tokens: tokens without blanks.
        frames: frames at which each token came, counted from the start of the stream.
        ends: the frame behind each token's last: behind its duration, or the next one.
        log_probabilities: log-probability of each token.
        score: log-probability, blanks included: of the one path of greedy search, of all paths kept in a beam.
    """

    tokens: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    score: float = 0.0

    def then(self, later: "TransducerHypothesis") -> "TransducerHypothesis":
        """This chunk and the one behind it."""
        return TransducerHypothesis(
            tokens=self.tokens + later.tokens,
            frames=self.frames + later.frames,
            ends=self.ends + later.ends,
            log_probabilities=self.log_probabilities + later.log_probabilities,
            score=self.score + later.score,
        )


@torch.no_grad()
def transducer_greedy(
    transducer: Transducer,
    encoded: Tensor,
    num_frames: Tensor,
    state: TransducerState | None = None,
    *,
    max_symbols: int | None = None,
    frames_at_once: int = 4,
    hot_words: HotWords | None = None,
) -> tuple[list[TransducerHypothesis], TransducerState]:
    """Tokens of every row in this chunk, and the state from which the next chunk goes on.

    Chunks of any sizes, one after another, give what the whole gives at once.

    Args:
        transducer: the part behind the encoder.
        encoded: (B, T, D), the encoder's frames of this chunk.
        num_frames: (B,), 0 to T: how many of them are real.
        state: state after the chunk before; None at the start of streams.
        max_symbols: most tokens at one frame, 1 or more; those of the model if None.
        frames_at_once: K; changes the speed, not the result.
        hot_words: their tokens have a bonus beside the blank; they begin anew with each chunk.

    Raises:
        ValueError: for a state of another model, or numbers out of range; for a later chunk of a transducer with
            durations, which hears utterances whole.
    """
    max_symbols = transducer.shape.max_symbols if max_symbols is None else max_symbols
    check_chunk(encoded, num_frames, max_symbols)
    state = transducer.start(len(encoded)) if state is None else state
    transducer.check_state(state, len(encoded))
    kind = _DurationWalk if transducer.shape.durations else _Walk
    walk = kind(transducer, encoded, num_frames.to(encoded.device), state, max_symbols, hot_words)
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
        hot_words: HotWords | None = None,
    ) -> None:
        self.transducer, self.state, self.length = transducer, state, length
        self.max_symbols = max_symbols
        self.hot_words = hot_words
        self.texts: list[tuple[int, ...]] = [()] * len(length)
        self.encoded = transducer.joint.encoder(encoded)
        self.position = torch.zeros_like(length)
        self.symbols = torch.zeros_like(length)
        self.scores = torch.zeros(len(length), dtype=torch.float64, device=length.device)
        self.emitted: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def under_way(self) -> bool:
        """Whether any row has frames left."""
        return bool((self.position < self.length).any())

    def step(self, frames_at_once: int) -> None:
        """Move every row to its next token, or past the frames looked at."""
        ahead = torch.arange(frames_at_once, device=self.position.device)
        positions = self.position[:, None] + ahead
        real = positions < self.length[:, None]
        index = positions.clamp(max=self.encoded.shape[1] - 1)[..., None]
        frames = self.encoded.gather(1, index.expand(-1, -1, self.encoded.shape[2]))
        logits = self.transducer.joint(frames, self.state.predicted[:, None])
        best, tokens = self._likeliest(logits.float().log_softmax(-1))
        is_token = (tokens != self.transducer.shape.blank) & real
        emits = is_token.any(1)
        first = torch.where(emits, is_token.int().argmax(1), real.sum(1))
        self.scores += torch.where(real & (ahead <= first[:, None]), best.double(), 0.0).sum(1)
        chosen = first.clamp(max=frames_at_once - 1)[:, None]
        tokens, log_probs = tokens.gather(1, chosen)[:, 0], best.gather(1, chosen)[:, 0]
        frame = self.position + first
        self.symbols = torch.where(emits, torch.where(first > 0, 1, self.symbols + 1), 0)
        full = self.symbols >= self.max_symbols
        self.position = frame + full
        self.symbols = torch.where(full, 0, self.symbols)
        self._write(emits, tokens, frame, frame + 1, log_probs)

    def _likeliest(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """The best tokens (B, K) of (B, K, V) with the bonus of hot words, and their log-probabilities without it."""
        if self.hot_words is None:
            best, tokens = log_probs.max(-1)
            return best, tokens
        bonus = torch.stack([self.hot_words.row(text, log_probs) for text in self.texts])
        bonus[:, self.transducer.shape.blank] = 0.0  # it ends no word
        tokens = (log_probs + bonus[:, None]).argmax(-1)
        return log_probs.gather(-1, tokens[..., None])[..., 0], tokens

    def _write(self, emits: Tensor, tokens: Tensor, frame: Tensor, end: Tensor, log_probs: Tensor) -> None:
        """Append tokens (B,) to the rows that emit, and move these rows' states behind them."""
        if not emits.any():
            return
        before = self.state.num_frames
        self.emitted.append((emits, tokens, before + frame, before + end, log_probs))
        rows = emits.nonzero()[:, 0]
        if self.hot_words is not None:
            for row in rows.tolist():
                self.texts[row] = (*self.texts[row], int(tokens[row]))
        moved = self.transducer.advance(tokens[rows], self.state.take(rows))
        kept = self.state.tensors()
        self.state = TransducerState(
            **{name: kept[name].index_copy(0, rows, tensor) for name, tensor in moved.tensors().items()}
        )

    def hypotheses(self) -> list[TransducerHypothesis]:
        """The hypothesis of every row, copied from the device at once."""
        if not self.emitted:
            return [TransducerHypothesis(score=score) for score in self.scores.tolist()]
        emits, tokens, frames, ends, log_probs = (
            torch.stack(column, dim=1).cpu() for column in zip(*self.emitted, strict=True)
        )
        return [
            TransducerHypothesis(
                tokens=tuple(tokens[row][emits[row]].tolist()),
                frames=tuple(frames[row][emits[row]].tolist()),
                ends=tuple(ends[row][emits[row]].tolist()),
                log_probabilities=tuple(log_probs[row][emits[row]].tolist()),
                score=score,
            )
            for row, score in enumerate(self.scores.tolist())
        ]

    def end(self) -> TransducerState:
        """The state behind the chunk."""
        return replace(self.state, num_frames=self.state.num_frames + self.length)


class _DurationWalk(_Walk):
    """Rows on their way through utterances, by the durations that a token-and-duration transducer predicts.

    A blank takes a frame at least. A token may take none; after `max_symbols` tokens at one frame a row moves on.
    """

    def __init__(
        self,
        transducer: Transducer,
        encoded: Tensor,
        length: Tensor,
        state: TransducerState,
        max_symbols: int,
        hot_words: HotWords | None = None,
    ) -> None:
        if state.num_frames.any():
            raise ValueError("a transducer with durations hears an utterance whole; give no state of a chunk")
        super().__init__(transducer, encoded, length, state, max_symbols, hot_words)
        self.durations = torch.tensor(transducer.shape.durations, device=length.device)

    def step(self, frames_at_once: int) -> None:
        """Move every row by one token or blank."""
        shape, real = self.transducer.shape, self.position < self.length
        index = self.position.clamp(max=self.encoded.shape[1] - 1)[:, None, None]
        frames = self.encoded.gather(1, index.expand(-1, 1, self.encoded.shape[2]))[:, 0]
        logits = self.transducer.joint(frames, self.state.predicted).float()
        of_tokens, of_durations = logits.split((shape.vocabulary_size, len(shape.durations)), dim=1)
        log_probs, tokens = (x[:, 0] for x in self._likeliest(of_tokens.log_softmax(-1)[:, None]))
        moved = self.durations[of_durations.argmax(-1)]
        emits = real & (tokens != shape.blank)
        self.scores += torch.where(real, log_probs.double(), 0.0)
        self.symbols = torch.where(emits, self.symbols + 1, 0)
        stuck = (moved == 0) & (~emits | (self.symbols >= self.max_symbols))
        moved = torch.where(real, moved + stuck, 0)
        frame = self.position
        self.position = frame + moved
        self.symbols = torch.where(moved > 0, 0, self.symbols)
        # The last token may be longer than what is left of the utterance.
        end = torch.minimum(self.position, self.length)
        self._write(emits, tokens, frame, end, log_probs)

    def end(self) -> TransducerState:
        """The state behind the utterance; nothing can go on from it."""
        return replace(self.state, num_frames=self.length)


def check_chunk(encoded: Tensor, num_frames: Tensor, max_symbols: int) -> None:
    """Check the shapes and lengths of a chunk.

    Args:
        encoded: (B, T, D).
        num_frames: (B,), 0 to T.
        max_symbols: most tokens at one frame, 1 or more.

    Raises:
        ValueError: shapes that do not belong together, or numbers out of range.
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


# Beam search.


@dataclass(frozen=True, kw_only=True)
class Beam:
    """Hypotheses of one stream, best first.

    Attributes:
        hypotheses: hypotheses over all chunks so far.
        path_scores: log-probability of the likeliest path of each, the one that its frames are of.
        state: one row for each of them.
    """

    hypotheses: tuple[TransducerHypothesis, ...]
    path_scores: tuple[float, ...]
    state: TransducerState

    @property
    def best(self) -> TransducerHypothesis:
        """The likeliest hypothesis."""
        return self.hypotheses[0]


@dataclass(frozen=True, kw_only=True)
class _Path:
    """A hypothesis within a frame: its row, its row in the state, and the score of its likeliest path."""

    row: int
    state_row: int
    first_frame: int
    hypothesis: TransducerHypothesis
    path_score: float


_Merged = dict[int, dict[tuple[int, ...], _Path]]
"""The one path of each token sequence, for each row."""


@torch.no_grad()
def transducer_beam(
    transducer: Transducer,
    encoded: Tensor,
    num_frames: Tensor,
    beams: Sequence[Beam] | None = None,
    *,
    beam_size: int = 8,
    max_symbols: int | None = None,
    hot_words: HotWords | None = None,
) -> list[Beam]:
    """The best hypotheses of every row after this chunk; give them back with the next one.

    Frames of tokens are those of the likeliest path kept. Chunks of any sizes give what the whole gives at once.

    Args:
        transducer: the part behind the encoder.
        encoded: (B, T, D), the encoder's frames of this chunk.
        num_frames: (B,), 0 to T: how many of them are real.
        beams: beams after the chunk before, one for each row; None at the start of streams.
        beam_size: hypotheses kept for each row, 1 or more.
        max_symbols: most tokens at one frame, 1 or more; those of the model if None.
        hot_words: hypotheses are ranked by their score and the bonus of their hot words; scores stay without it.

    Raises:
        ValueError: for states of another model, or numbers out of range; for a transducer with durations.
    """
    max_symbols = transducer.shape.max_symbols if max_symbols is None else max_symbols
    check_chunk(encoded, num_frames, max_symbols)
    if transducer.shape.durations:
        raise ValueError("a transducer with durations is searched greedily")
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; give 1 or more")
    beams = _started(transducer, len(encoded)) if beams is None else beams
    if len(beams) != len(encoded):
        raise ValueError(f"{len(beams)} beams for {len(encoded)} rows; give one for each")
    for beam in beams:
        transducer.check_state(beam.state, len(beam.hypotheses))
    state = TransducerState.stack([beam.state for beam in beams])
    search = _Frames(transducer, encoded, state, beam_size, max_symbols, hot_words)
    paths = _paths(beams)
    lengths = num_frames.tolist()
    for t in range(max(lengths, default=0)):
        paths = search.step(t, paths, [length > t for length in lengths])
    return _beams(paths, search.state, num_frames.to(encoded.device), hot_words)


class _Frames:
    """Takes all hypotheses of all rows through one frame at a time."""

    def __init__(
        self,
        transducer: Transducer,
        encoded: Tensor,
        state: TransducerState,
        beam_size: int,
        max_symbols: int,
        hot_words: HotWords | None,
    ) -> None:
        self.transducer, self.state, self.hot_words = transducer, state, hot_words
        self.encoded = transducer.joint.encoder(encoded)
        self.size, self.max_symbols = beam_size, max_symbols

    def step(self, t: int, paths: list[_Path], live: Sequence[bool]) -> list[_Path]:
        """Take paths through one frame.

        Args:
            t: the frame.
            paths: paths of all rows, in front of it.
            live: (B,) rows that have this frame; paths of others are kept as they are.
        """
        done = [path for path in paths if not live[path.row]]
        current = [path for path in paths if live[path.row]]
        merged: _Merged = {path.row: {} for path in current}
        states, offset = [self.state], 0
        for symbols in range(self.max_symbols + 1):
            here = states[-1].take(self._indices(path.state_row - offset for path in current))
            log_probs = self._log_probs(t, current, here)
            _take_blank(merged, current, log_probs[:, self.transducer.shape.blank].tolist())
            parents, current = self._write(t, current, log_probs, merged)
            if not current or symbols == self.max_symbols:
                break
            offset += len(states[-1].num_frames)
            current = [replace(path, state_row=offset + i) for i, path in enumerate(current)]
            tokens = self._indices(path.hypothesis.tokens[-1] for path in current)
            states.append(self.transducer.advance(tokens, here.take(self._indices(parents))))
        kept = done + [path for row in merged.values() for path in self._best(row)]
        self.state = TransducerState.stack(states).take(self._indices(path.state_row for path in kept))
        return [replace(path, state_row=i) for i, path in enumerate(kept)]

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
        ranked = log_probs
        if self.hot_words is not None:
            rows = [self.hot_words.row(path.hypothesis.tokens, log_probs) for path in paths]
            ranked = log_probs + torch.stack(rows)
        tokens = ranked.topk(min(self.size, log_probs.shape[1]), dim=1).indices
        best = log_probs.gather(1, tokens)
        candidates: dict[int, list[tuple[float, int, int]]] = {row: [] for row in merged}
        for i, (path, gains, words) in enumerate(zip(paths, best.tolist(), tokens.tolist(), strict=True)):
            candidates[path.row] += [(gain, i, word) for gain, word in zip(gains, words, strict=True)]
        parents, written = [], []
        for row, best_of_row in candidates.items():
            # A path below the last of a full beam can only fall further.
            ahead = self._best(merged[row])
            floor = self._rank(ahead[-1]) if len(ahead) == self.size else -math.inf
            longer = [(i, _written(paths[i], word, t, gain)) for gain, i, word in best_of_row]
            longer.sort(key=lambda each: -self._rank(each[1]))
            for i, path in longer[: self.size]:
                if self._rank(path) > floor:
                    parents.append(i)
                    written.append(path)
        return parents, written

    def _rank(self, path: _Path) -> float:
        """The number that hypotheses are compared by: their score, and the bonus of their hot words."""
        hypothesis = path.hypothesis
        if self.hot_words is None:
            return hypothesis.score
        return hypothesis.score + self.hot_words.bonus(hypothesis.tokens, ended=False)

    def _best(self, merged: dict[tuple[int, ...], _Path]) -> list[_Path]:
        return sorted(merged.values(), key=lambda path: -self._rank(path))[: self.size]


def _written(path: _Path, token: int, t: int, gain: float) -> _Path:
    frame = path.first_frame + t
    later = TransducerHypothesis(
        tokens=(token,), frames=(frame,), ends=(frame + 1,), log_probabilities=(gain,), score=gain
    )
    return replace(path, hypothesis=path.hypothesis.then(later), path_score=path.path_score + gain)


def _take_blank(merged: _Merged, paths: list[_Path], blanks: Sequence[float]) -> None:
    """Move paths to the next frame, adding the probabilities of those that wrote the same."""
    for path, blank in zip(paths, blanks, strict=True):
        moved = replace(
            path,
            hypothesis=replace(path.hypothesis, score=path.hypothesis.score + blank),
            path_score=path.path_score + blank,
        )
        own = merged[path.row]
        other = own.get(path.hypothesis.tokens, moved)
        if other is not moved:
            likelier = max(moved, other, key=lambda each: each.path_score)
            total = float(np.logaddexp(moved.hypothesis.score, other.hypothesis.score))
            moved = replace(likelier, hypothesis=replace(likelier.hypothesis, score=total))
        own[path.hypothesis.tokens] = moved


def _started(transducer: Transducer, num_rows: int) -> list[Beam]:
    state = transducer.start(1)
    return [Beam(hypotheses=(TransducerHypothesis(),), path_scores=(0.0,), state=state)] * num_rows


def _paths(beams: Sequence[Beam]) -> list[_Path]:
    paths: list[_Path] = []
    for row, beam in enumerate(beams):
        first = int(beam.state.num_frames[0])
        for hypothesis, score in zip(beam.hypotheses, beam.path_scores, strict=True):
            paths.append(
                _Path(
                    row=row, state_row=len(paths), first_frame=first, hypothesis=hypothesis, path_score=score
                )
            )
    return paths


def _beams(
    paths: Sequence[_Path], state: TransducerState, num_frames: Tensor, hot_words: HotWords | None
) -> list[Beam]:
    def rank(path: _Path) -> float:
        tokens = path.hypothesis.tokens
        return path.hypothesis.score + (0.0 if hot_words is None else hot_words.bonus(tokens, ended=True))

    beams = []
    for row in range(len(num_frames)):
        own = sorted((path for path in paths if path.row == row), key=lambda path: -rank(path))
        kept = state.take(torch.tensor([path.state_row for path in own], device=num_frames.device))
        beams.append(
            Beam(
                hypotheses=tuple(path.hypothesis for path in own),
                path_scores=tuple(path.path_score for path in own),
                state=replace(kept, num_frames=kept.num_frames + num_frames[row]),
            )
        )
    return beams


# Hypotheses for `search`.


def start_by_frames(family: Family, targets: Sequence[Target]) -> TransducerState:
    """The state of rows (R,) in front of their first frame, their prompts read.

    Raises:
        SprachbundError: the family does not write frame by frame, or not for such a target.
    """
    if (transducer := family.capabilities.transducer) is None:
        raise SprachbundError(
            f"the model {family.name} does not write frame by frame; take one with a transducer"
        )
    state = transducer.start(len(targets))
    prompts = torch.tensor([family.prompt(target) for target in targets], device=state.num_frames.device)
    for tokens in prompts.T:
        state = transducer.advance(tokens, state)
    return state


@torch.inference_mode()
def search_by_frames(
    family: Family,
    transducer: Transducer,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
) -> list[list[Hypothesis]]:
    """Search in a model with a transducer.

    Args:
        family: the model.
        transducer: its transducer.
        memory: B encoded utterances.
        targets: B lists of equal length n.
        options: beam size and limits.

    Returns:
        B lists of n hypotheses.
    """
    flat = [target for group in targets for target in group]
    each = len(targets[0])
    assert memory.num_frames is not None
    states = memory.states.repeat_interleave(each, 0)
    num_frames = memory.num_frames.repeat_interleave(each, 0)
    start, hot_words = start_by_frames(family, flat), HotWords.of(family, options)
    if (fuse := family.capabilities.fuse_language) is not None:
        states = fuse(states, flat)
    if options.beam_size == 1:
        hypotheses, _ = transducer_greedy(
            transducer, states, num_frames, start, max_symbols=options.max_symbols, hot_words=hot_words
        )
        best = [first_tokens(hypothesis_of(one), options.max_tokens) for one in hypotheses]
    else:
        rows = range(len(flat))
        empty = TransducerHypothesis()
        beams = [
            Beam(hypotheses=(empty,), path_scores=(0.0,), state=start.take(torch.tensor([r]))) for r in rows
        ]
        ended = transducer_beam(
            transducer,
            states,
            num_frames,
            beams,
            beam_size=options.beam_size,
            max_symbols=options.max_symbols,
            hot_words=hot_words,
        )
        ranked = [
            [first_tokens(hypothesis_of(one), options.max_tokens) for one in beam.hypotheses[: options.nbest]]
            for beam in ended
        ]
        best = [replace(row[0], others=tuple(row[1:])) for row in ranked]
    return [best[i : i + each] for i in range(0, len(best), each)]


def hypothesis_of(best: TransducerHypothesis) -> Hypothesis:
    """The row of a search that a transducer wrote."""
    frames = TokenFrames(begins=best.frames, ends=best.ends, log_probabilities=best.log_probabilities)
    return Hypothesis(
        tokens=best.tokens,
        log_probability=best.score,
        finished=True,
        no_speech_log_probability=None,
        score=best.score,
        frames=frames,
    )
