"""Long form: a recording of any length into any number of languages, segment by segment as the work goes on.

Speech spans are cut out of the stream, go through the encoder a batch at a time, and every target is decoded
from the same encoder pass. Memory is bounded by one batch of spans.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sprachbund.audio.activity import VoiceActivity
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioInput, AudioSource, open_audio
from sprachbund.audio.spans import Span, iter_speech_spans
from sprachbund.decoding.batches import RecordedSpan, Recording, translate_spans
from sprachbund.decoding.language import LanguageTracker
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.pairs import TRANSCRIBE, check_pair, read_request
from sprachbund.decoding.result import Segment, SpeculationReport, Translation, build_translation
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.models.family import Family

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
        self._draft_notes: list[str] = []
        speculation = speculation or speculation_for(model, options, self._draft_notes)
        if speculation is None:
            options = replace(options, draft=NONE)
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
