"""Search in models that write by CTC alone: the likeliest path, or a beam over prefixes.

Several paths give one text, so a beam adds up the probabilities of all paths that wrote the same (Graves et al., ICML
2006, section 3.2; the sum kept apart by last symbol as in arXiv 1408.2873, algorithm 1). Nothing is searched twice: the
log-probabilities of all frames are there at once. Shapes: R rows, T frames, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.by_frames import refuse_options
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.rows import Hypothesis
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target

Scored = tuple[tuple[int, ...], float]
"""Tokens and their log-probability."""


def writes_by_ctc(family: Family) -> bool:
    """Whether a family's text comes from CTC alone."""
    return bool(getattr(family, "writes_by_ctc", False))


@torch.inference_mode()
def search_by_ctc(
    family: Family, memory: Memory, targets: Sequence[Sequence[Target]], options: DecodingOptions
) -> list[list[Hypothesis]]:
    """As `search`, which hands over to this.

    Raises:
        SprachbundError: options that only an attention decoder has, or a prefix.
    """
    refuse_options(family, options, "by CTC")
    if any(target.prefix for group in targets for target in group):
        raise SprachbundError(
            f"the model {family.name} writes by CTC, which cannot go on from a text; translate whole recordings with it"
        )
    model: Any = family
    log_probs: Tensor = model.ctc_log_probs(memory, targets)
    assert memory.num_frames is not None
    each = len(targets[0])
    num_frames = memory.num_frames.repeat_interleave(each).tolist()
    rows = [row[:n].double().cpu().numpy() for row, n in zip(log_probs, num_frames, strict=True)]
    if options.beam_size == 1:
        found = [best_path(row) for row in rows]
    else:
        found = [prefix_beam(row, options.beam_size)[0] for row in rows]
    best = [_hypothesis(tokens, score, options.max_tokens) for tokens, score in found]
    return [best[i : i + each] for i in range(0, len(best), each)]


def best_path(log_probs: np.ndarray, blank: int = 0) -> Scored:
    """The likeliest path of (T, V), repeats and blanks removed, and its log-probability."""
    path = log_probs.argmax(-1)
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    tokens = tuple(int(token) for token in path[starts] if token != blank)
    return tokens, float(log_probs.max(-1).sum())


def prefix_beam(log_probs: np.ndarray, beam_size: int, blank: int = 0) -> list[Scored]:
    """The likeliest texts of (T, V), best first, with their log-probabilities over the paths that were kept.

    With a beam that nothing falls out of, they are exact.

    Args:
        log_probs: of every frame; minus infinity for what is not to be written.
        beam_size: texts kept at every frame; as many tokens are tried after each.
        blank: id of the blank.
    """
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs:
        likely = _likely(frame, beam_size, blank)
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for text, (after_blank, after_token) in beam.items():
            whole = float(np.logaddexp(after_blank, after_token))
            _add(grown, text, blank=whole + frame[blank])
            if text:
                _add(grown, text, token=after_token + frame[text[-1]])
            for token in likely:
                before = after_blank if text and token == text[-1] else whole
                if before > -math.inf:
                    _add(grown, (*text, token), token=before + frame[token])
        beam = dict(sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))[:beam_size])
    return [(text, float(np.logaddexp(*scores))) for text, scores in beam.items()]


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


def _hypothesis(tokens: tuple[int, ...], score: float, max_tokens: int | None) -> Hypothesis:
    kept = tokens[:max_tokens]
    return Hypothesis(
        tokens=kept,
        log_probability=score,
        finished=len(kept) == len(tokens),
        no_speech_log_probability=None,
        score=score,
    )
