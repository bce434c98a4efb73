"""How a text is written: numbers in digits, punctuation and capitals, and the languages in which each can be had.

Models that were trained on words alone write neither. The rules of digits are in `sprachbund.text.digits`, punctuators
in `sprachbund.models.punctuation`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.result import Segment
from sprachbund.models.base import Family
from sprachbund.models.punctuation import load_punctuator
from sprachbund.text.digits import LANGUAGES as LANGUAGES_OF_DIGITS
from sprachbund.text.digits import in_digits
from sprachbund.text.languages import described, primary, writes_spaces
from sprachbund.text.punctuation import Punctuator, restore
from sprachbund.util.options import OptionValueError


def segment_in_digits(segment: Segment) -> Segment:
    """A segment with the numbers of its texts in digits; a word that several became has their time."""
    language = primary(segment.target_language)
    words = tuple(
        replace(
            segment.words[one.first],
            text=one.text,
            end_s=segment.words[one.last].end_s,
            probability=float(
                np.mean([word.probability for word in segment.words[one.first : one.last + 1]])
            ),
        )
        for one in in_digits([word.text for word in segment.words], language)
    )
    return replace(
        segment,
        text=text_in_digits(segment.text, language),
        source_text=None
        if segment.source_text is None
        else text_in_digits(segment.source_text, primary(segment.source_language)),
        words=words,
        alternatives=tuple(
            replace(one, text=text_in_digits(one.text, language)) for one in segment.alternatives
        ),
    )


def text_in_digits(text: str, language: str) -> str:
    """A text with its numbers in digits.

    Args:
        text: text of any length.
        language: BCP-47 tag; a language without rules keeps its text.
    """
    if primary(language) not in LANGUAGES_OF_DIGITS:
        return text
    return " ".join(one.text for one in in_digits(text.split(), primary(language)))


def punctuated_segments(segments: Sequence[Segment], punctuator: Punctuator) -> tuple[Segment, ...]:
    """The segments of a span with punctuation and capitals, read as one text; dropped ones stay as they are.

    Args:
        segments: segments in order of time, of one language.
        punctuator: finds the marks; in a language that it does not know, or that has no spaces, texts stay.
    """
    kept = [n for n, segment in enumerate(segments) if segment.dropped is None and segment.text]
    if not kept or not _knows(punctuator, segments[kept[0]].target_language):
        return tuple(segments)
    language = segments[kept[0]].target_language
    words = [_written_words(segments[n].text) for n in kept]
    flat = [word for own in words for word in own]
    labels = punctuator.label([flat], primary(language))[0]
    written = iter(restore(flat, labels, language))
    result = list(segments)
    for n, own in zip(kept, words, strict=True):
        text = [next(written) for _ in own]
        timed = segments[n].words
        if [word.text for word in timed] == own:
            timed = tuple(replace(word, text=new) for word, new in zip(timed, text, strict=True))
        others = tuple(
            replace(one, text=text_with_marks(one.text, language, punctuator))
            for one in segments[n].alternatives
        )
        result[n] = replace(segments[n], text=" ".join(text), words=timed, alternatives=others)
    return tuple(result)


def text_with_marks(text: str, language: str, punctuator: Punctuator) -> str:
    """A text with punctuation and capitals.

    Args:
        text: text of any length.
        language: BCP-47 tag; in one that the punctuator does not know the text stays.
        punctuator: finds the marks.
    """
    words = _written_words(text)
    if not words or not _knows(punctuator, language):
        return text
    return " ".join(restore(words, punctuator.label([words], primary(language))[0], language))


def _written_words(text: str) -> list[str]:
    """Split a text at spaces; a space that must not break, as in "8 €", belongs to its word."""
    return [word for word in text.split(" ") if word]


def _knows(punctuator: Punctuator, language: str) -> bool:
    known = punctuator.languages
    return writes_spaces(language) and (known is None or primary(language) in known)


def check_writing(model: Family, targets: Sequence[str], options: DecodingOptions) -> None:
    """Refuse digits and punctuation where they cannot be written.

    Args:
        model: any family.
        targets: languages of the texts, in the model's tags; a transcript's is not known before.
        options: decoding options, which `check_options` let pass.

    Raises:
        SprachbundError: a language without rules, or a punctuator that there is not or that does not know a language.
    """
    if options.digits:
        check_digits(targets)
    if options.punctuate is not None:
        # In a cascade it is the transcript that has no marks.
        own = (TRANSCRIBE,) if model.capabilities.translator is not None else targets
        check_punctuation(own, load_punctuator(options.punctuate))


def check_punctuation(targets: Sequence[str], punctuator: Punctuator) -> None:
    """Raises OptionValueError where punctuation is wanted in a language that the punctuator does not know.

    Args:
        targets: languages of the texts; a transcript's is not known before.
        punctuator: finds the marks.
    """
    without = [target for target in targets if target != TRANSCRIBE and not _knows(punctuator, target)]
    if without:
        known = (
            f"one of {described(punctuator.languages)}" if punctuator.languages else "a language with spaces"
        )
        raise OptionValueError(
            "punctuate",
            punctuator.name,
            f"leave it out, or take {known}",
            reason=f"a punctuator that does not know {described(without[:1])}",
        )


def check_digits(targets: Sequence[str]) -> None:
    """Raises OptionValueError where digits are wanted in a language that has no rules.

    Args:
        targets: languages of the texts; a transcript's is not known before.
    """
    without = [t for t in targets if t != TRANSCRIBE and primary(t) not in LANGUAGES_OF_DIGITS]
    if without:
        raise OptionValueError(
            "digits",
            True,
            f"leave it out, or take one of {described(LANGUAGES_OF_DIGITS)}",
            reason=f"and numbers are not written in digits in {described(without[:1])}",
        )
