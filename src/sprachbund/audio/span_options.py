"""Options of finding spans of speech; apart from the code that finds them, which takes long to import."""

import math
from dataclasses import dataclass
from typing import Annotated

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW, VAD_WINDOW_S
from sprachbund.errors import SprachbundError
from sprachbund.util.options import Range, check

_MIN_SPLIT_WINDOWS = 4  # below this a maximum length leaves no choice of where to split
_HOUR_S = 3600.0
LONGEST_SPAN_S = 86_400.0
"""What `max_span_s` may be, a day: speech is then split by its pauses alone."""


@dataclass(frozen=True, kw_only=True)
class SpanOptions:
    """Options of finding spans of speech.

    Attributes:
        threshold: probability of the first window of a span, at least.
        release: probability below which windows have to stay for ``min_silence_s`` to end a span.
        min_speech_s: shortest span without its padding; shorter ones are noise and left out.
        min_silence_s: shortest pause that ends a span.
        padding_s: seconds of audio kept before and after; at most half of ``min_silence_s``, so that spans cannot
            overlap.
        max_span_s: longest span; longer speech is split at its least probable window in the second half of this time.

    Raises:
        SprachbundError: a value out of its range, or values that contradict each other.
    """

    threshold: Annotated[float, Range(0.0, 1.0, above=True)] = 0.5
    release: Annotated[float, Range(0.0, 1.0, above=True)] = 0.35
    min_speech_s: Annotated[float, Range(0.0, _HOUR_S)] = 0.15
    min_silence_s: Annotated[float, Range(0.0, _HOUR_S)] = 0.4
    padding_s: Annotated[float, Range(0.0, _HOUR_S)] = 0.2
    max_span_s: Annotated[float, Range(0.0, LONGEST_SPAN_S, above=True)] = 28.0

    def __post_init__(self) -> None:
        check(self)
        if self.release > self.threshold:
            raise SprachbundError(
                f"threshold={self.threshold} and release={self.release}: release may not be above threshold"
            )
        if 2 * self.padding_s > self.min_silence_s:
            raise SprachbundError(
                f"padding_s={self.padding_s} and min_silence_s={self.min_silence_s}: "
                "padding may be at most half the silence"
            )
        if self.max_windows < _MIN_SPLIT_WINDOWS:
            least_s = 2 * self.padding_s + _MIN_SPLIT_WINDOWS * VAD_WINDOW_S
            raise SprachbundError(f"max_span_s={self.max_span_s} is too short; give at least {least_s:.2f}")

    @property
    def padding(self) -> int:
        """Samples kept on either side."""
        return round(self.padding_s * SAMPLE_RATE)

    @property
    def min_speech_windows(self) -> int:
        """Fewest windows in a span."""
        return max(1, math.ceil(self.min_speech_s / VAD_WINDOW_S))

    @property
    def min_silence_windows(self) -> int:
        """Windows below ``release`` that end a span."""
        return max(1, math.ceil(self.min_silence_s / VAD_WINDOW_S))

    @property
    def max_windows(self) -> int:
        """Most windows that fit a span together with its padding."""
        return (int(self.max_span_s * SAMPLE_RATE) - 2 * self.padding) // VAD_WINDOW
