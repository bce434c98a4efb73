"""Segments of a span: a row of tokens is cut into them, with their words, their evidence and the guard's reason.

Shapes: N samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sprachbund.audio.spans import Span
from sprachbund.decoding.guard import compression_ratio, drop_reason, max_out_of_domain, repetition
from sprachbund.decoding.languages import IdentifiedLanguage
from sprachbund.decoding.logits_process import cut_by_timestamps
from sprachbund.decoding.options import GuardOptions
from sprachbund.decoding.result import Alternative, LanguageSpan, Segment, Word
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.words import AlignedTokens, timed_words
from sprachbund.models.base import Family, Target, TimestampTokens


@dataclass(frozen=True, kw_only=True)
class SpanContext:
    """A span of speech and its language.

    Attributes:
        span: span of the recording.
        language: given or identified.
        given: whether the caller gave it.
        mixed: the languages of mixed speech, in seconds of the span.
    """

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
        """Probability of the language identified; None when the language was given."""
        return None if self.given else self.language.probability


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedSpan:
    """A span in one of the targets asked for.

    Attributes:
        target: an entry of `Request.targets`.
        segments: segments of the span, at least one, in order of time, dropped ones included.
        hypothesis: the row that was cut into them; None for a pair that the model does not know.
    """

    target: str
    segments: tuple[Segment, ...]
    hypothesis: Hypothesis | None = None


def cut_row(
    family: Family,
    context: SpanContext,
    target: Target,
    hypothesis: Hypothesis,
    aligned: AlignedTokens | None,
    *,
    times: TimestampTokens | None,
    guard: GuardOptions,
    doubt: float | None,
) -> list[Segment]:
    """Cut a row of tokens into segments, in order and inside the span.

    Args:
        family: the model.
        context: the span and its language.
        target: target that the decoder was asked for.
        hypothesis: the finished row.
        aligned: its text tokens with their times; None where no words are wanted.
        times: the timestamp tokens to cut at; None makes one segment of the whole span.
        guard: thresholds.
        doubt: probability that the text is not what was said, where the model was calibrated.

    Returns:
        At least one segment: a row without text gives one that is dropped.
    """
    pieces = [(0.0, context.duration_s, list(hypothesis.tokens))]
    if times is not None:
        pieces = cut_by_timestamps(hypothesis.tokens, times, context.duration_s) or [
            (0.0, context.duration_s, [])
        ]
    offset_s, no_speech = context.span.start_s, hypothesis.no_speech_log_probability
    no_speech_probability = None if no_speech is None else math.exp(no_speech)
    segments: list[Segment] = []
    first = 0  # index of the piece's first token among the text tokens
    for start_s, end_s, tokens in pieces:
        words: tuple[Word, ...] = ()
        if aligned is not None:
            words = timed_words(
                family, aligned, target.language, first=first, count=len(tokens), start_s=start_s, end_s=end_s
            )
        first += len(tokens)
        text = family.decode_text(tokens).strip()
        dropped = drop_reason(
            text,
            duration_s=end_s - start_s,
            speech_probability=context.span.speech_probability,
            no_speech_probability=no_speech_probability,
            mean_log_probability=hypothesis.mean_log_probability,
            options=guard,
            out_of_domain=doubt,
            max_out_of_domain=max_out_of_domain(family, guard),
        )
        segments.append(
            Segment(
                start_s=offset_s + start_s,
                end_s=offset_s + end_s,
                source_language=context.language.language,
                target_language=target.language,
                text=text,
                words=tuple(_shifted(word, offset_s) for word in words),
                mean_log_probability=hypothesis.mean_log_probability,
                speech_probability=context.span.speech_probability,
                no_speech_probability=no_speech_probability,
                out_of_domain=doubt,
                compression_ratio=compression_ratio(text),
                repetition=repetition(text),
                language_probability=context.language_probability,
                dropped=dropped,
                spans=spans_within(context, start_s, end_s),
                temperature=hypothesis.temperature,
                alternatives=() if segments else _alternatives(family, hypothesis, times),
            )
        )
    return segments


def _alternatives(
    family: Family, hypothesis: Hypothesis, times: TimestampTokens | None
) -> tuple[Alternative, ...]:
    """The texts of the next best rows, without their timestamps."""
    return tuple(
        Alternative(
            text=family.decode_text([t for t in other.tokens if times is None or t not in times]).strip(),
            log_probability=other.log_probability,
        )
        for other in hypothesis.others
    )


def unknown_pair_segment(context: SpanContext, target: str) -> Segment:
    """An empty, dropped segment for speech in a language that the model does not translate into `target`."""
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


def spans_within(context: SpanContext, start_s: float, end_s: float) -> tuple[LanguageSpan, ...]:
    """The language spans within a part of a span.

    Args:
        context: the span and its languages.
        start_s: start of the part, in seconds from the start of the span.
        end_s: end of the part, in seconds from the start of the span.

    Returns:
        Language spans in seconds from the start of the recording.
    """
    offset_s = context.span.start_s
    cut = (replace(m, start_s=max(start_s, m.start_s), end_s=min(end_s, m.end_s)) for m in context.mixed)
    return tuple(
        replace(m, start_s=offset_s + m.start_s, end_s=offset_s + m.end_s) for m in cut if m.start_s < m.end_s
    )


def _shifted(word: Word, offset_s: float) -> Word:
    return replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)


def joined_hypothesis(rows: Sequence[Hypothesis]) -> Hypothesis:
    """Several rows as one, for the evidence."""
    log_probability = sum(row.log_probability for row in rows)
    return Hypothesis(
        tokens=tuple(token for row in rows for token in row.tokens),
        log_probability=log_probability,
        finished=all(row.finished for row in rows),
        no_speech_log_probability=None,
        score=log_probability,
    )
