"""The one way from spans of speech to segments: files, live text, evaluation, pseudo-labels and the service use it.

Stages, in their order:

- what is asked of each span: `sprachbund.decoding.recordings`.
- encode and identify: `sprachbund.decoding.encoding`.
- search: `decode_spans` searches the rows of all spans whose options agree together; `write_rows` is the search of such
  a group with what follows it for every row, and is what attempts at live speech call.
- segments: `sprachbund.decoding.segments` cuts the rows, `sprachbund.decoding.written_form` writes digits and marks.
- cascades: the transcript is searched like any row, and `sprachbund.decoding.transcripts` translates it.
- hearing again: `heard_again` decodes what is in doubt once more, at other tempos.

`translate_spans` is all of the above for a batch of spans. `sprachbund.decoding.long_form` cuts recordings into such
batches, and `sprachbund.decoding.texts` takes text through the same stages.

A batch may hold spans of several recordings, each with languages and options of its own. The text of a span does not
depend on its neighbours in the batch.

Shapes: B utterances, n targets, N samples.
"""

from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.tempo import change_tempo
from sprachbund.decoding.domain import LatestSpans, out_of_domain
from sprachbund.decoding.encoding import EncodedBatch, encode_spans
from sprachbund.decoding.guard import max_out_of_domain
from sprachbund.decoding.languages import IdentifiedLanguage
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.recordings import (
    Drafts,
    RecordedSpan,
    RecordingState,
    known_targets,
    make_target,
    target_language,
    tracker_for,
)
from sprachbund.decoding.result import LanguageSpan, Segment
from sprachbund.decoding.search import SearchRequest
from sprachbund.decoding.segments import DecodedSpan, SpanContext, cut_row, unknown_pair_segment
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.transcripts import best_pair, passages_of, translate_sentences, translated_span
from sprachbund.decoding.words import AlignedTokens, align, aligned_by_frames
from sprachbund.decoding.written_form import punctuated_segments, segment_in_digits
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target, Translator
from sprachbund.models.punctuation import load_punctuator

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class _IdentifiedSpan:
    """A span with its language, and the targets that the model knows for that language."""

    recording: RecordingState
    context: SpanContext
    targets: tuple[str, ...]
    ended: bool


Steps = Generator[SearchRequest, list[list[Hypothesis]], T]
"""Work that asks for searches: it is sent what each found, or thrown the SprachbundError it raised."""


def with_searches(steps: Steps[T]) -> T:
    """Do work, every search at once when it is asked for."""
    try:
        request = next(steps)
        while True:
            try:
                hypotheses = request.run()
            except SprachbundError as error:
                request = steps.throw(error)
            else:
                request = steps.send(hypotheses)
    except StopIteration as stop:
        result: T = stop.value
        return result


def decode_spans(
    model: Family, spans: Sequence[RecordedSpan], encoded: EncodedBatch
) -> list[list[DecodedSpan]]:
    """The second half of `translate_spans`: search and segments of every span in each target of its recording.

    Args:
        model: any family.
        spans: as they were encoded.
        encoded: result of `encode_spans` for them.
    """
    return with_searches(decoding_steps(model, spans, encoded))


@torch.inference_mode()
def decoding_steps(
    model: Family, spans: Sequence[RecordedSpan], encoded: EncodedBatch
) -> Steps[list[list[DecodedSpan]]]:
    """As `decode_spans`, with the same arguments, for callers that make the searches."""
    identified = [
        _identified_span(model, *one) for one in zip(spans, encoded.languages, encoded.mixed, strict=True)
    ]
    decoded: dict[tuple[int, str], DecodedSpan] = {}
    for rows in _groups(identified):
        own = encoded.memory.select(torch.tensor(rows, device=encoded.memory.states.device))
        decoded |= yield from _decode_group(model, own, {b: identified[b] for b in rows})
    for (b, target), one in decoded.items():
        options = spans[b].recording.options
        if options.digits:
            one = replace(one, segments=tuple(map(segment_in_digits, one.segments)))
        translated = model.capabilities.translator is not None and one.segments[0].source_text is not None
        if options.punctuate is not None and not translated:  # a translator of texts writes its own marks
            punctuator = load_punctuator(options.punctuate)
            one = replace(one, segments=punctuated_segments(one.segments, punctuator))
        decoded[b, target] = one
    return [list(_in_order(b, one, decoded)) for b, one in enumerate(identified)]


def _identified_span(
    model: Family, span: RecordedSpan, language: IdentifiedLanguage, mixed: tuple[LanguageSpan, ...]
) -> _IdentifiedSpan:
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
    return _IdentifiedSpan(recording=recording, context=context, targets=known, ended=span.ended)


def _groups(spans: Sequence[_IdentifiedSpan]) -> list[list[int]]:
    """Indices of spans that one search can decode together; nearly always one group."""
    groups: dict[Hashable, list[int]] = {}
    for b, one in enumerate(spans):
        recording = one.recording
        if one.targets and recording.error is None:
            key = search_key(len(one.targets), recording.options, recording.drafts)
            groups.setdefault(key, []).append(b)
    return list(groups.values())


NOT_OF_THE_SEARCH = frozenset(
    {
        "allowed_languages",  # of language identification, which comes before the search
        "language_windows",
        "batch_size",  # of the encoder
        "spans",  # of how speech is cut
        "guard",  # of each recording's own segments, behind the search
        "tempos",  # likewise
        "digits",  # likewise
        "punctuate",  # likewise
        "prompt",  # see `search_key`
        "draft",  # the recording's `drafts` are made of these four
        "num_draft_tokens",
        "accept",
        "translator_draft",
    }
)
"""Fields of `DecodingOptions` in which recordings of one search may differ."""


def search_key(num_targets: int, options: DecodingOptions, drafts: Drafts) -> Hashable:
    """Equal for utterances that one search, and one call of `write_rows`, can decode together.

    A prompt can be refused, so utterances with a prompt are searched only with those of the same caller.

    Args:
        num_targets: number of targets of the utterance.
        options: options of its recording or session.
        drafts: the drafts, likewise.
    """
    drafted = id(drafts.own), id(drafts.translator)
    if options.prompt:
        return num_targets, id(options), drafted
    searched = (getattr(options, one.name) for one in fields(options) if one.name not in NOT_OF_THE_SEARCH)
    falls_back = options.guard if len(options.temperature) > 1 else None
    return (num_targets, *searched, falls_back, drafted)


@dataclass(frozen=True, kw_only=True, eq=False)
class UtteranceRows:
    """The rows that are wanted of an utterance.

    Attributes:
        names: (n,) of the targets, entries of `Request.targets`.
        targets: (n,) the same, as the decoder is asked for them; a prefix is text that stands already.
        source: the language spoken; `UNDETERMINED` where it is not known.
        duration_s: length of the utterance.
        latest: scores of earlier utterances of the same recording; that of this one is added.
        ended: False for speech that goes on.
        number: tells the utterances of a recording apart; the draws of a temperature above 0 depend on it.
    """

    names: Sequence[str]
    targets: Sequence[Target]
    source: str
    duration_s: float
    latest: LatestSpans
    ended: bool = True
    number: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenRow:
    """A row of `write_rows`.

    Attributes:
        name: name of the target.
        target: the same, as the decoder was asked for it.
        hypothesis: tokens behind the prefix.
        doubt: probability that the text is not what was said; None of models that were not calibrated.
        aligned: text tokens with their times, those of the prefix first; None where no words with times are wanted.
    """

    name: str
    target: Target
    hypothesis: Hypothesis
    doubt: float | None
    aligned: AlignedTokens | None


@torch.inference_mode()
def write_rows(
    model: Family,
    memory: Memory,
    utterances: Sequence[UtteranceRows],
    options: DecodingOptions,
    speculation: Speculation | None,
) -> Steps[list[list[WrittenRow]]]:
    """Search a group of utterances, and say of every row how far it can be trusted and when its words were said.

    Spans of recordings and attempts at live speech are both written here; see `with_searches`.

    Args:
        model: any family; of a cascade the recogniser is searched.
        memory: memory of the B utterances.
        utterances: (B,) with n targets each and one `search_key`, in order of time where they share a recording.
        options: options of the group.
        speculation: the draft; made from the options if None.

    Returns:
        B lists of n rows.

    Raises:
        SprachbundError: as `search` does.
    """
    durations_s = [one.duration_s for one in utterances]
    hypotheses = yield SearchRequest(
        family=model,
        memory=memory,
        targets=[one.targets for one in utterances],
        options=options,
        durations_s=durations_s,
        speculation=speculation,
        utterances=[one.number for one in utterances],
    )
    doubts = out_of_domain(
        model,
        memory,
        [one.source for one in utterances],
        hypotheses,
        durations_s,
        [one.names for one in utterances],
        [one.latest for one in utterances],
        [one.ended for one in utterances],
    )
    aligned: list[list[AlignedTokens | None]] = [[None] * len(row) for row in hypotheses]
    if options.word_timestamps:
        aligned = [[*row] for row in _aligned_rows(model, memory, utterances, hypotheses)]
    return [
        [
            WrittenRow(name=name, target=target, hypothesis=hypothesis, doubt=doubt, aligned=times)
            for name, target, hypothesis, doubt, times in zip(one.names, one.targets, *own, strict=True)
        ]
        for one, own in zip(utterances, zip(hypotheses, doubts, aligned, strict=True), strict=True)
    ]


def _aligned_rows(
    model: Family,
    memory: Memory,
    utterances: Sequence[UtteranceRows],
    hypotheses: Sequence[Sequence[Hypothesis]],
) -> list[list[AlignedTokens]]:
    """Times of the text tokens of every row; those of a prefix are read again with the others."""
    if model.capabilities.writes_by_frames:  # which continues no text
        return [
            [aligned_by_frames(model, hypothesis, one.duration_s) for hypothesis in row]
            for one, row in zip(utterances, hypotheses, strict=True)
        ]
    times = model.capabilities.timestamps
    tokens = [
        [
            [*target.prefix, *(token for token in hypothesis.tokens if times is None or token not in times)]
            for target, hypothesis in zip(one.targets, row, strict=True)
        ]
        for one, row in zip(utterances, hypotheses, strict=True)
    ]
    plain = [[replace(target, prefix=(), timestamps=False) for target in one.targets] for one in utterances]
    return align(model, memory, plain, tokens, [one.duration_s for one in utterances])


def _decode_group(
    model: Family, memory: Memory, group: dict[int, _IdentifiedSpan]
) -> Steps[dict[tuple[int, str], DecodedSpan]]:
    """Decoded spans by index of the span and target; none where the search failed."""
    first = next(iter(group.values())).recording
    try:
        rows = yield from _decode_rows(model, memory, list(group.values()), first)
    except SprachbundError as error:
        for one in group.values():
            one.recording.error = error
        return {}
    return {(b, one.target): one for b, row in zip(group, rows, strict=True) for one in row}


def _decode_rows(
    model: Family, memory: Memory, group: Sequence[_IdentifiedSpan], first: RecordingState
) -> Steps[list[list[DecodedSpan]]]:
    """The decoded span of every span (B) and target (n); the options of `first` hold for the whole group."""
    if (translator := model.capabilities.translator) is not None:
        return (yield from _decode_cascade(model, translator, memory, group, first))
    return (yield from _write_spans(model, memory, group, [one.targets for one in group], first))


def _write_spans(
    model: Family,
    memory: Memory,
    group: Sequence[_IdentifiedSpan],
    names: Sequence[Sequence[str]],
    first: RecordingState,
) -> Steps[list[list[DecodedSpan]]]:
    """The decoded span of every span (B) in each of its `names` (n), which are targets, by the model's own search."""
    wanted = [
        UtteranceRows(
            names=own,
            targets=[_target(model, one, name) for name in own],
            source=one.context.language.language,
            duration_s=one.context.duration_s,
            latest=one.recording.latest,
            ended=one.ended,
            number=round(one.context.span.start_s * SAMPLE_RATE),
        )
        for one, own in zip(group, names, strict=True)
    ]
    rows = yield from write_rows(model, memory, wanted, first.options, first.drafts.own)
    times = model.capabilities.timestamps if first.options.timestamps else None
    return [
        [
            DecodedSpan(
                target=row.name,
                segments=tuple(
                    cut_row(
                        model,
                        one.context,
                        row.target,
                        row.hypothesis,
                        row.aligned,
                        times=times,
                        guard=one.recording.options.guard,
                        doubt=row.doubt,
                    )
                ),
                hypothesis=row.hypothesis,
            )
            for row in own
        ]
        for one, own in zip(group, rows, strict=True)
    ]


def _target(model: Family, span: _IdentifiedSpan, target: str) -> Target:
    source, recording = span.context.language.language, span.recording
    language = target_language(recording.request, target, source, recording.unidentified)
    return make_target(model, recording.options, language, source)


def _in_order(
    b: int, span: _IdentifiedSpan, decoded: dict[tuple[int, str], DecodedSpan]
) -> Iterator[DecodedSpan]:
    if span.recording.error is not None:
        return
    for target in span.recording.request.targets:
        unknown = DecodedSpan(target=target, segments=(unknown_pair_segment(span.context, target),))
        yield decoded.get((b, target), unknown)


# Cascades.


def _decode_cascade(
    model: Family,
    translator: Translator,
    memory: Memory,
    group: Sequence[_IdentifiedSpan],
    first: RecordingState,
) -> Steps[list[list[DecodedSpan]]]:
    """As `_decode_rows`: transcribe every span, then translate the transcripts, which is a search of another model."""
    transcripts = yield from _write_spans(model, memory, group, [(TRANSCRIBE,)] * len(group), first)
    heard = [row[0] for row in transcripts]
    jobs: dict[tuple[str, str], list[int]] = {}
    for b, one in enumerate(group):
        source = one.context.language.language
        for name in one.targets:
            target = target_language(one.recording.request, name, source, one.recording.unidentified)
            if target != source and b not in jobs.setdefault((source, target), []):
                jobs[source, target].append(b)
    # Of every span the best transcript, and the next best ones where `nbest` asks for them.
    candidates = [
        [best, *_next_transcripts(model, one, best)] for one, best in zip(group, heard, strict=True)
    ]
    # A translator needs whole sentences, so it reads the transcripts with their marks.
    passages = [
        [passages_of(_with_marks(transcript.segments, one.recording.options)) for transcript in own]
        for one, own in zip(group, candidates, strict=True)
    ]
    written: dict[tuple[int, str], DecodedSpan] = {}
    for (source, target), spans in jobs.items():
        texts = [text for b in spans for own in passages[b] for one in own for text in one.sentences]
        draft = first.drafts.translator
        sentences = iter(translate_sentences(translator, texts, source, target, first.options, draft))
        for b in spans:
            guard = group[b].recording.options.guard
            candidate_pairs = []
            for transcript, own in zip(candidates[b], passages[b], strict=True):
                pairs = [(passage, [next(sentences) for _ in passage.sentences]) for passage in own]
                candidate_pairs.append(
                    (transcript, translated_span(translator.family, transcript, pairs, target, guard))
                )
            written[b, target] = best_pair(candidate_pairs, first.options.translation_weight)
    return [
        [
            replace(written.get((b, target), heard[b]), target=name)
            for name in one.targets
            for target in [_target(model, one, name).language]
        ]
        for b, one in enumerate(group)
    ]


def _with_marks(segments: Sequence[Segment], options: DecodingOptions) -> Sequence[Segment]:
    if options.punctuate is None:
        return segments
    return punctuated_segments(segments, load_punctuator(options.punctuate))


def _next_transcripts(model: Family, one: _IdentifiedSpan, best: DecodedSpan) -> list[DecodedSpan]:
    """The next best transcripts of a span, cut as the best one is; they have no words with times."""
    if best.hypothesis is None or not best.hypothesis.others:
        return []
    target = _target(model, one, TRANSCRIBE)
    times = model.capabilities.timestamps if one.recording.options.timestamps else None
    guard, first = one.recording.options.guard, best.segments[0]
    return [
        DecodedSpan(
            target=best.target,
            segments=tuple(
                cut_row(
                    model,
                    one.context,
                    target,
                    replace(other, no_speech_log_probability=best.hypothesis.no_speech_log_probability),
                    None,
                    times=times,
                    guard=guard,
                    doubt=first.out_of_domain,
                )
            ),
            hypothesis=other,
        )
        for other in best.hypothesis.others
    ]


# Hearing again.
#
# Of speech that a model does not understand at its own tempo, for want of slow speakers in its training, it may
# understand a faster copy.

_DOUBT = 0.1
"""Most of the probability that a text is not what was said for which it is not heard again."""
_DOUBT_AT_TEMPO = 0.5
"""Most of it for what is heard at another tempo: each hearing is one more chance to err."""


def heard_again(
    model: Family, spans: Sequence[RecordedSpan], decoded: Sequence[Sequence[DecodedSpan]]
) -> list[list[DecodedSpan]]:
    """Decode spans again whose texts are in doubt, at all `tempos` of their recordings; the least doubt decides.

    Args:
        model: any family.
        spans: as they were decoded.
        decoded: result of `decode_spans` for them.
    """
    return with_searches(hearing_steps(model, spans, decoded))


def hearing_steps(
    model: Family, spans: Sequence[RecordedSpan], decoded: Sequence[Sequence[DecodedSpan]]
) -> Steps[list[list[DecodedSpan]]]:
    """As `heard_again`, with the same arguments, for callers that make the searches."""
    rows = [list(row) for row in decoded]
    in_doubt = [b for b, row in enumerate(decoded) if any(_doubt(one) > _DOUBT for one in row)]
    for tempo in dict.fromkeys(tempo for b in in_doubt for tempo in spans[b].recording.options.tempos):
        again: dict[int, RecordedSpan] = {}
        for b in in_doubt:
            if tempo in spans[b].recording.options.tempos:
                other = _at_tempo(model, spans[b], tempo)
                if other.span.end_s - other.span.start_s <= model.max_window_s:
                    again[b] = other
        others = list(again.values())
        if not others:
            continue
        results = yield from decoding_steps(model, others, encode_spans(model, others))
        for b, row in zip(again, results, strict=True):
            for n, new in enumerate(row):  # none where it was given up
                is_kept = any(segment.dropped is None for segment in new.segments)
                if is_kept and _doubt(new) < _doubt(rows[b][n]):
                    rows[b][n] = _at_own_tempo(new, tempo, spans[b].span.start_s)
    return rows


def _doubt(decoded: DecodedSpan) -> float:
    """The probability that its text is not what was said; 0 without a calibration."""
    return decoded.segments[0].out_of_domain or 0.0


def _at_tempo(model: Family, span: RecordedSpan, tempo: float) -> RecordedSpan:
    """A span from the same start, `tempo` times as fast, of a recording that remembers only what was heard so."""
    recording = span.recording
    if tempo not in recording.at_tempos:
        options, guard = recording.options, recording.options.guard
        if guard.enabled:
            guard = replace(guard, max_out_of_domain=min(_DOUBT_AT_TEMPO, max_out_of_domain(model, guard)))
        recording.at_tempos[tempo] = replace(
            recording,
            options=replace(options, guard=guard, tempos=()),
            tracker=tracker_for(model, recording.request, options),
            latest=LatestSpans(),
            translated=set(),
            refused={},
            at_tempos={},
        )
    samples = change_tempo(span.samples, tempo)
    end_s = span.span.start_s + len(samples) / SAMPLE_RATE
    return RecordedSpan(
        recording=recording.at_tempos[tempo], span=replace(span.span, end_s=end_s), samples=samples
    )


def _at_own_tempo(decoded: DecodedSpan, tempo: float, start_s: float) -> DecodedSpan:
    """The span with the times at which it was said."""

    def said_s(heard_s: float) -> float:
        return start_s + (heard_s - start_s) * tempo

    def segment_as_said(segment: Segment) -> Segment:
        words = tuple(
            replace(word, start_s=said_s(word.start_s), end_s=said_s(word.end_s)) for word in segment.words
        )
        mixed = tuple(
            replace(one, start_s=said_s(one.start_s), end_s=said_s(one.end_s)) for one in segment.spans
        )
        return replace(
            segment,
            start_s=said_s(segment.start_s),
            end_s=said_s(segment.end_s),
            words=words,
            spans=mixed,
            tempo=tempo,
        )

    return replace(decoded, segments=tuple(map(segment_as_said, decoded.segments)))


# A batch of spans, all of it.


def translate_spans(model: Family, spans: Sequence[RecordedSpan]) -> list[list[tuple[str, Segment]]]:
    """Translate spans: the segments of each, with their targets, in the order of the recording's targets.

    Args:
        model: any family.
        spans: spans of any recordings; those of one recording in order of time.

    Returns:
        One list for each span. Where a recording cannot go on, its `error` is set and its lists are empty.
    """
    return with_searches(translation_steps(model, spans))


def translation_steps(model: Family, spans: Sequence[RecordedSpan]) -> Steps[list[list[tuple[str, Segment]]]]:
    """As `translate_spans`, with the same arguments, for callers that make the searches."""
    decoded = yield from decoding_steps(model, spans, encode_spans(model, spans))
    decoded = yield from hearing_steps(model, spans, decoded)
    return [[(one.target, segment) for one in per_span for segment in one.segments] for per_span in decoded]
