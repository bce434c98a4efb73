"""Failures of a system that a mean score hides: one function for each, whose docstring is its definition.

All but hallucination are evaluated on lines of speech with a reference. A line may fail in several ways.
Nothing here asks whether a translation is right; a wrong number or name is a matter of the scores.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sprachbund.decoding.guard import repetition
from sprachbund.evaluation.lines import Line
from sprachbund.text.identify import UNKNOWN, IdentifiedText, LanguageIdentifier
from sprachbund.text.languages import writes_spaces
from sprachbund.text.normalize import normalize, spaced_characters

# The language identifier chooses among the languages asked for and those of the phrasebook.

_ALWAYS = ("en", "es", "fr", "it", "de", "ru", "pt", "nl")


def identifier_for(languages: Iterable[str]) -> LanguageIdentifier:
    """An identifier of these languages, as far as it knows them, and always of those of the phrasebook."""
    return LanguageIdentifier({*languages, *_ALWAYS})


WRONG_LANGUAGE = "wrong language"
"""Failure, and metric, that the identifier of languages decides."""
_EXCESS_REPETITION = 0.2
_OMITTED_UNITS, _OMITTED_SHARE = 3, 0.3
_PREFIX_MATCH = 0.8
_SURELY = 0.95
_MIN_LETTERS = 12
_COPY_ERROR_RATE = 0.1
_MIN_COPY_LETTERS = 4


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its count.

    Attributes:
        failed: lines that failed.
        evaluated: lines on which the failure was possible and could be evaluated.
    """

    failed: int
    evaluated: int

    @property
    def percent(self) -> float:
        """Failed ones per hundred evaluated; 0 when none was."""
        return 100.0 * self.failed / self.evaluated if self.evaluated else 0.0

    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval in percent, which is honest for rates of nought as well."""
        if not self.evaluated:
            return 0.0, 100.0
        z, n, p = 1.959964, self.evaluated, self.failed / self.evaluated
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
        return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def hallucinated(line: Line) -> bool | None:
    """Text on no speech: the sound holds no speech and the system wrote at least one letter or digit.

    Evaluated only on lines without speech (source and reference empty): the fixed no-speech set.
    """
    if line.source or line.reference:
        return None
    return any(c.isalnum() for c in line.hypothesis)


def repeated(line: Line) -> bool | None:
    """Loops: a word or phrase said over and over again that the reference does not repeat.

    The share of the text in loops (a unit five times in a row or more, three times for units of three words
    or more) passes that of the reference by more than 0.2. Telephone numbers with equal digits are no
    failure, since the reference repeats them as well.
    """
    if not line.reference:
        return None
    return repetition(line.hypothesis) > repetition(line.reference) + _EXCESS_REPETITION


def omitted(line: Line) -> bool | None:
    """Left out: part of what was said has no counterpart, or nothing was written for speech at all.

    In the cheapest alignment of words with the reference (characters in scripts without spaces), a run of at
    least three reference words, and at least 30% of them, stands against nothing. A text of fewer than three
    words counts when nothing was written.
    """
    if not line.reference:
        return None
    if not any(c.isalnum() for c in line.hypothesis):
        return True
    runs = _deleted_runs(line)
    return any(end - start >= _least_omitted(size) for start, end, size, _ in runs)


def truncated(line: Line) -> bool | None:
    """Broken off: the row reached the limit on tokens, or the text stops before the reference does.

    The latter when the omitted run (as in `omitted`) is the end of the reference and at least 80% of the
    words written before it are right, so that the text is the beginning of a good one. No text at all is
    omission.
    """
    if not line.reference:
        return None
    if not any(c.isalnum() for c in line.hypothesis):
        return False
    if not line.evidence.finished:
        return True
    return any(
        end == size and end - start >= _least_omitted(size) and right >= _PREFIX_MATCH
        for start, end, size, right in _deleted_runs(line)
    )


def copied(line: Line) -> bool | None:
    """Not translated: the text is the transcript of the speech instead of its translation.

    Evaluated for translation only, where the normalized transcript has four letters and differs from the
    reference by more than a tenth of its characters (names and loan words may be the same in both): the
    text differs from the transcript by a tenth at most, and by less than from the reference.
    """
    if not line.reference or not line.transcript or line.is_transcript:
        return None
    transcript, reference, hypothesis = (
        normalize(text, line.target) for text in (line.transcript, line.reference, line.hypothesis)
    )
    letters = sum(c.isalpha() for c in transcript)
    if letters < _MIN_COPY_LETTERS or _difference(transcript, reference) <= _COPY_ERROR_RATE:
        return None
    from_transcript = _difference(transcript, hypothesis)
    return from_transcript <= _COPY_ERROR_RATE and from_transcript < _difference(reference, hypothesis)


def in_wrong_language(line: Line, identifier: LanguageIdentifier) -> bool | None:
    """Wrong target language: the text is in another language than the one asked for.

    The identifier (`sprachbund.text.identify`) gives another language a probability of 0.95 or more. Evaluated only
    where the text has twelve letters or more and the identifier gets the reference right, so that what it cannot
    tell (names, single words shared by two languages) does not count.
    """
    if not line.reference or line.target not in identifier.languages:
        return None
    if sum(c.isalpha() for c in line.hypothesis) < _MIN_LETTERS:
        return None
    reference = identifier.identify(line.reference)
    if reference.language == UNKNOWN or not _is_likeliest(line.target, reference):
        return None
    identified = identifier.identify(line.hypothesis)
    return identified.probability >= _SURELY and not _is_likeliest(line.target, identified)


def _is_likeliest(language: str, identified: IdentifiedText) -> bool:
    """Whether no language is likelier; tags of one language, such as pt and pt-BR, are as likely as each other."""
    return identified.probabilities[language] == identified.probability


DEFINITIONS: Mapping[str, str] = {
    "hallucination": hallucinated.__doc__ or "",
    "repetition": repeated.__doc__ or "",
    "omission": omitted.__doc__ or "",
    "truncation": truncated.__doc__ or "",
    "copy": copied.__doc__ or "",
    WRONG_LANGUAGE: in_wrong_language.__doc__ or "",
}
"""Failure to its definition, for reports."""


class RateCounts:
    """Sums of outcomes by group, line by line."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Rate]] = {}

    def add(self, group: str, outcomes: Mapping[str, bool]) -> None:
        """Add the outcomes of one line: failure to whether it occurred."""
        rates = self._groups.setdefault(group, {})
        for name, is_so in outcomes.items():
            old = rates.get(name, Rate(failed=0, evaluated=0))
            rates[name] = Rate(failed=old.failed + is_so, evaluated=old.evaluated + 1)

    def rates(self, group: str) -> dict[str, Rate]:
        """Failure to its rate, in the order of the definitions."""
        rates = self._groups.get(group, {})
        return {name: rates[name] for name in DEFINITIONS if name in rates}

    @property
    def groups(self) -> list[str]:
        """Groups in the order they came."""
        return list(self._groups)


class FailureClassifier:
    """Finds all failures of lines. One language identifier serves all targets.

    Args:
        targets: BCP-47 tags of the target languages.

    Attributes:
        identifier: identifier of languages of texts, by its name and version.
    """

    def __init__(self, targets: Iterable[str]) -> None:
        self._identifier = identifier_for(targets)
        self.identifier = self._identifier.name
        self._checks: dict[str, Callable[[Line], bool | None]] = {
            "hallucination": hallucinated,
            "repetition": repeated,
            "omission": omitted,
            "truncation": truncated,
            "copy": copied,
            WRONG_LANGUAGE: self._wrong_language,
        }

    def classify(self, line: Line) -> dict[str, bool]:
        """Failure to whether the line failed so; failures that cannot be evaluated on it are left out."""
        outcomes = {name: check(line) for name, check in self._checks.items()}
        return {name: failed for name, failed in outcomes.items() if failed is not None}

    def rates(self, lines: Iterable[Line]) -> dict[str, Rate]:
        """Failure to its rate; failures that were evaluated on no line are left out."""
        counts = RateCounts()
        for line in lines:
            counts.add("", self.classify(line))
        return counts.rates("")

    def _wrong_language(self, line: Line) -> bool | None:
        return in_wrong_language(line, self._identifier)


def _least_omitted(size: int) -> float:
    return max(_OMITTED_UNITS, _OMITTED_SHARE * size)


def _deleted_runs(line: Line) -> list[tuple[int, int, int, float]]:
    """Runs of reference words that nothing stands against.

    Each as start, end, number of reference words, and the share of the words written that are right.
    """
    import jiwer

    reference, hypothesis = (_words(text, line.target) for text in (line.reference, line.hypothesis))
    if not reference or not hypothesis:
        return []
    aligned = jiwer.process_words(reference, hypothesis)
    chunks, size = aligned.alignments[0], len(aligned.references[0])
    right = aligned.hits / max(1, len(aligned.hypotheses[0]))
    return [(c.ref_start_idx, c.ref_end_idx, size, right) for c in chunks if c.type == "delete"]


def _words(text: str, language: str) -> str:
    normalized = normalize(text, language)
    return normalized if writes_spaces(language) else spaced_characters(normalized)


def _difference(reference: str, hypothesis: str) -> float:
    """Edits per character of the longer text, 0 to 1."""
    import jiwer

    if not reference or not hypothesis:
        return 0.0 if reference == hypothesis else 1.0
    aligned = jiwer.process_characters(reference, hypothesis)
    edits = aligned.substitutions + aligned.deletions + aligned.insertions
    return edits / max(len(reference), len(hypothesis))
