"""Latency of live translation: every score of every talk by the ideal clock and with computation, and the means.

AL, LAAL, DAL, AP, ATD and YAAL take a talk for one sentence, which is right for short recordings. StreamLAAL and
LongYAAL first give the output's words to the reference segments and score those; long talks need them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.emissions import EmissionLog, ReferenceSegment, join_units, text_units
from sprachbund.evaluation.flicker import normalized_erasure
from sprachbund.evaluation.lagging import SCORES, Passage, latency
from sprachbund.evaluation.metrics import corpus_score, metric
from sprachbund.evaluation.resegment import Owners, Resegmenter, by_likeness, by_word_errors
from sprachbund.text.languages import writes_spaces

CLOCKS = ("ideal", "computation")
STREAM_SCORES: Mapping[str, tuple[Resegmenter, str]] = {
    "StreamLAAL": (by_word_errors, "LAAL"),
    "LongYAAL": (by_likeness, "YAAL"),
}
"""Name to the way of finding segments and the score of each (arXiv 2406.06097, 2509.17349)."""
LATENCY_SCORES = (*SCORES, *STREAM_SCORES)
FLICKER = "NE"
QUALITY = ("chrF", "BLEU")
ALL = "all"

_BORDER_S = 0.05  # references are cut on the audio's own grid, logs may be told in blocks

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
        talk: its name.
        target: BCP-47 tag of the text.
        unit: "word" or "character".
        duration_s: of the talk.
        num_units: of the output.
        num_reference: units of all references.
        scores: `LATENCY_SCORES` by clock.
        flicker: normalized erasure; None when the screen was not recorded or nothing was written.
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
            "quality": self.quality,
            "segments": [{"reference": p.reference, "hypothesis": p.hypothesis} for p in self.segments],
        }


@dataclass(frozen=True, kw_only=True)
class MeanLatency:
    """The mean over the talks of a language, or over languages.

    Attributes:
        target: BCP-47 tag, or "all" for the plain mean over languages.
        num_talks: that it is over.
        num_silent: those among them without output, which count for quality alone.
        scores: means over talks; those of `STREAM_SCORES` over all segments of all talks.
        flicker: mean over talks.
        quality: of all segments of a language as one corpus.
    """

    target: str
    num_talks: int
    num_silent: int
    scores: Clocked
    flicker: float | None
    quality: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "target": self.target,
            "num_talks": self.num_talks,
            "num_silent": self.num_silent,
            "scores": {clock: dict(values) for clock, values in self.scores.items()},
            FLICKER: self.flicker,
            "quality": dict(self.quality),
        }


def score_talk(log: EmissionLog, references: Sequence[ReferenceSegment]) -> TalkLatency:
    """Every score of a talk.

    Args:
        log: what was written when.
        references: of the same talk and target, in order, at least one.

    Raises:
        SprachbundError: without references, or when they leave the audio.
    """
    _check_references(log, references)
    written = Written(log, references)
    scores = {clock: {name: latency(name, written.whole(clock)) for name in SCORES} for clock in CLOCKS}
    per_segment: dict[str, dict[str, tuple[float, ...]]] = {clock: {} for clock in CLOCKS}
    owners = {name: find(written.units, written.references) for name, (find, _) in STREAM_SCORES.items()}
    for clock in CLOCKS:
        for name, (_, score) in STREAM_SCORES.items():
            values = [latency(score, passage) for passage in written.passages(clock, owners[name])]
            per_segment[clock][name] = tuple(value for value in values if value is not None)
            scores[clock][name] = _mean(per_segment[clock][name])
    return TalkLatency(
        talk=log.talk,
        target=log.target,
        unit="word" if writes_spaces(log.target) else "character",
        duration_s=log.duration_s,
        num_units=len(written.units),
        num_reference=sum(map(len, written.references)),
        scores=scores,
        flicker=normalized_erasure(text_units(shown.text, log.target) for shown in log.shown),
        segments=written.texts(owners["StreamLAAL"]),
        per_segment=per_segment,
    )


def means(talks: Sequence[TalkLatency]) -> list[MeanLatency]:
    """The mean of every language with several talks, and over languages where there are several."""
    by_target: dict[str, list[TalkLatency]] = {}
    for talk in talks:
        by_target.setdefault(talk.target, []).append(talk)
    found = [_mean_of_talks(of_target) for _, of_target in sorted(by_target.items())]
    shown = [mean for mean in found if mean.num_talks > 1]
    return [*shown, _mean_of_languages(found)] if len(found) > 1 else shown


def text_quality(pairs: Sequence[TextPair], target: str) -> dict[str, float]:
    """The scores `QUALITY` of resegmented output."""
    hypotheses, references = [pair.hypothesis for pair in pairs], [pair.reference for pair in pairs]
    return {name: corpus_score(metric(name, target), hypotheses, references) for name in QUALITY}


class Written:
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
                    self._times[clock][n] - segment.start_s for n in (owners == place).nonzero()[0]
                ),
                audio_s=tuple(
                    self._times["ideal"][n] - segment.start_s for n in (owners == place).nonzero()[0]
                ),
                source_s=segment.end_s - segment.start_s,
                num_reference=len(self.references[place]),
                recording_s=end_s - segment.start_s,
            )
            for place, segment in enumerate(self._segments)
        ]

    def texts(self, owners: Owners) -> tuple[TextPair, ...]:
        """Each reference beside the output that belongs to it."""
        return tuple(
            TextPair(
                reference=segment.text,
                hypothesis=join_units(
                    [self.units[n] for n in (owners == place).nonzero()[0]], self._log.target
                ),
            )
            for place, segment in enumerate(self._segments)
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
        quality=text_quality([pair for talk in talks for pair in talk.segments], talks[0].target),
    )


def _mean_of_languages(found: Sequence[MeanLatency]) -> MeanLatency:
    return MeanLatency(
        target=ALL,
        num_talks=sum(mean.num_talks for mean in found),
        num_silent=sum(mean.num_silent for mean in found),
        scores={
            clock: {name: _mean([mean.scores[clock][name] for mean in found]) for name in LATENCY_SCORES}
            for clock in CLOCKS
        },
        flicker=_mean([mean.flicker for mean in found]),
        quality={name: fmean(mean.quality[name] for mean in found) for name in QUALITY},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
