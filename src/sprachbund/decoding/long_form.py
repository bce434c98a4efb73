"""Recordings of any length, span by span.

`LongForm` reads a recording in memory that is bounded by one batch of spans; `translate` waits for its end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioInput, AudioSource, open_audio
from sprachbund.audio.spans import Span, VoiceActivity, iter_speech_spans
from sprachbund.decoding.guard import Understanding
from sprachbund.decoding.languages import check_pair, read_request
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, check_options
from sprachbund.decoding.pipeline import translate_spans
from sprachbund.decoding.recordings import (
    Drafts,
    RecordedSpan,
    check_targets,
    options_with_drafts,
    recording_state,
)
from sprachbund.decoding.result import Segment, SpeculationReport, Translation, build_translation
from sprachbund.decoding.written_form import check_writing
from sprachbund.models.base import Family
from sprachbund.util.arrays import Samples

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
