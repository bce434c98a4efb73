"""What is asked of a recording, and of the spans that are cut from it: languages, options, drafts and targets.

`options_with_drafts` loads the drafts of a recording, `recording_state` puts all together, and `whole_span` makes one
span of an utterance that is cut already. `known_targets` leaves out the pairs that the model does not know, and
`make_target` says what is asked of the decoder.

Shapes: N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import Span, VoiceActivity, iter_speech_spans
from sprachbund.decoding.domain import LatestSpans
from sprachbund.decoding.languages import (
    UNDETERMINED,
    IdentifiedLanguage,
    LanguageTracker,
    Request,
    knows_pair,
)
from sprachbund.decoding.options import AUTO, NONE, TRANSCRIBE, DecodingOptions, only_transcribes
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.util.options import OptionValueError


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


def options_of_translator(options: DecodingOptions) -> DecodingOptions:
    """Options of a cascade for its translator; a prompt, limits and timestamps are not among them."""
    return DecodingOptions(
        draft=options.translator_draft,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        batch_size=options.batch_size,
        glossary=options.glossary,
    )


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
        if knows_pair(model, source, target_language(request, target, source, unidentified))
    )


def target_language(request: Request, target: str, source: str, unidentified: str | None) -> str:
    """The language of the text that a target of a request stands for, in the model's tag.

    Args:
        request: the languages asked for.
        target: an entry of `Request.targets`.
        source: the language spoken, in the model's tag.
        unidentified: see `RecordingState.unidentified`.
    """
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
