"""The one way from samples to text: files, live text, evaluation, pseudo-labels, text input and the service use it.

Stages, in their order, each a section of this module:

- options of a recording: `RecordingState` and `RecordedSpan` hold what is asked of a span; `options_with_drafts` loads
  its drafts, and `recording_state` puts all together; `whole_span` makes one span of an utterance that is cut already.
- encode and identify: `encode_spans` runs the encoder once and identifies the languages that are not given
  (`encode_and_identify`); models with layers split by language encode again where the answer changed.
- targets: `known_targets` leaves out the pairs that the model does not know; `make_target` says what is asked of the
  decoder.
- search: `decode_spans` searches the rows of all spans whose options agree together; `write_rows` is the search of such
  a group with what follows it for every row, and is what attempts at live speech call.
- segments: `cut_row` cuts a row of tokens into segments, with their words, their evidence and the guard's reason;
  `segment_in_digits` writes the numbers of one in digits, and `punctuated_segments` restores the punctuation of those
  of a span.
- hearing again: `heard_again` decodes what is in doubt once more, at other tempos.
- cascades: `_decode_cascade` transcribes, and translates the transcript sentence by sentence.
- long form: `translate_spans` is all of the above for a batch of spans; `LongForm` reads a recording of any length span
  by span, in memory bounded by one batch; `translate` waits for its end.
- text input: `translate_texts` calls the same stages on what an encoder makes of a text.

A batch may hold spans of several recordings, each with languages and options of its own. The text of a span does not
depend on its neighbours in the batch.

Shapes: B utterances, L source languages, N samples.
"""

import math
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice, product
from typing import TypeVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioInput, AudioSource, open_audio
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import Span, VoiceActivity, iter_speech_spans
from sprachbund.audio.tempo import change_tempo
from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.decoding.domain import LatestSpans, out_of_domain
from sprachbund.decoding.guard import (
    Understanding,
    compression_ratio,
    drop_reason,
    max_out_of_domain,
    repetition,
    why_no_translation,
)
from sprachbund.decoding.languages import (
    UNDETERMINED,
    IdentifiedLanguage,
    LanguageTracker,
    Request,
    check_pair,
    knows_pair,
    read_request,
    text_log_probs,
)
from sprachbund.decoding.logits_process import cut_by_timestamps
from sprachbund.decoding.options import (
    AUTO,
    NONE,
    TRANSCRIBE,
    DecodingOptions,
    GuardOptions,
    check_options,
    only_transcribes,
)
from sprachbund.decoding.result import (
    Alternative,
    LanguageSpan,
    Segment,
    SpeculationReport,
    Translation,
    Word,
    build_translation,
    joined_text,
)
from sprachbund.decoding.search import SearchRequest, search
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.words import (
    AlignedTokens,
    AttendedWord,
    align,
    aligned_by_frames,
    attended_words,
    timed_words,
)
from sprachbund.errors import SprachbundError
from sprachbund.models.base import (
    Family,
    Features,
    Memory,
    Target,
    TextInput,
    TimestampTokens,
    Translator,
)
from sprachbund.models.punctuation import load_punctuator
from sprachbund.text.digits import LANGUAGES as LANGUAGES_OF_DIGITS
from sprachbund.text.digits import in_digits
from sprachbund.text.languages import described, primary, writes_spaces
from sprachbund.text.punctuation import Punctuator, restore
from sprachbund.text.segmentation import ends_sentence, split_sentences
from sprachbund.util.options import OptionValueError

# Options of a recording.


Samples = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drafts:
    """The drafts of a model. They are kept from search to search, so that they learn their own acceptance.

    Attributes:
        own: the draft of the model, of a cascade that of the recogniser; None without.
        translator: the draft of a cascade's translator; None without.
        faults: a sentence for each draft in the directories of the models that cannot be used.
    """

    own: Speculation | None = None
    translator: Speculation | None = None
    faults: tuple[str, ...] = ()

    @property
    def each(self) -> tuple[Speculation, ...]:
        """The drafts that are there."""
        return tuple(one for one in (self.own, self.translator) if one is not None)


@dataclass(kw_only=True, eq=False)
class RecordingState:
    """Requests for the spans of one recording, and their results so far.

    Attributes:
        request: the languages.
        options: decoding options.
        tracker: identifies the language, given the spans in their order.
        drafts: its drafts. Recordings that share them can share a search.
        unidentified: language to transcribe into where the model cannot identify the language spoken; None makes that
            an error. Evaluation names one, because it measures such models too.
        latest: scores of its last spans.
        translated: targets that some span was translated into.
        refused: targets that the model does not know for some span, with the language of that span.
        error: reason why this recording was given up; other recordings of the batch go on.
        at_tempos: the same recording as it is heard at other tempos.
    """

    request: Request
    options: DecodingOptions
    tracker: LanguageTracker
    drafts: Drafts = field(default_factory=Drafts)
    unidentified: str | None = None
    latest: LatestSpans = field(default_factory=LatestSpans)
    translated: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    error: SprachbundError | None = None
    at_tempos: dict[float, "RecordingState"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedSpan:
    """A span of a recording.

    Attributes:
        recording: its recording.
        span: its times.
        samples: (N,) at 16 kHz.
        ended: False for speech that goes on, which does not count for later spans.
    """

    recording: RecordingState
    span: Span
    samples: NDArray[np.float32]
    ended: bool = True


def load_drafts(model: Family, options: DecodingOptions) -> Drafts:
    """Load the drafts that the options ask for.

    Raises:
        SprachbundError: a draft that was named is not there, or belongs to another model.
    """
    faults: list[str] = []
    own, second = speculation_for(model, options, faults), None
    if (translator := model.capabilities.translator) is not None:
        second = speculation_for(translator.family, options_of_translator(options), faults)
    return Drafts(own=own, translator=second, faults=tuple(faults))


def options_with_drafts(
    model: Family, options: DecodingOptions, drafts: Drafts | None = None
) -> tuple[DecodingOptions, Drafts]:
    """Load the drafts that the options ask for; the options come back without those that are not there.

    Args:
        model: any family.
        options: decoding options.
        drafts: drafts to share with other recordings, in place of those that the options ask for.

    Raises:
        SprachbundError: as `load_drafts` does.
    """
    drafts = load_drafts(model, options) if drafts is None else drafts
    if drafts.own is None:
        options = replace(options, draft=NONE, num_draft_tokens=None)
    if drafts.translator is None:
        options = replace(options, translator_draft=NONE)
    return options, drafts


def recording_state(
    model: Family,
    request: Request,
    options: DecodingOptions,
    drafts: Drafts,
    *,
    tracker: LanguageTracker | None = None,
    latest: LatestSpans | None = None,
    unidentified: str | None = None,
) -> RecordingState:
    """The state of a recording before its next spans.

    Args:
        model: any family.
        request: the languages.
        options: decoding options, as `options_with_drafts` gives them.
        drafts: the drafts, likewise.
        tracker: identifies the language; a new one if None.
        latest: scores of its last spans; those of a recording of which nothing was heard yet if None.
        unidentified: see `RecordingState.unidentified`.
    """
    if tracker is None:
        tracker = tracker_for(model, request, options)
    return RecordingState(
        request=request,
        options=options,
        tracker=tracker,
        drafts=drafts,
        unidentified=unidentified,
        latest=LatestSpans() if latest is None else latest,
    )


def tracker_for(model: Family, request: Request, options: DecodingOptions) -> LanguageTracker:
    """The tracker of the language of a recording or session.

    Args:
        model: any family.
        request: the languages.
        options: decoding options.
    """
    return LanguageTracker(
        model.source_languages, request.allowed, options.language_windows, given=request.source
    )


def whole_span(samples: NDArray[np.float32], options: SpanOptions, activity: VoiceActivity) -> Span:
    """All of an utterance as one span, for speech that is cut already.

    Args:
        samples: (N,) at 16 kHz.
        options: options by which long form would cut it.
        activity: the voice activity detector.

    Returns:
        A span whose speech probability is the mean over the spans that long form would cut; 0 when it would cut none.
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
    """The language that a caller gave, with probability 1; None where none was given."""
    return None if source is None else IdentifiedLanguage(language=source, probability=1.0)


# Encode and identify.


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageQuery:
    """The language of an utterance where it is known, and how to identify it otherwise.

    Attributes:
        known: the language, given by the caller or fixed by committed text; None where it is to be identified.
        allowed: languages that may be spoken, in the model's tags; None where any may.
        tracker: tracker of the recording or session; it is given the utterances in their order.
        ended: False for speech that goes on, which does not count for later utterances.
    """

    known: IdentifiedLanguage | None
    allowed: Sequence[str] | None
    tracker: LanguageTracker
    ended: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """A batch of B utterances after the encoder.

    Attributes:
        memory: memory of the utterances, encoded under their languages.
        languages: (B,) known or identified.
        log_probs: (B,) rows (L,) of log-probabilities by which they were identified; None for those that were known.
        identified: (B,) by the model, also where the language was known; None where it was not asked to.
        mixed: (B,) the languages spoken and when, of models with experts by language.
    """

    memory: Memory
    languages: list[IdentifiedLanguage]
    log_probs: list[Tensor | None]
    identified: list[IdentifiedLanguage | None]
    mixed: list[tuple[LanguageSpan, ...]]

    def select(self, rows: Sequence[int]) -> "EncodedBatch":
        """The utterances at the indices `rows` (b,)."""
        return EncodedBatch(
            memory=self.memory.select(torch.tensor(rows, dtype=torch.long, device=self.memory.states.device)),
            languages=[self.languages[b] for b in rows],
            log_probs=[self.log_probs[b] for b in rows],
            identified=[self.identified[b] for b in rows],
            mixed=[self.mixed[b] for b in rows],
        )


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


@torch.inference_mode()
def encode_spans(model: Family, spans: Sequence[RecordedSpan], *, identify_all: bool = False) -> EncodedBatch:
    """The first half of `translate_spans`: features, encoder, languages.

    Args:
        model: any family.
        spans: as in `translate_spans`.
        identify_all: as in `encode_and_identify`.
    """
    queries = [
        LanguageQuery(
            known=given_language(span.recording.request.source),
            allowed=span.recording.request.allowed,
            tracker=span.recording.tracker,
            ended=span.ended,
        )
        for span in spans
    ]
    features = model.features([span.samples for span in spans])
    durations_s = [len(span.samples) / SAMPLE_RATE for span in spans]
    return encode_and_identify(model, features, queries, durations_s, identify_all=identify_all)


@torch.inference_mode()
def encode_and_identify(
    model: Family,
    features: Features,
    queries: Sequence[LanguageQuery],
    durations_s: Sequence[float],
    *,
    identify_all: bool = False,
) -> EncodedBatch:
    """Run the encoder, and identify the languages that are not known.

    Languages that are known are compared with what the model hears, if it hears that on the way.

    Args:
        model: any family.
        features: features of B utterances, or of B texts.
        queries: (B,) in order of time where they share a tracker.
        durations_s: (B,) of the utterances; 0 for texts.
        identify_all: also identify the language where it is known, for `EncodedBatch.identified`; changes nothing else.
    """
    known = [query.known.language if query.known else None for query in queries]
    memory = encode(model, features, known, [query.allowed for query in queries])
    rows: list[Tensor | None] = [None] * len(queries)
    if identify_all or None in known or model.capabilities.hears_language:
        rows = list(_language_log_probs(model, memory))
    languages, identified = [], []
    for query, row in zip(queries, rows, strict=True):
        own = None
        if row is not None and (identify_all or query.known is None):
            # A known language or unfinished speech must not change how later utterances are identified.
            affects_later = query.ended and query.known is None
            own = query.tracker.push(row) if affects_later else query.tracker.peek(row)
        if row is not None and query.known is not None and query.ended:
            query.tracker.compare(row)
        language = query.known or own
        assert language is not None
        languages.append(language)
        identified.append(own)
    # A model split by language has encoded these under the language that it identified from one utterance alone.
    allowed = [query.allowed for query in queries]
    memory = encode_again(model, features, memory, [language.language for language in languages], allowed)
    return EncodedBatch(
        memory=memory,
        languages=languages,
        log_probs=[row if query.known is None else None for query, row in zip(queries, rows, strict=True)],
        identified=identified,
        mixed=language_spans(model, memory, durations_s),
    )


def _language_log_probs(model: Family, memory: Memory) -> Tensor:
    """Log-probabilities (B, L) of the language spoken; of a model that hears none, of the text that it writes."""
    languages = model.source_languages
    if not model.capabilities.language_from_text or len(languages) == 1:
        return model.language_log_probs(memory)
    # What the target says is not read by such a model.
    asked = [[Target(language=languages[0])]] * len(memory.states)
    texts = [model.decode_text(row[0].tokens) for row in search(model, memory, asked)]
    return torch.tensor([text_log_probs(text, languages) for text in texts])


def encode(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode utterances whose languages may be known.

    Args:
        model: any family.
        features: features of the utterances.
        languages: (B,) in the model's tags; None where it is to be identified, which costs a model that is split by
            language one pass of its split layers for every group.
        declared: (B,) in the model's tags, all languages that may occur in each utterance; None where any may. Experts
            of other languages are masked; models without such experts ignore it.

    Raises:
        SprachbundError: a language that the model's sharing plan has no group for.
    """
    known = _language_ids(model, features, languages)
    return model.encode(
        replace(
            features, source_language=known, declared=_declared_mask(model, features, languages, declared)
        )
    )


def encode_again(
    model: Family,
    features: Features,
    memory: Memory,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None = None,
) -> Memory:
    """Encode again the utterances that were encoded under another language than the one identified.

    The spans before an utterance, or the languages allowed, can overrule what the encoder identified by itself.

    Args:
        model: any family.
        features: features of the B utterances.
        memory: result of `encode` for them.
        languages: (B,) identified, in the model's tags.
        declared: (B,) all languages that may occur, as in `encode`.

    Returns:
        The memory with the rows of those utterances replaced; `memory` itself where none changed.
    """
    if memory.source_language is None:
        return memory
    wanted = _language_ids(model, features, languages)
    wrong = ((wanted != memory.source_language) & (wanted != NO_LANGUAGE)).nonzero().flatten()
    if not len(wrong):
        return memory
    part = Features(values=features.values[wrong], num_frames=features.num_frames[wrong])
    rows = wrong.tolist()
    own = None if declared is None else [declared[b] for b in rows]
    return memory.with_rows(wrong, encode(model, part, [languages[b] for b in rows], own))


def language_spans(
    model: Family, memory: Memory, durations_s: Sequence[float]
) -> list[tuple[LanguageSpan, ...]]:
    """The languages spoken in each utterance and when, from models with experts by language; () from others.

    Args:
        model: any family.
        memory: memory of B utterances.
        durations_s: (B,) their lengths in seconds.
    """
    if (experts := model.capabilities.experts) is None:
        return [()] * len(durations_s)
    return [
        tuple(LanguageSpan(start_s=start_s, end_s=end_s, language=tag) for start_s, end_s, tag in spans)
        for spans in experts.spans(memory, durations_s)
    ]


def _language_ids(model: Family, features: Features, languages: Sequence[str | None]) -> Tensor:
    """Indices (B,) into the model's source languages; `NO_LANGUAGE` where the language is not known."""
    index_of = {tag: index for index, tag in enumerate(model.source_languages)}
    ids = [NO_LANGUAGE if tag in (None, UNDETERMINED) else index_of[str(tag)] for tag in languages]
    return torch.tensor(ids, device=features.values.device)


def _declared_mask(
    model: Family,
    features: Features,
    languages: Sequence[str | None],
    declared: Sequence[Sequence[str] | None] | None,
) -> Tensor | None:
    """Boolean (B, L): the languages declared and the one that is known; None where no language is ruled out."""
    if declared is None or model.capabilities.experts is None or all(tags is None for tags in declared):
        return None
    rows = [
        [tags is None or tag in tags or tag == known for tag in model.source_languages]
        for tags, known in zip(declared, languages, strict=True)
    ]
    return torch.tensor(rows, device=features.values.device)


# Targets.


def known_targets(
    model: Family, request: Request, source: str, unidentified: str | None = None
) -> tuple[str, ...]:
    """Targets of a request that the model knows for speech in `source`.

    Args:
        model: any family.
        request: the languages asked for.
        source: the language spoken, in the model's tag; `UNDETERMINED` where the model cannot identify it.
        unidentified: see `RecordingState.unidentified`.

    Raises:
        SprachbundError: transcription is asked for, or is the first half of a cascade, and the model cannot identify
            the language.
    """
    transcribed = TRANSCRIBE in request.targets or model.capabilities.translator is not None
    if source == UNDETERMINED and unidentified is None and transcribed:
        raise SprachbundError(
            f"the model {model.name} cannot identify which language is spoken; name the source language"
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


def make_target(model: Family, options: DecodingOptions, language: str, source: str) -> Target:
    """The target of one row, as the decoder is asked for it.

    Args:
        model: any family.
        options: decoding options; timestamps are asked for where they are wanted and the model has them.
        language: language of the text wanted, in the model's tag.
        source: the language spoken; `UNDETERMINED` where it is not known.
    """
    return Target(
        language=language,
        source=None if source == UNDETERMINED else source,
        context=(options.glossary if model.capabilities.follows_requests else options.prompt) or "",
        timestamps=bool(options.timestamps) and model.capabilities.timestamps is not None,
    )


# Search.


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
            [*target.prefix, *(token for token in hypothesis.tokens if times is None or token < times.first)]
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
    language = _target_language(recording.request, target, source, recording.unidentified)
    return make_target(model, recording.options, language, source)


def _in_order(
    b: int, span: _IdentifiedSpan, decoded: dict[tuple[int, str], DecodedSpan]
) -> Iterator[DecodedSpan]:
    if span.recording.error is not None:
        return
    for target in span.recording.request.targets:
        unknown = DecodedSpan(target=target, segments=(unknown_pair_segment(span.context, target),))
        yield decoded.get((b, target), unknown)


# Segments.


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
            text=family.decode_text([t for t in other.tokens if times is None or t < times.first]).strip(),
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


def segment_in_digits(segment: Segment) -> Segment:
    """A segment with the numbers of its text in digits; a word that several became has their time."""
    language = primary(segment.target_language)
    words = tuple(
        replace(
            segment.words[one.first],
            text=one.text,
            end_s=segment.words[one.last].end_s,
            probability=float(
                np.mean([word.probability for word in segment.words[one.first : one.last + 1]])
            ),
        )
        for one in in_digits([word.text for word in segment.words], language)
    )
    return replace(segment, text=text_in_digits(segment.text, language), words=words)


def text_in_digits(text: str, language: str) -> str:
    """A text with its numbers in digits.

    Args:
        text: text of any length.
        language: BCP-47 tag; a language without rules keeps its text.
    """
    if primary(language) not in LANGUAGES_OF_DIGITS:
        return text
    return " ".join(one.text for one in in_digits(text.split(), primary(language)))


def punctuated_segments(segments: Sequence[Segment], punctuator: Punctuator) -> tuple[Segment, ...]:
    """The segments of a span with punctuation and capitals, read as one text; dropped ones stay as they are.

    Args:
        segments: segments in order of time, of one language.
        punctuator: finds the marks; in a language that it does not know, or that has no spaces, texts stay.
    """
    kept = [n for n, segment in enumerate(segments) if segment.dropped is None and segment.text]
    if not kept or not _knows(punctuator, segments[kept[0]].target_language):
        return tuple(segments)
    language = segments[kept[0]].target_language
    words = [_written_words(segments[n].text) for n in kept]
    flat = [word for own in words for word in own]
    labels = punctuator.label([flat], primary(language))[0]
    written = iter(restore(flat, labels, language))
    result = list(segments)
    for n, own in zip(kept, words, strict=True):
        text = [next(written) for _ in own]
        timed = segments[n].words
        if [word.text for word in timed] == own:
            timed = tuple(replace(word, text=new) for word, new in zip(timed, text, strict=True))
        result[n] = replace(segments[n], text=" ".join(text), words=timed)
    return tuple(result)


def text_with_marks(text: str, language: str, punctuator: Punctuator) -> str:
    """A text with punctuation and capitals.

    Args:
        text: text of any length.
        language: BCP-47 tag; in one that the punctuator does not know the text stays.
        punctuator: finds the marks.
    """
    words = _written_words(text)
    if not words or not _knows(punctuator, language):
        return text
    return " ".join(restore(words, punctuator.label([words], primary(language))[0], language))


def _written_words(text: str) -> list[str]:
    """Split a text at spaces; a space that must not break, as in "8 €", belongs to its word."""
    return [word for word in text.split(" ") if word]


def _knows(punctuator: Punctuator, language: str) -> bool:
    known = punctuator.languages
    return writes_spaces(language) and (known is None or primary(language) in known)


def check_writing(model: Family, targets: Sequence[str], options: DecodingOptions) -> None:
    """Refuse digits and punctuation where they cannot be written.

    Args:
        model: any family.
        targets: languages of the texts, in the model's tags; a transcript's is not known before.
        options: decoding options, which `check_options` let pass.

    Raises:
        SprachbundError: a language without rules, or a punctuator that there is not or that does not know a language.
    """
    if options.digits:
        check_digits(targets)
    if options.punctuate is not None:
        # In a cascade it is the transcript that has no marks.
        own = (TRANSCRIBE,) if model.capabilities.translator is not None else targets
        check_punctuation(own, load_punctuator(options.punctuate))


def check_targets(
    model: Family, targets: Sequence[str], source: str | None, options: DecodingOptions
) -> None:
    """Refuse options of a cascade's translator where nothing is translated, since they change nothing then.

    Args:
        model: any family.
        targets: languages of the texts, or `TRANSCRIBE`.
        source: the language spoken; None when it is to be identified.
        options: decoding options.

    Raises:
        OptionValueError: names the option and its value.
    """
    if model.capabilities.translator is None or not only_transcribes(targets, source):
        return
    given = {
        "translator_draft": options.translator_draft not in (AUTO, NONE),
        "translation_weight": options.translation_weight != DecodingOptions.translation_weight,
        "glossary": bool(options.glossary),
    }
    for name in (name for name, there in given.items() if there):
        raise OptionValueError(
            name,
            vars(options)[name],
            "leave it out, or name a language to translate into",
            reason="which is for the translator of the cascade, and speech is only transcribed",
        )


def check_punctuation(targets: Sequence[str], punctuator: Punctuator) -> None:
    """Raises OptionValueError where punctuation is wanted in a language that the punctuator does not know.

    Args:
        targets: languages of the texts; a transcript's is not known before.
        punctuator: finds the marks.
    """
    without = [target for target in targets if target != TRANSCRIBE and not _knows(punctuator, target)]
    if without:
        known = (
            f"one of {described(punctuator.languages)}" if punctuator.languages else "a language with spaces"
        )
        raise OptionValueError(
            "punctuate",
            punctuator.name,
            f"leave it out, or take {known}",
            reason=f"a punctuator that does not know {described(without[:1])}",
        )


def check_digits(targets: Sequence[str]) -> None:
    """Raises OptionValueError where digits are wanted in a language that has no rules.

    Args:
        targets: languages of the texts; a transcript's is not known before.
    """
    without = [t for t in targets if t != TRANSCRIBE and primary(t) not in LANGUAGES_OF_DIGITS]
    if without:
        raise OptionValueError(
            "digits",
            True,
            f"leave it out, or take one of {described(LANGUAGES_OF_DIGITS)}",
            reason=f"and numbers are not written in digits in {described(without[:1])}",
        )


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


# Cascades.
#
# The recogniser writes one row for each span, in the language spoken. Its segments are joined where a sentence goes on
# from one to the next, since a translator needs the whole of it. Every sentence is a row of the translator's search.


@dataclass(frozen=True, kw_only=True, eq=False)
class TranscriptPassage:
    """Segments of a transcript that are translated together: they end where a sentence ends.

    Attributes:
        segments: neighbours, none dropped.
        sentences: sentences of their texts.
    """

    segments: tuple[Segment, ...]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Text of all segments."""
        return joined_text(self.segments)


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
            target = _target_language(one.recording.request, name, source, one.recording.unidentified)
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
        sentences = iter(_translate_sentences(translator, texts, source, target, first.options, draft))
        for b in spans:
            guard = group[b].recording.options.guard
            candidate_pairs = []
            for transcript, own in zip(candidates[b], passages[b], strict=True):
                pairs = [(passage, [next(sentences) for _ in passage.sentences]) for passage in own]
                candidate_pairs.append(
                    (transcript, _translated_span(translator.family, transcript, pairs, target, guard))
                )
            written[b, target] = _best_pair(candidate_pairs, first.options.translation_weight)
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


def _best_pair(pairs: Sequence[tuple[DecodedSpan, DecodedSpan]], weight: float) -> DecodedSpan:
    """The translation of the best of pairs of a transcript and its translation; the others are its alternatives.

    A pair is ranked by the log-probability of the transcript, given the speech, plus `weight` times that of the
    translation, given the transcript. What the guard has left whole goes before what it has not.
    """
    if len(pairs) == 1:
        return pairs[0][1]

    def score(pair: tuple[DecodedSpan, DecodedSpan]) -> float:
        parts = zip(pair, (1.0, weight), strict=True)
        return sum(w * one.hypothesis.log_probability for one, w in parts if one.hypothesis is not None)

    def whole(pair: tuple[DecodedSpan, DecodedSpan]) -> bool:
        return all(segment.dropped is None for segment in pair[1].segments)

    ranked = sorted(pairs, key=lambda pair: (whole(pair), score(pair)), reverse=True)
    best = ranked[0][1]
    others = tuple(
        Alternative(text=joined_text(pair[1].segments), log_probability=score(pair)) for pair in ranked[1:]
    )
    return replace(best, segments=(replace(best.segments[0], alternatives=others), *best.segments[1:]))


def passages_of(segments: Sequence[Segment]) -> list[TranscriptPassage]:
    """The kept segments of a transcript, joined where a sentence goes on.

    In a transcript without full stops, every segment stands alone: nothing says where a sentence ends.
    """
    kept = [segment for segment in segments if segment.dropped is None]
    sentences = [split_sentences(segment.text, segment.target_language) for segment in kept]
    punctuated = any(ends_sentence(sentence) for own in sentences for sentence in own)
    passages, open_segments = list[TranscriptPassage](), list[Segment]()
    for n, segment in enumerate(kept):
        open_segments.append(segment)
        if not punctuated or ends_sentence(segment.text) or n + 1 == len(kept):
            text = joined_text(open_segments)
            own = tuple(split_sentences(text, segment.target_language))
            passages.append(TranscriptPassage(segments=tuple(open_segments), sentences=own))
            open_segments = []
    return passages


@dataclass(frozen=True, kw_only=True, eq=False)
class _Translated:
    """A translated sentence.

    Attributes:
        hypothesis: its row.
        words: words with the positions in the sentence that they were translated from; empty unless times are wanted.
    """

    hypothesis: Hypothesis
    words: list[AttendedWord]


def options_of_translator(options: DecodingOptions) -> DecodingOptions:
    """Options of a cascade for its translator; a prompt, limits and timestamps are not among them."""
    return DecodingOptions(
        draft=options.translator_draft,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        batch_size=options.batch_size,
        glossary=options.glossary,
    )


def _translate_sentences(
    translator: Translator,
    texts: Sequence[str],
    source: str,
    target: str,
    options: DecodingOptions,
    speculation: Speculation | None,
) -> list[_Translated]:
    """One row for each of `texts`; `source` is the recogniser's tag, `target` the translator's."""
    own = options_of_translator(options)
    family, translated = translator.family, list[_Translated]()
    for start in range(0, len(texts), own.batch_size):
        batch = texts[start : start + own.batch_size]
        rows = search_texts(
            family, batch, (target,), translator.languages[source], own, speculation=speculation
        )
        hypotheses = [row[0] for row in rows.hypotheses]
        words: list[list[AttendedWord]] = [[] for _ in batch]
        if options.word_timestamps:
            asked = [row[0] for row in rows.targets]
            words = attended_words(family, rows.memory, asked, [h.tokens for h in hypotheses], batch)
        translated += [
            _Translated(hypothesis=hypothesis, words=read)
            for hypothesis, read in zip(hypotheses, words, strict=True)
        ]
    return translated


def _translated_span(
    family: Family,
    heard: DecodedSpan,
    passages: Sequence[tuple[TranscriptPassage, Sequence[_Translated]]],
    target: str,
    guard: GuardOptions,
) -> DecodedSpan:
    """A span of the transcript in another language; what the guard has dropped of the transcript stays dropped."""
    segments = [
        replace(
            segment,
            text="",
            words=(),
            target_language=target,
            source_text=segment.text,
            alternatives=(),
        )
        for segment in heard.segments
        if segment.dropped is not None
    ]
    for passage, sentences in passages:
        segments.append(_translated_segment(family, passage, sentences, target, guard))
    rows = [sentence.hypothesis for _, own in passages for sentence in own]
    return DecodedSpan(
        target=target,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        hypothesis=joined_hypothesis(rows) if rows else None,
    )


def _translated_segment(
    family: Family,
    passage: TranscriptPassage,
    sentences: Sequence[_Translated],
    target: str,
    guard: GuardOptions,
) -> Segment:
    first, last = passage.segments[0], passage.segments[-1]
    rows = [sentence.hypothesis for sentence in sentences]
    row = joined_hypothesis(rows)
    space = " " if writes_spaces(target) else ""
    text = space.join(filter(None, (family.decode_text(h.tokens).strip() for h in rows)))
    return replace(
        first,
        end_s=last.end_s,
        target_language=target,
        text=text,
        source_text=passage.text,
        alternatives=(),
        words=_words_of_translation(passage, sentences),
        mean_log_probability=row.mean_log_probability,
        compression_ratio=compression_ratio(text),
        repetition=repetition(text),
        dropped=drop_reason(
            text,
            duration_s=last.end_s - first.start_s,
            speech_probability=first.speech_probability,
            no_speech_probability=first.no_speech_probability,
            mean_log_probability=row.mean_log_probability,
            source_text=passage.text,
            options=guard,
        )
        or (
            why_no_translation(text, passage.text, first.target_language, target)
            if guard.enabled and family.capabilities.follows_requests
            else None
        ),
        spans=tuple(span for segment in passage.segments for span in segment.spans),
    )


def _words_of_translation(passage: TranscriptPassage, sentences: Sequence[_Translated]) -> tuple[Word, ...]:
    """Words of a translation, at the times of the words that they were translated from."""
    spoken = [word for segment in passage.segments for word in segment.words]
    # Letters up to each word of the transcript: they are the same in its words and its sentences, white space is not.
    ends = np.cumsum([_num_letters(word.text) for word in spoken])
    words: list[Word] = []
    before = 0
    for sentence, translated in zip(passage.sentences, sentences, strict=True):
        for word in translated.words:
            letter = before + _num_letters(sentence[: word.character])
            source = spoken[min(int(np.searchsorted(ends, letter, side="right")), len(spoken) - 1)]
            words.append(
                Word(start_s=source.start_s, end_s=source.end_s, text=word.text, probability=word.probability)
            )
        before += _num_letters(sentence)
    return tuple(words)


def _num_letters(text: str) -> int:
    return sum(not character.isspace() for character in text)


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


# Long form.


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


Compute = Callable[[Sequence[RecordedSpan]], list[list[tuple[str, Segment]]]]
"""`translate_spans` of a model, or a function that batches the spans with those of other recordings."""


class LongForm(Iterator[Segment]):
    """A recording being translated: iterate for its segments, each as soon as its batch of spans is done.

    Segments that the guard dropped come too, see `Segment.dropped`. Segments of one target are in order of time.

    Args:
        model: any family.
        audio: path, binary file object, samples or an `AudioSource`.
        targets: languages wanted.
        source: the language spoken; None identifies it.
        options: decoding options.
        sample_rate: sample rate of samples, in Hz.
        activity: a voice activity detector to share.
        compute: translates a batch of spans; `translate_spans` by default.
        drafts: drafts to share with other recordings.

    Attributes:
        model: as it was given.
        targets: the languages asked for, in the model's tags.
        source: the language given, in the model's tag; None when it is identified.
        duration_s: length of the recording; until it is read to the end, the one in its header, or None.
        finished_s: end of the last span translated.
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
        drafts: Drafts | None = None,
    ) -> None:
        self.model = model
        options = options or DecodingOptions()
        check_options(model, options)
        options, drafts = options_with_drafts(model, options, drafts)
        allowed = options.allowed_languages
        request = read_request(model, source=source, targets=targets, allowed=allowed)
        check_writing(model, request.targets, options)
        check_targets(model, request.targets, request.source, options)
        self._audio = audio if isinstance(audio, AudioSource) else open_audio(audio, sample_rate)
        self._activity = activity
        self._compute = compute or partial(translate_spans, model)
        self._recording = recording_state(model, request, options, drafts)
        self.targets = request.targets
        self.source = request.source
        self.duration_s = self._audio.duration_s
        self.finished_s = 0.0
        self._understanding = Understanding(self.targets)
        self._by_target = self._run()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings so far: damaged audio, speech in languages that were not named, a draft switched off."""
        drafts, other_language = self._recording.drafts, self._recording.tracker.warning
        notes = (note for speculation in drafts.each for note in speculation.notes)
        return (*self.audio_warnings, *([other_language] if other_language else []), *drafts.faults, *notes)

    @property
    def advice(self) -> str | None:
        """Advice on other models where most of the speech so far was not understood, else None."""
        return self._understanding.warning(self.model)

    @property
    def speculation(self) -> tuple[SpeculationReport, ...]:
        """Draft tokens that were accepted so far, by language pair."""
        drafts = self._recording.drafts
        return tuple(report for speculation in drafts.each for report in speculation.report())

    @property
    def audio_warnings(self) -> tuple[str, ...]:
        """Faults of the audio so far, such as damage; the result covers the readable part."""
        return tuple(self._audio.warnings)

    def __next__(self) -> Segment:
        return next(self._by_target)[1]

    def by_target(self) -> Iterator[tuple[str, Segment]]:
        """The same segments, each with the entry of `targets` it answers."""
        return self._by_target

    def _run(self) -> Iterator[tuple[str, Segment]]:
        decoding = self._recording.options
        longest_s = min(decoding.spans.max_span_s, self.model.max_window_s)
        options = replace(decoding.spans, max_span_s=longest_s)
        spans = iter_speech_spans(self._counted(), options, activity=self._activity)
        size = 1  # the first text comes early; larger batches after it are faster
        while batch := list(islice(spans, size)):
            size = min(2 * size, decoding.batch_size)
            yield from self._translate_batch(batch)
            self.finished_s = batch[-1][0].end_s
        self.finished_s = self.duration_s or 0.0
        refused = self._recording.refused
        for target in refused.keys() - self._recording.translated:
            check_pair(self.model, refused[target], target)

    def _counted(self) -> Iterator[Samples]:
        num_samples = 0
        for block in self._audio.blocks():
            num_samples += len(block)
            yield block
        self.duration_s = num_samples / SAMPLE_RATE

    def _translate_batch(self, batch: Sequence[tuple[Span, Samples]]) -> list[tuple[str, Segment]]:
        recorded = [RecordedSpan(recording=self._recording, span=span, samples=x) for span, x in batch]
        segments = self._compute(recorded)
        if self._recording.error is not None:
            raise self._recording.error
        answers = [answer for per_span in segments for answer in per_span]
        for _, segment in answers:
            self._understanding.add(segment.end_s - segment.start_s, segment.dropped, segment.out_of_domain)
        return answers


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
    """Start translating a recording; iterate over the result for its segments.

    Args:
        model: any family.
        audio: path, binary file object, or samples (N,) with `sample_rate`; or an `AudioSource`.
        targets: languages wanted, as tags or names; "transcribe" is the language spoken.
        source: the language spoken; None identifies it span by span.
        options: decoding options.
        sample_rate: sample rate of samples, in Hz; files state their own.
        activity: a voice activity detector to share between recordings.

    Raises:
        SprachbundError: at once for unknown languages and pairs and for files that cannot be read; while iterating for
            damaged audio, or when the model does not know the target for the language of any span.
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
    return {target: finish_translation(work, target, own) for target, own in segments.items()}


def finish_translation(work: LongForm, target: str, segments: Sequence[Segment]) -> Translation:
    """The `Translation` of one target.

    Args:
        work: read to its end.
        target: an entry of `work.targets`.
        segments: all segments that `work` returned for it.
    """
    return build_translation(
        segments,
        target=target,
        source=work.source,
        duration_s=work.duration_s or 0.0,
        warnings=work.warnings,
        advice=work.advice,
        speculation=[r for r in work.speculation if target in (TRANSCRIBE, r.target_language)],
    )


# Text input.


@dataclass(frozen=True, kw_only=True)
class TranslatedText:
    """A text in another language.

    Attributes:
        text: the translation; empty for a text of white space.
        source: language of the text, given or identified.
        target: language of the translation.
        log_probability: mean over its tokens; 0 for a text of white space.
    """

    text: str
    source: str
    target: str
    log_probability: float


def check_reads_text(family: Family) -> TextInput:
    """The text input of a family. Raises SprachbundError where it has none."""
    if (text_input := family.capabilities.text_input) is None:
        raise SprachbundError(
            f"the model {family.name} turns speech into text, and cannot translate text; give it a recording, or take "
            "a translator of texts, such as m2m100-418m"
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
        source: language of the texts; None identifies it for each.
        options: decoding options. The guard and the spans apply to speech alone, and have no effect here.

    Raises:
        SprachbundError: at once for a family that reads no text, for unknown languages and for options that are of
            speech or that it cannot serve; while iterating for a pair that the model does not know.
    """
    check_reads_text(family)
    options = options or DecodingOptions()
    if (translator := family.capabilities.translator) is not None:
        if options.draft not in (AUTO, NONE):
            raise OptionValueError(
                "draft",
                options.draft,
                "give it as `translator_draft`, or leave it out",
                reason="which is for the recogniser of a cascade, and a text is read by its translator",
            )
        family = translator.family
        options = replace(options, draft=options.translator_draft, translator_draft=AUTO)
    if options.word_timestamps:
        raise OptionValueError(
            "word_timestamps", True, "leave it out", reason="and words of a text have no times"
        )
    if options.prompt:
        raise SprachbundError("a text is translated without a prompt; leave it out")
    if options.nbest > 1:
        raise OptionValueError("nbest", options.nbest, "leave it out", reason="and a text is translated once")
    check_options(family, options)
    request = read_request(family, source=source, targets=targets, allowed=options.allowed_languages)
    check_writing(family, request.targets, options)
    if TRANSCRIBE in request.targets:
        raise SprachbundError("text is not transcribed; name a language to translate into")
    options, drafts = options_with_drafts(family, options)
    starts = range(0, len(texts), options.batch_size)
    return (
        row
        for start in starts
        for row in _translate_text_batch(
            family, texts[start : start + options.batch_size], request, options, drafts.own
        )
    )


def _translate_text_batch(
    family: Family,
    texts: Sequence[str],
    request: Request,
    options: DecodingOptions,
    speculation: Speculation | None,
) -> list[list[TranslatedText]]:
    rows = search_texts(
        family,
        texts,
        request.targets,
        request.source,
        options,
        request.allowed,
        speculation=speculation,
    )

    def written(hypothesis: Hypothesis, target: str) -> str:
        text = family.decode_text(hypothesis.tokens)
        if options.digits:
            text = text_in_digits(text, target)
        if options.punctuate is not None:
            text = text_with_marks(text, target, load_punctuator(options.punctuate))
        return text

    return [
        [
            TranslatedText(
                text=written(hypothesis, target) if text.strip() else "",
                source=language,
                target=target,
                log_probability=hypothesis.mean_log_probability if text.strip() else 0.0,
            )
            for target, hypothesis in zip(request.targets, row, strict=True)
        ]
        for text, language, row in zip(texts, rows.languages, rows.hypotheses, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRows:
    """A batch of texts after the search.

    Attributes:
        memory: memory of the texts.
        languages: (B,) of the texts, given or identified.
        targets: (B,) rows (n,), what was asked of the decoder.
        hypotheses: (B,) rows (n,), one for each target.
    """

    memory: Memory
    languages: list[str]
    targets: list[list[Target]]
    hypotheses: list[list[Hypothesis]]


@torch.inference_mode()
def search_texts(
    family: Family,
    texts: Sequence[str],
    targets: Sequence[str],
    source: str | None,
    options: DecodingOptions,
    allowed: Sequence[str] | None = None,
    *,
    prefixes: Sequence[tuple[int, ...]] | None = None,
    speculation: Speculation | None = None,
) -> TextRows:
    """Encode and decode a batch of texts.

    Args:
        family: a model that reads text.
        texts: (B,), each one row for every target.
        targets: target languages in the model's tags.
        source: language of the texts, in the model's tag; None identifies it for each.
        options: decoding options.
        allowed: languages to choose from.
        prefixes: (B,) tokens that each translation begins with; none if None.
        speculation: the draft; made from the options if None.

    Raises:
        SprachbundError: a language that cannot be identified, or a pair that the model does not know.
    """
    # Every text is identified by itself: each has a tracker of its own.
    queries = [
        LanguageQuery(
            known=given_language(source),
            allowed=allowed,
            tracker=LanguageTracker(family.source_languages, allowed, 1),
        )
        for _ in texts
    ]
    features = check_reads_text(family).text_features(texts)
    encoded = encode_and_identify(family, features, queries, [0.0] * len(texts))
    languages = [identified.language for identified in encoded.languages]
    if UNDETERMINED in languages:
        raise SprachbundError(
            f"the model {family.name} cannot identify the language of a text; name it with --from (source)"
        )
    for language, target in product(dict.fromkeys(languages), targets):
        check_pair(family, language, target)
    asked = [[make_target(family, options, target, language) for target in targets] for language in languages]
    if prefixes is not None:
        asked = [
            [replace(target, prefix=prefix) for target in row]
            for row, prefix in zip(asked, prefixes, strict=True)
        ]
    names = [crc32(text.encode()) for text in texts]
    hypotheses = search(family, encoded.memory, asked, options, speculation=speculation, utterances=names)
    return TextRows(memory=encoded.memory, languages=languages, targets=asked, hypotheses=hypotheses)
