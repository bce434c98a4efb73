"""Search with CTC: alone (the likeliest path, or a beam over prefixes), and jointly with an attention decoder.

CTC alone: several paths give one text, so a beam adds up the probabilities of all paths that wrote the same (Graves et
al., ICML 2006, section 3.2; the sums are kept by last symbol as in arXiv 1408.2873, algorithm 1). The log-probabilities
of all frames are computed once.

Jointly: one-pass decoding of Hori, Watanabe and Hershey, ACL 2017, section 3: log P = (1 - w) log P of the decoder + w
log P that CTC gives all texts with this prefix. `JointLogitsProcessor` gives these scores in place of a row's
log-probabilities, so greedy and beam search stay as they are.

Shapes: R rows, T frames, U tokens so far, K candidate tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.hot_words import HotWords
from sprachbund.decoding.logits_process import LogitsProcessor
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.state import Hypothesis, HypothesisBatch, TokenFrames, first_tokens
from sprachbund.errors import SprachbundError
from sprachbund.models.base import CtcScorer, Family, JointCtc, Memory, Target

Scored = tuple[tuple[int, ...], float]
"""Tokens and their log-probability."""


@torch.inference_mode()
def search_by_ctc(
    family: Family,
    head: CtcScorer,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
) -> list[list[Hypothesis]]:
    """Search in a model that writes by CTC alone.

    Args:
        family: the model.
        head: its CTC head.
        memory: B encoded utterances.
        targets: B lists of equal length n.
        options: beam size and limits.

    Returns:
        B lists of n hypotheses.

    Raises:
        SprachbundError: a prefix.
    """
    if any(target.prefix for group in targets for target in group):
        raise SprachbundError(
            f"the model {family.name} writes by CTC, which cannot go on from a text; translate whole recordings with it"
        )
    log_probs = head.ctc_log_probs(memory, targets)
    assert memory.num_frames is not None
    each = len(targets[0])
    num_frames = memory.num_frames.repeat_interleave(each).tolist()
    rows = [row[:n].double().cpu().numpy() for row, n in zip(log_probs, num_frames, strict=True)]
    if options.beam_size == 1:
        best = [
            first_tokens(
                _hypothesis(*best_path(row, head.blank), path_frames(row, head.blank)), options.max_tokens
            )
            for row in rows
        ]
    else:
        hot_words = HotWords.of(family, options)
        best = []
        for row in rows:
            scored = prefix_beam(row, options.beam_size, head.blank, hot_words)[: options.nbest]
            first, *others = (first_tokens(_hypothesis(*one), options.max_tokens) for one in scored)
            best.append(replace(first, others=tuple(others)))
    return [best[i : i + each] for i in range(0, len(best), each)]


def best_path(log_probs: np.ndarray, blank: int = 0) -> Scored:
    """The likeliest path of (T, V), repeats and blanks removed, and its log-probability."""
    path = log_probs.argmax(-1)
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    tokens = tuple(int(token) for token in path[starts] if token != blank)
    return tokens, float(log_probs.max(-1).sum())


def path_frames(log_probs: np.ndarray, blank: int = 0) -> TokenFrames:
    """The frames of each token of the likeliest path of (T, V); a token's log-probability is that of its first."""
    path = log_probs.argmax(-1)
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    ends = np.append(starts[1:], len(path))
    kept = path[starts] != blank
    begins = starts[kept].tolist()
    return TokenFrames(
        begins=tuple(begins),
        ends=tuple(ends[kept].tolist()),
        log_probabilities=tuple(log_probs[begins].max(-1).tolist()) if begins else (),
    )


def prefix_beam(
    log_probs: np.ndarray, beam_size: int, blank: int = 0, hot_words: HotWords | None = None
) -> list[Scored]:
    """The likeliest texts of (T, V), best first, with their log-probabilities over the paths that were kept.

    With a beam that nothing falls out of, they are exact.

    Args:
        log_probs: log-probabilities of every frame; minus infinity for what is not to be written.
        beam_size: texts kept at every frame; as many tokens are tried after each.
        blank: id of the blank.
        hot_words: texts are ranked by log-probability and the bonus of their hot words, whose tokens are tried too.
    """

    def bonus(text: tuple[int, ...], *, ended: bool = False) -> float:
        return 0.0 if hot_words is None else hot_words.bonus(text, ended=ended)

    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs:
        likely = _likely(frame, beam_size, blank)
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for text, (after_blank, after_token) in beam.items():
            whole = float(np.logaddexp(after_blank, after_token))
            _add(grown, text, blank=whole + frame[blank])
            if text:
                _add(grown, text, token=after_token + frame[text[-1]])
            hoped = () if hot_words is None else hot_words.gains(text)[1]
            for token in (*likely, *(t for t in hoped if t not in likely and frame[t] > -math.inf)):
                before = after_blank if text and token == text[-1] else whole
                if before > -math.inf:
                    _add(grown, (*text, token), token=before + frame[token])
        ranked = sorted(grown.items(), key=lambda item: -(np.logaddexp(*item[1]) + bonus(item[0])))
        beam = dict(ranked[:beam_size])
    scored = [(text, float(np.logaddexp(*scores))) for text, scores in beam.items()]
    return sorted(scored, key=lambda item: -(item[1] + bonus(item[0], ended=True)))


def _likely(frame: np.ndarray, count: int, blank: int) -> list[int]:
    """The best tokens of a frame (V,), the blank not among them."""
    best = np.argpartition(-frame, min(count, len(frame) - 1))[: count + 1]
    return [int(token) for token in best if token != blank and frame[token] > -math.inf]


def _add(
    grown: dict[tuple[int, ...], tuple[float, float]],
    text: tuple[int, ...],
    *,
    blank: float = -math.inf,
    token: float = -math.inf,
) -> None:
    """Add paths of a text that end in a blank, and such that end in its last token."""
    old = grown.get(text, (-math.inf, -math.inf))
    grown[text] = float(np.logaddexp(old[0], blank)), float(np.logaddexp(old[1], token))


def _hypothesis(tokens: tuple[int, ...], score: float, frames: TokenFrames | None = None) -> Hypothesis:
    return Hypothesis(
        tokens=tokens,
        log_probability=score,
        finished=True,
        no_speech_log_probability=None,
        score=score,
        frames=frames,
    )


# Joint search with attention and CTC.

_CANDIDATES_PER_HYPOTHESIS = 4
_FEWEST_CANDIDATES = 20
_IMPOSSIBLE = -1e4


def join_ctc(
    joint: JointCtc,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
    batch: HypothesisBatch,
) -> None:
    """Replace the logits processor of a batch by one that gives joint scores of decoder and CTC head.

    Args:
        joint: the CTC head and its weight.
        memory: B encoded utterances.
        targets: B lists of equal length.
        options: the beam size decides how many candidates CTC scores.
        batch: changed in place.
    """
    assert memory.num_frames is not None
    frames = memory.num_frames.repeat_interleave(len(targets[0]))
    prefixes = CtcPrefixes.start(joint.head.ctc_log_probs(memory, targets), frames, joint.head.blank)
    prefixes.read([target.prefix for group in targets for target in group])
    count = max(_FEWEST_CANDIDATES, _CANDIDATES_PER_HYPOTHESIS * options.beam_size)
    batch.processor = JointLogitsProcessor(
        **vars(batch.processor),
        prefixes=prefixes,
        ctc_weight=joint.weight,
        candidates=count,
    )


@dataclass(kw_only=True)
class CtcPrefixes:
    """CTC prefix scores of the texts so far.

    Attributes:
        log_probs: (R, T, V) of the head, in double precision; minus infinity for what is never written.
        num_frames: (R,).
        after_token: (R, T + 1) log-probability that the text was written after t frames, its last token at the last.
        after_blank: (R, T + 1) the same, a blank at the last frame.
        scores: (R,) log-probability of all texts that begin with the text so far.
        last: (R,) its last token; -1 where there is none.
        blank: id of the blank.
    """

    log_probs: Tensor
    num_frames: Tensor
    after_token: Tensor
    after_blank: Tensor
    scores: Tensor
    last: Tensor
    blank: int = 0

    @classmethod
    def start(cls, log_probs: Tensor, num_frames: Tensor, blank: int = 0) -> "CtcPrefixes":
        """Scores of empty texts.

        Args:
            log_probs: (R, T, V).
            num_frames: (R,) valid frames.
            blank: id of the blank.
        """
        log_probs = log_probs.double()
        blanks = log_probs[:, :, blank].cumsum(1)
        return cls(
            log_probs=log_probs,
            num_frames=num_frames,
            after_token=torch.full_like(blanks, -torch.inf)[:, :1].expand(-1, blanks.shape[1] + 1),
            after_blank=torch.cat([torch.zeros_like(blanks[:, :1]), blanks], dim=1),
            scores=log_probs.new_zeros(len(log_probs)),
            last=torch.full_like(num_frames, -1),
            blank=blank,
        )

    def ended(self) -> Tensor:
        """Log-probability (R,) that the text so far is the whole text."""
        whole = torch.logaddexp(self.after_token, self.after_blank)
        return whole.gather(1, self.num_frames[:, None])[:, 0]

    def continued(self, tokens: Tensor) -> Tensor:
        """Log-probability (R, K) of all texts that begin with the text so far and then `tokens` (R, K), no blanks."""
        written = self._before(tokens) + self._log_probs_of(tokens)
        frames = torch.arange(written.shape[1], device=tokens.device)
        behind = frames[:, None] >= self.num_frames[:, None, None]
        return written.masked_fill(behind, -torch.inf).logsumexp(1)

    def advance(self, tokens: Tensor) -> None:
        """Append `tokens` (R,); rows whose token is a blank or is never written are not to be asked again."""
        self.scores = self.continued(tokens[:, None])[:, 0]
        before, gains = self._before(tokens[:, None])[..., 0], self._log_probs_of(tokens[:, None])[..., 0]
        written = _recurrence(before + gains, gains)
        blanks = self.log_probs[:, :, self.blank]
        nothing = torch.full_like(written[:, :1], -torch.inf)
        self.after_token = torch.cat([nothing, written], dim=1)
        entered = self.after_token[:, :-1] + blanks
        self.after_blank = torch.cat([nothing, _recurrence(entered, blanks)], dim=1)
        self.last = tokens

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        """Append a text of any length to each of the R rows, from which the search goes on."""
        for position in range(max(map(len, texts), default=0)):
            longer = torch.tensor([len(text) > position for text in texts], device=self.last.device)
            tokens = [text[position] if len(text) > position else self.blank for text in texts]
            before = self.after_token, self.after_blank, self.scores, self.last
            self.advance(torch.tensor(tokens, device=self.last.device))
            after = self.after_token, self.after_blank, self.scores, self.last
            self.after_token, self.after_blank, self.scores, self.last = (
                torch.where(longer.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(after, before, strict=True)
            )

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        self.log_probs, self.num_frames = self.log_probs[rows], self.num_frames[rows]
        self.after_token, self.after_blank = self.after_token[rows], self.after_blank[rows]
        self.scores, self.last = self.scores[rows], self.last[rows]

    def _before(self, tokens: Tensor) -> Tensor:
        """(R, T, K) log-probability that the text so far was written before frame t, and that the token may follow:
        one that equals the last needs a blank between them."""
        whole = torch.logaddexp(self.after_token, self.after_blank)[:, :-1, None]
        same = (tokens == self.last[:, None])[:, None]
        return torch.where(same, self.after_blank[:, :-1, None], whole)

    def _log_probs_of(self, tokens: Tensor) -> Tensor:
        """(R, T, K) of single tokens."""
        return self.log_probs.gather(2, tokens[:, None].expand(-1, self.log_probs.shape[1], -1))


def _recurrence(entering: Tensor, staying: Tensor) -> Tensor:
    """x(t) = log(exp(entering(t)) + exp(x(t - 1) + staying(t))) for all t of (R, T), without a loop."""
    staying = staying.clamp(
        min=_IMPOSSIBLE
    )  # what is never written stays finite, or differences of sums would be none
    sums = staying.cumsum(1)
    return sums + (entering - sums).logcumsumexp(1)


@dataclass(kw_only=True)
class JointLogitsProcessor(LogitsProcessor):
    """A logits processor whose log-probabilities are joint scores.

    Attributes:
        prefixes: CTC scores of the rows.
        ctc_weight: w.
        candidates: the decoder's best tokens, which CTC scores; others get no score.
    """

    prefixes: CtcPrefixes
    ctc_weight: float
    candidates: int

    def log_probs(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Scores (R, V) of the allowed tokens, from logits (R, V) after `tokens` (R, U)."""
        if tokens.shape[1]:
            self.prefixes.advance(tokens[:, -1])
        attention = super().log_probs(logits, tokens)
        candidates = attention.topk(min(self.candidates, attention.shape[1]), dim=1).indices
        candidates = torch.cat([candidates, torch.full_like(candidates[:, :1], self.end_token)], dim=1)
        best, ends = attention.gather(1, candidates), candidates == self.end_token
        ctc = self.prefixes.continued(candidates.masked_fill(ends, self.prefixes.blank))
        ctc = torch.where(ends, self.prefixes.ended()[:, None], ctc)
        # A token that CTC finds impossible stays possible, as the last resort: the decoder may have nothing else.
        gain = (ctc - self.prefixes.scores[:, None]).nan_to_num(nan=_IMPOSSIBLE).clamp(min=_IMPOSSIBLE)
        joint = (1 - self.ctc_weight) * best.double() + self.ctc_weight * gain
        if self.hot_words is not None:  # the attention's share of the bonus is in its scores
            bonus = self.hot_words.scores(tokens[:, None], attention)[:, 0].gather(1, candidates)
            joint = joint + self.ctc_weight * bonus
        joint = joint.masked_fill(best.isneginf(), -torch.inf)  # of CTC alone, nought times infinity
        return torch.full_like(attention, -torch.inf).scatter(1, candidates, joint.float())

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        super().take(rows)
        self.prefixes.take(rows)
