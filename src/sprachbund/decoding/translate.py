"""Long form: a recording of any length into any number of languages, segment by segment as the work goes on.

Speech spans are cut out of the stream, go through the encoder a batch at a time, and every target is decoded
from the same encoder pass. Memory is bounded by one batch of spans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from sprachbund.audio.activity import VoiceActivity
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import AudioInput, open_audio
from sprachbund.audio.spans import Span, iter_speech_spans
from sprachbund.decoding.encoding import encode, encode_again
from sprachbund.decoding.language import UNDETERMINED, IdentifiedLanguage, LanguageTracker
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.pairs import TRANSCRIBE, check_pair, knows_pair, read_request
from sprachbund.decoding.result import Segment, SpeculationReport, Translation, build_translation
from sprachbund.decoding.search import search
from sprachbund.decoding.segments import SpanContext, cut_row, unknown_pair_segment
from sprachbund.decoding.speculation import speculation_for
from sprachbund.decoding.timestamps import timestamp_tokens
from sprachbund.decoding.words import AlignedTokens, align
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Family, Memory, Target

Samples = NDArray[np.float32]


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
        audio: AudioInput,
        targets: Sequence[str],
        source: str | None = None,
        options: DecodingOptions | None = None,
        *,
        sample_rate: int | None = None,
        activity: VoiceActivity | None = None,
    ) -> None:
        self._model = model
        self._options = options or DecodingOptions()
        self._draft_notes: list[str] = []
        self._speculation = speculation_for(model, self._options, self._draft_notes)
        if self._speculation is None:
            self._options = replace(self._options, draft=NONE)
        allowed = self._options.allowed_languages
        self._request = read_request(model, source=source, targets=targets, allowed=allowed)
        self._audio = open_audio(audio, sample_rate)
        self._activity = activity
        self._tracker = LanguageTracker(
            model.source_languages, self._request.allowed, self._options.language_windows
        )
        self._notes: list[str] = []
        self._translated: set[str] = set()
        self._refused: dict[str, str] = {}
        self.targets = self._request.targets
        self.source = self._request.source
        self.duration_s = self._audio.duration_s
        self.finished_s = 0.0
        self._by_target = self._run()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong so far: with the audio, a prompt that the model cannot be shown, a draft of no use."""
        guessing = () if self._speculation is None else self._speculation.notes
        return (*self.audio_warnings, *self._notes, *self._draft_notes, *guessing)

    @property
    def speculation(self) -> tuple[SpeculationReport, ...]:
        """How many of a draft's guesses were accepted so far, by language pair."""
        return () if self._speculation is None else self._speculation.report()

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
        most_s = min(self._options.spans.max_span_s, self._model.max_window_s)
        options = replace(self._options.spans, max_span_s=most_s)
        spans = iter_speech_spans(self._counted(), options, activity=self._activity)
        size = 1  # the first text is to come early; from then on, the more at once, the faster
        while batch := list(islice(spans, size)):
            size = min(2 * size, self._options.batch_size)
            yield from self._translate_batch(batch)
            self.finished_s = batch[-1][0].end_s
        self.finished_s = self.duration_s or 0.0
        for target in self._refused.keys() - self._translated:
            check_pair(self._model, self._refused[target], target)

    def _counted(self) -> Iterator[Samples]:
        num_samples = 0
        for block in self._audio.blocks():
            num_samples += len(block)
            yield block
        self.duration_s = num_samples / SAMPLE_RATE

    @torch.inference_mode()
    def _translate_batch(self, batch: list[tuple[Span, Samples]]) -> list[tuple[str, Segment]]:
        features = self._model.features([samples for _, samples in batch])
        memory = encode(self._model, features, [self._request.source] * len(batch))
        languages = self._languages(memory)
        memory = encode_again(self._model, features, memory, [found.language for found in languages])
        contexts = [
            SpanContext(span=span, language=language, given=self._request.source is not None)
            for (span, _), language in zip(batch, languages, strict=True)
        ]
        segments: dict[tuple[int, str], list[Segment]] = {}
        for targets, spans in self._groups(contexts).items():
            own = memory.select(torch.tensor(spans, device=memory.states.device))
            rows = self._translate_rows(own, [contexts[b] for b in spans], targets)
            for b, row in zip(spans, rows, strict=True):
                segments |= {(b, target): found for target, found in zip(targets, row, strict=True)}
        for b, context in enumerate(contexts):
            for target in self.targets:
                if (b, target) not in segments:
                    segments[b, target] = [unknown_pair_segment(context, target)]
        order = [(b, target) for b in range(len(batch)) for target in self.targets]
        return [(target, segment) for b, target in order for segment in segments[b, target]]

    def _languages(self, memory: Memory) -> list[IdentifiedLanguage]:
        """The language of every span, given or identified."""
        if self._request.source is not None:
            return [IdentifiedLanguage(language=self._request.source, probability=1.0)] * memory.states.shape[
                0
            ]
        found = [self._tracker.push(row) for row in self._model.language_log_probs(memory)]
        if TRANSCRIBE in self.targets and any(f.language == UNDETERMINED for f in found):
            raise SprachbundError(
                f"the model {self._model.name} cannot tell which language is spoken; name the source language"
            )
        return found

    def _groups(self, contexts: list[SpanContext]) -> dict[tuple[str, ...], list[int]]:
        """Spans by the targets that the model knows for their language; nearly always one group."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for b, context in enumerate(contexts):
            source = context.language.language
            known = []
            for target in self.targets:
                if knows_pair(self._model, source, self._request.target_language(target, source)):
                    known.append(target)
                    self._translated.add(target)
                else:
                    self._refused[target] = source
            if known:
                groups.setdefault(tuple(known), []).append(b)
        return groups

    def _translate_rows(
        self, memory: Memory, contexts: list[SpanContext], targets: tuple[str, ...]
    ) -> list[list[list[Segment]]]:
        """Segments of every span (B) and target (n)."""
        options = self._options
        durations_s = [context.duration_s for context in contexts]
        asked = [[self._target(context, target) for target in targets] for context in contexts]
        self._note_unread_prompt(asked[0][0])
        found = search(self._model, memory, asked, options, durations_s, self._speculation)
        times = timestamp_tokens(self._model) if options.timestamps else None
        aligned: list[list[AlignedTokens | None]] = [[None] * len(targets) for _ in contexts]
        if options.word_timestamps:
            text = [[[t for t in h.tokens if times is None or t < times.first] for h in row] for row in found]
            untimed = [[replace(target, timestamps=False) for target in row] for row in asked]
            aligned = [list(row) for row in align(self._model, memory, untimed, text, durations_s)]
        return [
            [
                cut_row(self._model, context, target, hypothesis, words, times=times, guard=options.guard)
                for target, hypothesis, words in zip(*per_span, strict=True)
            ]
            for context, per_span in zip(contexts, zip(asked, found, aligned, strict=True), strict=True)
        ]

    def _note_unread_prompt(self, target: Target) -> None:
        """Say once that a family has no room for the caller's prompt: it leaves no trace in the tokens."""
        if not target.context or self._notes:
            return
        if self._model.prompt(target) == self._model.prompt(replace(target, context="")):
            self._notes.append(f"the model {self._model.name} has no room for a prompt; it was not used")

    def _target(self, context: SpanContext, target: str) -> Target:
        source = context.language.language
        return Target(
            language=self._request.target_language(target, source),
            source=None if source == UNDETERMINED else source,
            context=self._options.prompt or "",
            timestamps=self._options.timestamps and timestamp_tokens(self._model) is not None,
        )


def translate_file(
    model: Family,
    audio: AudioInput,
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
        audio: path, binary file object, or samples (N,) with `sample_rate`.
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
    audio: AudioInput,
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
