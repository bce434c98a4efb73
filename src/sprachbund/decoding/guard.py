"""The hallucination guard: decides from evidence of several kinds whether a segment is dropped, and why.

Models of this kind were trained to write something for every window. No single number separates invented text from
real: voice activity fires on some music, and models are sure of their favourite phrase. Segments are never deleted
here; they carry the reason, and callers show or hide them.
"""

import zlib
from collections.abc import Sequence

from sprachbund.decoding.options import TRANSCRIBE, GuardOptions
from sprachbund.decoding.result import likely_wrong
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.catalogue import fitting, fitting_cascade
from sprachbund.text.identify import LanguageIdentifier

OUT_OF_DOMAIN = "out of domain"
"""Reason to drop what a model does not understand."""
_NOT_UNDERSTOOD = (OUT_OF_DOMAIN, "guessing", "loop", "too much text")

_LOOP_TIMES = 5  # a unit this often in a row is a loop; digits and names are rarely said so often
_LONG_LOOP = (3, 3)  # and so is a unit of at least three words that stands there three times
_LONGEST_UNIT = 40
_SHORT = 12  # characters that a translation may have beyond the ratio, since a short source says little
_FEW_SPACES = 0.04  # share of spaces below which a script is taken to write none


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes after zlib: about 1 for short text, 1.5 to 2 for long, more for loops."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


def repetition(text: str) -> float:
    """Share of the text, 0 to 1, that belongs to loops: a unit said five times in a row or more.

    Units of three words or more count from three times on. Words are the units, characters in scripts without
    spaces.
    """
    units = _units(text)
    looped = [False] * len(units)
    for period in range(1, min(_LONGEST_UNIT, len(units) // 2) + 1):
        begin = 0
        while begin + period < len(units):
            end = begin + period
            while end < len(units) and units[end] == units[end - period]:
                end += 1
            if _is_loop((end - begin) // period, period):
                looped[begin + period : end] = [True] * (end - begin - period)
            begin = max(begin + 1, end - period + 1)
    return sum(looped) / len(units) if units else 0.0


def _is_loop(times: int, period: int) -> bool:
    long_unit, long_times = _LONG_LOOP
    return times >= _LOOP_TIMES or (period >= long_unit and times >= long_times)


def _units(text: str) -> list[str]:
    stripped = text.casefold().strip()
    if not stripped or stripped.count(" ") / len(stripped) < _FEW_SPACES:
        return [c for c in stripped if not c.isspace()]
    return stripped.split()


def drop_reason(
    text: str,
    *,
    duration_s: float,
    speech_probability: float,
    no_speech_probability: float | None,
    mean_log_probability: float,
    options: GuardOptions,
    source_text: str | None = None,
    out_of_domain: float | None = None,
    max_out_of_domain: float = 1.0,
) -> str | None:
    """The reason to drop a segment; None when it is kept.

    Args:
        text: text of the model.
        duration_s: length of the segment.
        speech_probability: mean voice activity of its span.
        no_speech_probability: the model's own doubt; None when it has none.
        mean_log_probability: per token.
        options: the thresholds.
        source_text: text that was translated, where that is known.
        out_of_domain: probability that the text is not what was said; None of models that were not calibrated.
        max_out_of_domain: the most of it, see `max_out_of_domain`.
    """
    if not any(c.isalnum() for c in text):
        return "no text"
    if not options.enabled:
        return None
    unsure = mean_log_probability < options.min_mean_log_probability
    if speech_probability < options.min_speech_probability:
        return f"no speech: voice activity {speech_probability:.2f}"
    if (
        unsure
        and no_speech_probability is not None
        and no_speech_probability > options.max_no_speech_probability
    ):
        return f"no speech: the model's own probability of none is {no_speech_probability:.2f}"
    if out_of_domain is not None and out_of_domain > max_out_of_domain:
        return f"{OUT_OF_DOMAIN}: probability {out_of_domain:.2f}"
    if mean_log_probability < options.hopeless_mean_log_probability:
        return f"guessing: mean log-probability {mean_log_probability:.2f}"
    if source_text is not None and (ratio := length_ratio(text, source_text)) > options.max_length_ratio:
        return f"not a translation: {ratio:.1f} times as long as what was said"
    return _text_drop_reason(text, duration_s, options)


def max_out_of_domain(family: Family, options: GuardOptions) -> float:
    """The threshold that holds: the one asked for, else the model's own; 1 where it has none."""
    if options.max_out_of_domain is not None:
        return options.max_out_of_domain
    domain = family.calibration.domain
    return 1.0 if domain is None else domain.threshold


def length_ratio(text: str, source_text: str) -> float:
    """Length of a translation over that of its source, with allowance for short texts.

    It is counted in characters and in bytes, and the smaller ratio holds: Chinese says in one character what takes
    four of English, and Hindi takes three bytes for each of its own.
    """
    ratios = [
        len(text) / (len(source_text) + _SHORT),
        len(text.encode()) / (len(source_text.encode()) + _SHORT),
    ]
    return min(ratios)


_LONG_ENOUGH, _MUCH_SHORTER = 40, 0.15
"""Characters of a source from which on a translation is never so many times as long."""
_LETTERS = 20
"""Letters of the shortest text whose language can be identified."""
_SURELY = 0.95


def why_no_translation(text: str, source_text: str, source: str, target: str) -> str | None:
    """Reason why a language model's reply is no translation, for faults that other guards miss; None if it may be one.

    A model may answer what was said or obey it. Such a reply is often much shorter than a translation, stays in the
    language of the speech, or repeats the request.

    Args:
        text: the reply.
        source_text: text that was to be translated.
        source: BCP-47 tag of its language.
        target: BCP-47 tag of the language wanted.
    """
    if any(mark in text and mark not in source_text for mark in ("<text", "</text")):
        return "not a translation: it repeats the request"
    if len(source_text) >= _LONG_ENOUGH:
        ratio = max(len(text) / len(source_text), len(text.encode()) / len(source_text.encode()))
        if ratio < _MUCH_SHORTER:
            return f"not a translation: {ratio:.2f} times as long as what was said"
    if sum(c.isalpha() for c in text) >= _LETTERS and _in_language(text, source, target):
        return f"not a translation: it is in {source}"
    return None


def _in_language(text: str, source: str, target: str) -> bool:
    """Whether a text is surely in the first of two languages; False where they cannot be told apart."""
    try:
        identifier = LanguageIdentifier((source, target))
    except SprachbundError:  # a language that it does not know
        return False
    identified = identifier.identify(text)
    return identified.language == source and identified.probability > _SURELY


def _text_drop_reason(text: str, duration_s: float, options: GuardOptions) -> str | None:
    ratio, share = compression_ratio(text), repetition(text)
    if ratio > options.max_compression_ratio:
        return f"loop: compression ratio {ratio:.2f}"
    if share > options.max_repetition:
        return f"loop: {share:.0%} of the text repeats itself"
    if len(text) > options.max_characters_per_s * max(duration_s, 0.5):
        return f"too much text: {len(text)} characters in {duration_s:.1f} s"
    return None


def _seconds(seconds: float) -> str:
    """Seconds for a message; those under one with a decimal."""
    return f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.1f}"


class Understanding:
    """The share of the speech of a recording or session that a calibrated model understands, counted by segments.

    Attributes:
        targets: languages wanted, or "transcribe"; a second of speech counts once for all of them.
        kept_s: seconds of the segments that are kept, those in doubt included.
        doubtful_s: seconds of the segments that are kept and likely wrong.
        left_out_s: seconds of those that were dropped though somebody speaks: the model does not understand them.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = targets
        self.kept_s = self.doubtful_s = self.left_out_s = 0.0

    @property
    def not_understood_s(self) -> float:
        """Seconds of speech that were left out, or whose text is in doubt."""
        return self.left_out_s + self.doubtful_s

    def add(self, duration_s: float, dropped: str | None, out_of_domain: float | None) -> None:
        """Count a segment of one of the targets.

        Args:
            duration_s: length in seconds.
            dropped: reason why the guard dropped it; None when it is kept.
            out_of_domain: probability that the text is not what was said; None where nobody knows.
        """
        duration_s /= len(self.targets)
        if dropped is None:
            self.kept_s += duration_s
            if likely_wrong(out_of_domain):
                self.doubtful_s += duration_s
        elif dropped.startswith(_NOT_UNDERSTOOD):
            self.left_out_s += duration_s

    def warning(self, family: Family) -> str | None:
        """A sentence that names models for open speech; None where most was understood, or nobody can know."""
        heard_s = self.kept_s + self.left_out_s
        if family.calibration.domain is None or self.not_understood_s <= heard_s / 2:
            return None
        faults = [
            fault
            for seconds, fault in (
                (self.left_out_s, f"{_seconds(self.left_out_s)} were left out"),
                (self.doubtful_s, f"{_seconds(self.doubtful_s)} have a text that is likely wrong"),
            )
            if seconds
        ]
        wanted = [None if target == TRANSCRIBE else target for target in self.targets]
        models = fitting_cascade(None, wanted) or tuple(fitting(None, wanted, most=1))
        names = " --then ".join(one.alias for one in models)
        verb = f"translate FILE --to {','.join(self.targets)}" if any(wanted) else "transcribe FILE"
        advice = f"; for open speech take a public one: sprachbund {verb} --model {names}" if names else ""
        return (
            f"of {_seconds(heard_s)} s of speech, {' and '.join(faults)}: they are not of the kind that this model "
            f"knows{advice}"
        )
