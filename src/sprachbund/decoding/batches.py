"""From a batch of speech spans to segments: the one place where speech becomes text, for one recording or for many.

Spans of several recordings, each with languages and options of its own, go through the encoder together, and through
the decoder together as far as their options agree. What a span becomes does not depend on its neighbours in the batch.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span
from sprachbund.decoding.encoding import encode, encode_again
from sprachbund.decoding.language import UNDETERMINED, IdentifiedLanguage, LanguageTracker
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.pairs import TRANSCRIBE, Request, knows_pair
from sprachbund.decoding.result import LanguageSpan, Segment
from sprachbund.decoding.search import search
from sprachbund.decoding.segments import SpanContext, cut_row, language_spans, unknown_pair_segment
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.timestamps import timestamp_tokens
from sprachbund.decoding.words import AlignedTokens, align
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target


@dataclass(kw_only=True, eq=False)
class Recording:
    """What is asked of the spans of one recording, and what they have shown so far.

    Attributes:
        request: the languages.
        options: how to decode.
        tracker: hears the spans in their order, where the language is to be identified.
        speculation: what guesses ahead; None without. Recordings that share it can share a search.
        notes: sentences that the caller should see.
        translated: targets that some span was translated into.
        refused: targets that some span could not be, with its language.
        error: why nothing more comes of this recording, which its neighbours in the batch know nothing of.
    """

    request: Request
    options: DecodingOptions
    tracker: LanguageTracker
    speculation: Speculation | None = None
    notes: list[str] = field(default_factory=list)
    translated: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    error: SprachbundError | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedSpan:
    """A span of a recording, with its samples (N,)."""

    recording: Recording
    span: Span
    samples: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heard:
    """A span of which the language is known, and the targets that the model knows for it."""

    recording: Recording
    context: SpanContext
    targets: tuple[str, ...]


@torch.inference_mode()
def translate_spans(model: Family, spans: Sequence[RecordedSpan]) -> list[list[tuple[str, Segment]]]:
    """Segments of every span, each with the target it answers, in the order of the recording's targets.

    Args:
        model: any family.
        spans: of any recordings; those of one recording in order of time.

    Returns:
        One list for each span. Where a recording cannot go on, its `error` is set and its lists are empty.
    """
    features = model.features([span.samples for span in spans])
    requests = [span.recording.request for span in spans]
    memory = encode(model, features, [r.source for r in requests], [r.allowed for r in requests])
    languages = _languages(model, memory, spans)
    memory = encode_again(model, features, memory, [found.language for found in languages])
    mixed = language_spans(model, memory, [len(span.samples) / SAMPLE_RATE for span in spans])
    heard = [_hear(model, *found) for found in zip(spans, languages, mixed, strict=True)]
    segments: dict[tuple[int, str], list[Segment]] = {}
    for rows in _groups(heard):
        own = memory.select(torch.tensor(rows, device=memory.states.device))
        segments |= _translate_group(model, own, {b: heard[b] for b in rows})
    return [list(_in_order(b, one, segments)) for b, one in enumerate(heard)]


def _languages(model: Family, memory: Memory, spans: Sequence[RecordedSpan]) -> list[IdentifiedLanguage]:
    """The language of every span, given or identified."""
    given = [span.recording.request.source for span in spans]
    log_probs = model.language_log_probs(memory) if None in given else [None] * len(spans)
    found = []
    for span, source, row in zip(spans, given, log_probs, strict=True):
        if source is not None:
            found.append(IdentifiedLanguage(language=source, probability=1.0))
            continue
        found.append(span.recording.tracker.push(row))
        if TRANSCRIBE in span.recording.request.targets and found[-1].language == UNDETERMINED:
            span.recording.error = SprachbundError(
                f"the model {model.name} cannot tell which language is spoken; name the source language"
            )
    return found


def _hear(
    model: Family, span: RecordedSpan, language: IdentifiedLanguage, mixed: tuple[LanguageSpan, ...]
) -> _Heard:
    recording = span.recording
    known = []
    for target in recording.request.targets:
        if knows_pair(model, language.language, recording.request.target_language(target, language.language)):
            known.append(target)
            recording.translated.add(target)
        else:
            recording.refused[target] = language.language
    context = SpanContext(
        span=span.span, language=language, given=recording.request.source is not None, mixed=mixed
    )
    return _Heard(recording=recording, context=context, targets=tuple(known))


def _groups(heard: Sequence[_Heard]) -> list[list[int]]:
    """Spans that one search can serve; nearly always one group."""
    groups: dict[Hashable, list[int]] = {}
    for b, one in enumerate(heard):
        if one.targets and one.recording.error is None:
            groups.setdefault((len(one.targets), _search_key(one.recording)), []).append(b)
    return list(groups.values())


def _search_key(recording: Recording) -> Hashable:
    """Equal for recordings that one search can serve; one with a prompt goes alone, for that can be refused."""
    options = recording.options
    if options.prompt:
        return id(recording)
    lengths = (options.beam_size, options.length_penalty, options.min_tokens, options.max_tokens)
    return (*lengths, options.timestamps, options.word_timestamps, id(recording.speculation))


def _translate_group(
    model: Family, memory: Memory, group: dict[int, _Heard]
) -> dict[tuple[int, str], list[Segment]]:
    """Segments by index of the span and target."""
    first = next(iter(group.values())).recording
    try:
        rows = _translate_rows(model, memory, list(group.values()), first)
    except SprachbundError as error:
        for one in group.values():
            one.recording.error = error
        return {}
    return {
        (b, target): segments
        for (b, one), row in zip(group.items(), rows, strict=True)
        for target, segments in zip(one.targets, row, strict=True)
    }


def _translate_rows(
    model: Family, memory: Memory, group: Sequence[_Heard], first: Recording
) -> list[list[list[Segment]]]:
    """Segments of every span (B) and target (n); what `first` asks of a search, all of the group do."""
    durations_s = [one.context.duration_s for one in group]
    asked = [[_target(model, one, target) for target in one.targets] for one in group]
    _note_unread_prompt(model, first, asked[0][0])
    found = search(model, memory, asked, first.options, durations_s, first.speculation)
    times = timestamp_tokens(model) if first.options.timestamps else None
    aligned: list[list[AlignedTokens | None]] = [[None] * len(row) for row in asked]
    if first.options.word_timestamps:
        text = [[[t for t in h.tokens if times is None or t < times.first] for h in row] for row in found]
        untimed = [[replace(target, timestamps=False) for target in row] for row in asked]
        aligned = [list(row) for row in align(model, memory, untimed, text, durations_s)]
    return [
        [
            cut_row(
                model, one.context, target, hypothesis, words, times=times, guard=one.recording.options.guard
            )
            for target, hypothesis, words in zip(*per_span, strict=True)
        ]
        for one, per_span in zip(group, zip(asked, found, aligned, strict=True), strict=True)
    ]


def _note_unread_prompt(model: Family, recording: Recording, target: Target) -> None:
    """Say once that a family has no room for the caller's prompt: it leaves no trace in the tokens."""
    if not target.context or recording.notes:
        return
    if model.prompt(target) == model.prompt(replace(target, context="")):
        recording.notes.append(f"the model {model.name} has no room for a prompt; it was not used")


def _target(model: Family, heard: _Heard, target: str) -> Target:
    source, options = heard.context.language.language, heard.recording.options
    return Target(
        language=heard.recording.request.target_language(target, source),
        source=None if source == UNDETERMINED else source,
        context=options.prompt or "",
        timestamps=options.timestamps and timestamp_tokens(model) is not None,
    )


def _in_order(
    b: int, heard: _Heard, segments: dict[tuple[int, str], list[Segment]]
) -> Iterator[tuple[str, Segment]]:
    if heard.recording.error is not None:
        return
    for target in heard.recording.request.targets:
        for segment in segments.get((b, target), ()) or [unknown_pair_segment(heard.context, target)]:
            yield target, segment
