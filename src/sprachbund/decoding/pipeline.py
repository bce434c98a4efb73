"""Long form: a recording of any length into any number of languages, segment by segment as the work goes on.

Speech spans are cut out of the stream, go through the encoder a batch at a time, and every target is decoded
from the same encoder pass. Memory is bounded by one batch of spans.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioInput, AudioSource, open_audio
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import Span, VoiceActivity, iter_speech_spans
from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.decoding.guard import compression_ratio, judge, repetition
from sprachbund.decoding.languages import (
    TRANSCRIBE,
    UNDETERMINED,
    IdentifiedLanguage,
    LanguageTracker,
    Request,
    check_pair,
    knows_pair,
    read_request,
)
from sprachbund.decoding.logits_process import cut_by_timestamps
from sprachbund.decoding.options import NONE, DecodingOptions, GuardOptions, check_options
from sprachbund.decoding.result import (
    LanguageSpan,
    Segment,
    SpeculationReport,
    Translation,
    Word,
    build_translation,
)
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.words import AlignedTokens, align, timed_words
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features, Memory, Target, TextInput, TimestampTokens

# Speech to memories, with the languages that are known: models split by language take a branch for each.


def encode(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode utterances (B) of which the languages spoken may be known.

    Args:
        model: any family.
        features: of the utterances.
        languages: (B,) in the model's tags; None where it is to be found out, which costs a model that is split by
            language one pass of its split layers for every group.
        declared: (B,) in the model's tags, all that may occur in each; None where any may. In models with experts by
            language those of others get nothing; other models do not look at it.

    Raises:
        SprachbundError: a language that the model's sharing plan has no group for.
    """
    known = _numbers(model, features, languages)
    return model.encode(
        replace(features, source_language=known, declared=_declared(model, features, languages, declared))
    )


def encode_again(
    model: Family, features: Features, memory: Memory, languages: Sequence[str | None]
) -> Memory:
    """The memory, with those utterances encoded again that turned out to be in another language.

    What the neighbours of an utterance say, or which languages are allowed, can overrule what it sounds like alone.
    """
    if memory.source_language is None:
        return memory
    wanted = _numbers(model, features, languages)
    wrong = ((wanted != memory.source_language) & (wanted != NO_LANGUAGE)).nonzero().flatten()
    if not len(wrong):
        return memory
    part = Features(
        values=features.values[wrong], num_frames=features.num_frames[wrong], source_language=wanted[wrong]
    )
    again = model.encode(part).states
    states = memory.states.clone()
    states[wrong] = again
    language = memory.source_language.clone()
    language[wrong] = wanted[wrong]
    return replace(memory, states=states, source_language=language)


def _numbers(model: Family, features: Features, languages: Sequence[str | None]) -> Tensor:
    places = {tag: number for number, tag in enumerate(model.source_languages)}
    numbers = [NO_LANGUAGE if tag in (None, UNDETERMINED) else places[str(tag)] for tag in languages]
    return torch.tensor(numbers, device=features.values.device)


def _declared(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None,
) -> Tensor | None:
    """What may occur (B, L): what is declared and the language that is known."""
    if declared is None or model.capabilities.experts is None or all(tags is None for tags in declared):
        return None
    rows = [
        [tags is None or tag in tags or tag == known for tag in model.source_languages]
        for tags, known in zip(declared, languages, strict=True)
    ]
    return torch.tensor(rows, device=features.values.device)


# From a finished row of tokens to segments: cut, given their words, their evidence and the guard's
# verdict.


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
    """Which language is where in each utterance, of a family with experts of languages; nothing of others."""
    if (experts := model.capabilities.experts) is None:
        return [()] * len(durations_s)
    return [
        tuple(LanguageSpan(start_s=start_s, end_s=end_s, language=tag) for start_s, end_s, tag in stretches)
        for stretches in experts.spans(memory, durations_s)
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


# The one way from samples to text: files, live text, evaluation, pseudo-labels, text input and the service
# take it.
#
# The stages, in their order:
#
# samples -> spans `iter_speech_spans`; `whole_span` for an utterance that is cut already spans -> memory,
# languages `encode_and_identify` languages -> targets `known_targets`, `ask` targets -> rows of tokens
# `search` rows -> segments `cut_row`, which applies the guard to each
#
# `encode_spans` and `decode_spans` are these stages for spans of recordings, and `translate_spans` is
# both. Live text and text input call single stages, because they have no finished spans. Spans of several
# recordings, each with languages and options of its own, go through the encoder together, and through the
# decoder together as far as their options agree. What a span becomes does not depend on its neighbours in
# the batch.


@dataclass(kw_only=True, eq=False)
class Recording:
    """What is asked of the spans of one recording, and what they have shown so far.

    Attributes:
        request: the languages.
        options: how to decode.
        tracker: hears the spans in their order, where the language is to be identified.
        speculation: what guesses ahead; None without. Recordings that share it can share a search.
        unidentified: language in which speech is transcribed whose language the model cannot tell; None makes that
            an error. Evaluation names one, for it measures such models too.
        notes: sentences that the caller should see.
        translated: targets that some span was translated into.
        refused: targets that some span could not be, with its language.
        error: why nothing more comes of this recording, which its neighbours in the batch know nothing of.
    """

    request: Request
    options: DecodingOptions
    tracker: LanguageTracker
    speculation: Speculation | None = None
    unidentified: str | None = None
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
class LanguageQuery:
    """What is known of the language of an utterance, and how it is identified where it is not.

    Attributes:
        known: the language, given by the caller or settled by text that stands; None where it is to be identified.
        allowed: languages that may be spoken, in the model's tags; None where any may.
        tracker: of the recording or session; it hears utterances in their order.
        ended: False for speech that goes on: later utterances are not judged by it.
    """

    known: IdentifiedLanguage | None
    allowed: Sequence[str] | None
    tracker: LanguageTracker
    ended: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A batch of B utterances after the encoder.

    Attributes:
        memory: of the utterances, encoded under their languages.
        languages: (B,) known or identified.
        log_probs: (B,) rows (L,) of log-probabilities by which they were identified; None for those that were known.
        heard: (B,) what the model by itself takes the speech for; None where that was not asked.
        mixed: (B,) which language is spoken where, of models that tell it.
    """

    memory: Memory
    languages: list[IdentifiedLanguage]
    log_probs: list[torch.Tensor | None]
    heard: list[IdentifiedLanguage | None]
    mixed: list[tuple[LanguageSpan, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedSpan:
    """A span in one of the targets asked for.

    Attributes:
        target: as it was asked for, an entry of `Request.targets`.
        segments: at least one, in order of time, those that the guard dropped too.
        hypothesis: the row that was cut into them; None for a pair that the model does not know.
    """

    target: str
    segments: tuple[Segment, ...]
    hypothesis: Hypothesis | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heard:
    """A span of which the language is known, and the targets that the model knows for it."""

    recording: Recording
    context: SpanContext
    targets: tuple[str, ...]


def translate_spans(model: Family, spans: Sequence[RecordedSpan]) -> list[list[tuple[str, Segment]]]:
    """Segments of every span, each with the target it answers, in the order of the recording's targets.

    Args:
        model: any family.
        spans: of any recordings; those of one recording in order of time.

    Returns:
        One list for each span. Where a recording cannot go on, its `error` is set and its lists are empty.
    """
    decoded = decode_spans(model, spans, encode_spans(model, spans))
    return [[(one.target, segment) for one in per_span for segment in one.segments] for per_span in decoded]


def options_with_draft(
    model: Family,
    options: DecodingOptions,
    notes: list[str] | None = None,
    speculation: Speculation | None = None,
) -> tuple[DecodingOptions, Speculation | None]:
    """The draft that the options ask for, and the options without one where there is none.

    It is made once and kept from search to search, with what it has learned of its own acceptance.

    Args:
        model: any family.
        options: how to decode.
        notes: gets a sentence for each draft beside the model that cannot be used.
        speculation: a draft to share with other recordings.

    Raises:
        SprachbundError: a draft that was named is not there, or belongs to another model.
    """
    speculation = speculation or speculation_for(model, options, notes)
    return (options if speculation else replace(options, draft=NONE)), speculation


def whole_span(samples: NDArray[np.float32], options: SpanOptions, activity: VoiceActivity) -> Span:
    """All of an utterance (N,) as one span, for speech that is cut already.

    Its speech probability is the mean over the spans that long form would cut out of it; 0 when it would cut none.
    """
    spans = [span for span, _ in iter_speech_spans([samples], options, activity=activity)]
    total_s = sum(span.end_s - span.start_s for span in spans)
    weighted = sum(span.speech_probability * (span.end_s - span.start_s) for span in spans)
    return Span(
        start_s=0.0,
        end_s=len(samples) / SAMPLE_RATE,
        speech_probability=weighted / total_s if total_s else 0.0,
    )


def given_language(source: str | None) -> IdentifiedLanguage | None:
    """The language that a caller gave, which nobody doubts; None where none was given."""
    return None if source is None else IdentifiedLanguage(language=source, probability=1.0)


@torch.inference_mode()
def encode_and_identify(
    model: Family,
    features: Features,
    queries: Sequence[LanguageQuery],
    durations_s: Sequence[float],
    *,
    identify_all: bool = False,
) -> Encoded:
    """Run the encoder, and identify the languages that are not known.

    Args:
        model: any family.
        features: of B utterances, or of B texts.
        queries: (B,) in order of time where they share a tracker.
        durations_s: (B,) of the utterances; 0 for texts.
        identify_all: also say what the model takes those for whose language is known. It changes nothing else.
    """
    known = [query.known.language if query.known else None for query in queries]
    memory = encode(model, features, known, [query.allowed for query in queries])
    rows: list[torch.Tensor | None] = [None] * len(queries)
    if identify_all or None in known:
        rows = list(model.language_log_probs(memory))
    languages, heard = [], []
    for query, row in zip(queries, rows, strict=True):
        found = None
        if row is not None and (identify_all or query.known is None):
            later_judged_by_it = query.ended and query.known is None
            found = query.tracker.push(row) if later_judged_by_it else query.tracker.peek(row)
        language = query.known or found
        assert language is not None
        languages.append(language)
        heard.append(found)
    # A model split by language has encoded the identified ones under its own first opinion.
    memory = encode_again(model, features, memory, [language.language for language in languages])
    return Encoded(
        memory=memory,
        languages=languages,
        log_probs=[row if query.known is None else None for query, row in zip(queries, rows, strict=True)],
        heard=heard,
        mixed=language_spans(model, memory, durations_s),
    )


def known_targets(
    model: Family, request: Request, source: str, unidentified: str | None = None
) -> tuple[str, ...]:
    """Targets of a request that the model knows for speech in `source`.

    Args:
        model: any family.
        request: the languages asked for.
        source: the language spoken, in the model's tag; `UNDETERMINED` where the model cannot tell it.
        unidentified: see `Recording.unidentified`.

    Raises:
        SprachbundError: speech in a language that the model cannot tell is to be transcribed.
    """
    if source == UNDETERMINED and unidentified is None and TRANSCRIBE in request.targets:
        raise SprachbundError(
            f"the model {model.name} cannot tell which language is spoken; name the source language"
        )
    return tuple(
        target
        for target in request.targets
        if knows_pair(model, source, _target_language(request, target, source, unidentified))
    )


def _target_language(request: Request, target: str, source: str, unidentified: str | None) -> str:
    return request.target_language(
        target, unidentified if source == UNDETERMINED and unidentified else source
    )


def ask(model: Family, options: DecodingOptions, language: str, source: str) -> Target:
    """What is asked of the decoder for one row.

    Args:
        model: any family.
        options: how to decode; timestamps are asked for where they are wanted and the model has them.
        language: of the text wanted, in the model's tag.
        source: the language spoken; `UNDETERMINED` where nobody knows it.
    """
    return Target(
        language=language,
        source=None if source == UNDETERMINED else source,
        context=options.prompt or "",
        timestamps=bool(options.timestamps) and model.capabilities.timestamps is not None,
    )


@torch.inference_mode()
def encode_spans(model: Family, spans: Sequence[RecordedSpan], *, identify_all: bool = False) -> Encoded:
    """The first half of `translate_spans`; arguments as there and in `encode_and_identify`."""
    queries = [
        LanguageQuery(
            known=given_language(span.recording.request.source),
            allowed=span.recording.request.allowed,
            tracker=span.recording.tracker,
        )
        for span in spans
    ]
    features = model.features([span.samples for span in spans])
    durations_s = [len(span.samples) / SAMPLE_RATE for span in spans]
    return encode_and_identify(model, features, queries, durations_s, identify_all=identify_all)


@torch.inference_mode()
def decode_spans(model: Family, spans: Sequence[RecordedSpan], encoded: Encoded) -> list[list[DecodedSpan]]:
    """The second half of `translate_spans`: for every span, one answer for each target of its recording.

    Args:
        model: any family.
        spans: as they were encoded.
        encoded: what `encode_spans` gave for them.
    """
    heard = [_hear(model, *one) for one in zip(spans, encoded.languages, encoded.mixed, strict=True)]
    decoded: dict[tuple[int, str], DecodedSpan] = {}
    for rows in _groups(heard):
        own = encoded.memory.select(torch.tensor(rows, device=encoded.memory.states.device))
        decoded |= _decode_group(model, own, {b: heard[b] for b in rows})
    return [list(_in_order(b, one, decoded)) for b, one in enumerate(heard)]


def _hear(
    model: Family, span: RecordedSpan, language: IdentifiedLanguage, mixed: tuple[LanguageSpan, ...]
) -> _Heard:
    recording, known = span.recording, tuple[str, ...]()
    try:
        known = known_targets(model, recording.request, language.language, recording.unidentified)
    except SprachbundError as error:
        recording.error = error
    recording.translated.update(known)
    recording.refused |= {t: language.language for t in recording.request.targets if t not in known}
    context = SpanContext(
        span=span.span, language=language, given=recording.request.source is not None, mixed=mixed
    )
    return _Heard(recording=recording, context=context, targets=known)


def _groups(heard: Sequence[_Heard]) -> list[list[int]]:
    """Spans that one search can serve; nearly always one group."""
    groups: dict[Hashable, list[int]] = {}
    for b, one in enumerate(heard):
        if one.targets and one.recording.error is None:
            groups.setdefault((len(one.targets), _search_key(one.recording)), []).append(b)
    return list(groups.values())


def _search_key(recording: Recording) -> Hashable:
    """Equal for recordings that one search can serve.

    A prompt can be refused, so that those with one share a search only with those of the same caller.
    """
    options = recording.options
    if options.prompt:
        return id(options), id(recording.speculation)
    lengths = (options.beam_size, options.length_penalty, options.min_tokens, options.max_tokens)
    return (*lengths, options.timestamps, options.word_timestamps, id(recording.speculation))


def _decode_group(
    model: Family, memory: Memory, group: dict[int, _Heard]
) -> dict[tuple[int, str], DecodedSpan]:
    """What became of spans, by index of the span and target."""
    first = next(iter(group.values())).recording
    try:
        rows = _decode_rows(model, memory, list(group.values()), first)
    except SprachbundError as error:
        for one in group.values():
            one.recording.error = error
        return {}
    return {(b, one.target): one for b, row in zip(group, rows, strict=True) for one in row}


def _decode_rows(
    model: Family, memory: Memory, group: Sequence[_Heard], first: Recording
) -> list[list[DecodedSpan]]:
    """For every span (B) and target (n) its text; what `first` asks of a search, all of the group do."""
    durations_s = [one.context.duration_s for one in group]
    asked = [[_target(model, one, target) for target in one.targets] for one in group]
    for one, targets in zip(group, asked, strict=True):
        _note_unread_prompt(model, one.recording, targets[0])
    found = search(model, memory, asked, first.options, durations_s, first.speculation)
    times = model.capabilities.timestamps if first.options.timestamps else None
    aligned: list[list[AlignedTokens | None]] = [[None] * len(row) for row in asked]
    if first.options.word_timestamps:
        text = [[[t for t in h.tokens if times is None or t < times.first] for h in row] for row in found]
        untimed = [[replace(target, timestamps=False) for target in row] for row in asked]
        aligned = [list(row) for row in align(model, memory, untimed, text, durations_s)]
    return [
        [
            DecodedSpan(
                target=name,
                segments=tuple(
                    cut_row(
                        model,
                        one.context,
                        target,
                        hypothesis,
                        words,
                        times=times,
                        guard=one.recording.options.guard,
                    )
                ),
                hypothesis=hypothesis,
            )
            for name, target, hypothesis, words in zip(one.targets, *per_span, strict=True)
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
    source, recording = heard.context.language.language, heard.recording
    language = _target_language(recording.request, target, source, recording.unidentified)
    return ask(model, recording.options, language, source)


def _in_order(b: int, heard: _Heard, decoded: dict[tuple[int, str], DecodedSpan]) -> Iterator[DecodedSpan]:
    if heard.recording.error is not None:
        return
    for target in heard.recording.request.targets:
        unknown = DecodedSpan(target=target, segments=(unknown_pair_segment(heard.context, target),))
        yield decoded.get((b, target), unknown)


Samples = NDArray[np.float32]
Compute = Callable[[Sequence[RecordedSpan]], list[list[tuple[str, Segment]]]]
"""`translate_spans` of a model, or what takes the spans to where they can share a batch with others."""


class LongForm(Iterator[Segment]):
    """A recording being translated: iterate for its segments, each as soon as its batch of spans is done.

    Every segment comes, those that the guard dropped too: look at `Segment.dropped`. Segments of one target
    are in order of time.

    Attributes:
        targets: the languages asked for, in the model's tags.
        source: the language given, in the model's tag; None when it is identified.
        duration_s: length of the recording; until it is read to the end, what its header says, or None.
        finished_s: how far the work has come.
    """

    def __init__(
        self,
        model: Family,
        audio: AudioInput | AudioSource,
        targets: Sequence[str],
        source: str | None = None,
        options: DecodingOptions | None = None,
        *,
        sample_rate: int | None = None,
        activity: VoiceActivity | None = None,
        compute: Compute | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self._model = model
        options = options or DecodingOptions()
        check_options(model, options)
        self._draft_notes: list[str] = []
        options, speculation = options_with_draft(model, options, self._draft_notes, speculation)
        allowed = options.allowed_languages
        request = read_request(model, source=source, targets=targets, allowed=allowed)
        self._audio = audio if isinstance(audio, AudioSource) else open_audio(audio, sample_rate)
        self._activity = activity
        self._compute = compute or partial(translate_spans, model)
        self._recording = Recording(
            request=request,
            options=options,
            tracker=LanguageTracker(model.source_languages, request.allowed, options.language_windows),
            speculation=speculation,
        )
        self.targets = request.targets
        self.source = request.source
        self.duration_s = self._audio.duration_s
        self.finished_s = 0.0
        self._by_target = self._run()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong so far: with the audio, a prompt that the model cannot be shown, a draft of no use."""
        speculation = self._recording.speculation
        guessing = () if speculation is None else speculation.notes
        return (*self.audio_warnings, *self._recording.notes, *self._draft_notes, *guessing)

    @property
    def speculation(self) -> tuple[SpeculationReport, ...]:
        """How many of a draft's guesses were accepted so far, by language pair."""
        speculation = self._recording.speculation
        return () if speculation is None else speculation.report()

    @property
    def audio_warnings(self) -> tuple[str, ...]:
        """What was wrong with the audio so far (cut off, damaged): the result is of what could be read."""
        return tuple(self._audio.warnings)

    def __next__(self) -> Segment:
        return next(self._by_target)[1]

    def by_target(self) -> Iterator[tuple[str, Segment]]:
        """The same segments, each with the entry of `targets` it answers."""
        return self._by_target

    def _run(self) -> Iterator[tuple[str, Segment]]:
        decoding = self._recording.options
        most_s = min(decoding.spans.max_span_s, self._model.max_window_s)
        options = replace(decoding.spans, max_span_s=most_s)
        spans = iter_speech_spans(self._counted(), options, activity=self._activity)
        size = 1  # the first text is to come early; from then on, the more at once, the faster
        while batch := list(islice(spans, size)):
            size = min(2 * size, decoding.batch_size)
            yield from self._translate_batch(batch)
            self.finished_s = batch[-1][0].end_s
        self.finished_s = self.duration_s or 0.0
        refused = self._recording.refused
        for target in refused.keys() - self._recording.translated:
            check_pair(self._model, refused[target], target)

    def _counted(self) -> Iterator[Samples]:
        num_samples = 0
        for block in self._audio.blocks():
            num_samples += len(block)
            yield block
        self.duration_s = num_samples / SAMPLE_RATE

    def _translate_batch(self, batch: Sequence[tuple[Span, Samples]]) -> list[tuple[str, Segment]]:
        recorded = [RecordedSpan(recording=self._recording, span=span, samples=x) for span, x in batch]
        found = self._compute(recorded)
        if self._recording.error is not None:
            raise self._recording.error
        return [answer for per_span in found for answer in per_span]


def translate_file(
    model: Family,
    audio: AudioInput | AudioSource,
    targets: Sequence[str],
    source: str | None = None,
    options: DecodingOptions | None = None,
    *,
    sample_rate: int | None = None,
    activity: VoiceActivity | None = None,
) -> LongForm:
    """Start translating a recording; iterate over what comes back for its segments.

    Args:
        model: any family.
        audio: path, binary file object, or samples (N,) with `sample_rate`; or an `AudioSource`.
        targets: languages wanted, as tags or names; "transcribe" is the language spoken.
        source: the language spoken; None identifies it span by span.
        options: how to decode.
        sample_rate: of samples, in Hz; files state their own.
        activity: a voice activity detector to share between recordings.

    Raises:
        SprachbundError: at once for languages, pairs and files that cannot be; while iterating for audio that
            turns out broken, or when no span was in a language from which the model knows the target.
    """
    return LongForm(model, audio, targets, source, options, sample_rate=sample_rate, activity=activity)


def translate(
    model: Family,
    audio: AudioInput | AudioSource,
    targets: Sequence[str],
    source: str | None = None,
    options: DecodingOptions | None = None,
    *,
    sample_rate: int | None = None,
    activity: VoiceActivity | None = None,
) -> dict[str, Translation]:
    """Translate a whole recording; one `Translation` per target, under the model's tag of it.

    Arguments and errors are those of `translate_file`.
    """
    work = translate_file(model, audio, targets, source, options, sample_rate=sample_rate, activity=activity)
    segments: dict[str, list[Segment]] = {target: [] for target in work.targets}
    for target, segment in work.by_target():
        segments[target].append(segment)
    return {target: finish_translation(work, target, found) for target, found in segments.items()}


def finish_translation(work: LongForm, target: str, segments: Sequence[Segment]) -> Translation:
    """What `translate` returns for one target, from the segments that `work`, read to its end, gave for
    it."""
    return build_translation(
        segments,
        target=target,
        source=work.source,
        duration_s=work.duration_s or 0.0,
        warnings=work.warnings,
        speculation=[r for r in work.speculation if target in (TRANSCRIBE, r.target_language)],
    )


# Text to text, by families that read both: the stages of speech (`batches`), over what the encoder made of
# a text.
#
# Shapes: B texts.


@dataclass(frozen=True, kw_only=True)
class TranslatedText:
    """A text in another language.

    Attributes:
        text: the translation; empty for a text of white space.
        source: language of the text, given or found out.
        target: language of the translation.
        log_probability: mean over its tokens; 0 for a text of white space.
    """

    text: str
    source: str
    target: str
    log_probability: float


def check_reads_text(family: Family) -> TextInput:
    """How a family reads text. Raises SprachbundError for one that does not."""
    if (text_input := family.capabilities.text_input) is None:
        raise SprachbundError(
            f"the model {family.name} turns speech into text, and cannot translate text; give it a recording, or take "
            "a model of speech units, which reads both"
        )
    return text_input


def translate_texts(
    family: Family,
    texts: Sequence[str],
    targets: Sequence[str],
    source: str | None = None,
    options: DecodingOptions | None = None,
) -> Iterator[list[TranslatedText]]:
    """Translate texts; for each, in order, one translation for each target.

    Args:
        family: a model that reads text.
        texts: sentences; each is one row of the search, none is cut.
        targets: languages wanted, as tags or names.
        source: language of the texts; None finds it out for each.
        options: how to decode; what is about speech is not looked at.

    Raises:
        SprachbundError: at once for a family that reads no text, for languages that it does not know; while
            iterating, for a pair that it does not know.
    """
    check_reads_text(family)
    options = options or DecodingOptions()
    request = read_request(family, source=source, targets=targets, allowed=options.allowed_languages)
    if TRANSCRIBE in request.targets:
        raise SprachbundError("text is not transcribed; name a language to translate into")
    starts = range(0, len(texts), options.batch_size)
    return (
        row
        for start in starts
        for row in _translate_batch(family, texts[start : start + options.batch_size], request, options)
    )


@torch.inference_mode()
def _translate_batch(
    family: Family, texts: Sequence[str], request: Request, options: DecodingOptions
) -> list[list[TranslatedText]]:
    # Every text is identified by itself: each has a tracker of its own.
    queries = [
        LanguageQuery(
            known=given_language(request.source),
            allowed=request.allowed,
            tracker=LanguageTracker(family.source_languages, request.allowed, 1),
        )
        for _ in texts
    ]
    features = check_reads_text(family).text_features(texts)
    encoded = encode_and_identify(family, features, queries, [0.0] * len(texts))
    languages = [found.language for found in encoded.languages]
    if UNDETERMINED in languages:
        raise SprachbundError(
            f"the model {family.name} cannot tell the language of a text; name it with --from (source)"
        )
    for language, target in product(dict.fromkeys(languages), request.targets):
        check_pair(family, language, target)
    asked = [[ask(family, options, target, source) for target in request.targets] for source in languages]
    found = search(family, encoded.memory, asked, options)
    return [
        [
            TranslatedText(
                text=family.decode_text(hypothesis.tokens) if text.strip() else "",
                source=language,
                target=target.language,
                log_probability=hypothesis.mean_log_probability if text.strip() else 0.0,
            )
            for target, hypothesis in zip(group, row, strict=True)
        ]
        for text, language, group, row in zip(texts, languages, asked, found, strict=True)
    ]
