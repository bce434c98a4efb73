"""Signals that say whether a model understands what it hears, and the probability that they give.

The CTC head of a conformer transcribes too. Where it writes something else than the decoder, the text is likely to be
invented: the head hears sounds, and the decoder knows sentences. The decoder's transcript is one more row of a greedy
search for each span.

Shapes: B utterances, T frames, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.ctc import best_path
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.state import Hypothesis
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.domain import Signal, mean_states

Signals = dict[Signal, float]


def out_of_domain(
    family: Family,
    memory: Memory,
    sources: Sequence[str],
    hypotheses: Sequence[Sequence[Hypothesis]],
    durations_s: Sequence[float],
) -> list[list[float | None]]:
    """The probability that each text is not what was said; None of models that were not calibrated.

    Args:
        family: the model.
        memory: of B utterances.
        sources: (B,) languages spoken.
        hypotheses: B rows (n,) of what was written for them.
        durations_s: (B,) lengths of the utterances.
    """
    domain = family.domain
    if domain is None:
        return [[None] * len(row) for row in hypotheses]
    means = mean_states(memory.states, memory.num_frames, durations_s, family.frame_s)
    return [
        [domain.probability(log_odds, signals | text_signals(hypothesis)) for hypothesis in row]
        for log_odds, signals, row in zip(
            domain.encoder_log_odds(means),
            span_signals(family, memory, sources, durations_s),
            hypotheses,
            strict=True,
        )
    ]


def text_signals(hypothesis: Hypothesis) -> Signals:
    """Signals of a text."""
    return {"mean_log_probability": hypothesis.mean_log_probability}


@torch.inference_mode()
def span_signals(
    family: Family, memory: Memory, sources: Sequence[str], durations_s: Sequence[float]
) -> list[Signals]:
    """Signals of each span, whatever is written for it; empty for models without a CTC head that transcribes.

    Args:
        family: the model.
        memory: of B utterances.
        sources: (B,) languages spoken.
        durations_s: (B,) lengths of the utterances.
    """
    head = family.capabilities.transcript_head
    if head is None:
        return [{} for _ in sources]
    rows = _valid_rows(head.transcript_log_probs(memory), memory.num_frames)
    heard = [head.decode_transcript(best_path(row)[0]) for row in rows]
    # A draft learns its acceptance from the rows that were asked for.
    asked = [[Target(language=source, source=source)] for source in sources]
    written = search(family, memory, asked, DecodingOptions(draft=NONE), durations_s)
    return [
        {"ctc_disagreement": _distance(text, family.decode_text(hypothesis.tokens))}
        for text, (hypothesis,) in zip(heard, written, strict=True)
    ]


def _valid_rows(log_probs: Tensor, num_frames: Tensor | None) -> list[np.ndarray]:
    """Log-probabilities (T, V) of each utterance without its padding, at least one frame."""
    counts = [log_probs.shape[1]] * len(log_probs) if num_frames is None else num_frames.tolist()
    return [row[: max(1, count)].float().cpu().numpy() for row, count in zip(log_probs, counts, strict=True)]


def _distance(first: str, second: str) -> float:
    """Edit distance of two texts over the length of the longer one, 0 to 1; 0 of two empty ones."""
    a, b = np.array(list(first)), np.array(list(second))
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    columns = np.arange(len(b) + 1)
    row = columns
    for number, character in enumerate(a, 1):
        replaced = row[:-1] + (b != character)
        best = np.concatenate([[number], np.minimum(replaced, row[1:] + 1)])
        row = np.minimum.accumulate(best - columns) + columns  # insertions
    return float(row[-1]) / max(len(a), len(b))
