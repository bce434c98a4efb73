"""Joins recordings into one utterance: gaps of varying length, short overlaps, soft edges."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.asterisk.clips import Samples

MIN_GAP_S, MAX_GAP_S = -0.03, 0.30
# Some people leave half a second and more between digits.
SLOW_SHARE, SLOW_GAP_S = 0.25, 0.9
FADE_S = 0.008
EDGE_S = 0.15
_FADE = np.linspace(0.0, 1.0, int(FADE_S * SAMPLE_RATE), dtype=np.float32)


def draw_gaps(count: int, rng: random.Random) -> list[float]:
    """Seconds between clips, -0.03 (overlap) to 0.30, or 0.9 in a slow one; one pace per utterance, with jitter."""
    longest = SLOW_GAP_S if rng.random() < SLOW_SHARE else MAX_GAP_S
    pace = rng.betavariate(1.2, 3.0)
    span = longest - MIN_GAP_S
    gaps = (MIN_GAP_S + span * (pace + rng.gauss(0.0, 0.07)) for _ in range(count))
    return [min(longest, max(MIN_GAP_S, gap)) for gap in gaps]


def join(clips: Sequence[Samples], rng: random.Random) -> Samples:
    """Join clips (each (num_samples,), 16 kHz) with drawn gaps and up to 0.15 s of silence at both ends."""
    gaps = draw_gaps(len(clips) - 1, rng)
    position = start = int(rng.uniform(0.0, EDGE_S) * SAMPLE_RATE)
    starts = []
    for clip, gap in zip(clips, [*gaps, 0.0], strict=True):
        starts.append(position)
        position += max(0, len(clip) + int(gap * SAMPLE_RATE))
    total = max([start, *(at + len(clip) for at, clip in zip(starts, clips, strict=True))])
    joined = np.zeros(total + int(rng.uniform(0.0, EDGE_S) * SAMPLE_RATE), dtype=np.float32)
    for at, clip in zip(starts, clips, strict=True):
        joined[at : at + len(clip)] += clip
        if len(clip) > 2 * len(_FADE):
            _soften(joined, at, clip)
    np.clip(joined, -1.0, 1.0, out=joined)
    return joined


def _soften(joined: Samples, at: int, clip: Samples) -> None:
    """Fade both edges of a clip already added (in place, so that clips in memory stay as they are)."""
    size = len(_FADE)
    end = at + len(clip)
    joined[at : at + size] -= clip[:size] * (1.0 - _FADE)
    joined[end - size : end] -= clip[-size:] * _FADE
