"""From a finished row of tokens to segments: cut, given their words, their evidence and the guard's
verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sprachbund.audio.spans import Span
from sprachbund.decoding.guard import compression_ratio, judge, repetition
from sprachbund.decoding.language import IdentifiedLanguage
from sprachbund.decoding.options import GuardOptions
from sprachbund.decoding.result import LanguageSpan, Segment, Word
from sprachbund.decoding.rows import Hypothesis
from sprachbund.decoding.timestamps import TimestampTokens, cut_by_timestamps
from sprachbund.decoding.words import AlignedTokens, timed_words
from sprachbund.models.family import Family, Memory, Target


@dataclass(frozen=True, kw_only=True)
class SpanContext:
    """A span of speech and its language, `given` by the caller or identified; `mixed` says more of mixed speech, in
    seconds of the span."""

    span: Span
    language: IdentifiedLanguage
    given: bool
    mixed: tuple[LanguageSpan, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length of the span."""
        return self.span.end_s - self.span.start_s

    @property
    def language_probability(self) -> float | None:
        """Of the language identified; None when it was given."""
        return None if self.given else self.language.probability


def cut_row(
    family: Family,
    context: SpanContext,
    target: Target,
    hypothesis: Hypothesis,
    aligned: AlignedTokens | None,
    *,
    times: TimestampTokens | None,
    guard: GuardOptions,
) -> list[Segment]:
    """Segments of one row, at least one, in order and inside the span; an empty row gives one dropped
    segment."""
    pieces = [(0.0, context.duration_s, list(hypothesis.tokens))]
    if times is not None:
        pieces = cut_by_timestamps(hypothesis.tokens, times, context.duration_s) or [
            (0.0, context.duration_s, [])
        ]
    segments, first = [], 0
    for start_s, end_s, tokens in pieces:
        words: tuple[Word, ...] = ()
        if aligned is not None:
            words = timed_words(
                family, aligned, target.language, first=first, count=len(tokens), start_s=start_s, end_s=end_s
            )
        first += len(tokens)
        text = family.decode_text(tokens).strip()
        segments.append(_segment(context, target, hypothesis, guard, text, words, start_s, end_s))
    return segments


def language_spans(
    model: Family, memory: Memory, durations_s: Sequence[float]
) -> list[tuple[LanguageSpan, ...]]:
    """Which language is where in each utterance, of a family whose `spans` tell it; nothing of others."""
    told = getattr(model, "spans", None)
    if told is None:
        return [()] * len(durations_s)
    return [
        tuple(LanguageSpan(start_s=start_s, end_s=end_s, language=tag) for start_s, end_s, tag in stretches)
        for stretches in told(memory, durations_s)
    ]


def unknown_pair_segment(context: SpanContext, target: str) -> Segment:
    """What stands in for speech in a language from which the model does not know `target`."""
    source = context.language.language
    return Segment(
        start_s=context.span.start_s,
        end_s=context.span.end_s,
        source_language=source,
        target_language=target,
        text="",
        mean_log_probability=0.0,
        speech_probability=context.span.speech_probability,
        language_probability=context.language_probability,
        dropped=f"unknown pair: {source} to {target}",
        spans=spans_within(context, 0.0, context.duration_s),
    )


def _segment(
    context: SpanContext,
    target: Target,
    hypothesis: Hypothesis,
    guard: GuardOptions,
    text: str,
    words: tuple[Word, ...],
    start_s: float,
    end_s: float,
) -> Segment:
    offset_s, no_speech = context.span.start_s, hypothesis.no_speech_log_probability
    no_speech_probability = None if no_speech is None else math.exp(no_speech)
    return Segment(
        start_s=offset_s + start_s,
        end_s=offset_s + end_s,
        source_language=context.language.language,
        target_language=target.language,
        text=text,
        words=tuple(_shifted(word, offset_s) for word in words),
        mean_log_probability=hypothesis.mean_log_probability,
        speech_probability=context.span.speech_probability,
        no_speech_probability=no_speech_probability,
        compression_ratio=compression_ratio(text),
        repetition=repetition(text),
        language_probability=context.language_probability,
        dropped=judge(
            text,
            duration_s=end_s - start_s,
            speech_probability=context.span.speech_probability,
            no_speech_probability=no_speech_probability,
            mean_log_probability=hypothesis.mean_log_probability,
            options=guard,
        ),
        spans=spans_within(context, start_s, end_s),
    )


def spans_within(context: SpanContext, start_s: float, end_s: float) -> tuple[LanguageSpan, ...]:
    """What of the languages lies in a part of the span, in seconds of the recording."""
    offset_s = context.span.start_s
    cut = (replace(m, start_s=max(start_s, m.start_s), end_s=min(end_s, m.end_s)) for m in context.mixed)
    return tuple(
        replace(m, start_s=offset_s + m.start_s, end_s=offset_s + m.end_s) for m in cut if m.start_s < m.end_s
    )


def _shifted(word: Word, offset_s: float) -> Word:
    return Word(
        start_s=word.start_s + offset_s,
        end_s=word.end_s + offset_s,
        text=word.text,
        probability=word.probability,
    )
