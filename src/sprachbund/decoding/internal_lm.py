"""The internal language model of a decoder: what it expects to be said before it hears anything.

A decoder that was trained on few sentences knows them by heart, and writes one of them where other words are spoken.
What it would write without sound is estimated by the decoder itself, which reads a memory of zeros (internal language
model estimation, arXiv 2011.01991, section 3), and a part of this is subtracted:

    score(token) = log P(token | text, sound) - weight * log P(token | text)

The end of a text keeps its log-probability, or texts would become longer. A token is written only where the decoder
finds it `PLAUSIBLE` times as likely as its likeliest one, or more (as in contrastive decoding, arXiv 2210.15097,
equation 2): what is never written would gain most otherwise.

The guard rejects text by what the model thinks of it, so a hypothesis has its log-probability with nothing subtracted.

Shapes: R rows, U tokens so far, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprachbund.models.base import Family, Memory, Target
from sprachbund.nn.decoder import DecoderCache

CHUNK = 16
"""Tokens that are read at a time: logits of whole texts over a large vocabulary would fill the memory."""
PLAUSIBLE = 0.0025
"""Probability of a token, as a share of the likeliest one's, below which it is not written."""


@dataclass(kw_only=True, eq=False)
class InternalLM:
    """The rows of a search as the decoder expects them without sound.

    Attributes:
        family: the model.
        cache: holds the prompts, and all tokens but the last.
        logits: (R, V) after what the cache holds.
        weight: share of the log-probability that is subtracted.
    """

    family: Family
    cache: DecoderCache
    logits: Tensor
    weight: float

    def subtract_from(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Scores (R, V) of a search in which what was expected anyway counts less.

        Args:
            scores: (R, V) of the tokens after `tokens`, with the sound.
            tokens: (R, U); all but the last were given before.
        """
        if tokens.shape[1]:
            # Rows that have ended go on here, and one with a long prompt has no room for as many tokens as others.
            self.cache.rewind(self.cache.lengths.clamp(max=self.cache.capacity - 1))
            self.logits = self.family.step(tokens[:, -1:], self.cache)[:, -1]
        expected = _expected(self.family, self.logits)
        least = scores.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
        return (scores - self.weight * expected).masked_fill(scores < least, -torch.inf)

    def take(self, rows: Tensor) -> None:
        """Replace every row r by row `rows[r]`."""
        self.cache.reorder(rows)  # all rows read the same memory
        self.logits = self.logits[rows]


def start_without_sound(
    family: Family, memory: Memory, targets: Sequence[Target], capacity: int
) -> DecoderCache:
    """A cache whose R rows hear nothing: their memory is a single frame of zeros.

    Args:
        family: the model.
        memory: any memory of it.
        targets: targets of the R rows.
        capacity: most tokens of a row, the prompt included.
    """
    states = torch.zeros_like(memory.states[:1, :1])
    nothing = Memory(states=states, num_frames=torch.ones(1, dtype=torch.long, device=states.device))
    return family.start(nothing, rows_per_memory=len(targets), capacity=capacity, targets=targets)


def log_probability_without_sound(
    family: Family,
    memory: Memory,
    targets: Sequence[Target],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
) -> list[float]:
    """Sum over the tokens of each of R texts, without the end token, which a search has subtracted `weight` times.

    Args:
        family: the model.
        memory: any memory of it.
        targets: targets of the texts.
        prompts: prompts that the texts go on from.
        texts: tokens of the texts.
    """
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    device = memory.states.device
    cache = start_without_sound(family, memory, targets, max(map(len, rows)))
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
    begins = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ends = torch.tensor([len(row) for row in rows], device=device)
    for first in range(0, padded.shape[1] - 1, CHUNK):
        expected = _expected(family, family.step(padded[:, first : first + CHUNK], cache))
        nexts = padded[:, first + 1 : first + 1 + CHUNK]
        gained = expected[:, : nexts.shape[1]].gather(2, nexts[..., None])[..., 0]
        positions = torch.arange(first + 1, first + 1 + nexts.shape[1], device=device)
        inside = (positions >= begins[:, None]) & (positions < ends[:, None])
        sums += gained.where(inside, 0.0).sum(1, dtype=torch.float64)
    return sums.tolist()


def _expected(family: Family, logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) of the next tokens, 0 for the end of the text."""
    expected = logits.float().log_softmax(-1)
    expected[..., family.end_token] = 0.0
    return expected
