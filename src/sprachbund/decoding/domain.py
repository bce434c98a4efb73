"""Signals that say whether a model understands what it hears, and the probability that they give.

The CTC head of a conformer transcribes too. Where it writes something else than the decoder, the text is likely to be
invented: the head hears sounds, and the decoder knows sentences. The decoder's transcript is one more row of a greedy
search for each span.

The spans of a recording are nearly always of one kind, so the last ones count too: short spans say little alone,
and a text read aloud has some that sound like a prompt.

Shapes: B utterances, T frames, V vocabulary.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from sprachbund.decoding.ctc import best_path
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.state import Hypothesis
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.calibration import DOMAIN_FILE, Signal, mean_states, probability

Signals = dict[Signal, float]
_SPANS = 4  # that count beside the present one
_MOST = 3.0  # that they add, in log-odds


class LatestSpans:
    """The scores of the last spans of a recording or session, for each of its targets.

    In a live session, the attempts at speech that goes on are scored as spans are, until it ends: where three people
    talk at once, one of them is alone now and then, and four in five attempts hear that they do not understand.
    """

    def __init__(self) -> None:
        self._spans: dict[str, _Scored] = {}
        self._attempts: dict[str, _Scored] = {}

    def log_odds(self, target: str, *, ended: bool = True) -> float:
        """Return the log-odds that the last spans add to the next one: 0 where they were understood, or there are none.

        Speech that was understood is no reason to trust the next span: whoever comes in may say anything.

        Args:
            target: as it was asked for.
            ended: False for an attempt at speech that goes on, to which the attempts before add, too.
        """
        of_spans = _mean_beyond(self._spans.get(target, ()))
        return of_spans if ended else max(of_spans, _mean_beyond(self._attempts.get(target, ())))

    def add(self, target: str, beyond: float, duration_s: float, *, ended: bool = True) -> None:
        """Note a span, or an attempt at one.

        Args:
            target: as it was asked for.
            beyond: its own log-odds less those of the model's threshold.
            duration_s: length in seconds; short spans say less.
            ended: False for an attempt at speech that goes on; the span that ends it takes the place of all of them.
        """
        noted = self._spans if ended else self._attempts
        noted.setdefault(target, deque(maxlen=_SPANS)).append((beyond, duration_s))
        if ended:
            self._attempts.pop(target, None)


_Scored = deque[tuple[float, float]]


def _mean_beyond(scored: Collection[tuple[float, float]]) -> float:
    """The log-odds that spans add to one more: their mean by length, and less of it where they are few."""
    seconds = sum(duration_s for _, duration_s in scored)
    mean = sum(beyond * duration_s for beyond, duration_s in scored) / max(seconds, 1e-9)
    return max(0.0, min(_MOST, mean)) * len(scored) / _SPANS


def out_of_domain(
    family: Family,
    memory: Memory,
    sources: Sequence[str],
    hypotheses: Sequence[Sequence[Hypothesis]],
    durations_s: Sequence[float],
    targets: Sequence[Sequence[str]],
    latest: Sequence[LatestSpans],
    ended: Sequence[bool],
) -> list[list[float | None]]:
    """The probability that each text is not what was said; None of models that were not calibrated.

    Args:
        family: the model.
        memory: memory of B utterances.
        sources: (B,) languages spoken.
        hypotheses: B rows (n,) of what was written for them.
        durations_s: (B,) lengths of the utterances.
        targets: B rows (n,) of what was asked for.
        latest: (B,) of their recordings; the utterances are in order of time.
        ended: (B,) False for speech that goes on, which counts until it has ended.
    """
    domain = family.calibration.domain
    if domain is None:
        return [[None] * len(row) for row in hypotheses]
    means = span_states(memory, durations_s, family.frame_s, domain.layers)
    own_signals = span_signals(family, memory, sources, durations_s)
    threshold = domain.threshold_log_odds
    doubts: list[list[float | None]] = []
    for b, of_state in enumerate(domain.weigh_states(means)):
        doubts.append([])
        for target, hypothesis in zip(targets[b], hypotheses[b], strict=True):
            own = domain.log_odds(of_state, own_signals[b] | text_signals(hypothesis))
            doubts[-1].append(probability(own + latest[b].log_odds(target, ended=ended[b])))
            latest[b].add(target, own - threshold, durations_s[b], ended=ended[b])
    return doubts


def layers_read(memory: Memory) -> list[int]:
    """Layers that a new calibration reads: those a third and two thirds up the encoder, and the last; or none.

    Two people at once are told from one in the middle of the encoder, and hardly behind its last layer.
    """
    if memory.layer_means is None:
        return []
    count = memory.layer_means.shape[1] - 1
    return sorted({math.ceil(count / 3), math.ceil(2 * count / 3), count})


def span_states(
    memory: Memory, durations_s: Sequence[float], frame_s: float, layers: Sequence[int]
) -> Tensor:
    """Mean encoder states that a calibration reads, (B, D) for each of the layers side by side.

    Args:
        memory: memory of B utterances.
        durations_s: (B,) lengths of the utterances.
        frame_s: seconds of a frame.
        layers: their numbers; the states behind the encoder if empty.

    Raises:
        SprachbundError: the encoder gives no means of such layers.
    """
    if not layers:
        return mean_states(memory.states, memory.num_frames, durations_s, frame_s)
    given = 0 if memory.layer_means is None else memory.layer_means.shape[1]
    if memory.layer_means is None or max(layers) >= given:
        raise SprachbundError(
            f"{DOMAIN_FILE} reads layer {max(layers)} of the encoder, and this model gives "
            f"{f'layers 0 to {given - 1}' if given else 'no layers'}; calibrate the model again"
        )
    return memory.layer_means[:, list(layers)].flatten(1)


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
        memory: memory of B utterances.
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
