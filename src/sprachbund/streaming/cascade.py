"""Live text of a cascade, while its speech goes on: every attempt transcribes the stretch anew and translates that.

The transcript stays free to change. Text of the translation that is committed is the prefix of its sentence: the
translator goes on from there, so what stands at the end is its own translation of the whole sentence behind that
prefix. A sentence is over when a word of the next one is committed; the position at which the next one begins is found
again in a transcript that has changed. In the language spoken, the text is the transcript itself, as if each word of it
were translated by looking at that word.

AlignAtt (arXiv 2305.11408) is applied to the words of the transcript in place of the frames of the speech: a word is
committed when no token of it looks at one of the last words, which may still grow or change. The attempt before is the
draft of the next (`sprachbund.decoding.drafts.whole_text`), since most of it is written again.

Shapes: U texts of a search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise

from sprachbund.decoding.drafts.whole_text import WholeTextDraft
from sprachbund.decoding.guard import drop_reason, why_no_translation
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.recordings import options_of_translator
from sprachbund.decoding.result import SpeculationReport
from sprachbund.decoding.segments import DecodedSpan, joined_hypothesis
from sprachbund.decoding.speculation import Speculation
from sprachbund.decoding.state import Hypothesis
from sprachbund.decoding.texts import search_texts
from sprachbund.decoding.transcripts import passages_of
from sprachbund.decoding.words import attended_characters
from sprachbund.models.base import Family, Target, Translator
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.session import CaptionLine
from sprachbund.streaming.writing import (
    POLICY_FUNCTIONS,
    Attempt,
    PendingStretch,
    news,
    num_shown,
    words_behind,
)
from sprachbund.text.languages import writes_spaces

# Transcripts.


def words_of(text: str, language: str) -> list[str]:
    """Words of a transcript; characters, in languages written without spaces, with the white space between names.

    `joined` gives the transcript back, which the translator reads.
    """
    return text.split() if writes_spaces(language) else list(text)


def joined(words: Sequence[str], language: str) -> str:
    """The text of words; arguments as of `words_of`."""
    return (" " if writes_spaces(language) else "").join(words)


def position_after_change(before: Sequence[str], position: int, now: Sequence[str]) -> int:
    """Position between words that corresponds to an earlier one, after the text has changed.

    Args:
        before: words of the text.
        position: words before it.
        now: words of the text that took its place.
    """
    if list(before[:position]) == list(now[:position]):
        return position
    blocks = SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
    for _, begin, end, new_begin, new_end in blocks:
        if position <= end:
            return min(new_begin + position - begin, new_end) if position < end else new_end
    return len(now)


@dataclass(frozen=True, kw_only=True)
class _Sentence:
    """The rest of a sentence of a transcript that is to be translated: words, and the position of the first of them."""

    words: list[str]
    first: int


def _sentences_behind(heard: DecodedSpan, position: int, language: str) -> tuple[list[str], list[_Sentence]]:
    """Words of a transcript, and its sentences behind a position."""
    every: list[str] = []
    sentences = []
    for passage in passages_of(heard.segments):
        for text in passage.sentences:
            words = words_of(text, language)
            done = max(0, position - len(every))
            if done < len(words):
                sentences.append(_Sentence(words=words[done:], first=len(every) + done))
            every += words
    return every, sentences


# Attempts.


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """A sentence in the language wanted, as an attempt has it.

    Attributes:
        family: decodes its tokens; None where the text is the transcript itself.
        sentence: sentence of the transcript.
        language: language of the text.
        prefix: committed tokens.
        tokens: tokens behind the prefix.
        words: words behind the prefix, each with its number of tokens; with 1 where there are none.
        looks_at: for every token the word of the transcript that it looks at, where the policy needs it.
        hypothesis: hypothesis of the search; None where there was none.
    """

    family: Family | None
    sentence: _Sentence
    language: str
    prefix: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    words: list[tuple[str, int]]
    looks_at: tuple[int, ...] = ()
    hypothesis: Hypothesis | None = None

    def text(self, first: int, last: int) -> str:
        """Of some of the words; with the white space before them, where there are tokens."""
        if self.family is None:
            return joined([word for word, _ in self.words[first:last]], self.language)
        before, until = (self.family.decode_text(self.tokens_until(n)) for n in (first, last))
        return until[len(before) :]

    def tokens_until(self, count: int) -> tuple[int, ...]:
        """The prefix and the tokens of so many words."""
        return (*self.prefix, *self.tokens[: sum(n for _, n in self.words[:count])])


@dataclass(kw_only=True)
class _Line:
    """A stretch in one of the languages wanted, at an attempt.

    Attributes:
        job: the stretch.
        target: as it was asked for.
        language: language of the text.
        sentences: sentences of the transcript, behind those that are over.
        units: the same as they were translated.
    """

    job: PendingStretch
    target: str
    language: str
    sentences: list[_Sentence]
    units: list[_Unit]

    @property
    def line(self) -> CaptionLine:
        """The line of captions that the text goes into."""
        return self.job.stretch.lines[self.target]

    @property
    def source(self) -> str:
        """The language spoken."""
        return self.job.language.language


class CascadeWriter:
    """Writes for the sessions of one cascade.

    Args:
        translator: the second half.
        decoding: options asked for; their draft is the recogniser's, but for none at all.

    Attributes:
        speculation: the attempt before as the draft of the next; None without, which the options can ask for.
    """

    def __init__(self, translator: Translator, decoding: DecodingOptions) -> None:
        self._translator, self._family = translator, translator.family
        self._draft = WholeTextDraft()
        self.speculation = None if decoding.draft == NONE else Speculation(self._draft, may_stop=True)

    def report(self) -> tuple[SpeculationReport, ...]:
        """Return the counts of draft tokens of the translator that were proposed and accepted so far."""
        return () if self.speculation is None else self.speculation.report()

    def write(
        self, jobs: Sequence[PendingStretch], transcripts: Sequence[DecodedSpan]
    ) -> list[tuple[PendingStretch, LiveText]]:
        """The texts of stretches that go on, and of such that have ended behind committed text.

        Args:
            jobs: jobs with their targets.
            transcripts: transcripts of the stretches, as far as they were heard.

        Raises:
            SprachbundError: a text that the translator cannot read.
        """
        lines = [
            line for job, heard in zip(jobs, transcripts, strict=True) for line in self._lines(job, heard)
        ]
        groups: dict[tuple[str, str, DecodingOptions], list[_Line]] = {}
        for line in lines:
            if line.language == line.source:
                line.units = [_as_heard(sentence, line.language) for sentence in line.sentences]
            else:
                options = options_of_translator(line.job.session.decoding)
                groups.setdefault((line.source, line.language, options), []).append(line)
        for (source, language, options), group in groups.items():
            self._translate(group, source, language, options)
        out = []
        heard_of = {id(job): heard for job, heard in zip(jobs, transcripts, strict=True)}
        for line in lines:
            text = self._write(line, heard_of[id(line.job)])
            out += [] if text is None else [(line.job, text)]
        for job in jobs:
            job.stretch.attempted_s = job.stretch.span.end_s
            job.settle_language()
        return out

    def _lines(self, job: PendingStretch, heard: DecodedSpan) -> Iterator[_Line]:
        """The stretch in each of its languages, with what of its transcript is still to be translated."""
        source = job.language.language
        for target in job.targets:
            line = job.stretch.lines[target]
            words, _ = _sentences_behind(heard, 0, source)
            line.begin = position_after_change(line.transcript, line.begin, words)
            line.transcript = tuple(words)
            _, sentences = _sentences_behind(heard, line.begin, source)
            language = job.session.request.target_language(target, source)
            yield _Line(job=job, target=target, language=language, sentences=sentences, units=[])

    def _translate(
        self, lines: Sequence[_Line], source: str, language: str, options: DecodingOptions
    ) -> None:
        """Fill the units of lines in one pair of languages, with the same options."""
        rows = [(line, n) for line in lines for n in range(len(line.sentences))]
        for begin in range(0, len(rows), options.batch_size):
            batch = rows[begin : begin + options.batch_size]
            for (line, _), unit in zip(batch, self._units(batch, source, language, options), strict=True):
                line.units.append(unit)
        for line in lines:
            line.line.drafts = [(*unit.prefix, *unit.tokens) for unit in line.units]

    def _units(
        self, rows: Sequence[tuple[_Line, int]], source: str, language: str, options: DecodingOptions
    ) -> list[_Unit]:
        """The translations of some sentences, each behind the prefix that stands."""
        family = self._family
        prefixes = [line.line.prefix if n == 0 else () for line, n in rows]
        texts = [joined(line.sentences[n].words, source) for line, n in rows]
        nothing = Hypothesis(
            tokens=(), log_probability=0.0, finished=True, no_speech_log_probability=None, score=0.0
        )
        hypotheses = dict.fromkeys(range(len(rows)), nothing)
        asked = Target(language=language, source=self._translator.languages[source])
        room = family.max_tokens - len(family.prompt(asked))
        searched = [u for u in hypotheses if len(prefixes[u]) < room]  # others are as long as they can be
        looks: dict[int, list[int]] = {}
        if searched:
            own = [texts[u] for u in searched]
            behind = [_draft(rows[u][0].line, rows[u][1], prefixes[u]) for u in searched]
            self._draft.texts = behind
            result = search_texts(
                family,
                own,
                (language,),
                self._translator.languages[source],
                options,
                prefixes=[prefixes[u] for u in searched],
                speculation=self.speculation,
            )
            hypotheses |= {u: row[0] for u, row in zip(searched, result.hypotheses, strict=True)}
            if any(line.job.options.policy == "alignatt" and not line.job.stretch.closed for line, _ in rows):
                characters = attended_characters(
                    family,
                    result.memory,
                    [row[0] for row in result.targets],
                    [hypotheses[u].tokens for u in searched],
                    own,
                )
                looks = dict(zip(searched, characters, strict=True))
        return [
            _Unit(
                family=family,
                sentence=line.sentences[n],
                language=language,
                prefix=prefixes[u],
                tokens=hypotheses[u].tokens,
                words=words_behind(family, prefixes[u], hypotheses[u].tokens, language),
                looks_at=_words_at(looks.get(u, []), line.sentences[n], source),
                hypothesis=hypotheses[u],
            )
            for u, (line, n) in enumerate(rows)
        ]

    def _write(self, line: _Line, heard: DecodedSpan) -> LiveText | None:
        """Commit and show text of an attempt; None if that changes nothing."""
        job, caption, options = line.job, line.line, line.job.options
        dropped = self._drop_reason(line)
        units = [] if dropped else line.units
        words = [word for unit in units for word in unit.words]
        num_words = len(words)
        if not job.stretch.closed and words:
            last = line.units[-1].hypothesis
            attempt = Attempt(
                words=words,
                ended=last is not None and last.finished,
                looks_at=[word for unit in units for word in unit.looks_at],
                newest=len(caption.transcript) - options.border_words,
                steps=0,
                num_written=0,
            )
            num_words = POLICY_FUNCTIONS[options.policy](attempt, caption, options)
        caption.note_attempt([word for word, _ in words], options)
        shown = max(num_words, num_shown(caption.attempts, options)) if words else 0
        piece = _commit(caption, units, num_words, line.language)
        caption.attempts = [attempt[num_words:] for attempt in caption.attempts]
        tentative = _tentative(caption, units, num_words, shown, line.language)
        if job.stretch.closed:
            kept = any(segment.dropped is None for segment in heard.segments)
            dropped = dropped or (None if kept or caption.written else heard.segments[0].dropped)
            return news(
                job,
                line.target,
                line.language,
                piece,
                caption.show("", piece, line.language),
                final=True,
                dropped=dropped,
                out_of_domain=heard.segments[0].out_of_domain if heard.segments else None,
            )
        if not piece and tentative == caption.tentative:
            return None
        retracted = caption.show(tentative, piece, line.language)
        return news(job, line.target, line.language, piece, retracted, final=False)

    def _drop_reason(self, line: _Line) -> str | None:
        """The guard's reason to keep back what is behind the committed text; None to write it."""
        rows = [unit.hypothesis for unit in line.units if unit.hypothesis is not None]
        if not rows:
            return None  # the transcript itself, of which the guard has left out what it does not believe
        job, guard = line.job, line.job.session.decoding.guard
        space = " " if writes_spaces(line.language) else ""
        pieces = [line.line.written, *(unit.text(0, len(unit.words)).strip() for unit in line.units)]
        text, said = space.join(filter(None, pieces)), joined(line.line.transcript, line.source)
        reason = drop_reason(
            text,
            duration_s=job.stretch.duration_s,
            speech_probability=job.stretch.span.speech_probability,
            no_speech_probability=None,
            mean_log_probability=joined_hypothesis(rows).mean_log_probability,
            source_text=said,
            options=guard,
        )
        if reason is None and guard.enabled and self._family.capabilities.follows_requests:
            return why_no_translation(text, said, line.source, line.language)
        return reason


def _as_heard(sentence: _Sentence, language: str) -> _Unit:
    """A sentence in the language spoken: every word looks at itself."""
    own = tuple(range(sentence.first, sentence.first + len(sentence.words)))
    words = [(word, 1) for word in sentence.words]
    return _Unit(family=None, sentence=sentence, language=language, words=words, looks_at=own)


def _draft(line: CaptionLine, number: int, prefix: tuple[int, ...]) -> tuple[int, ...]:
    """Return the text that the attempt before wrote of a sentence, behind its prefix."""
    known = line.drafts[number] if number < len(line.drafts) else ()
    return known[len(prefix) :]


def _words_at(characters: Sequence[int], sentence: _Sentence, language: str) -> tuple[int, ...]:
    """The words of a transcript in which some characters of a sentence stand."""
    space = 1 if writes_spaces(language) else 0
    ends = list(accumulate(len(word) + space for word in sentence.words))
    return tuple(sentence.first + sum(end <= character for end in ends) for character in characters)


def _parts(units: Sequence[_Unit], first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Of the words of all units from `first` to `last`, those of each unit that has any, with the unit's index."""
    bounds = [0, *accumulate(len(unit.words) for unit in units)]
    for index, (begin, end) in enumerate(pairwise(bounds)):
        low, high = max(first, begin), min(last, end)
        if low < high:
            yield index, low - begin, high - begin


def _commit(line: CaptionLine, units: Sequence[_Unit], num_words: int, language: str) -> str:
    """Commit the first words of an attempt; the characters that this adds."""
    piece, current = "", 0
    for index, _, count in _parts(units, 0, num_words):
        unit, current = units[index], index
        line.prefix = unit.prefix
        piece += line.commit(unit.text(0, count), language)
        line.begin, line.prefix = unit.sentence.first, unit.tokens_until(count)
        if unit.family is None:
            line.begin += count
    line.drafts = line.drafts[current:]
    return piece


def _tentative(line: CaptionLine, units: Sequence[_Unit], first: int, last: int, language: str) -> str:
    """The words of an attempt from `first` to `last` as they stand behind the committed text."""
    text = ""
    for index, begin, end in _parts(units, first, last):
        unit = units[index]
        piece = unit.text(begin, end)
        goes_on = unit.family is not None and bool(unit.prefix or begin)  # it has its own space
        if not goes_on:
            space = " " if writes_spaces(language) and (line.written or text) else ""
            piece = space + piece.strip()
        text += piece.rstrip() if line.written or text else piece.strip()
    return text
