"""A live session: audio cut into stretches of speech as it comes, with the text written of each.

A session computes only voice activity. Stretches that are due are decoded by a `LiveEngine`, together with those of
other sessions.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from sprachbund.audio.constants import LOUDEST, SAMPLE_RATE
from sprachbund.audio.load import as_floats, refuse_other_types
from sprachbund.audio.span_options import LONGEST_SPAN_S, SpanOptions
from sprachbund.audio.spans import Span, SpanStream, VoiceActivity
from sprachbund.decoding.domain import LatestSpans
from sprachbund.decoding.guard import Understanding
from sprachbund.decoding.languages import IdentifiedLanguage, LanguageTracker, Request
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, FrameFrontEnd
from sprachbund.streaming.events import LiveNotice, LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.text.languages import text_units, writes_spaces
from sprachbund.util.arrays import Samples

if TYPE_CHECKING:  # a session itself computes no model, so commands hold it without loading torch
    from torch import Tensor


_LEAST_NOT_UNDERSTOOD_S = 30.0
"""Seconds of speech that was not understood, after which a session that goes on is warned."""

_LEAST_COMPARED = 3
"""Stretches of speech, after which a session that goes on is warned of another language."""

# Stretches of speech and their text.


@dataclass(kw_only=True)
class FrameStream:
    """Progress of a stretch through a model that writes frame by frame.

    Attributes:
        front_end: front end of its sound.
        fed: samples given to `front_end`, counted from the beginning of the session.
        waiting: (T, ...) frames of it that were not encoded yet.
        tokens: tokens written, by target.
        ended: whether all of its sound was given.
    """

    front_end: FrameFrontEnd
    fed: int
    waiting: "Tensor"
    tokens: dict[str, list[int]]
    ended: bool = field(default=False)


@dataclass(kw_only=True)
class CaptionLine:
    """The text of a stretch in one language.

    Attributes:
        prefix: committed tokens whose audio is still held; what comes next is decoded behind them.
        written: all committed text.
        tentative: text that is shown behind it and may still change.
        attempts: words behind the prefix in earlier attempts, the newest last.
        transcript: words of the newest transcript, of a cascade that commits before the end of a stretch.
        begin: the word of it at which the sentence of the prefix begins.
        drafts: tokens that the newest attempt gave that sentence and each behind it.
        words_end_s: end of the last word that was committed with its time, in seconds of the session.
    """

    prefix: tuple[int, ...] = ()
    written: str = ""
    tentative: str = ""
    attempts: list[list[str]] = field(default_factory=list)
    transcript: tuple[str, ...] = ()
    begin: int = 0
    drafts: list[tuple[int, ...]] = field(default_factory=list)
    words_end_s: float = 0.0

    def behind(self, piece: str, language: str) -> str:
        """A piece of text as it is to stand behind what is written."""
        if not self.written:
            return piece.strip()
        if piece.strip() and not self.prefix and writes_spaces(language):
            return (
                f" {piece.strip()}"  # the tokens before, behind which it would have had its space, are gone
            )
        return piece.rstrip()

    def commit(self, piece: str, language: str) -> str:
        """Append a piece of text; the characters that it adds."""
        piece = self.behind(piece, language)
        self.written += piece
        return piece

    def note_attempt(self, words: list[str], options: LiveOptions) -> None:
        """Keep the words of the newest attempt, and of as many before it as the options compare."""
        self.attempts = [*self.attempts, words][-max(options.agreement, options.steady or 1) :]

    def show(self, tentative: str, committed: str, language: str) -> int:
        """Replace the tentative text.

        Args:
            tentative: text that takes its place.
            committed: text in front of that, which was committed with it.
            language: BCP-47 tag of the text.

        Returns:
            How many words of the text before are no longer there; characters, in languages without spaces.
        """
        before, now = (text_units(text, language) for text in (self.tentative, f"{committed}{tentative}"))
        self.tentative = tentative
        kept = sum(old == new for old, new in zip(before, now, strict=False))
        return len(before) - kept


@dataclass(kw_only=True)
class Stretch:
    """Speech between two pauses, as far as it has been heard.

    Attributes:
        number: counts up over a session.
        begin_s: start of the stretch, in seconds of the session.
        span: audio that is still held of it.
        samples: samples of the span.
        closed: whether all of it has been heard.
        lines: by target.
        language: the language spoken, once text was committed in it.
        attempted_s: audio up to here has been attempted.
        stream: state of a model that writes frame by frame.
    """

    number: int
    begin_s: float
    span: Span
    samples: Samples
    closed: bool = False
    lines: dict[str, CaptionLine]
    language: IdentifiedLanguage | None = None
    attempted_s: float
    stream: FrameStream | None = None

    @property
    def duration_s(self) -> float:
        """Seconds of the audio held."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def untouched(self) -> bool:
        """Whether nothing of the stretch was committed, not even a token without text of its own."""
        return not any(line.written or line.prefix for line in self.lines.values())


class OverloadError(SprachbundError):
    """More audio waits than the session may hold."""


class LiveSession:
    """Audio in, stretches of speech out; made by `LiveEngine.open`.

    Attributes:
        targets: languages asked for, in the model's tags.
        source: the language spoken; None if it is identified.
        options: options of the session.
        decoding: decoding options of its speech.
        request: the languages, as the model knows them.
        tracker: tracker of the language, over the stretches.
        latest: scores of its last spans.
        written: targets with text.
        error: reason why the session has ended early, if it has.
        on_speech: called at the beginning and the end of each stretch, with its number, the second, and whether it
            begins.
    """

    def __init__(
        self,
        request: Request,
        options: LiveOptions,
        spans: SpanOptions,
        tracker: LanguageTracker,
        activity: VoiceActivity,
        decoding: DecodingOptions,
        *,
        lead_s: float = 0.0,
    ) -> None:
        self.decoding = decoding
        self.targets, self.source = request.targets, request.source
        self.request, self.options, self.tracker = request, options, tracker
        self.error: str | None = None
        self.latest = LatestSpans()
        self.on_speech: Callable[[int, float, bool], None] | None = None
        self.written: set[str] = set()
        self._lead_s = lead_s  # the first attempt at a stretch needs so much less sound than further ones
        # Text of the last words must not wait for the end of a long pause: the model hears the pause as it comes.
        self._through_pauses = options.policy == "frames" and options.pause_s is not None
        self._least_pause_s = spans.min_silence_s
        longest_s = options.max_pause_s if options.turn_end == "sentence" else None
        self._stream = SpanStream(spans, activity=activity, longest_pause_s=longest_s)
        self._waiting: deque[Stretch] = deque()
        self._open: Stretch | None = None
        self._notices: list[LiveNotice] = []
        self._understanding = Understanding(self.targets)
        self._not_understood: str | None = None  # what there is to say of the speech so far
        self._warned: set[str] = set()  # kinds of warnings that were given
        self._count = 0
        self._lost: list[Stretch] = []
        self._ended = self._overloaded = False

    @property
    def audio_s(self) -> float:
        """Audio taken in."""
        return self._stream.duration_s

    @property
    def behind_s(self) -> float:
        """Speech that has been heard and not been worked on."""
        waiting_s = sum(stretch.duration_s for stretch in self._waiting) + self._stream.held_back_s
        return waiting_s + (self._new_s if self._open and self.options.policy != "span" else 0.0)

    @property
    def _late_s(self) -> float:
        """The same without the stretch that ended last: it may be long, and could not be worked on before."""
        return self.behind_s - (self._waiting[-1].duration_s if self._waiting else 0.0)

    @property
    def due(self) -> bool:
        """Whether there is anything to decode or to report."""
        waiting = self._notices or self._lost or self._waiting
        return bool(waiting) or self._attempt_is_due or self.paused is not None

    @property
    def paused(self) -> Stretch | None:
        """The stretch under way, at a pause that `answer_pause` has to answer; nothing behind it is heard before."""
        return self._open if self._stream.paused and self.error is None else None

    @property
    def finished(self) -> bool:
        """Whether all text has been returned."""
        return self.error is not None or (self._ended and not self.due)

    def push(self, samples: Samples) -> None:
        """Take the next samples: 16 kHz mono, shape (N,), of at most `max_waiting_s`; integers are scaled to [-1, 1].

        Raises:
            OverloadError: more than `max_waiting_s` of audio would wait, be it in one block, or any overload where the
                session is to refuse it; nothing was taken in.
            SprachbundError: not samples, or the session has ended.
        """
        samples = _checked(samples)
        if self._ended or self.error:
            raise SprachbundError("the session has ended; open a new one for more audio")
        self._refuse_overload(len(samples) / SAMPLE_RATE)
        for start in range(
            0, len(samples), SAMPLE_RATE
        ):  # so that a long block does not hide stretches in it
            self._take_in(self._stream.push(samples[start : start + SAMPLE_RATE]))
        self._watch()

    def finish(self) -> None:
        """No more audio comes; what is left is due now."""
        if self._ended:
            return
        self._ended = True
        self._take_in(self._stream.finish())
        self._warn()

    def answer_pause(self, probability: float) -> None:
        """Say how likely it is that the speaker has finished.

        The pause that ends the stretch goes from the shortest to `max_pause_s` as the probability goes from 1 to 0,
        evenly on a logarithmic scale.
        """
        shortest_s, longest_s = self._least_pause_s, self.options.max_pause_s
        self._take_in(self._stream.end_after(shortest_s * (longest_s / shortest_s) ** (1 - probability)))

    def _take_in(self, closed: Sequence[tuple[Span, Samples]]) -> None:
        """Take the stretches that have ended, and what is under way."""
        for span, heard in closed:
            self._close(span, heard)
        if self._ended and not self._stream.paused:
            self._end_vanished()
        else:
            self._look()

    def take_due(self) -> list[Stretch]:
        """Stretches to be worked on now, in order; those that have ended leave the session."""
        due, self._waiting = list(self._waiting), deque()
        if self._attempt_is_due and self._open:
            due.append(self._open)
        return due

    def put_back(self, stretches: Sequence[Stretch]) -> None:
        """Take back stretches of `take_due` that did not fit into the batch."""
        self._waiting.extendleft(reversed([stretch for stretch in stretches if stretch.closed]))

    def take_lost(self) -> list[Stretch]:
        """Stretches that an overload has cost."""
        lost, self._lost = self._lost, []
        return lost

    def take_notices(self) -> list[LiveNotice]:
        """Notices since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def note_understanding(self, family: Family, ends: Sequence[LiveText]) -> None:
        """Count the ends of stretches; warn once when most speech so far is not understood, or in another language.

        Args:
            family: the model.
            ends: events with which stretches have ended.
        """
        for event in ends:
            self._understanding.add(event.end_s - event.start_s, event.dropped, event.out_of_domain)
        self._not_understood = self._understanding.warning(family)
        self._warn()

    def _warn(self) -> None:
        """Give each warning once: at the end, or after so much speech of which it is true."""
        enough = self._understanding.not_understood_s >= _LEAST_NOT_UNDERSTOOD_S
        self._warn_once("not understood", self._not_understood, enough=enough)
        enough = self.tracker.num_compared >= _LEAST_COMPARED
        self._warn_once("language", self.tracker.warning, enough=enough)

    def _warn_once(self, kind: str, message: str | None, *, enough: bool) -> None:
        if message is not None and (enough or self.finished) and kind not in self._warned:
            self._warned.add(kind)
            self._notices.append(LiveNotice(kind="warning", message=message, audio_s=self.audio_s))

    def fail(self, message: str) -> None:
        """End the session for a reason."""
        self.error = message
        self._waiting.clear()
        self._open = None
        self._notices.append(LiveNotice(kind="error", message=message, audio_s=self.audio_s))

    def cut(self, stretch: Stretch, after_s: float) -> None:
        """Forget the first seconds of a stretch under way; what is left begins at the next whole window."""
        self._stream.cut(stretch.span.start_s + after_s)
        self._look()

    @property
    def _new_s(self) -> float:
        """Audio of the stretch under way that no attempt has heard."""
        return 0.0 if self._open is None else self._open.span.end_s - self._open.attempted_s

    @property
    def _attempt_is_due(self) -> bool:
        if self._open is None or self.options.policy == "span":
            return False
        if self._overloaded and self._waiting:
            return False
        return self._new_s >= self.options.step_s

    def _look(self) -> None:
        """See how far the stretch under way has come."""
        under_way = self._stream.under_way(with_pause=self._through_pauses)
        if under_way is None:
            self._end_vanished()
            return
        span, samples = under_way
        if self._open is None:
            self._open = self._begin(span, samples)
        self._open.span, self._open.samples = span, samples

    def _begin(self, span: Span, samples: Samples) -> Stretch:
        lines = {target: CaptionLine() for target in self.targets}
        number, self._count = self._count, self._count + 1
        if self.on_speech is not None:
            self.on_speech(number, span.start_s, True)
        return Stretch(
            number=number,
            begin_s=span.start_s,
            span=span,
            samples=samples,
            lines=lines,
            attempted_s=span.start_s - self._lead_s,
        )

    def _close(self, span: Span, samples: Samples) -> None:
        stretch = self._open or self._begin(span, samples)
        stretch.span, stretch.samples, stretch.closed = span, samples, True
        self._waiting.append(stretch)
        self._open = None
        if self.on_speech is not None:
            self.on_speech(stretch.number, span.end_s, False)

    def _end_vanished(self) -> None:
        """A stretch that turned out to be no speech ends with what was heard of it."""
        if self._open is not None:
            self._close(self._open.span, self._open.samples)

    def _refuse_overload(self, more_s: float) -> None:
        limit_s = self.options.max_waiting_s
        if more_s > limit_s:
            raise OverloadError(
                f"{more_s:.1f} s of sound came in one block; at most {limit_s:g} s may wait: send shorter blocks"
            )
        waiting_s = self.behind_s
        if self.options.overload == "refuse":
            limit_s, waiting_s = self.options.max_behind_s, self._late_s
        # Where nothing is due, what waits is less than a step, and no time would make room for more.
        if self.due and waiting_s > max(0.0, limit_s - more_s):
            raise OverloadError(
                f"{waiting_s:.1f} s of speech wait already, and {more_s:.1f} s more came; "
                f"at most {limit_s:g} s may wait: send no faster than it is spoken, or to fewer sessions"
            )

    def _watch(self) -> None:
        """Begin or end what an overload asks for; in an overload, a pause ends a stretch without a question."""
        limit_s = self.options.max_behind_s
        while self._stream.paused and self._late_s > limit_s:
            self.answer_pause(1.0)
        if self.options.overload == "drop":
            self._drop(limit_s)
        elif self._overloaded:
            self._overloaded = self._late_s > limit_s / 2
        elif self._late_s > limit_s and self._waiting:
            self._overloaded = True
            self._say(f"{self._late_s:.1f} s behind; text comes at pauses only until this has caught up")

    def _drop(self, limit_s: float) -> None:
        """Lose the oldest speech."""
        lost: list[Stretch] = []
        while self._late_s > limit_s and len(self._waiting) > 1:
            lost.append(self._waiting.popleft())
        if lost:
            lost_s = sum(stretch.duration_s for stretch in lost)
            self._lost += lost
            since_s, until_s = lost[0].span.start_s, lost[-1].span.end_s
            self._say(
                f"overloaded: speech from {since_s:.1f} s to {until_s:.1f} s is left out", lost_s=lost_s
            )

    def _say(self, message: str, lost_s: float = 0.0) -> None:
        self._notices.append(
            LiveNotice(kind="overload", message=message, audio_s=self.audio_s, lost_s=lost_s)
        )


def live_spans(spans: SpanOptions, max_window_s: float | None) -> SpanOptions:
    """Options of the cutting of speech: no longer than the model takes; only at pauses if it takes any length."""
    longest_s = LONGEST_SPAN_S if max_window_s is None else min(spans.max_span_s, max_window_s)
    return replace(spans, max_span_s=longest_s)


def _checked(samples: Samples) -> Samples:
    if not isinstance(samples, np.ndarray):
        raise SprachbundError(
            f"samples are of type {type(samples).__name__}; give an array, of raw 16-bit sound "
            "numpy.frombuffer(data, 'int16')"
        )
    refuse_other_types(samples, "the array of samples")
    samples = as_floats(samples)
    if samples.ndim != 1:
        raise SprachbundError(f"samples have shape {samples.shape}; give mono samples (N,) at 16 kHz")
    if not np.isfinite(samples).all():
        raise SprachbundError("samples are not finite; the audio is broken or in another encoding")
    if not (np.abs(samples) <= LOUDEST).all():
        raise SprachbundError(
            "samples are far from -1 to 1; divide 16-bit numbers by 32768, or give the integers"
        )
    return samples
