"""Many live sessions on one model: the stretches due in all of them are decoded in one batch.

An attempt at a stretch of speech is the same work whether the stretch has ended or not; only how much of it may be
committed differs. A stretch that has ended with nothing committed is decoded exactly as in a recording.

Speech without a pause is cut where all languages have been written (`trim`), so the cost of an attempt is bounded by
`LiveOptions.max_open_s`, however long a speaker goes on.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.span_options import SpanOptions
from sprachbund.audio.spans import VoiceActivity
from sprachbund.decoding.encoding import EncodedBatch, LanguageQuery, encode, encode_and_identify
from sprachbund.decoding.languages import Request, read_request
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions, check_options
from sprachbund.decoding.pipeline import (
    UtteranceRows,
    WrittenRow,
    decode_spans,
    search_key,
    with_searches,
    write_rows,
)
from sprachbund.decoding.recordings import (
    RecordedSpan,
    check_targets,
    known_targets,
    make_target,
    options_with_drafts,
    recording_state,
    tracker_for,
)
from sprachbund.decoding.result import SpeculationReport
from sprachbund.decoding.segments import DecodedSpan
from sprachbund.decoding.words import align, attended_s, split_words
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.calibration import turn_states
from sprachbund.streaming.by_frames import TokenWriter, TransducerWriter
from sprachbund.streaming.cascade import CascadeWriter
from sprachbund.streaming.events import LiveEvent, LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.session import LiveSession, live_spans
from sprachbund.streaming.writing import (
    PendingStretch,
    StretchRow,
    end_text,
    lost_text,
    policies_of,
    recorded_text,
    unfinished_text,
    unknown_pair,
    words_behind,
    write,
)
from sprachbund.util.arrays import Samples
from sprachbund.util.options import OptionValueError

# Cutting long speech.

_KEPT_S = 1.0
"""The newest audio is never cut off, because its words may not be complete."""


def trim(
    family: Family, memory: Memory, job: PendingStretch, rows: list[StretchRow]
) -> list[tuple[StretchRow, LiveText | None]]:
    """Cut the stretch behind its committed text.

    In a language with less than half of the audio written, the words of the first half are committed as they are;
    otherwise a language whose attempts never agree would keep all of the audio.

    Args:
        family: the model.
        memory: memory of the stretch alone.
        job: the stretch, attempted and written.
        rows: rows of its targets, as they were before `unfinished_text` moved the prefixes.

    Returns:
        The rows, each with the text committed for the cut.
    """
    duration_s = job.stretch.duration_s
    tokens = [[*row.asked.prefix, *row.hypothesis.tokens] for row in rows]
    asked = [replace(row.asked, prefix=()) for row in rows]
    aligned = align(family, memory, [asked], [tokens], [duration_s])[0]
    out: list[tuple[StretchRow, LiveText | None]] = []
    ends_s = []
    for row, whole, times in zip(rows, tokens, aligned, strict=True):
        line = job.stretch.lines[row.target]
        out.append((row, _commit_half(family, job, row, whole, times.starts_s)))
        written = len(line.prefix)
        ends_s.append(times.starts_s[written] if written < len(whole) else duration_s)
    cut_s = min(max(min(ends_s), duration_s / 2 - _KEPT_S), duration_s - _KEPT_S)
    for row, times in zip(rows, aligned, strict=True):
        line = job.stretch.lines[row.target]
        line.prefix = line.prefix[
            _num_before(family, line.prefix, times.starts_s, cut_s, row.asked.language) :
        ]
    job.session.cut(job.stretch, cut_s)
    return out


def _commit_half(
    family: Family, job: PendingStretch, row: StretchRow, tokens: Sequence[int], starts_s: Sequence[float]
) -> LiveText | None:
    """Commit the words that begin in the first half, where the attempt has any and the guard keeps them."""
    line, half_s = job.stretch.lines[row.target], job.stretch.duration_s / 2
    if not (line.attempts and line.attempts[-1]):
        return None
    rest = tokens[len(line.prefix) :]
    words, token, num_words = words_behind(family, line.prefix, rest, row.asked.language), len(line.prefix), 0
    for _, count in words:
        if starts_s[token] >= half_s:
            break
        token, num_words = token + count, num_words + 1
    return write(family, job, row, rest, words, num_words)


def _num_before(
    family: Family, tokens: Sequence[int], starts_s: Sequence[float], cut_s: float, language: str
) -> int:
    """Number of tokens of words that begin before the cut."""
    token = 0
    for _, count in split_words(family, list(tokens), language):
        if starts_s[token] >= cut_s:
            break
        token += count
    return token


# Ends of turns.


def finished_probabilities(
    family: Family,
    samples: Sequence[Samples],
    languages: Sequence[str | None],
    allowed: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """The probability (B,) that a speaker has finished, and does not only pause.

    Args:
        family: calibrated for it, see `sprachbund.models.calibration`.
        samples: samples of the speech up to the pause, each (N,) at 16 kHz.
        languages: (B,) spoken, in the model's tags; None where not known.
        allowed: (B,) languages that may be spoken; None where any may.

    Raises:
        SprachbundError: it was calibrated for another width.
    """
    assert family.calibration.turns is not None
    memory = encode(family, family.features(samples), languages, allowed)
    durations_s = [len(one) / SAMPLE_RATE for one in samples]
    states = turn_states(memory.states, memory.num_frames, durations_s, family.frame_s)
    return family.calibration.turns.probabilities(states)


# The engine.

_LEAST_ROOM = 8
"""Tokens that have to fit behind a prefix."""


@dataclass(frozen=True, kw_only=True)
class _EncodedJobs:
    """A batch of stretches after the encoder."""

    jobs: list[PendingStretch]
    memory: Memory

    def select(self, rows: list[int]) -> "_EncodedJobs":
        index = torch.tensor(rows, device=self.memory.states.device)
        return _EncodedJobs(jobs=[self.jobs[b] for b in rows], memory=self.memory.select(index))


def writer_by_frames(family: Family, max_symbols: int | None = None) -> TransducerWriter | TokenWriter | None:
    """The writer of live text of a family that writes frame by frame; None of others.

    Args:
        family: the model.
        max_symbols: most tokens of a transducer at one frame; those of the model if None.
    """
    able = family.capabilities
    if able.streaming is not None:
        return TransducerWriter(family, able.streaming, max_symbols=max_symbols)
    return None if able.frame_decoder is None else TokenWriter(family, able.frame_decoder)


def _check_writes_live(options: DecodingOptions, *, cascade: bool) -> None:
    """Refuse options of recordings that live text has no place for.

    Args:
        options: options of the searches.
        cascade: whether the model is one.

    Raises:
        OptionValueError: the option, and why.
    """
    refused = {
        "digits": (
            options.digits,
            "live text is not written in digits: what stands already cannot become part of a number",
        ),
        "punctuate": (
            options.punctuate is not None,
            "live text gets no punctuation: what stands already cannot get a capital or lose its full stop when more "
            "is said",
        ),
        "temperature": (
            options.temperature != (0.0,),
            "live text is searched at temperature 0, so that attempts can agree",
        ),
        "tempos": (bool(options.tempos), "live text is heard at its own tempo"),
        "nbest": (options.nbest > 1 and not cascade, "live text has one reading"),
    }
    for name, (there, why) in refused.items():
        if there:
            raise OptionValueError(
                name,
                vars(options)[name],
                "leave it out, or translate the recording afterwards",
                reason=f"and {why}",
            )


def _check_by_frames(name: str, decoding: DecodingOptions, spans: SpanOptions) -> None:
    """Refuse options that change nothing in live text that is written frame by frame.

    That the guard is off is no such option: what it asks for is so.

    Args:
        name: name of the model.
        decoding: options of the searches.
        spans: thresholds and lengths of stretches of speech.

    Raises:
        OptionValueError: the option, and why.
    """
    writes = f"and the model {name} writes frame by frame,"
    asked = [
        (option, value, f"{writes} so that its text stands before the guard could keep it back")
        for option, value in vars(decoding.guard).items()
        if option != "enabled" and value != vars(GuardOptions())[option]
    ]
    if spans.max_span_s != SpanOptions.max_span_s:
        asked.append(("max_span_s", spans.max_span_s, f"{writes} in stretches that pauses alone end"))
    if decoding.language_windows != DecodingOptions.language_windows:
        alone = f"{writes} and identifies the language of each stretch by itself"
        asked.append(("language_windows", decoding.language_windows, alone))
    for option, value, why in asked:
        raise OptionValueError(option, value, 'leave it out, or take the policy "span"', reason=why)


class LiveEngine:
    """Decodes for any number of sessions; not for several threads at once.

    Attributes:
        model: shared by all sessions.
        decoding: options of the searches.
        notes: faults of the draft asked for.
    """

    def __init__(
        self,
        model: Family,
        decoding: DecodingOptions | None = None,
        *,
        activity: VoiceActivity | None = None,
    ) -> None:
        self.model = model
        options = decoding or DecodingOptions()
        check_options(model, options)
        _check_writes_live(options, cascade=model.capabilities.translator is not None)
        self.decoding, self._drafts = options_with_drafts(model, options)
        self.notes = [*self._drafts.faults]
        self._activity = activity or VoiceActivity()
        self._turn = 0
        self._writer = writer_by_frames(model, options.max_symbols)
        translator = model.capabilities.translator
        self._cascade = None if translator is None else CascadeWriter(translator, options)

    def open(
        self,
        targets: Sequence[str],
        source: str | None = None,
        options: LiveOptions | None = None,
        allowed_languages: Sequence[str] | None = None,
        *,
        spans: SpanOptions | None = None,
        prompt: str | None = None,
        word_timestamps: bool | None = None,
        glossary: str | None = None,
        hot_words: Sequence[str] | None = None,
        hot_words_weight: float | None = None,
    ) -> LiveSession:
        """A new session.

        Args:
            targets: languages wanted, as tags or names; "transcribe" is the language spoken.
            source: the language spoken; None identifies it stretch by stretch.
            options: options of live translation.
            allowed_languages: languages that are identified; by default those of the decoding options.
            spans: thresholds and lengths of stretches of speech; those of the decoding options by default.
            prompt: context or glossary; by default that of the decoding options.
            word_timestamps: whether events have the words that they commit; by default as the decoding options say.
            glossary: terms and their translations; by default that of the decoding options.
            hot_words: words that the search prefers; by default those of the decoding options.
            hot_words_weight: bonus of each of their tokens; by default that of the decoding options.

        Raises:
            SprachbundError: languages or pairs that the model does not know, or a prompt, a glossary, hot words, words
                with times, thresholds of the guard, a longest span or ends of sentences, where it has none.
        """
        allowed = self.decoding.allowed_languages if allowed_languages is None else allowed_languages
        request = read_request(self.model, source=source, targets=targets, allowed=allowed)
        tracker = tracker_for(self.model, request, self.decoding)
        options = self._settled(options or LiveOptions(), request)
        window_s = None if options.policy == "frames" else self.model.max_window_s
        cut = live_spans(spans or self.decoding.spans, window_s)
        if options.pause_s is not None:
            cut = replace(cut, min_silence_s=options.pause_s)
        if options.turn_end == "sentence" and options.max_pause_s < cut.min_silence_s:
            raise OptionValueError(
                "max_pause_s",
                options.max_pause_s,
                "give at least as much",
                reason=f"and a pause begins to count at {cut.min_silence_s:g} s",
            )
        if options.policy == "frames":
            _check_by_frames(self.model.name, self.decoding, spans or self.decoding.spans)
        lead_s = self._writer.lead_s if self._writer is not None and options.policy == "frames" else 0.0
        own = self.decoding
        words = own.hot_words if hot_words is None else tuple(hot_words) or None
        if hot_words_weight is None:  # a session that has none of the words has none of their weight
            hot_words_weight = own.hot_words_weight if words else DecodingOptions.hot_words_weight
        decoding = replace(
            own,
            prompt=own.prompt if prompt is None else prompt or None,
            word_timestamps=own.word_timestamps if word_timestamps is None else word_timestamps,
            glossary=own.glossary if glossary is None else glossary or None,
            hot_words=words,
            hot_words_weight=hot_words_weight,
        )
        check_options(self.model, decoding)
        # The engine's other options may be for sessions that translate.
        check_targets(
            self.model, request.targets, request.source, DecodingOptions(glossary=decoding.glossary)
        )
        if decoding.hot_words and options.policy == "frames":
            raise SprachbundError(
                f"the model {self.model.name} writes while somebody speaks, and takes no hot words then; leave them "
                'out, or take the policy "span"'
            )
        if decoding.max_tokens is not None and options.policy == "frames":
            raise OptionValueError(
                "max_tokens",
                decoding.max_tokens,
                'leave it out, or take the policy "span"',
                reason=f"and the model {self.model.name} writes as long as somebody speaks",
            )
        if decoding.word_timestamps and options.policy == "frames":
            raise OptionValueError(
                "word_timestamps",
                True,
                'leave it out, or take the policy "span"',
                reason=f"and the model {self.model.name} writes frame by frame, before words have ended, and gives "
                "them no times then",
            )
        if decoding.word_timestamps and options.commits and self._cascade is not None:
            raise OptionValueError(
                "word_timestamps",
                True,
                'leave it out, or take the policy "retranslation"',
                reason=f"and the policy {options.policy} commits text of a cascade before its words have times",
            )
        return LiveSession(request, options, cut, tracker, self._activity, decoding, lead_s=lead_s)

    def _settled(self, options: LiveOptions, request: Request) -> LiveOptions:
        """The options with the policy that "auto" means for the model; refuses policies it cannot work by."""
        fitting = policies_of(self.model)
        policy = fitting[0] if options.policy == "auto" else options.policy
        if policy not in fitting:
            raise SprachbundError(
                f"the policy {policy} is not for the model {self.model.name}; choose from auto, {', '.join(fitting)}"
            )
        options.check_used(policy, cascade=self._cascade is not None)
        options = replace(options, policy=policy)
        turns = self.model.calibration.turns
        if options.turn_end == "auto":
            options = replace(options, turn_end="pause" if turns is None else "sentence")
        if options.turn_end == "sentence" and turns is None:
            raise OptionValueError(
                "turn_end",
                options.turn_end,
                "let pauses end turns, or calibrate the model with `sprachbund calibrate --turns`",
                reason=f"and the model {self.model.name} was not calibrated for the ends of sentences",
            )
        if self._writer is None or policy != "frames":
            return options
        if self.decoding.beam_size > 1:
            raise OptionValueError(
                "beam_size",
                self.decoding.beam_size,
                'give 1, or the policy "span"',
                reason=f"and live text of {self.model.name} frame by frame is greedy",
            )
        if TRANSCRIBE in request.targets:
            raise SprachbundError(
                "a model that writes frame by frame has to know the language from the start; "
                "in place of 'transcribe' name the language spoken"
            )
        return replace(options, step_s=self._writer.step_s(options))

    def cascade_report(self) -> tuple[SpeculationReport, ...]:
        """Draft tokens of the translator of a cascade that were accepted so far; see `CascadeWriter`."""
        return () if self._cascade is None else self._cascade.report()

    @torch.inference_mode()
    def step(self, sessions: Sequence[LiveSession]) -> list[list[LiveEvent]]:
        """Decode the stretches due in each session, at most `decoding.batch_size` in all.

        Returns:
            One list of events per session, in order.
        """
        self._answer_pauses(sessions)
        events: list[list[LiveEvent]] = [
            [*lost_text(session), *session.take_notices()] for session in sessions
        ]
        jobs = self._take(sessions)
        jobs = [job for job in jobs if job.session.error is None]
        written, ends = self._written(jobs), defaultdict[int, list[LiveText]](list)
        for job, text in written:
            if text.final:
                ends[job.index].append(text)
        for index, texts in ends.items():
            sessions[index].note_understanding(self.model, texts)
        for session, own in zip(sessions, events, strict=True):
            own += session.take_notices()  # a warning comes before the text that ends the speech it counts
        for job, text in written:
            events[job.index].append(text)
        return events

    def _answer_pauses(self, sessions: Sequence[LiveSession]) -> None:
        """Let the model decide for the sessions at a pause whether their speakers have finished.

        An answer may end a stretch, which is then written in the same step, or let the sound behind the pause in.
        """
        asked = [(session, stretch) for session in sessions if (stretch := session.paused) is not None]
        for begin in range(0, len(asked), self.decoding.batch_size):
            batch = asked[begin : begin + self.decoding.batch_size]
            probabilities = finished_probabilities(
                self.model,
                [stretch.samples for _, stretch in batch],
                [stretch.language.language if stretch.language else one.source for one, stretch in batch],
                [session.request.allowed for session, _ in batch],
            )
            for (session, _), probability in zip(batch, probabilities, strict=True):
                session.answer_pause(probability)

    def _written(self, jobs: list[PendingStretch]) -> list[tuple[PendingStretch, LiveText]]:
        """The texts of the jobs, in their order."""
        streaming = [job for job in jobs if job.options.policy == "frames"]
        attempted = [job for job in jobs if job.options.policy != "frames"]
        out: list[tuple[PendingStretch, LiveText]] = []
        if streaming and self._writer is not None:
            out += self._writer.write(streaming)
        if attempted:
            encoded = self._encode(attempted)
            cascade = self._cascade is not None
            if cascade:
                out += self._by_cascade(attempted, encoded)
            else:
                out += self._by_attempts(attempted, encoded.memory)
        return out

    def _take(self, sessions: Sequence[LiveSession]) -> list[PendingStretch]:
        """The oldest of every session, then the next of every session, beginning with another one each time."""
        num_sessions = len(sessions)
        order = [(self._turn + i) % num_sessions for i in range(num_sessions)]
        self._turn += 1
        due = {index: sessions[index].take_due() for index in order}
        turns = zip_longest(*due.values())
        queue = [
            PendingStretch(index=index, session=sessions[index], stretch=stretch)
            for turn in turns
            for index, stretch in zip(order, turn, strict=True)
            if stretch is not None
        ]
        size = self.decoding.batch_size
        for index in order:
            sessions[index].put_back([job.stretch for job in queue[size:] if job.index == index])
        return queue[:size]

    def _encode(self, jobs: list[PendingStretch]) -> EncodedBatch:
        """Run the encoder, and identify the languages spoken."""
        features = self.model.features([job.stretch.samples for job in jobs])
        queries = [
            LanguageQuery(
                known=job.known_language,
                allowed=job.session.request.allowed,
                tracker=job.session.tracker,
                ended=job.stretch.closed,
            )
            for job in jobs
        ]
        encoded = encode_and_identify(self.model, features, queries, [j.stretch.duration_s for j in jobs])
        each = zip(jobs, encoded.languages, encoded.log_probs, encoded.mixed, strict=True)
        for job, language, log_probs, mixed in each:
            job.language, job.language_probs, job.mixed = language, log_probs, mixed
        return encoded

    def _by_cascade(
        self, jobs: list[PendingStretch], encoded: EncodedBatch
    ) -> list[tuple[PendingStretch, LiveText]]:
        """The texts of every stretch by a cascade; one that has ended with nothing committed is as recorded."""
        assert self._cascade is not None
        whole, rest = list[PendingStretch](), list[PendingStretch]()
        for job in jobs:
            if job.stretch.closed and job.stretch.untouched:
                whole.append(job)
            elif self._find_targets(job):
                rest.append(job)
        index = {id(job): b for b, job in enumerate(jobs)}

        def decoded(own: list[PendingStretch], *, transcribed: bool) -> list[list[DecodedSpan]]:
            spans = [self._span(job, transcribed=transcribed) for job in own]
            rows = decode_spans(self.model, spans, encoded.select([index[id(job)] for job in own]))
            for job, span in zip(own, spans, strict=True):
                if span.recording.error is not None:
                    _fail([job], span.recording.error)
            return rows

        texts: dict[int, list[LiveText]] = {id(job): [] for job in jobs}
        for job, targets in zip(whole, decoded(whole, transcribed=False), strict=True):
            job.stretch.attempted_s = job.stretch.span.end_s
            texts[id(job)] += [recorded_text(job, one.target, one.segments) for one in targets]
        heard = [(job, row[0]) for job, row in zip(rest, decoded(rest, transcribed=True), strict=True) if row]
        for job, _ in heard:
            if job.stretch.closed:
                unknown = [target for target in job.session.targets if target not in job.targets]
                texts[id(job)] += [unknown_pair(job, target) for target in unknown]
        try:
            written = self._cascade.write([job for job, _ in heard], [row for _, row in heard])
        except SprachbundError as error:
            written = []
            _fail([job for job, _ in heard], error)
        for job, text in written:
            texts[id(job)].append(text)
        return [(job, text) for job in jobs for text in texts[id(job)]]

    def _span(self, job: PendingStretch, *, transcribed: bool) -> RecordedSpan:
        """A stretch as a span of a recording; `transcribed` asks for what is said alone."""
        session = job.session
        request = replace(session.request, targets=(TRANSCRIBE,)) if transcribed else session.request
        recording = recording_state(
            self.model,
            request,
            session.decoding,
            self._drafts,
            tracker=session.tracker,
            latest=session.latest,
        )
        return RecordedSpan(
            recording=recording,
            span=job.stretch.span,
            samples=job.stretch.samples,
            ended=job.stretch.closed,
        )

    def _by_attempts(
        self, jobs: list[PendingStretch], memory: Memory
    ) -> list[tuple[PendingStretch, LiveText]]:
        """The texts of every stretch, in order of the stretches."""
        encoded = _EncodedJobs(jobs=jobs, memory=memory)
        written: dict[tuple[int, str], list[LiveText]] = defaultdict(list)
        groups: dict[Hashable, list[int]] = {}
        for b, job in enumerate(encoded.jobs):
            if not self._find_targets(job):
                continue
            for target in job.session.targets:
                if target not in job.targets and job.stretch.closed:
                    written[b, target].append(unknown_pair(job, target))
            if job.targets:
                key = search_key(len(job.targets), job.session.decoding, self._drafts)
                groups.setdefault(key, []).append(b)
        for indices in groups.values():
            try:
                texts = self._write(encoded.select(indices))
            except SprachbundError as error:  # such as a prompt that leaves no room for text
                _fail([encoded.jobs[b] for b in indices], error)
                continue
            for row, text in texts:
                if text is not None:
                    written[indices[row.batch_index], row.target].append(text)
        order = [(b, t) for b, job in enumerate(encoded.jobs) for t in job.session.targets]
        return [(encoded.jobs[b], text) for b, target in order for text in written.get((b, target), ())]

    def _find_targets(self, job: PendingStretch) -> bool:
        """Set the targets that the model knows; False where the session cannot go on without a language."""
        try:
            job.targets = list(known_targets(self.model, job.session.request, job.language.language))
        except SprachbundError as error:
            _fail([job], error)
            return False
        return True

    def _write(self, encoded: _EncodedJobs) -> list[tuple[StretchRow, LiveText | None]]:
        """Attempts at stretches that one search can decode together."""
        rows = self._attempts(encoded)
        out: list[tuple[StretchRow, LiveText | None]] = []
        for b, group in enumerate(rows):
            job = encoded.jobs[b]
            if job.stretch.closed:
                out += [(row, end_text(self.model, job, row)) for row in group]
                continue
            texts = [unfinished_text(self.model, job, row) for row in group]
            out += zip(group, texts, strict=True)
            job.stretch.attempted_s = job.stretch.span.end_s
            job.settle_language()
            if job.must_be_cut(min(self._room(row.asked) for row in group)):
                out += trim(self.model, encoded.select([b]).memory, job, group)
        return out

    def _attempts(self, encoded: _EncodedJobs) -> list[list[StretchRow]]:
        """Decode behind what is committed: rows of every stretch and target."""
        wanted = [
            UtteranceRows(
                names=job.targets,
                targets=[self._target(job, target) for target in job.targets],
                source=job.language.language,
                duration_s=job.stretch.duration_s,
                latest=job.session.latest,
                ended=job.stretch.closed,
            )
            for job in encoded.jobs
        ]
        decoding = encoded.jobs[0].session.decoding
        rows = with_searches(write_rows(self.model, encoded.memory, wanted, decoding, self._drafts.own))
        looks = self._looks(encoded, rows)
        return [
            [
                StretchRow(
                    batch_index=b,
                    target=row.name,
                    asked=row.target,
                    hypothesis=row.hypothesis,
                    looks_at_s=looks_at_s,
                    doubt=row.doubt,
                    aligned=row.aligned,
                )
                for row, looks_at_s in zip(rows[b], looks[b], strict=True)
            ]
            for b in range(len(rows))
        ]

    def _target(self, job: PendingStretch, target: str) -> Target:
        source, line = job.language.language, job.stretch.lines[target]
        language = job.session.request.target_language(target, source)
        asked = make_target(self.model, job.session.decoding, language, source)
        if not (job.stretch.closed and job.stretch.untouched):
            asked = replace(
                asked, timestamps=False
            )  # text that stands already, or may yet, is not cut by times
        room = self._room(asked)
        if len(line.prefix) > room - _LEAST_ROOM:  # whoever speaks this fast loses the model some context
            line.prefix = line.prefix[-(room // 2) :]
        return replace(asked, prefix=line.prefix)

    def _room(self, asked: Target) -> int:
        """Tokens of text that fit into a row."""
        return self.model.max_tokens - len(self.model.prompt(replace(asked, prefix=())))

    def _looks(
        self, encoded: _EncodedJobs, rows: Sequence[Sequence[WrittenRow]]
    ) -> list[list[tuple[float, ...]]]:
        """The second of the audio that tokens attend to, for sessions whose policy needs it."""
        looks: list[list[tuple[float, ...]]] = [[()] * len(own) for own in rows]
        indices = [
            b
            for b, job in enumerate(encoded.jobs)
            if not job.stretch.closed and job.options.policy == "alignatt"
        ]
        if indices:
            seen = attended_s(
                self.model,
                encoded.select(indices).memory,
                [[row.target for row in rows[b]] for b in indices],
                [[row.hypothesis.tokens for row in rows[b]] for b in indices],
                [encoded.jobs[b].stretch.duration_s for b in indices],
            )
            for b, own in zip(indices, seen, strict=True):
                looks[b] = own
        return looks


def _fail(jobs: Sequence[PendingStretch], error: SprachbundError) -> None:
    """End the sessions of stretches, each once: another stretch of the session may have said it already."""
    for job in jobs:
        if job.session.error is None:
            job.session.fail(str(error))
