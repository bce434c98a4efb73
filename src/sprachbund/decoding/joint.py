"""Attention and CTC in one pass: every token is scored by the decoder and by what CTC thinks of the text so far.

Hori, Watanabe and Hershey, ACL 2017, section 3, one-pass decoding: log P = (1 - w) log P of the decoder + w log P that
CTC gives all texts that go on like this. The scores take the place of a row's log-probabilities, so greedy and beam
search need not know. Shapes: R rows, T frames, U tokens so far, K tokens looked at, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sprachbund.decoding.options import AUTO, NONE, DecodingOptions
from sprachbund.decoding.rows import Rows
from sprachbund.decoding.rules import Rules
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target

_CANDIDATES_PER_HYPOTHESIS = 4
_FEWEST_CANDIDATES = 20
_IMPOSSIBLE = -1e4


def joint_weight(family: Family) -> float:
    """Weight of a family's CTC prefix score beside its decoder's; 0 without."""
    return float(getattr(family, "decoding_ctc_weight", 0.0))


def join_ctc(
    family: Family,
    memory: Memory,
    targets: Sequence[Sequence[Target]],
    options: DecodingOptions,
    rows: Rows,
) -> None:
    """Give `rows` joint scores, if the family has a CTC head beside its decoder.

    Raises:
        SprachbundError: a draft that is named: CTC does not score guesses.
    """
    if not (weight := joint_weight(family)):
        return
    model: Any = family
    if options.draft not in (AUTO, NONE):
        raise SprachbundError(
            f"the model {family.name} is searched with CTC, which has no place for a draft ({options.draft}); "
            "leave it out"
        )
    assert memory.num_frames is not None
    frames = memory.num_frames.repeat_interleave(len(targets[0]))
    prefixes = CtcPrefixes.start(model.ctc_log_probs(memory, targets), frames)
    prefixes.read([target.prefix for group in targets for target in group])
    count = max(_FEWEST_CANDIDATES, _CANDIDATES_PER_HYPOTHESIS * options.beam_size)
    rows.rules = JointRules(
        **{field.name: getattr(rows.rules, field.name) for field in fields(Rules)},
        prefixes=prefixes,
        ctc_weight=weight,
        candidates=count,
    )


@dataclass(kw_only=True)
class CtcPrefixes:
    """What CTC thinks of the texts so far.

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
        """In front of the first token of rows with log-probabilities (R, T, V)."""
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
        for place in range(max(map(len, texts), default=0)):
            longer = torch.tensor([len(text) > place for text in texts], device=self.last.device)
            tokens = [text[place] if len(text) > place else self.blank for text in texts]
            before = {name: getattr(self, name) for name in ("after_token", "after_blank", "scores", "last")}
            self.advance(torch.tensor(tokens, device=self.last.device))
            for name, old in before.items():
                new = getattr(self, name)
                setattr(self, name, torch.where(longer.view(-1, *[1] * (new.ndim - 1)), new, old))

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), Tensor):
                setattr(self, field.name, value[rows])

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
class JointRules(Rules):
    """Rules whose log-probabilities are joint scores.

    Attributes:
        prefixes: what CTC thinks of the rows.
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
        places = attention.topk(min(self.candidates, attention.shape[1]), dim=1).indices
        places = torch.cat([places, torch.full_like(places[:, :1], self.end_token)], dim=1)
        best, ends = attention.gather(1, places), places == self.end_token
        ctc = self.prefixes.continued(places.masked_fill(ends, self.prefixes.blank))
        ctc = torch.where(ends, self.prefixes.ended()[:, None], ctc)
        # What CTC finds impossible is the last resort, but one: the decoder may still be asked for more.
        gain = (ctc - self.prefixes.scores[:, None]).nan_to_num(nan=_IMPOSSIBLE).clamp(min=_IMPOSSIBLE)
        joint = (1 - self.ctc_weight) * best.double() + self.ctc_weight * gain
        return torch.full_like(attention, -torch.inf).scatter(1, places, joint.float())

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        super().take(rows)
        self.prefixes.take(rows)
