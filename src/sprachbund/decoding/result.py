"""Results of decoding: words, segments with their evidence, and a whole translation.

The fields are the JSON fields: `to_json` writes exactly these names, and they do not change within a major
version. Times are seconds from the start of the recording.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sprachbund.text.languages import writes_spaces


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word, when it was said, and the model's probability of it (mean over its tokens, 0 to 1).

    In a translation the time is that of the speech the word was translated from.
    """

    start_s: float
    end_s: float
    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class LanguageSpan:
    """A stretch of speech and the language it is in.

    Attributes:
        start_s: first second.
        end_s: last second.
        language: BCP-47 tag; of a model whose experts serve several languages at once, all their tags, as in "es+pt".
    """

    start_s: float
    end_s: float
    language: str


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another text that a beam has found.

    Attributes:
        text: text of the whole span.
        log_probability: log-probability of the text, summed over its tokens, natural logarithm. Of a translation of a
            cascade it is the score of its pair: that of the transcript plus `translation_weight` times that of the
            translation, see `DecodingOptions`.
    """

    text: str
    log_probability: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of speech and its text, with the evidence for trusting it.

    Attributes:
        start_s: first second.
        end_s: last second.
        source_language: BCP-47 tag of the speech, given or identified.
        target_language: BCP-47 tag of the text.
        text: the text, also when the guard dropped the segment.
        alternatives: the next best texts of the whole span that begins with this segment, where they were asked for.
        source_text: transcript of the speech, where a cascade has translated it; else None.
        words: the words with their times; empty unless word timestamps were asked for.
        mean_log_probability: natural logarithm per token, the end token included.
        speech_probability: mean voice activity over the span, 0 to 1.
        no_speech_probability: the model's own doubt that this is speech; None when it has none.
        out_of_domain: probability that the text is not what was said; None of models that were not calibrated.
        compression_ratio: bytes of the text over bytes after zlib.
        repetition: share of the text that repeats what stands directly before it, 0 to 1.
        language_probability: probability of `source_language` among the allowed languages; None when it was
            given.
        dropped: reason why the guard dropped the segment; None when it is kept.
        spans: languages spoken and their times, in order; only of models whose experts belong to languages.
        temperature: temperature at which its tokens were drawn; 0 of greedy and beam search.
        tempo: tempo at which it was heard, as a multiple of its own.
        speaker: label of the speaker, "S1" for the first one heard; None where labels were not asked for, or the
            speaker is unknown.
    """

    start_s: float
    end_s: float
    source_language: str
    target_language: str
    text: str
    words: tuple[Word, ...] = ()
    mean_log_probability: float = 0.0
    speech_probability: float = 1.0
    no_speech_probability: float | None = None
    out_of_domain: float | None = None
    compression_ratio: float = 0.0
    repetition: float = 0.0
    language_probability: float | None = None
    dropped: str | None = None
    spans: tuple[LanguageSpan, ...] = ()
    source_text: str | None = None
    temperature: float = 0.0
    tempo: float = 1.0
    speaker: str | None = None
    alternatives: tuple[Alternative, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the names of the fields, times rounded.

        `source_text` is only of a cascade, `temperature` only of text that was drawn, `tempo` only of speech that was
        heard at another one, `speaker` only where it is known, `alternatives` only where there are some.
        """
        values: dict[str, Any] = rounded(asdict(self))
        for name, unknown in (
            ("source_text", None),
            ("temperature", 0.0),
            ("tempo", 1.0),
            ("speaker", None),
            ("alternatives", []),
        ):
            if values[name] == unknown:
                del values[name]
        return values

    @property
    def labelled_text(self) -> str:
        """The text in one line, behind its speaker where that is known."""
        text = " ".join(self.text.split())
        return f"{self.speaker}: {text}" if self.speaker and text else text

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Segment":
        """The inverse of `to_dict`."""
        words = tuple(Word(**word) for word in values["words"])
        spans = tuple(LanguageSpan(**span) for span in values.get("spans", ()))
        others = tuple(Alternative(**one) for one in values.get("alternatives", []))
        return cls(**{**values, "words": words, "spans": spans, "alternatives": others})


@dataclass(frozen=True, kw_only=True)
class SpeculationReport:
    """Draft tokens of one language pair.

    Attributes:
        source_language: BCP-47 tag of the speech, "und" where it was not given and the model did not need it.
        target_language: BCP-47 tag of the text.
        draft: name of the draft.
        checked: draft tokens that the model checked.
        accepted: draft tokens accepted.
        predicted_gain: tokens per second against those without a draft, predicted from the acceptance in all pairs and
            measured times of passes; None where nothing had to be chosen, and so nothing was measured.
    """

    source_language: str
    target_language: str
    draft: str
    checked: int
    accepted: int
    predicted_gain: float | None = None

    @property
    def acceptance(self) -> float:
        """Share of draft tokens accepted."""
        return self.accepted / max(1, self.checked)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the fields and `acceptance`."""
        values: dict[str, Any] = rounded({**asdict(self), "acceptance": self.acceptance})
        return values


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A recording in one target language.

    Attributes:
        source_language: the language given, or the one identified for most of the speech; None without
            speech.
        target_language: BCP-47 tag of the text, or "transcribe" when each segment kept its own language.
        duration_s: length of the recording.
        segments: segments that the guard kept, in order of time.
        dropped: segments that the guard dropped, with the reason.
        warnings: facts that the caller should know, one line each.
        speculation: accepted draft tokens by language pair; empty without a draft.
    """

    source_language: str | None
    target_language: str
    duration_s: float
    segments: tuple[Segment, ...]
    dropped: tuple[Segment, ...] = ()
    warnings: tuple[str, ...] = ()
    speculation: tuple[SpeculationReport, ...] = ()

    @property
    def text(self) -> str:
        """The texts of the kept segments, joined by spaces where the language has them."""
        return joined_text(self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the fields and `text`; `speculation` only where there was some."""
        speculation = {"speculation": [report.to_dict() for report in self.speculation]}
        return {
            "text": self.text,
            "source_language": self.source_language,
            "target_language": self.target_language,
            "duration_s": round(self.duration_s, 3),
            "segments": [segment.to_dict() for segment in self.segments],
            "dropped": [segment.to_dict() for segment in self.dropped],
            "warnings": list(self.warnings),
            **(speculation if self.speculation else {}),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as JSON text, letters outside ASCII as they are."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)


def joined_text(segments: Iterable[Segment]) -> str:
    """Texts of `segments` in one line, with a space before each whose language writes spaces."""
    joined = ""
    for segment in segments:
        text = segment.text.strip()
        joined += f" {text}" if joined and text and writes_spaces(segment.target_language) else text
    return joined


def build_translation(
    segments: Iterable[Segment],
    *,
    target: str,
    source: str | None,
    duration_s: float,
    warnings: Iterable[str] = (),
    advice: str | None = None,
    speculation: Iterable[SpeculationReport] = (),
) -> Translation:
    """Sort finished segments into kept and dropped, and say what the caller should know.

    Args:
        segments: all segments of one target, in order of time.
        target: the target asked for.
        source: the source language given, None when it was identified.
        duration_s: length of the recording.
        warnings: known so far, of the audio for instance.
        advice: advice for a recording that was mostly not understood; it replaces the numbers of segments that were
            dropped, or are likely wrong.
        speculation: draft tokens, by pair.
    """
    everything = tuple(segments)
    kept = tuple(s for s in everything if s.dropped is None)
    dropped = tuple(s for s in everything if s.dropped is not None)
    return Translation(
        source_language=source or _most_spoken(kept or everything),
        target_language=target,
        duration_s=duration_s,
        segments=kept,
        dropped=dropped,
        warnings=(*warnings, *(_warnings(kept, dropped, duration_s) if advice is None else [advice])),
        speculation=tuple(speculation),
    )


def _warnings(kept: tuple[Segment, ...], dropped: tuple[Segment, ...], duration_s: float) -> tuple[str, ...]:
    warnings = []
    if not kept and not dropped:
        warnings.append(f"no speech found in {duration_s:.1f} s of audio")
    doubtful = [segment for segment in kept if likely_wrong(segment.out_of_domain)]
    if doubtful:
        warnings.append(
            f"{len(doubtful)} of {len(kept) + len(dropped)} segments have a text that is likely wrong: "
            f"{_times(doubtful)}"
        )
    if dropped:
        reasons = "; ".join(sorted({str(s.dropped).split(":")[0] for s in dropped}))
        warnings.append(
            f"{len(dropped)} of {len(kept) + len(dropped)} segments {DROPPED} ({reasons}): {_times(dropped)}"
        )
    return tuple(warnings)


LIKELY_WRONG = 0.5
"""Probability of being out of domain above which a kept text is likely wrong: calibrations weigh right and wrong
texts alike."""


def likely_wrong(out_of_domain: float | None) -> bool:
    """Whether a text is held for wrong rather than right; False of models that were not calibrated."""
    return out_of_domain is not None and out_of_domain > LIKELY_WRONG


DROPPED = "dropped by the guard"
"""Part of the warning about dropped segments."""
_MOST_TIMES = 3


def _times(segments: Sequence[Segment]) -> str:
    """Begin and end of the first few."""
    times = [f"{s.start_s:.1f} to {s.end_s:.1f} s" for s in segments[:_MOST_TIMES]]
    more = len(segments) - len(times)
    return ", ".join(times) + (f" and {more} more" if more else "")


def _most_spoken(segments: tuple[Segment, ...]) -> str | None:
    seconds: dict[str, float] = {}
    for segment in segments:
        spoken_s = segment.end_s - segment.start_s
        seconds[segment.source_language] = seconds.get(segment.source_language, 0.0) + spoken_s
    return max(seconds, key=lambda language: seconds[language], default=None)


def rounded(values: Any) -> Any:
    """Plain values with every number that is not whole rounded to four digits, however deep it lies."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [rounded(value) for value in values]
    return round(values, 4) if isinstance(values, float) else values
