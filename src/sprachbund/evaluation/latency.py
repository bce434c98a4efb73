"""Latency of live translation: every score of every talk by the ideal clock and with computation, and the means.

AL, LAAL, DAL, AP, ATD and YAAL take a talk for one sentence, which is right for short recordings. StreamLAAL and
LongYAAL first give the output's words to the reference segments and score those; long talks need them.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import EmissionLog, ReferenceSegment
from sprachbund.evaluation.metrics import corpus_score, metric
from sprachbund.evaluation.tables import Table
from sprachbund.text.languages import join_units, text_units, writes_spaces
from sprachbund.text.normalize import normalize

# Latency metrics of one passage, from the delay of every unit of the output.
#
# All are in seconds except the proportion. A unit is a word, or a character in languages written without spaces. The
# formulas are those of the papers as SimulEval 1.1.4 and OmniSTEval 0.1.10 compute them, so that numbers are
# comparable with published ones.

SOURCE_TOKEN_MS = 300.0
"""Length that average token delay gives to a spoken word (arXiv 2211.13173)."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The output for a stretch of speech; all times count from the stretch's beginning.

    Attributes:
        delays_s: times at which the U units were written, in the order of writing; on the ideal clock as much audio as
            had been taken in, else with the time of computation.
        audio_s: audio that had been taken in when each unit was written, (U,); equal to `delays_s` on the ideal
            clock.
        source_s: length of the stretch.
        num_reference: units of the reference, at least 1.
        recording_s: end of the recording; as `source_s` when the stretch is all of it.
    """

    delays_s: tuple[float, ...]
    audio_s: tuple[float, ...]
    source_s: float
    num_reference: int
    recording_s: float


def average_lagging(passage: Passage) -> float:
    """AL (arXiv 1810.08398): how far the output is behind one that keeps pace with the speech.

    The pace is that of the reference's length. Units count up to the first that had heard all; when the first
    unit came after the end of the speech, its delay is the score.
    """
    return _lagging(passage, passage.num_reference)


def length_adaptive_average_lagging(passage: Passage) -> float:
    """LAAL (arXiv 2206.05807): AL at the pace of the longer of output and reference.

    Output that is too long gains nothing by it.
    """
    return _lagging(passage, max(passage.num_reference, len(passage.delays_s)))


def differentiable_average_lagging(passage: Passage) -> float:
    """DAL (arXiv 1906.00048): AL over all units, none of which costs less time than its share."""
    pace = passage.source_s / len(passage.delays_s)
    total, last = 0.0, float("-inf")
    for index, delay in enumerate(passage.delays_s):
        last = max(delay, last + pace)
        total += last - index * pace
    return total / len(passage.delays_s)


def average_proportion(passage: Passage) -> float:
    """AP (arXiv 1606.02012): share of the speech that was waited for before a unit, at the mean.

    Divided by the reference's length, so output that is too long raises it above 1.
    """
    return sum(passage.delays_s) / (passage.source_s * passage.num_reference)


def yet_another_average_lagging(passage: Passage) -> float | None:
    """YAAL (arXiv 2509.17349): LAAL over the units that came before the recording ended; None without such.

    Of a segment within a recording this is LongYAAL: there the end of the segment ends nothing.
    """
    counted = list(takewhile(lambda delay: delay < passage.recording_s, passage.delays_s))
    pace = passage.source_s / max(passage.num_reference, len(passage.delays_s))
    return fmean(d - index * pace for index, d in enumerate(counted)) if counted else None


def average_token_delay(passage: Passage) -> float:
    """ATD (arXiv 2211.13173): mean time between a spoken word and the unit of the output at its position.

    Speech that was taken in before a group of units is cut into words of 300 ms; units of the output have no
    length. A unit answers the spoken word of its own number, moved back by as many units as earlier groups had
    more than their speech had words, and never one that was not yet taken in. With computation a unit stands when
    it was written, which SimulEval reckons from the time that each took.
    """
    spoken_ms: list[float] = [0.0]  # where each spoken word ends; the first stands for none
    delays_ms: list[float] = []
    units = zip(passage.audio_s, passage.delays_s, strict=True)
    for audio_s, group in groupby(units, key=lambda unit: unit[0]):
        surplus = max(0, len(delays_ms) - (len(spoken_ms) - 1))
        spoken_ms += _spoken_words_ms(spoken_ms[-1], _ms(audio_s))
        for _, written_s in group:
            answers = min(len(delays_ms) + 1 - surplus, len(spoken_ms) - 1)
            delays_ms.append(_ms(written_s) - spoken_ms[answers])
    return fmean(delays_ms) / 1000


SCORES: Mapping[str, Callable[[Passage], float | None]] = {
    "AL": average_lagging,
    "LAAL": length_adaptive_average_lagging,
    "DAL": differentiable_average_lagging,
    "AP": average_proportion,
    "ATD": average_token_delay,
    "YAAL": yet_another_average_lagging,
}
"""Name to function, of passages with at least one unit."""


def latency(name: str, passage: Passage) -> float | None:
    """A score by its name in `SCORES`; None for a passage without output, which has no latency."""
    return SCORES[name](passage) if passage.delays_s else None


def _lagging(passage: Passage, num_target: int) -> float:
    delays, source_s = passage.delays_s, passage.source_s
    if delays[0] > source_s:
        return delays[0]
    waited = next((index for index, delay in enumerate(delays) if delay >= source_s), len(delays) - 1)
    return fmean(delay - index * source_s / num_target for index, delay in enumerate(delays[: waited + 1]))


def _spoken_words_ms(start_ms: float, end_ms: float) -> list[float]:
    """Ends of the words that a stretch is cut into; the last may be shorter."""
    whole, rest = divmod(end_ms - start_ms, SOURCE_TOKEN_MS)
    ends = [start_ms + SOURCE_TOKEN_MS * number for number in range(1, int(whole) + 1)]
    return [*ends, end_ms] if rest else ends


def _ms(seconds: float) -> float:
    """Milliseconds without what is left of binary fractions, which would make words of no length."""
    return round(1000 * seconds, 6)


# Flicker: text that was shown and then taken back.


def erasure(before: list[str], after: list[str]) -> int:
    """Units at the end of `before` that have to go before `after` can stand there."""
    kept = takewhile(lambda both: both[0] == both[1], zip(before, after, strict=False))
    return len(before) - sum(1 for _ in kept)


def normalized_erasure(shown: Iterable[list[str]]) -> float | None:
    """NE (arXiv 1912.03393): units taken away over units of the last text.

    Args:
        shown: the units of all text on the screen after every change.

    Returns:
        0 for text that only grows; 0.2 when every fifth word was written twice; None when the last text is
        empty.
    """
    erased, last = 0, list[str]()
    for text in shown:
        erased += erasure(last, text)
        last = text
    return erased / len(last) if last else None


def erased_per_minute(shown: Iterable[list[str]], duration_s: float) -> float:
    """Units that were taken away from the screen, a minute of the talk.

    Args:
        shown: the units of all text on the screen after every change.
        duration_s: seconds of the talk.
    """
    texts = list(shown)
    return 60 * sum(erasure(before, after) for before, after in pairwise(texts)) / duration_s


# Resegmentation: every word of a talk's output is assigned to a segment of its references.
#
# Both published ways align all words of a talk at once: by least word errors (Matusov et al. 2005,
# https://aclanthology.org/2005.iwslt-1.19; used by StreamLAAL, arXiv 2406.06097), or by greatest similarity of
# characters (arXiv 2509.17349; used by LongYAAL).

Owners = NDArray[np.int64]
"""The number of the segment that each unit of the output belongs to, (U,); it never falls."""

Resegmenter = Callable[[Sequence[str], Sequence[Sequence[str]]], Owners]

MAX_CELLS = 2_000_000_000
"""Bytes that the table of an alignment may take; 44,000 words against as many."""

_PAIR, _SKIP_REFERENCE, _SKIP_OUTPUT = 0, 1, 2
_PUNCTUATION = frozenset(".!?,;:-()。！？，；：—（）ー")  # the set is part of the definition


def by_word_errors(output: Sequence[str], references: Sequence[Sequence[str]]) -> Owners:
    """Borders at which the sum of the segments' edit distances is least, case and punctuation aside.

    Of several such, that in which words are paired as late as possible; words that answer nothing go with the
    words before them.

    Args:
        output: units of the talk's output (U).
        references: units of each segment; at least one unit in all.

    Returns:
        The segment of each unit.

    Raises:
        SprachbundError: for a talk too long to be aligned in memory.
    """
    wanted, segments = _joined(references)
    _check_size(wanted, output)
    expected, written = _numbered([normalize(w) or w for w in wanted], [normalize(w) or w for w in output])
    path = _trace(_fewest_errors(expected, written))
    return segments[np.maximum(path.passed - 1, 0)]


def by_likeness(output: Sequence[str], references: Sequence[Sequence[str]]) -> Owners:
    """Borders of the alignment whose pairs of words have the most letters in common.

    Likeness of two words is the Jaccard index of their sets of letters, lower case; a punctuation mark is never
    paired with a word, and what is left out costs nothing. Words that answer nothing stay with the segment before
    until one of them is more like the next reference word than the last. Arguments and errors as of
    `by_word_errors`.
    """
    wanted, segments = _joined(references)
    _check_size(wanted, output)
    likeness = _Likeness([_folded(word) for word in wanted], [_folded(word) for word in output])
    path = _trace(_most_alike(likeness))
    owners = np.zeros(len(output), np.int64)
    ahead = -1  # the reference word that drew the rest of a gap to itself
    for column, after in enumerate(path.passed.tolist()):
        before = after - 1
        if not path.paired[column] and after < len(wanted) and after != ahead:
            drawn = before < 0 or likeness.of(after, column) > likeness.of(before, column)
            ahead = after if drawn else ahead
        owners[column] = after if after == ahead and not path.paired[column] else before
    return segments[owners]


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The alignment of each unit of the output.

    Attributes:
        passed: reference words used up when it was reached, its own partner included, (U,).
        paired: whether it has a partner, (U,).
    """

    passed: NDArray[np.int64]
    paired: NDArray[np.bool_]


def _fewest_errors(expected: NDArray[np.int64], written: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The last step of the best way to every cell of the edit distance's table, (R + 1, U + 1)."""
    columns = np.arange(len(written) + 1)
    steps = np.full((len(expected) + 1, len(columns)), _SKIP_OUTPUT, np.uint8)
    row = columns
    for number, word in enumerate(expected, start=1):
        pair = row[:-1] + (written != word)
        skip = row[1:] + 1
        best = np.concatenate([[number], np.minimum(pair, skip)])
        row = np.minimum.accumulate(best - columns) + columns  # words may be extra from any cell on the left
        steps[number, 0] = _SKIP_REFERENCE
        steps[number, 1:] = np.select(
            [row[1:] == pair, row[1:] == skip], [_PAIR, _SKIP_REFERENCE], _SKIP_OUTPUT
        )
    return steps


def _most_alike(likeness: "_Likeness") -> NDArray[np.uint8]:
    """The last step of the best way to every cell of the table of likeness, (R + 1, U + 1)."""
    row = np.zeros(likeness.num_written + 1)
    steps = np.full((likeness.num_expected + 1, len(row)), _SKIP_OUTPUT, np.uint8)
    for number, alike in enumerate(likeness.rows(), start=1):
        pair, skip = row[:-1] + alike, row[1:]
        row = np.maximum.accumulate(np.concatenate([[0.0], np.maximum(pair, skip)]))
        left = row[:-1]
        steps[number, 0] = _SKIP_REFERENCE
        steps[number, 1:] = np.select(
            [(pair >= skip) & (pair >= left), skip >= left], [_PAIR, _SKIP_REFERENCE], _SKIP_OUTPUT
        )
    return steps


def _trace(steps: NDArray[np.uint8]) -> _Path:
    """Follow the steps back from the end of both texts."""
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    passed, paired = np.zeros(j, np.int64), np.zeros(j, np.bool_)
    while j > 0:
        step = steps[i, j]
        if step == _SKIP_REFERENCE:
            i -= 1
            continue
        j -= 1
        passed[j], paired[j] = i, step == _PAIR
        i -= int(step == _PAIR)
    return _Path(passed=passed, paired=paired)


class _Likeness:
    """Likeness of every reference word to every unit of the output, worked out once per different word."""

    def __init__(self, expected: Sequence[str], written: Sequence[str]) -> None:
        self.num_expected, self.num_written = len(expected), len(written)
        rows, self._row = np.unique(np.array(expected, dtype=object), return_inverse=True)
        columns, self._column = np.unique(np.array(written, dtype=object), return_inverse=True)
        letters = {letter: n for n, letter in enumerate(sorted(set("".join([*rows, *columns]))))}
        first, second = _letter_table(rows, letters), _letter_table(columns, letters)
        common = (first @ second.T).astype(np.float64)
        union = first.sum(1)[:, None] + second.sum(1)[None, :] - common
        self._table = common / np.maximum(union, 1)
        marks = [np.array([w in _PUNCTUATION for w in words], np.bool_) for words in (rows, columns)]
        self._table[marks[0][:, None] ^ marks[1][None, :]] = -np.inf

    def rows(self) -> Iterator[NDArray[np.float64]]:
        """For each reference word its likeness to all units, (U,)."""
        return (self._table[row][self._column] for row in self._row)

    def of(self, expected: int, written: int) -> float:
        """Likeness of the words at two positions."""
        return float(self._table[self._row[expected], self._column[written]])


def _letter_table(words: NDArray[np.object_], letters: dict[str, int]) -> NDArray[np.float32]:
    table = np.zeros((len(words), len(letters)), np.float32)
    for row, word in enumerate(words):
        table[row, [letters[letter] for letter in word]] = 1
    return table


def _joined(references: Sequence[Sequence[str]]) -> tuple[list[str], Owners]:
    """All reference words in a row and the segment of each."""
    words = [word for reference in references for word in reference]
    return words, np.repeat(np.arange(len(references)), [len(reference) for reference in references])


def _numbered(*texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Words as numbers, the same for the same word in all texts."""
    numbers: dict[str, int] = {}
    return [np.array([numbers.setdefault(w, len(numbers)) for w in words], np.int64) for words in texts]


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).lower()


def _check_size(wanted: Sequence[str], output: Sequence[str]) -> None:
    if (len(wanted) + 1) * (len(output) + 1) > MAX_CELLS:
        raise SprachbundError(
            f"{len(output)} units of output against {len(wanted)} of the references are too many to align at once; "
            "cut the talk into parts at a pause, each a talk of its own"
        )


CLOCKS = ("ideal", "computation")
STREAM_SCORES: Mapping[str, tuple[Resegmenter, str]] = {
    "StreamLAAL": (by_word_errors, "LAAL"),
    "LongYAAL": (by_likeness, "YAAL"),
}
"""Name to the way of finding segments and the score of each (arXiv 2406.06097, 2509.17349)."""
LATENCY_SCORES = (*SCORES, *STREAM_SCORES)
FLICKER = "NE"
ERASED = "erased/min"
QUALITY = ("chrF", "BLEU")
ALL = "all"

_BORDER_S = 0.05  # references are cut on the audio's own grid, logs may be in blocks

Clocked = Mapping[str, Mapping[str, float | None]]
"""Clock to name of a score to its value, None where there is none."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A reference and the output that was found to belong to it."""

    reference: str
    hypothesis: str


@dataclass(frozen=True, kw_only=True)
class TalkLatency:
    """One talk in one language.

    Attributes:
        talk: name of the talk.
        target: BCP-47 tag of the text.
        unit: "word" or "character".
        duration_s: seconds of the talk.
        num_units: number of units of the output.
        num_reference: units of all references.
        scores: `LATENCY_SCORES` by clock.
        flicker: normalized erasure; None when the screen was not recorded or nothing was written.
        erased_per_minute: units taken back; None when the screen was not recorded.
        segments: the output by reference segment, at least word errors.
        per_segment: scores of the segments that have output, which means over talks are taken of.
    """

    talk: str
    target: str
    unit: str
    duration_s: float
    num_units: int
    num_reference: int
    scores: Clocked
    flicker: float | None
    erased_per_minute: float | None
    segments: tuple[TextPair, ...]
    per_segment: Mapping[str, Mapping[str, tuple[float, ...]]]

    @property
    def num_empty_segments(self) -> int:
        """Segments without output, which have no latency."""
        return sum(not pair.hypothesis for pair in self.segments)

    @property
    def quality(self) -> dict[str, float]:
        """Scores of the text, segment by segment, in percent."""
        return text_quality(self.segments, self.target)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "talk": self.talk,
            "target": self.target,
            "unit": self.unit,
            "duration_s": self.duration_s,
            "num_units": self.num_units,
            "num_reference": self.num_reference,
            "num_segments": len(self.segments),
            "num_empty_segments": self.num_empty_segments,
            "scores": {clock: dict(values) for clock, values in self.scores.items()},
            FLICKER: self.flicker,
            ERASED: self.erased_per_minute,
            "quality": self.quality,
            "segments": [{"reference": p.reference, "hypothesis": p.hypothesis} for p in self.segments],
        }


@dataclass(frozen=True, kw_only=True)
class MeanLatency:
    """The mean over the talks of a language, or over languages.

    Attributes:
        target: BCP-47 tag, or "all" for the plain mean over languages.
        num_talks: talks that it is the mean of.
        num_silent: passages among them without output, which count for quality alone.
        scores: means over talks; those of `STREAM_SCORES` over all segments of all talks.
        flicker: mean over talks.
        erased_per_minute: mean over talks.
        quality: quality of all segments of a language as one corpus.
    """

    target: str
    num_talks: int
    num_silent: int
    scores: Clocked
    flicker: float | None
    erased_per_minute: float | None
    quality: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "target": self.target,
            "num_talks": self.num_talks,
            "num_silent": self.num_silent,
            "scores": {clock: dict(values) for clock, values in self.scores.items()},
            FLICKER: self.flicker,
            ERASED: self.erased_per_minute,
            "quality": dict(self.quality),
        }


def score_talk(log: EmissionLog, references: Sequence[ReferenceSegment]) -> TalkLatency:
    """Every score of a talk.

    Args:
        log: emitted text with its times.
        references: references of the same talk and target, in order, at least one.

    Raises:
        SprachbundError: without references, or when they leave the audio.
    """
    _check_references(log, references)
    written = WrittenUnits(log, references)
    scores = {clock: {name: latency(name, written.whole(clock)) for name in SCORES} for clock in CLOCKS}
    per_segment: dict[str, dict[str, tuple[float, ...]]] = {clock: {} for clock in CLOCKS}
    owners = {name: find(written.units, written.references) for name, (find, _) in STREAM_SCORES.items()}
    for clock in CLOCKS:
        for name, (_, score) in STREAM_SCORES.items():
            values = [latency(score, passage) for passage in written.passages(clock, owners[name])]
            per_segment[clock][name] = tuple(value for value in values if value is not None)
            scores[clock][name] = _mean(per_segment[clock][name])
    screens = [text_units(shown.text, log.target) for shown in log.shown]
    return TalkLatency(
        talk=log.talk,
        target=log.target,
        unit="word" if writes_spaces(log.target) else "character",
        duration_s=log.duration_s,
        num_units=len(written.units),
        num_reference=sum(map(len, written.references)),
        scores=scores,
        flicker=normalized_erasure(screens),
        erased_per_minute=erased_per_minute(screens, log.duration_s) if screens else None,
        segments=written.texts(owners["StreamLAAL"]),
        per_segment=per_segment,
    )


def means(talks: Sequence[TalkLatency]) -> list[MeanLatency]:
    """The mean of every language with several talks, and over languages where there are several."""
    by_target: dict[str, list[TalkLatency]] = {}
    for talk in talks:
        by_target.setdefault(talk.target, []).append(talk)
    of_languages = [_mean_of_talks(of_target) for _, of_target in sorted(by_target.items())]
    shown = [mean for mean in of_languages if mean.num_talks > 1]
    return [*shown, _mean_of_languages(of_languages)] if len(of_languages) > 1 else shown


def text_quality(pairs: Sequence[TextPair], target: str) -> dict[str, float]:
    """The scores `QUALITY` of resegmented output."""
    hypotheses, references = [pair.hypothesis for pair in pairs], [pair.reference for pair in pairs]
    return {name: corpus_score(metric(name, target), hypotheses, references) for name in QUALITY}


class WrittenUnits:
    """The units of a log, each with its moment on both clocks, beside the units of the references."""

    def __init__(self, log: EmissionLog, segments: Sequence[ReferenceSegment]) -> None:
        self._log, self._segments = log, segments
        timed = [(unit, e) for e in log.emissions for unit in text_units(e.text, log.target)]
        self.units = [unit for unit, _ in timed]
        self.references = [text_units(segment.text, log.target) for segment in segments]
        audio_s = [emission.audio_s for _, emission in timed]
        self._times = {"ideal": audio_s, "computation": [emission.wall_s for _, emission in timed]}

    def whole(self, clock: str) -> Passage:
        """The talk as one sentence."""
        return Passage(
            delays_s=tuple(self._times[clock]),
            audio_s=tuple(self._times["ideal"]),
            source_s=self._log.duration_s,
            num_reference=sum(map(len, self.references)),
            recording_s=self._log.duration_s,
        )

    def passages(self, clock: str, owners: Owners) -> list[Passage]:
        """Each reference segment with the output that belongs to it; the recording ends with the last segment."""
        end_s = self._segments[-1].end_s
        return [
            Passage(
                delays_s=tuple(
                    self._times[clock][n] - segment.start_s for n in (owners == index).nonzero()[0]
                ),
                audio_s=tuple(
                    self._times["ideal"][n] - segment.start_s for n in (owners == index).nonzero()[0]
                ),
                source_s=segment.end_s - segment.start_s,
                num_reference=len(self.references[index]),
                recording_s=end_s - segment.start_s,
            )
            for index, segment in enumerate(self._segments)
        ]

    def texts(self, owners: Owners) -> tuple[TextPair, ...]:
        """Each reference beside the output that belongs to it."""
        return tuple(
            TextPair(
                reference=segment.text,
                hypothesis=join_units(
                    [self.units[n] for n in (owners == index).nonzero()[0]], self._log.target
                ),
            )
            for index, segment in enumerate(self._segments)
        )


def _check_references(log: EmissionLog, references: Sequence[ReferenceSegment]) -> None:
    if not references:
        raise SprachbundError(
            f"talk {log.talk!r} into {log.target} has no references; add its segments, or leave its log out"
        )
    last = references[-1]
    if last.end_s > log.duration_s + _BORDER_S:
        raise SprachbundError(
            f"talk {log.talk!r} into {log.target}: a reference ends at {last.end_s} s, the audio at "
            f"{log.duration_s} s; check that both are of the same recording"
        )


def _mean_of_talks(talks: Sequence[TalkLatency]) -> MeanLatency:
    scores: dict[str, dict[str, float | None]] = {}
    for clock in CLOCKS:
        scores[clock] = {name: _mean([talk.scores[clock][name] for talk in talks]) for name in SCORES}
        for name in STREAM_SCORES:
            scores[clock][name] = _mean([v for talk in talks for v in talk.per_segment[clock][name]])
    return MeanLatency(
        target=talks[0].target,
        num_talks=len(talks),
        num_silent=Counter(talk.num_units == 0 for talk in talks)[True],
        scores=scores,
        flicker=_mean([talk.flicker for talk in talks]),
        erased_per_minute=_mean([talk.erased_per_minute for talk in talks]),
        quality=text_quality([pair for talk in talks for pair in talk.segments], talks[0].target),
    )


def _mean_of_languages(of_languages: Sequence[MeanLatency]) -> MeanLatency:
    return MeanLatency(
        target=ALL,
        num_talks=sum(mean.num_talks for mean in of_languages),
        num_silent=sum(mean.num_silent for mean in of_languages),
        scores={
            clock: {
                name: _mean([mean.scores[clock][name] for mean in of_languages]) for name in LATENCY_SCORES
            }
            for clock in CLOCKS
        },
        flicker=_mean([mean.flicker for mean in of_languages]),
        erased_per_minute=_mean([mean.erased_per_minute for mean in of_languages]),
        quality={name: fmean(mean.quality[name] for mean in of_languages) for name in QUALITY},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


# The table: a row for each talk, language and clock.

MISSING = "–"
NOTE = (
    "seconds; AP: share of the talk; NE: words taken back for each that stayed; erased/min: words taken back a minute; "
    "chrF and BLEU by segment"
)


def latency_table(talks: Sequence[TalkLatency], means: Sequence[MeanLatency]) -> Table:
    """Every score of every talk, then the means."""
    rows = []
    for talk in talks:
        rows += _rows(talk.talk, talk.target, talk)
    for mean in means:
        name = f"mean of {mean.num_talks}" + (f", {mean.num_silent} silent" if mean.num_silent else "")
        rows += _rows(name, mean.target, mean)
    header = ["talk", "target", "clock", *LATENCY_SCORES, FLICKER, ERASED, *QUALITY]
    return Table(title="latency", header=header, rows=rows, note=NOTE)


def _rows(name: str, target: str, latency: TalkLatency | MeanLatency) -> list[list[str]]:
    """A row by the ideal clock, with what no clock changes, and one with computation."""
    first, second = ([_cell(latency.scores[clock][name], 2) for name in LATENCY_SCORES] for clock in CLOCKS)
    texts = [
        _cell(latency.flicker, 2),
        _cell(latency.erased_per_minute, 1),
        *(_cell(latency.quality[name], 1) for name in QUALITY),
    ]
    return [[name, target, CLOCKS[0], *first, *texts], ["", "", CLOCKS[1], *second, *[""] * len(texts)]]


def _cell(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
