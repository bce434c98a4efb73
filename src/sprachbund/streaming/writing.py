"""From attempts at a stretch to its events: text that is committed, text that is shown, text that the guard drops.

Every policy is one function: it is given the words of the newest attempt behind the committed text, and returns how
many of them to commit. Words, not tokens: half a word cannot be taken back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import Protocol

from torch import Tensor

from sprachbund.decoding.guard import drop_reason, max_out_of_domain
from sprachbund.decoding.languages import UNDETERMINED, IdentifiedLanguage
from sprachbund.decoding.recordings import given_language
from sprachbund.decoding.result import LanguageSpan, Segment, Word, joined_text
from sprachbund.decoding.segments import SpanContext, cut_row, spans_within
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.words import AlignedTokens, split_words, timed_words
from sprachbund.models.base import Family, Target
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.session import CaptionLine, LiveSession, Stretch
from sprachbund.text.languages import text_units, writes_spaces

# Policies.


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The output of the model for the speech heard so far, behind the committed text.

    Attributes:
        words: each with its number of tokens.
        ended: whether the model ended its text by itself.
        looks_at: for every token the second of the audio that it attends to, or the word of the transcript; empty for
            policies without need of it.
        newest: position from which on a token's attention may still change, in the unit of `looks_at`.
        steps: whole steps of the stretch heard.
        num_written: words committed before, over the whole stretch; characters, where a language has no spaces.
    """

    words: Sequence[tuple[str, int]]
    ended: bool
    looks_at: Sequence[float] = ()
    newest: float
    steps: int
    num_written: int

    @property
    def num_whole(self) -> int:
        """Words that cannot grow any more: the last may, unless the text has ended."""
        return len(self.words) if self.ended else max(0, len(self.words) - 1)


class PolicyFunction(Protocol):
    """A function that decides how many words are committed."""

    def __call__(self, attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
        """The number of words to commit.

        Args:
            attempt: the newest.
            line: the text so far, with the attempts before.
            options: options of the session.
        """
        ...


def local_agreement(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
    """Words that this attempt and those before agree on (arXiv 2005.11185).

    Arguments are those of `PolicyFunction`.
    """
    before = line.attempts[-(options.agreement - 1) :]
    if len(before) < options.agreement - 1:
        return 0
    return num_agreed([*before, [word for word, _ in attempt.words]])


def alignatt(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
    """Words before the first token that attends to the newest audio (arXiv 2305.11408, section 2), or newest words.

    Arguments are those of `PolicyFunction`.
    """
    token = 0
    for index, (_, count) in enumerate(attempt.words[: attempt.num_whole]):
        if any(looked >= attempt.newest for looked in attempt.looks_at[token : token + count]):
            return index
        token += count
    return attempt.num_whole


def wait_k(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
    """One word for every step heard, `wait_k` - 1 steps behind (arXiv 1810.08398, equation 6).

    In a language without spaces it is one character; the rest of a longer piece of text is waited for afterwards.

    Arguments are those of `PolicyFunction`.
    """
    allowed = max(0, attempt.steps - options.wait_k + 1)
    return min(attempt.num_whole, max(0, allowed - attempt.num_written))


def nothing(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
    """None: all text stays tentative until the stretch has ended (arXiv 1912.03393).

    Arguments are those of `PolicyFunction`.
    """
    return 0


POLICY_FUNCTIONS: Mapping[str, PolicyFunction] = {
    "local-agreement": local_agreement,
    "alignatt": alignatt,
    "wait-k": wait_k,
    "retranslation": nothing,
}


def policies_of(family: Family) -> tuple[Policy, ...]:
    """The policies that a family can work by; "auto" means the first.

    Where text is committed before its speech has ended, the audio is cut behind it, at the times of its words. So a
    family without alignment, or that cannot continue a text, commits nothing before. A cascade commits text of its
    translator, which has to continue a text, and for "alignatt" to show which words it reads.
    """
    able = family.capabilities
    if able.translator is not None:
        reader = able.translator.family.capabilities
        if reader.writes_by_frames:
            return "retranslation", "span"
        shows: tuple[Policy, ...] = () if reader.token_offsets is None else ("alignatt",)
        return "retranslation", "local-agreement", *shows, "span"
    if able.streaming is not None or able.frame_decoder is not None:
        return "frames", "span"
    if able.writes_by_frames or able.alignment is None:
        return "retranslation", "span"
    return "local-agreement", "alignatt", "wait-k", "retranslation", "span"


def num_agreed(attempts: Sequence[Sequence[str]]) -> int:
    """Return the number of words that all attempts begin with."""
    agreed = 0
    for words in zip(*attempts, strict=False):
        if any(word != words[0] for word in words):
            break
        agreed += 1
    return agreed


def num_shown(attempts: Sequence[Sequence[str]], options: LiveOptions) -> int:
    """Return the number of words of the newest attempt that are on the screen, hysteresis included.

    Args:
        attempts: words behind the committed text, at least one attempt, the newest last.
        options: options of the session.
    """
    shown = max(0, len(attempts[-1]) - options.mask_words)
    if options.steady is not None and len(attempts) >= options.steady:
        shown = max(shown, num_agreed(attempts[-options.steady :]))
    return shown


# Text of attempts.


def words_behind(
    family: Family, prefix: Sequence[int], tokens: Sequence[int], language: str
) -> list[tuple[str, int]]:
    """Words of tokens that follow a prefix, each with its number of tokens.

    Tokens that belong to the last word of the prefix are a word of their own.

    Args:
        family: decodes the tokens.
        prefix: committed tokens.
        tokens: tokens behind them.
        language: language of the text, as a BCP-47 tag.
    """
    words, token = [], 0
    for text, count in split_words(family, [*prefix, *tokens], language):
        begin, token = token, token + count
        if token > len(prefix):
            words.append((text, token - max(begin, len(prefix))))
    return words


@dataclass(kw_only=True)
class PendingStretch:
    """A stretch to be worked on.

    Attributes:
        index: index of its session among those that are worked on together.
        session: session that the stretch is of.
        stretch: the speech.
        language: language spoken, from the encoder on.
        language_probs: (L,) by which it was identified.
        targets: targets that the model knows for the language.
        mixed: languages spoken and their times, in seconds of the audio held; see `language_spans`.
    """

    index: int
    session: LiveSession
    stretch: Stretch
    language: IdentifiedLanguage = field(
        default_factory=lambda: IdentifiedLanguage(language=UNDETERMINED, probability=0.0)
    )
    language_probs: Tensor | None = None
    targets: list[str] = field(default_factory=list)
    mixed: tuple[LanguageSpan, ...] = ()

    @property
    def context(self) -> SpanContext:
        """The audio held, as a span of a recording."""
        given = self.session.source is not None
        return SpanContext(span=self.stretch.span, language=self.language, given=given, mixed=self.mixed)

    @property
    def spans(self) -> tuple[LanguageSpan, ...]:
        """Languages spoken and their times, in seconds of the session."""
        return spans_within(self.context, 0.0, self.context.duration_s)

    @property
    def options(self) -> LiveOptions:
        """Options of the session."""
        return self.session.options

    @property
    def known_language(self) -> IdentifiedLanguage | None:
        """The language spoken, if it was given or text was committed in it."""
        return self.stretch.language or given_language(self.session.source)

    def must_be_cut(self, room: int) -> bool:
        """Whether more speech is open than may be, or its text fills half of the `room` (in tokens) of a row."""
        longest = max((len(self.stretch.lines[target].prefix) for target in self.targets), default=0)
        too_long = self.stretch.duration_s > self.options.max_open_s or longest > room / 2
        return self.options.commits and too_long

    def settle_language(self) -> None:
        """Once text is written, the stretch is in this language."""
        if self.stretch.language is None and not self.stretch.untouched:
            self.stretch.language = self.language
            if self.language_probs is not None:
                self.session.tracker.push(self.language_probs)


@dataclass(frozen=True, kw_only=True)
class StretchRow:
    """An attempt in one language.

    Attributes:
        batch_index: index of the stretch in the batch.
        target: as it was asked for.
        asked: the same, as the model was asked.
        hypothesis: tokens behind the prefix.
        looks_at_s: for every token the second of the audio that it attends to, where the policy needs it.
        doubt: probability that the text is not what was said, where the model was calibrated.
        aligned: times of the tokens, those of the prefix included, where the session wants words.
    """

    batch_index: int
    target: str
    asked: Target
    hypothesis: Hypothesis
    looks_at_s: Sequence[float]
    doubt: float | None
    aligned: AlignedTokens | None = None


def unfinished_text(family: Family, job: PendingStretch, row: StretchRow) -> LiveText | None:
    """Commit and show text of a stretch that goes on; None if nothing changed.

    Args:
        family: the model.
        job: the stretch.
        row: the attempt.
    """
    line, tokens = job.stretch.lines[row.target], row.hypothesis.tokens
    words = words_behind(family, line.prefix, tokens, row.asked.language)
    dropped = _drop_reason(family, job, row)
    if dropped is not None:
        words = []
    num_words = 0
    if words:
        attempt = Attempt(
            words=words,
            ended=row.hypothesis.finished,
            looks_at=row.looks_at_s,
            newest=job.stretch.duration_s - job.options.border_s,
            steps=int((job.stretch.span.end_s - job.stretch.begin_s) / job.options.step_s + 1e-6),
            num_written=len(text_units(line.written, row.asked.language)),
        )
        num_words = POLICY_FUNCTIONS[job.options.policy](attempt, line, job.options)
    line.note_attempt([word for word, _ in words], job.options)
    return write(family, job, row, tokens, words, num_words)


def write(
    family: Family,
    job: PendingStretch,
    row: StretchRow,
    tokens: Sequence[int],
    words: Sequence[tuple[str, int]],
    num_words: int,
) -> LiveText | None:
    """Commit the first of the `words` behind the prefix and show the others; None if that changes nothing.

    Args:
        family: the model.
        job: the stretch.
        row: the attempt.
        tokens: tokens behind the prefix.
        words: words of these, each with its number of tokens.
        num_words: number of words to commit.
    """
    line, language = job.stretch.lines[row.target], row.asked.language
    shown = max(num_words, num_shown(line.attempts, job.options)) if words else 0
    ends = [sum(count for _, count in words[:n]) for n in (num_words, shown)]
    before, timed = family.decode_text(line.prefix), _timed(family, job, row, ends[0])
    until = [family.decode_text([*line.prefix, *tokens[:end]]) for end in ends]
    piece = line.commit(until[0][len(before) :], language)
    line.prefix = (*line.prefix, *tokens[: ends[0]])
    line.attempts = [attempt[num_words:] for attempt in line.attempts]
    tentative = line.behind(until[1][len(until[0]) :], language)
    changed = bool(piece) or tentative != line.tentative
    retracted = line.show(tentative, piece, language)
    if not changed:
        return None
    return news(
        job, row.target, language, piece, retracted, final=False, out_of_domain=row.doubt, words=timed
    )


def _timed(family: Family, job: PendingStretch, row: StretchRow, count: int) -> tuple[Word, ...]:
    """Words of the next `count` tokens behind the prefix, in seconds of the session."""
    if row.aligned is None or not count:
        return ()
    line, begin_s = job.stretch.lines[row.target], job.stretch.span.start_s
    words = timed_words(
        family,
        row.aligned,
        row.asked.language,
        first=len(line.prefix),
        count=count,
        # An attempt may hear a word earlier than the one before has put the words that are committed.
        start_s=min(max(0.0, line.words_end_s - begin_s), job.stretch.duration_s),
        end_s=job.stretch.duration_s,
    )
    if words:
        line.words_end_s = begin_s + words[-1].end_s
    return tuple(replace(word, start_s=begin_s + word.start_s, end_s=begin_s + word.end_s) for word in words)


def end_text(family: Family, job: PendingStretch, row: StretchRow) -> LiveText:
    """The last event of a stretch that has ended; arguments as of `unfinished_text`."""
    line = job.stretch.lines[row.target]
    words: tuple[Word, ...] = ()
    if job.stretch.untouched:
        piece, words, dropped = _as_recorded(family, job, row)
        piece = line.commit(piece, row.asked.language)
    else:
        dropped = _drop_reason(family, job, row)
        if dropped is None:
            words = _timed(family, job, row, len(row.hypothesis.tokens))
        before = family.decode_text(line.prefix)
        whole = family.decode_text([*line.prefix, *row.hypothesis.tokens])
        piece = "" if dropped else line.commit(whole[len(before) :], row.asked.language)
        dropped = dropped if row.hypothesis.tokens else None
    retracted = line.show("", piece, row.asked.language)
    return news(
        job,
        row.target,
        row.asked.language,
        piece,
        retracted,
        final=True,
        dropped=dropped,
        out_of_domain=row.doubt,
        words=words,
    )


def recorded_text(job: PendingStretch, target: str, segments: Sequence[Segment]) -> LiveText:
    """The last event of a stretch that was decoded as a recording.

    Args:
        job: the stretch.
        target: as it was asked for.
        segments: segments of the stretch in this target, at least one.
    """
    line, language = job.stretch.lines[target], segments[0].target_language
    kept = [segment for segment in segments if segment.dropped is None]
    piece = line.commit(joined_text(kept), language)
    dropped = None if kept else segments[0].dropped
    words = tuple(word for segment in kept for word in segment.words)
    retracted = line.show("", piece, language)
    return news(
        job,
        target,
        language,
        piece,
        retracted,
        final=True,
        dropped=dropped,
        out_of_domain=segments[0].out_of_domain,
        words=words,
    )


def _as_recorded(
    family: Family, job: PendingStretch, row: StretchRow
) -> tuple[str, tuple[Word, ...], str | None]:
    """Return the text that a recording of the stretch would give, its words, and why the guard kept it back."""
    segments = cut_row(
        family,
        job.context,
        row.asked,
        row.hypothesis,
        row.aligned,
        times=family.capabilities.timestamps if row.asked.timestamps else None,
        guard=job.session.decoding.guard,
        doubt=row.doubt,
    )
    kept = [segment for segment in segments if segment.dropped is None]
    words = tuple(word for segment in kept for word in segment.words)
    return joined_text(kept), words, None if kept else segments[0].dropped


def _drop_reason(family: Family, job: PendingStretch, row: StretchRow) -> str | None:
    """The guard's reason to drop the text of the audio that is held; None to keep it."""
    guard = job.session.decoding.guard
    line, doubt = job.stretch.lines[row.target], row.hypothesis.no_speech_log_probability
    return drop_reason(
        family.decode_text([*line.prefix, *row.hypothesis.tokens]),
        duration_s=job.stretch.duration_s,
        speech_probability=job.stretch.span.speech_probability,
        no_speech_probability=None if doubt is None else exp(doubt),
        mean_log_probability=row.hypothesis.mean_log_probability,
        options=guard,
        out_of_domain=row.doubt,
        max_out_of_domain=max_out_of_domain(family, guard),
    )


def news(
    job: PendingStretch,
    target: str,
    language: str,
    piece: str,
    retracted: int,
    *,
    final: bool,
    dropped: str | None = None,
    out_of_domain: float | None = None,
    words: tuple[Word, ...] = (),
) -> LiveText:
    """An event of a stretch in one language, with the tentative text of its line.

    Args:
        job: the stretch.
        target: as it was asked for.
        language: language of the text, in the model's tag.
        piece: characters committed.
        retracted: words of the tentative text that were replaced, or characters.
        final: whether the stretch has ended.
        dropped: reason why the guard dropped text.
        out_of_domain: probability that the text of the stretch is not what was said; None where nobody knows.
        words: words of the characters committed.
    """
    line = job.stretch.lines[target]
    # The first text of a stretch, committed or not, stands behind that of the stretches before.
    begins = line.written == piece and target in job.session.written and writes_spaces(language)
    tentative = line.tentative
    if begins and piece:
        piece = f" {piece}"
    elif begins and tentative:
        tentative = f" {tentative}"
    if piece:
        job.session.written.add(target)
    return LiveText(
        target=target,
        segment=job.stretch.number,
        committed=piece,
        tentative=tentative,
        retracted=retracted,
        start_s=job.stretch.begin_s,
        end_s=job.stretch.span.end_s,
        source_language=job.language.language,
        target_language=language,
        audio_s=job.session.audio_s,
        final=final,
        dropped=dropped,
        out_of_domain=out_of_domain,
        spans=job.spans,
        words=words,
    )


def unknown_pair(job: PendingStretch, target: str) -> LiveText:
    """Stands in for speech in a language from which the model does not know the target."""
    source = job.language.language
    lost = _kept_back(job.session, job.stretch, target, source, f"unknown pair: {source} to {target}")
    return replace(lost, spans=job.spans)


def lost_text(session: LiveSession) -> list[LiveText]:
    """The ends of stretches that an overload has cost."""
    return [
        _kept_back(session, stretch, target, session.source or UNDETERMINED, "overload: left out")
        for stretch in session.take_lost()
        for target in session.targets
    ]


def _kept_back(session: LiveSession, stretch: Stretch, target: str, source: str, reason: str) -> LiveText:
    line, language = stretch.lines[target], session.request.target_language(target, source)
    return LiveText(
        target=target,
        segment=stretch.number,
        committed="",
        tentative="",
        retracted=line.show("", "", language),
        start_s=stretch.begin_s,
        end_s=stretch.span.end_s,
        source_language=source,
        target_language=language,
        audio_s=session.audio_s,
        final=True,
        dropped=reason,
    )
