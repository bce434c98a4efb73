"""Sampling, and falling back to it where a text goes wrong, as in arXiv 2212.04356, section 4.5.

A text that repeats itself, or that the model is unsure of, is decoded again at the next temperature, with tokens drawn
at random. Draws depend on the seed, the temperature, the utterance and the target alone, and not on the batch.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from math import exp
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.guard import compression_ratio
from sprachbund.decoding.options import GuardOptions
from sprachbund.decoding.state import Hypothesis
from sprachbund.models.base import Family, Target


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """Probabilities (R, V) of the next token at a temperature above 0: softmax of the log-probabilities over it."""
    return (log_probs.double() / temperature).softmax(-1)


class TokenSampler:
    """Draws the next token of every row.

    Args:
        temperature: above 0.
        seed: seed of all draws.
        utterances: (R,) a number that tells the utterances apart.
        targets: (R,) what each row is asked for.
    """

    def __init__(
        self, temperature: float, seed: int, utterances: Sequence[int], targets: Sequence[Target]
    ) -> None:
        self.temperature = temperature
        self._draws = [
            np.random.default_rng(
                [seed, round(temperature * 1e6), utterance, crc32(target.language.encode())]
            )
            for utterance, target in zip(utterances, targets, strict=True)
        ]

    def draw(self, log_probs: Tensor) -> Tensor:
        """The next token (R,), of the log-probabilities (R, V) that the logits processor gives."""
        sums = tempered(log_probs, self.temperature).cumsum(-1)
        uniform = torch.tensor([[one.random()] for one in self._draws], dtype=sums.dtype, device=sums.device)
        return torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0]

    def take(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self._draws = [self._draws[row] for row in rows]


def needs_fallback(family: Family, hypothesis: Hypothesis, guard: GuardOptions) -> bool:
    """Whether a text is to be decoded again: it compresses too well, or is too unlikely and yet not silence.

    Args:
        family: decodes the tokens.
        hypothesis: finished.
        guard: the thresholds of compression, log-probability and silence; those of Whisper by default.
    """
    unlikely = mean_with_end(hypothesis) < guard.min_mean_log_probability
    silence = hypothesis.no_speech_log_probability
    if unlikely and silence is not None and exp(silence) > guard.max_no_speech_probability:
        return False
    return unlikely or compresses_too_well(family, hypothesis, guard)


def compresses_too_well(family: Family, hypothesis: Hypothesis, guard: GuardOptions) -> bool:
    """Whether a text repeats itself, as loops do; arguments as of `needs_fallback`."""
    return compression_ratio(family.decode_text(hypothesis.tokens)) > guard.max_compression_ratio


def mean_with_end(hypothesis: Hypothesis) -> float:
    """Mean log-probability of a token; as in Whisper, the end token of rows that have none is counted, too."""
    return hypothesis.log_probability / (len(hypothesis.tokens) + 1)
