"""Runs a model over a corpus: every utterance once through the encoder, into every language it has text in.

An utterance is one window here, as it was cut by the corpus; long form has its own measure. Utterances of
like length share a batch, but lines come in the order of the corpus, as soon as a stretch of it is done.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span, VoiceActivity
from sprachbund.data.manifest import Utterance, Utterances
from sprachbund.data.shards import corpus_info
from sprachbund.decoding.encoding import encode_spans
from sprachbund.decoding.guard import compression_ratio, repetition
from sprachbund.decoding.languages import UNDETERMINED, IdentifiedLanguage, Request
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, check_options
from sprachbund.decoding.pipeline import decode_spans, heard_again
from sprachbund.decoding.recordings import RecordedSpan, options_with_drafts, recording_state, whole_span
from sprachbund.decoding.result import joined_text
from sprachbund.decoding.segments import DecodedSpan
from sprachbund.decoding.written_form import check_writing
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import (
    DecodingEvidence,
    Line,
    RoutedSpan,
    embedded_spans,
    is_code_switched,
    joined,
    spoken_spans,
)
from sprachbund.evaluation.no_speech import KINDS, Sound, no_speech_set
from sprachbund.evaluation.options import BATCH_SIZE, EvaluationOptions
from sprachbund.models.base import Family, Memory
from sprachbund.text.languages import UnknownLanguageError, described, parse_language

_STRETCH_BATCHES = (
    16  # batches sorted by length together: long enough for even lengths, short enough to stream
)


@dataclass(frozen=True, kw_only=True)
class DecodingJob:
    """An utterance to be decoded and the languages it is decoded into."""

    index: int
    duration_s: float
    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The utterances and targets to decode, and counts of those that are left out, by reason.

    Attributes:
        jobs: jobs in the order of the corpus.
        without_reference: (source, target) to utterances that have no text in that language.
        unknown_pairs: (source, target) to utterances of pairs that the model does not know.
        without_speech: utterances without a language, which quality cannot be measured on.
        too_long: utterances longer than the model's window.
        over_limit: utterances left out by the limit.
        other_sources: utterances in languages that were not asked for.
    """

    jobs: tuple[DecodingJob, ...]
    without_reference: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown_pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_speech: int = 0
    too_long: int = 0
    over_limit: int = 0
    other_sources: int = 0

    @property
    def num_lines(self) -> int:
        """Hypotheses to come."""
        return sum(len(job.targets) for job in self.jobs)

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return sum(job.duration_s for job in self.jobs)


def make_plan(
    model: Family,
    manifest: Utterances,
    targets: Sequence[str] | None = None,
    limit: int | None = None,
    sources: Sequence[str] | None = None,
) -> Plan:
    """Decide what of a corpus is decoded.

    Args:
        model: any family.
        manifest: the corpus.
        targets: languages wanted, as tags or names; None takes every language there is a reference in.
        limit: most utterances, spread evenly over the corpus; None takes all.
        sources: languages spoken, as tags or names; None takes every one.

    Raises:
        SprachbundError: for languages that the model or the corpus does not know, broken spans of languages, and when
            nothing is left to decode.
    """
    written = {target for _, target in model.pairs()}
    wanted = None if targets is None else tuple(dict.fromkeys(parse_language(t, written) for t in targets))
    asked = _spoken_in(manifest, sources)
    chosen = [asked[i] for i in _spread(len(asked), limit)]
    utterances = [(index, manifest[index]) for index in chosen]
    spoken = [(index, u) for index, u in utterances if u.language]
    fitting = [(index, u) for index, u in spoken if u.duration_s <= model.max_window_s]
    if wanted is None:
        wanted = tuple(sorted({tag for _, u in fitting for tag in (u.language, *u.translations)}))
    jobs, missing, unknown = [], Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for index, utterance in fitting:
        source = utterance.language
        with_text = [t for t in wanted if (utterance.text_in(t) or "").strip()]
        known = tuple(sorted(t for t in with_text if (source, t) in model.pairs()))
        missing.update((source, t) for t in wanted if t not in with_text)
        unknown.update((source, t) for t in with_text if t not in known)
        for target in known:
            embedded_spans(utterance, target)  # what is wrong with them is said before the work
        spoken_spans(utterance)
        if known:
            jobs.append(
                DecodingJob(index=index, duration_s=utterance.duration_s, source=source, targets=known)
            )
    plan = Plan(
        jobs=tuple(jobs),
        without_reference=missing,
        unknown_pairs=unknown,
        without_speech=len(utterances) - len(spoken),
        too_long=len(spoken) - len(fitting),
        over_limit=len(asked) - len(chosen),
        other_sources=len(manifest) - len(asked),
    )
    if not jobs:
        raise _nothing_left(model, manifest, {u.language for _, u in fitting}, plan, wanted)
    return plan


def translate_plan(
    model: Family,
    manifest: Utterances,
    plan: Plan,
    options: DecodingOptions | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Line]:
    """Decode what a plan names; lines in the order of the corpus. The batch size does not change them.

    Args:
        model: decodes.
        manifest: the corpus.
        plan: utterances and targets, as `make_plan` chooses them.
        options: options of decoding.
        batch_size: utterances in a batch.
    """
    options = options or DecodingOptions()
    check_writing(
        model, sorted({target or TRANSCRIBE for job in plan.jobs for target in job.targets}), options
    )
    decoder = BatchDecoder(model, options)
    corpus = corpus_name(manifest.directory)
    for jobs in _stretches(plan, batch_size):
        done: dict[int, list[Line]] = {}
        for batch in _batches(jobs, batch_size):
            done |= translate_batch(decoder, manifest, batch, corpus)
        for job in jobs:
            yield from done[job.index]


def translate_plans(
    model: Family, manifests: Sequence[Utterances], plans: Sequence[Plan], options: EvaluationOptions
) -> Iterator[Line]:
    """Decode what plans name, one corpus after the other, as `translate_plan` does each.

    Args:
        model: decodes.
        manifests: the corpora.
        plans: one for each corpus.
        options: options of the evaluation.
    """
    for manifest, plan in zip(manifests, plans, strict=True):
        yield from translate_plan(model, manifest, plan, options.decoding, options.batch_size)


def batches(plan: Plan, batch_size: int) -> Iterator[list[DecodingJob]]:
    """The batches of a plan, in the order in which `translate_plan` decodes them."""
    for jobs in _stretches(plan, batch_size):
        yield from _batches(jobs, batch_size)


def in_corpus_order(plan: Plan, batch_size: int, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines of a plan in the order of the corpus.

    Args:
        plan: utterances and targets.
        batch_size: utterances in a batch.
        lines: batch by batch, as `batches` has them; no more than those of the plan are taken.
    """
    for jobs in _stretches(plan, batch_size):
        done = {
            job.index: list(islice(lines, len(job.targets)))
            for batch in _batches(jobs, batch_size)
            for job in batch
        }
        for job in jobs:
            yield from done[job.index]


def translate_batch(
    decoder: "BatchDecoder", manifest: Utterances, batch: Sequence[DecodingJob], corpus: str
) -> dict[int, list[Line]]:
    """Decode a batch: the lines of each utterance, by its number in the corpus.

    Args:
        decoder: the model with its options.
        manifest: the corpus.
        batch: utterances, all of as many targets.
        corpus: name of the corpus.
    """
    utterances = [manifest[job.index] for job in batch]
    sounds = [manifest.samples(job.index) for job in batch]
    rows = decoder.decode(sounds, [job.targets for job in batch], [job.source for job in batch])
    return {
        job.index: [
            make_line(utterance, target, text, evidence, corpus)
            for target, (text, evidence) in zip(job.targets, row, strict=True)
        ]
        for job, utterance, row in zip(batch, utterances, rows, strict=True)
    }


class BatchDecoder:
    """A model with its options and a voice activity detector, applied to batches of utterances.

    An utterance goes the way that `translate` goes (`sprachbund.decoding.pipeline`); only that it is cut already, and
    that the evidence is kept of text that the guard drops.

    Args:
        model: any family.
        options: decoding options.
        unidentified: language in which speech is transcribed whose language the model cannot identify; None makes that
            an error.

    Raises:
        SprachbundError: an option that the model cannot serve.
    """

    def __init__(self, model: Family, options: DecodingOptions, *, unidentified: str | None = None) -> None:
        check_options(model, options)
        self._model, self._unidentified = model, unidentified
        self._options, self._drafts = options_with_drafts(model, options)
        self._activity = VoiceActivity()

    def decode(
        self, sounds: Sequence[np.ndarray], targets: Sequence[Sequence[str]], sources: Sequence[str | None]
    ) -> list[list[tuple[str, DecodingEvidence]]]:
        """Text before the guard, and evidence, for every sound (B) and each of its targets (n, the same for all).

        Args:
            sounds: 16 kHz mono float32, each (num_samples,).
            targets: B lists of n languages; an empty language means the one identified, that is
                transcription.
            sources: the language of each; None identifies it.

        Raises:
            SprachbundError: for what the model cannot be asked.
        """
        spans = [self._span(*one) for one in zip(sounds, targets, sources, strict=True)]
        encoded = encode_spans(self._model, spans, identify_all=True)
        decoded = heard_again(self._model, spans, decode_spans(self._model, spans, encoded))
        for span in spans:
            if span.recording.error is not None:
                raise span.recording.error
        routes = _routes(self._model, encoded.memory, len(spans))
        return [
            [_with_evidence(one, span.span, heard, routed) for one in row]
            for row, span, heard, routed in zip(decoded, spans, encoded.identified, routes, strict=True)
        ]

    def _span(self, samples: np.ndarray, targets: Sequence[str], source: str | None) -> RecordedSpan:
        """An utterance as a recording of one span, which covers it whole."""
        allowed = self._options.allowed_languages
        request = Request(source=source, targets=tuple(t or TRANSCRIBE for t in targets), allowed=allowed)
        recording = recording_state(
            self._model, request, self._options, self._drafts, unidentified=self._unidentified
        )
        span = whole_span(samples, self._options.spans, self._activity)
        return RecordedSpan(recording=recording, span=span, samples=samples)


def _with_evidence(
    decoded: DecodedSpan, span: Span, heard: IdentifiedLanguage | None, routes: tuple[RoutedSpan, ...]
) -> tuple[str, DecodingEvidence]:
    """The utterance's text as `translate` joins its segments, with what decoding says of it."""
    kept = [segment for segment in decoded.segments if segment.dropped is None]
    text = one_line(joined_text(decoded.segments))
    in_part = 0 < len(kept) < len(decoded.segments)
    hypothesis, no_speech = decoded.hypothesis, decoded.segments[0].no_speech_probability
    doubt = decoded.segments[0].out_of_domain
    language = None if heard is None or heard.language == UNDETERMINED else heard.language
    return text, DecodingEvidence(
        dropped=None if kept else decoded.segments[0].dropped,
        kept=one_line(joined_text(kept)) if in_part else None,
        finished=hypothesis is None or hypothesis.finished,
        num_tokens=0 if hypothesis is None else len(hypothesis.tokens),
        mean_log_probability=0.0 if hypothesis is None else round(hypothesis.mean_log_probability, 4),
        speech_probability=round(span.speech_probability, 4),
        no_speech_probability=None if no_speech is None else round(no_speech, 4),
        out_of_domain=None if doubt is None else round(doubt, 4),
        compression_ratio=round(compression_ratio(text), 4),
        repetition=round(repetition(text), 4),
        language=language,
        routes=routes,
    )


NO_SPEECH = "no-speech"


def num_no_speech(options: EvaluationOptions) -> int:
    """Sounds in the no-speech set."""
    return len(KINDS) * options.no_speech_per_kind


def translate_no_speech(
    model: Family, options: EvaluationOptions, some: slice = slice(None)
) -> Iterator[Line]:
    """Decode the no-speech set into every target language, or, where the model hears a language from which it
    does not know them all, into that language.

    Args:
        model: decodes.
        options: options of the evaluation.
        some: slice of the sounds; whole batches, so that the lines are those of the whole set.

    Raises:
        UnknownLanguageError: for targets that the model does not write.
    """
    if not options.no_speech_per_kind:
        return
    # A model that cannot identify languages is measured all the same: it writes the first one that it hears.
    decoder = BatchDecoder(model, options.decoding, unidentified=model.source_languages[0])
    known = {target for _, target in model.pairs()}
    everywhere = all((s, t) in model.pairs() for s in model.source_languages for t in known)
    wanted = {parse_language(target, known) for target in options.targets or known}
    targets = tuple(sorted(wanted)) if everywhere else ("",)
    sounds = no_speech_set(options.seed, options.no_speech_per_kind)[some]
    for start in range(0, len(sounds), options.batch_size):
        batch = sounds[start : start + options.batch_size]
        window = [sound.samples[: int(model.max_window_s * SAMPLE_RATE)] for sound in batch]
        hypotheses = decoder.decode(window, [targets] * len(batch), [None] * len(batch))
        for sound, row in zip(batch, hypotheses, strict=True):
            for target, (text, evidence) in zip(targets, row, strict=True):
                yield _no_speech_line(sound, target or evidence.language or "und", text, evidence)


def _no_speech_line(sound: Sound, target: str, text: str, evidence: DecodingEvidence) -> Line:
    return Line(
        id=sound.id,
        source="",
        target=target,
        hypothesis=text,
        reference="",
        evidence=evidence,
        corpus=NO_SPEECH,
        kind=sound.kind,
        duration_s=round(sound.duration_s, 4),
    )


def make_line(utterance: Utterance, target: str, text: str, evidence: DecodingEvidence, corpus: str) -> Line:
    """The line of one utterance in one target language.

    Args:
        utterance: utterance of the corpus, with its references.
        target: BCP-47 tag of the output.
        text: the hypothesis.
        evidence: evidence of the decoding.
        corpus: name of the corpus.
    """
    return Line(
        id=utterance.id,
        source=utterance.language,
        target=target,
        hypothesis=text,
        reference=one_line(utterance.text_in(target) or ""),
        evidence=evidence,
        corpus=corpus,
        kind=str(utterance.custom.get("kind") or ""),
        speaker=utterance.speaker,
        duration_s=round(utterance.duration_s, 4),
        transcript=one_line(utterance.text),
        switched=is_code_switched(utterance),
        embedded=embedded_spans(utterance, target),
        spoken=spoken_spans(utterance),
    )


def corpus_name(directory: Path) -> str:
    """Name in a corpus directory's `dataset.json`; the directory's own where there is none."""
    return str(corpus_info(directory).get("name") or directory.name)


def one_line(text: str) -> str:
    """Text on one line, so that files of one text per line keep their count."""
    return " ".join(text.split())


def _spoken_in(manifest: Utterances, sources: Sequence[str] | None) -> Sequence[int]:
    """Indices of the utterances in these languages."""
    if sources is None:
        return range(len(manifest))
    held = [tag for tag in manifest.spoken if tag]
    try:
        wanted = {parse_language(source, held) for source in sources}
    except UnknownLanguageError:
        raise UnknownLanguageError(
            f"{manifest.directory} holds speech in {described(held)}, not in all of {', '.join(sources)}; choose "
            "other languages with --from"
        ) from None
    return [index for index, tag in enumerate(manifest.languages.tolist()) if tag in wanted]


def _spread(count: int, limit: int | None) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise SprachbundError(f"limit is {limit}; give at least 1")
    return [round(i * (count - 1) / max(1, limit - 1)) for i in range(limit)]


def _routes(model: Family, memory: Memory, count: int) -> list[tuple[RoutedSpan, ...]]:
    """Languages and times that a router chose for each of `count` utterances; empty in families without one."""
    if (experts := model.capabilities.experts) is None:
        return [()] * count
    return [joined(stretches) for stretches in experts.routes(memory)]


def _stretches(plan: Plan, batch_size: int) -> Iterator[Sequence[DecodingJob]]:
    """Neighbours in the corpus, whose batches are sorted by length together."""
    stretch = batch_size * _STRETCH_BATCHES
    for start in range(0, len(plan.jobs), stretch):
        yield plan.jobs[start : start + stretch]


def _batches(jobs: Sequence[DecodingJob], batch_size: int) -> Iterator[list[DecodingJob]]:
    """Jobs of like length together; a batch asks for the same number of targets throughout."""
    ordered = sorted(jobs, key=lambda job: (len(job.targets), job.duration_s, job.index))
    for _, same in groupby(ordered, key=lambda job: len(job.targets)):
        group = list(same)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _nothing_left(
    model: Family, manifest: Utterances, spoken: Iterable[str], plan: Plan, wanted: Sequence[str]
) -> SprachbundError:
    """The error of a plan without jobs, of utterances in `spoken` that the model's window has room for."""
    held, heard = set(spoken), set(model.source_languages)
    if held and held.isdisjoint(heard):
        return UnknownLanguageError(
            f"{manifest.directory}: the speech is in {described(held)}, and the model hears {described(heard)}; choose "
            "a model that hears it"
        )
    asked = ", ".join(wanted) or "any language"
    unknown = ", ".join(f"{s} to {t}" for s, t in sorted(plan.unknown_pairs)) or "none"
    return SprachbundError(
        f"{manifest.directory}: nothing to evaluate into {asked}: {plan.without_reference.total()} references missing, "
        f"{plan.too_long} utterances longer than {model.max_window_s:g} s, pairs the model does not know: {unknown}; "
        "choose other languages with --to"
    )
