"""Voice activity detection, and the spans of speech that long-form decoding works on.

One state machine serves files and live audio. It reads one probability at a time and closes a span as soon as
nothing later can change it, so offline is streaming with all probabilities at hand.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW, VAD_WINDOW_S
from sprachbund.audio.span_options import SpanOptions
from sprachbund.util.arrays import Samples

# Speech probability of each 32 ms (Silero through onnxruntime). An offline call is a stream of one block.

_MODEL = "silero_vad_16k.onnx"
_CONTEXT = 64  # samples of the window before that the network sees again
_STATE_SHAPE = (1, 1, 128)
_MAX_WINDOWS = 512  # per call: 16 s, which bounds the memory of a call on a long recording
_ERRORS_ONLY = 3


class VoiceActivity:
    """The Silero detector, loaded once; holds no state of any audio, so that threads may share it."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the network is tiny: more threads cost more than they bring
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY  # it warns at every load about unused parts of the file
        model = resources.files(f"{__package__}.assets").joinpath(_MODEL).read_bytes()
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the speech probability of every window of 512 samples.

        Args:
            samples: 16 kHz mono, shape (N,).

        Returns:
            float32 in [0, 1], shape (ceil(N / 512),); the last window is filled up with silence.
        """
        stream = self.stream()
        return np.concatenate([stream.feed(samples), stream.finish()])

    def stream(self) -> "VoiceActivityStream":
        """Start on new audio that arrives in blocks."""
        return VoiceActivityStream(self._session)


class VoiceActivityStream:
    """Probabilities of audio that arrives in blocks of any size; equal to the offline ones."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._hidden = np.zeros(_STATE_SHAPE, np.float32)
        self._cell = np.zeros(_STATE_SHAPE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)  # samples of a window that is not complete yet

    def feed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples (N,) and give the probabilities (W,) of the windows they complete."""
        if block.ndim != 1:
            raise ValueError(f"a block has shape {block.shape}; give mono samples (N,)")
        samples = np.concatenate([self._rest, block.astype(np.float32, copy=False)])
        complete = len(samples) // VAD_WINDOW * VAD_WINDOW
        self._rest = samples[complete:].copy()
        size = _MAX_WINDOWS * VAD_WINDOW
        parts = [self._run(samples[i : min(i + size, complete)]) for i in range(0, complete, size)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """End the audio: the probability of the incomplete last window (1,), or (0,) if there is none."""
        if len(self._rest) == 0:
            return np.zeros(0, np.float32)
        return self.feed(np.zeros(VAD_WINDOW - len(self._rest), np.float32))

    def _run(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        windows = samples.reshape(-1, VAD_WINDOW)
        before = np.concatenate([self._context[None], windows[:-1, -_CONTEXT:]])
        self._context = windows[-1, -_CONTEXT:].copy()
        inputs = {"input": np.concatenate([before, windows], axis=1), "h": self._hidden, "c": self._cell}
        names = ["speech_probs", "hn", "cn"]
        probabilities, self._hidden, self._cell = self._session.run(names, inputs)
        return np.asarray(probabilities, np.float32).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of speech: its start and end, padding included, and the mean probability of its windows."""

    start_s: float
    end_s: float
    speech_probability: float


class SpanFinder:
    """Spans from probabilities given one by one; remembers no more than one span.

    Args:
        options: thresholds and lengths of spans.
        longest_pause_s: None ends a span at a pause of `min_silence_s`. Otherwise each such pause is a question,
            `paused`, which the caller answers by `end_after`: the pause that ends the span, at most this long.
    """

    def __init__(self, options: SpanOptions, longest_pause_s: float | None = None) -> None:
        self._options = options
        self._asks = longest_pause_s is not None
        self._longest = max(options.min_silence_windows, math.ceil((longest_pause_s or 0) / VAD_WINDOW_S))
        self._ending = self._longest  # windows of pause that end the open span
        self._asked = False  # whether the pause under way has been answered
        self._time = 0  # windows seen
        self._start = 0  # first window of the open span
        self._heard: list[float] = []  # probabilities of the open span; empty: no span is open
        self._quiet = 0  # of these, how many at the end are below release
        self._joined = False  # the open span continues one that was split
        self._sure = False  # a window of the open span was surely speech, though it may have been cut off
        self._given = 0  # samples up to the end of the last span, which the next may not touch

    @property
    def earliest_sample(self) -> int:
        """First sample that a span not yet given could hold; all before it may be forgotten."""
        window = self._start if self._heard else self._time
        return max(self._given, window * VAD_WINDOW - self._options.padding)

    @property
    def open_span(self) -> Span | None:
        """The span under way as it would be if no more were said; None between spans, and before it is speech."""
        voiced = self._heard[: len(self._heard) - self._quiet]
        least = 1 if self._joined else self._options.min_speech_windows
        if len(voiced) < least or not self._sure:
            return None
        return Span(
            start_s=max(self._given, self._start * VAD_WINDOW - self._options.padding) / SAMPLE_RATE,
            end_s=min(
                (self._start + len(voiced)) * VAD_WINDOW + self._options.padding, self._time * VAD_WINDOW
            )
            / SAMPLE_RATE,
            speech_probability=self._mean(voiced),
        )

    @property
    def heard_s(self) -> float:
        """End of the newest window."""
        return self._time * VAD_WINDOW / SAMPLE_RATE

    def cut(self, second: float) -> None:
        """Let the span under way begin anew at the first whole window from `second` on; what is before is done.

        The last window that is not of the pause at the end stays in any case, so that the span goes on being one.
        """
        window = math.ceil(second * SAMPLE_RATE / VAD_WINDOW)
        gone = min(window - self._start, len(self._heard) - self._quiet - 1)
        if gone <= 0 or not self._sure:
            return
        self._heard, self._start, self._joined = self._heard[gone:], self._start + gone, True
        self._given = self._start * VAD_WINDOW

    @property
    def paused(self) -> bool:
        """Whether the open span has a pause that `end_after` has to decide on before the next window."""
        return (
            self._asks
            and not self._asked
            and bool(self._heard)
            and self._quiet >= self._options.min_silence_windows
        )

    def end_after(self, pause_s: float) -> Span | None:
        """Let the pause under way end the span once it is so long, and give the span if it is."""
        self._asked = True
        self._ending = min(self._longest, math.ceil(pause_s / VAD_WINDOW_S))
        return self._close() if self._quiet >= self._ending else None

    def push(self, probability: float) -> Span | None:
        """Take the probability of the next window and give the span it closes, if any."""
        self._time += 1
        if not self._heard:
            if probability < self._options.threshold:
                return None
            self._start, self._joined = self._time - 1, False
        self._heard.append(probability)
        self._sure = self._sure or probability >= self._options.threshold
        self._quiet = self._quiet + 1 if probability < self._options.release else 0
        if not self._quiet:
            self._asked, self._ending = False, self._longest
        if self._quiet >= self._ending or (self.paused and self.open_span is None):  # noise has no turns
            return self._close()
        if len(self._heard) <= self._options.max_windows:
            return None
        return self._close() if self._quiet else self._split()  # a pause just here is the best point to split

    def finish(self) -> Span | None:
        """End the audio and give the span that was open, if any; its padding may pass the last sample."""
        return self._close() if self._heard else None

    def _close(self) -> Span | None:
        voiced = self._heard[: len(self._heard) - self._quiet]
        least = 1 if self._joined else self._options.min_speech_windows
        sure, self._sure = self._sure, False
        self._heard, self._quiet, self._asked, self._ending = [], 0, False, self._longest
        if len(voiced) < least or not sure:  # the tail of a split may be silent
            return None
        return self._span(voiced, padding_after=self._options.padding)

    def _split(self) -> Span:
        """Close the first part at the least probable window, the last of equals, and keep the rest open.

        The rest is no shorter than speech has to be, since the audio may end with it, unless half of the longest span
        is shorter.
        """
        first = max(1, self._options.max_windows // 2)
        last = max(first, len(self._heard) - self._options.min_speech_windows)
        cut = last - int(np.argmin(self._heard[first : last + 1][::-1]))
        span = self._span(self._heard[:cut], padding_after=0)
        self._heard, self._start, self._joined = self._heard[cut:], self._start + cut, True
        self._sure = max(self._heard) >= self._options.threshold
        return span

    def _span(self, voiced: list[float], *, padding_after: int) -> Span:
        start = max(self._given, self._start * VAD_WINDOW - self._options.padding)
        end = (self._start + len(voiced)) * VAD_WINDOW + padding_after
        self._given = end = min(end, self._time * VAD_WINDOW)  # never samples that have not arrived
        mean = self._mean(voiced)
        return Span(start_s=start / SAMPLE_RATE, end_s=end / SAMPLE_RATE, speech_probability=mean)

    def _mean(self, voiced: list[float]) -> float:
        """Mean probability; pauses that would have ended the span, had they been asked to, do not count."""
        if not self._asks:
            return float(np.mean(voiced))
        kept = list[float]()
        for quiet, run in groupby(voiced, key=lambda probability: probability < self._options.release):
            windows = list(run)
            if not quiet or len(windows) < self._options.min_silence_windows:
                kept += windows
        return float(np.mean(kept or voiced))


def speech_spans(
    probabilities: NDArray[np.float32], options: SpanOptions | None = None, *, num_samples: int | None = None
) -> list[Span]:
    """Find the spans of speech in audio whose probabilities are known.

    Args:
        probabilities: one per window of 512 samples, shape (W,).
        options: thresholds and lengths of spans.
        num_samples: length of the audio, which no span passes; W windows if not given.

    Returns:
        Spans in order, not overlapping, inside the audio, none longer than ``options.max_span_s``.
    """
    finder = SpanFinder(options or SpanOptions())
    length = len(probabilities) * VAD_WINDOW if num_samples is None else num_samples
    closed = [finder.push(float(probability)) for probability in probabilities]
    return [_inside(span, length) for span in [*closed, finder.finish()] if span is not None]


def iter_speech_spans(
    blocks: Iterable[Samples], options: SpanOptions | None = None, *, activity: VoiceActivity | None = None
) -> Iterator[tuple[Span, Samples]]:
    """Find spans in audio that arrives in blocks, each given with its samples as soon as it is closed.

    Args:
        blocks: 16 kHz mono, each (N,) of any length.
        options: thresholds and lengths of spans.
        activity: a detector to share; a new one if not given.

    Yields:
        The span and its samples, shape (round((end_s - start_s) * 16000),). Memory is bounded by the longest
        span and the longest block.
    """
    stream = SpanStream(options, activity=activity)
    for block in blocks:
        yield from stream.push(block)
    yield from stream.finish()


class SpanStream:
    """Spans of audio that is pushed block by block, and a look at the one under way.

    With `longest_pause_s`, audio behind a pause is held back until `end_after` has said what the pause means, so that
    the spans depend neither on the size of the blocks nor on when the answer comes.

    Args:
        options: thresholds and lengths of spans.
        activity: a detector to share; a new one if not given.
        longest_pause_s: see `SpanFinder`.
    """

    def __init__(
        self,
        options: SpanOptions | None = None,
        *,
        activity: VoiceActivity | None = None,
        longest_pause_s: float | None = None,
    ) -> None:
        self._finder = SpanFinder(options or SpanOptions(), longest_pause_s)
        self._activity = (activity or VoiceActivity()).stream()
        self._held = _Held()
        self._ahead: deque[float] = deque()  # probabilities of windows that the finder has not seen
        self._ended = False

    @property
    def duration_s(self) -> float:
        """Seconds of all audio so far."""
        return self._held.end / SAMPLE_RATE

    def push(self, block: Samples) -> list[tuple[Span, Samples]]:
        """Take the next samples (N,) and give the spans they close, each with its samples."""
        self._held.add(block)
        self._ahead.extend(map(float, self._activity.feed(block)))
        return self._advance()

    def finish(self) -> list[tuple[Span, Samples]]:
        """End the audio and give the spans that were still open, those behind a pause under question excepted."""
        self._ahead.extend(map(float, self._activity.finish()))
        self._ended = True
        return self._advance()

    @property
    def paused(self) -> bool:
        """Whether a pause waits for `end_after`."""
        return self._finder.paused

    @property
    def held_back_s(self) -> float:
        """Seconds of audio behind a pause that waits for `end_after`."""
        return len(self._ahead) * VAD_WINDOW / SAMPLE_RATE

    def end_after(self, pause_s: float) -> list[tuple[Span, Samples]]:
        """Answer a pause: it ends the span once it is so long. Gives the spans that this closes."""
        return self._advance(self._finder.end_after(pause_s))

    def _advance(self, closed: Span | None = None) -> list[tuple[Span, Samples]]:
        """Go on to the next pause under question, or to the end of the audio."""
        spans = [closed]
        while self._ahead and not self._finder.paused:
            spans.append(self._finder.push(self._ahead.popleft()))
        if self._ended and not self._finder.paused:
            spans.append(self._finder.finish())
        inside = [_inside(span, self._held.end) for span in spans if span is not None]
        parts = [(span, self._held.cut(span)) for span in inside]
        self._held.forget(self._finder.earliest_sample)
        return parts

    def cut(self, second: float) -> None:
        """Let the span under way begin anew at the first whole window from `second` on."""
        self._finder.cut(second)
        self._held.forget(self._finder.earliest_sample)

    def under_way(self, *, with_pause: bool = False) -> tuple[Span, Samples] | None:
        """The span that is open, with its samples.

        Args:
            with_pause: up to the newest window, rather than to the end of its speech and the padding behind it.
        """
        span = self._finder.open_span
        if span is not None and with_pause:
            span = replace(span, end_s=self._finder.heard_s)
        return None if span is None else (span, self._held.cut(span))


def _inside(span: Span, num_samples: int) -> Span:
    """Cut off what passes the end of the audio."""
    return replace(span, end_s=min(span.end_s, num_samples / SAMPLE_RATE))


class _Held:
    """The samples that a later span may still need, and where they lie in the audio."""

    def __init__(self) -> None:
        self._samples = np.zeros(0, np.float32)
        self._begin = 0

    @property
    def end(self) -> int:
        return self._begin + len(self._samples)

    def add(self, block: Samples) -> None:
        self._samples = np.concatenate([self._samples, block.astype(np.float32, copy=False)])

    def forget(self, before: int) -> None:
        drop = min(before, self.end) - self._begin
        if drop > 0:
            self._samples, self._begin = self._samples[drop:].copy(), self._begin + drop

    def cut(self, span: Span) -> Samples:
        start, end = (round(second * SAMPLE_RATE) - self._begin for second in (span.start_s, span.end_s))
        return self._samples[start:end].copy()
