"""Which of a teacher's labels are taught: a student repeats its teacher's failures, so failures are dropped by name.

What the guard keeps off a screen must not be learned either; to that come signs that only the pair of texts gives.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sprachbund.decoding.guard import judge
from sprachbund.decoding.options import GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.text.identify import LanguageIdentifier

MIN_LETTERS = 12
"""A shorter text is not asked which language it is in."""
_FIXED_PART = 5  # of a text's length, so that short texts may differ more: "ja" and "c'est ça"
_WIDE = "WF"


class LabelEvidence(Protocol):
    """What decoding says of a label; `sprachbund.evaluation.lines.Evidence` has it all."""

    @property
    def finished(self) -> bool:
        """Whether the teacher ended the row itself."""
        ...

    @property
    def mean_log_probability(self) -> float:
        """Natural logarithm per token."""
        ...

    @property
    def speech_probability(self) -> float:
        """Mean voice activity over the spans of speech."""
        ...

    @property
    def no_speech_probability(self) -> float | None:
        """The teacher's own doubt; None when it has none."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Thresholds.

    Attributes:
        guard: those of decoding; a label may be less of a guess than a caption.
        max_length_ratio: of the longer to the shorter of transcript and translation; see `length_ratio`.
        max_other_language: probability of another language than the one asked for, by character n-grams.
        min_language_probability: of the language that the teacher hears, where the data do not tell it.
    """

    guard: GuardOptions = field(
        default_factory=lambda: GuardOptions(hopeless_mean_log_probability=-1.0, max_repetition=0.3)
    )
    max_length_ratio: float = 3.0
    max_other_language: float = 0.95
    min_language_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.max_length_ratio < 1:
            raise SprachbundError(f"max_length_ratio is {self.max_length_ratio}; it must be at least 1")
        for name in ("max_other_language", "min_language_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise SprachbundError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")


def why_dropped(
    text: str,
    evidence: LabelEvidence,
    *,
    source: str,
    target: str,
    transcript: str,
    duration_s: float,
    identifier: LanguageIdentifier,
    options: FilterOptions,
) -> str | None:
    """Why a label is not to be taught, as "kind: what was seen"; None when it is.

    Args:
        text: the label.
        evidence: of its decoding.
        source: the language spoken.
        target: the language asked for.
        transcript: what is said; empty where that is not known.
        duration_s: of the speech.
        identifier: knows languages by their texts.
        options: thresholds.
    """
    found = judge(
        text,
        duration_s=duration_s,
        speech_probability=evidence.speech_probability,
        no_speech_probability=evidence.no_speech_probability,
        mean_log_probability=evidence.mean_log_probability,
        options=options.guard,
    )
    if found is not None:
        return found
    if not evidence.finished:
        return "cut off: the row reached the limit of tokens"
    if target != source and transcript:
        ratio = length_ratio(text, transcript)
        if ratio > options.max_length_ratio:
            return f"length: {ratio:.1f} times that of the transcript, or of it"
    return _in_other_language(text, target, identifier, options.max_other_language)


def kind_of(reason: str) -> str:
    """The kind of a reason, by which it is counted."""
    return reason.partition(":")[0]


def length_ratio(first: str, second: str) -> float:
    """The longer text's length over the shorter's, at least 1.

    Lengths are counted in columns, in which a character of Chinese, Japanese or Korean is two wide.
    """
    short, long = sorted(_FIXED_PART + _columns(text) for text in (first, second))
    return long / short


def _columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in _WIDE) for c in text if c.isalnum())


def _in_other_language(
    text: str, target: str, identifier: LanguageIdentifier, threshold: float
) -> str | None:
    if sum(c.isalpha() for c in text) < MIN_LETTERS or target not in identifier.languages:
        return None
    others: Mapping[str, float] = {
        tag: probability
        for tag, probability in identifier.identify(text).probabilities.items()
        if _primary(tag) != _primary(target)  # pt and pt-BR cannot be told apart by letters
    }
    likeliest = max(others, key=lambda tag: others[tag], default=target)
    if others.get(likeliest, 0.0) < threshold:
        return None
    return f"wrong language: reads as {likeliest} ({others[likeliest]:.2f})"


def _primary(tag: str) -> str:
    return tag.partition("-")[0]
