"""Languages of an utterance and their times, as a manifest's `custom` states them for mixed speech.

An utterance's languages are those named in `languages`, or else those of its `spans`, or else its own. Spans whose
times are estimated (`spans_estimated`), or that have none, say which languages occur and not where.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sprachbund.data.manifest import Utterance
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import writes_spaces
from sprachbund.text.normalize import normalize, spaced_characters

Stretch = tuple[float, float, str]
"""Start and end in seconds from the start of the utterance, and the BCP-47 tag."""
SLACK_S = 0.05
"""Seconds by which spans may overlap or leave the audio: corpora round their times."""


def languages_in(utterance: Utterance) -> tuple[str, ...]:
    """BCP-47 tags of the languages that occur, each once; none where nobody speaks.

    Raises:
        SprachbundError: a span without its language.
    """
    named = utterance.custom.get("languages") or [str(span["language"]) for span in spans_in(utterance)]
    return tuple(dict.fromkeys(named or ([utterance.language] if utterance.language else [])))


def timed_spans(utterance: Utterance) -> tuple[Stretch, ...]:
    """Stretches of an utterance with their language, in order; empty where the times are not known.

    Raises:
        SprachbundError: as `check_spans`, with the utterance's id, and for a span without its language.
    """
    spans = spans_in(utterance)
    if utterance.custom.get("spans_estimated") or any(
        s.get("start_s") is None or s.get("end_s") is None for s in spans
    ):
        return ()
    timed = tuple((float(s["start_s"]), float(s["end_s"]), str(s["language"])) for s in spans)
    try:
        check_spans(timed, utterance.duration_s)
    except SprachbundError as error:
        raise SprachbundError(f"{utterance.id}: {error}") from error
    return timed


def spans_in(utterance: Utterance) -> list[Mapping[str, Any]]:
    """Spans as the corpus has them. Raises SprachbundError for one without its language."""
    spans = list(utterance.custom.get("spans") or ())
    if not all(isinstance(span, Mapping) and span.get("language") for span in spans):
        raise SprachbundError(f"{utterance.id}: a span without its language; prepare the corpus again")
    return spans


def check_spans(spans: Sequence[Stretch], duration_s: float, *, slack_s: float = SLACK_S) -> None:
    """Check that spans stand in the audio, one behind the other.

    Args:
        spans: start and end in seconds, and language.
        duration_s: length of the audio in seconds.
        slack_s: tolerance in seconds.

    Raises:
        SprachbundError: spans that overlap, leave the audio by more than `slack_s`, or end before they begin.
    """
    before_s = 0.0
    for start_s, end_s, language in spans:
        if not 0 <= start_s <= end_s <= duration_s + slack_s:
            raise SprachbundError(
                f"the span of {language} from {start_s:g} to {end_s:g} s does not lie in {duration_s:g} s of audio; "
                "mend the manifest"
            )
        if start_s < before_s - slack_s:
            raise SprachbundError(
                f"the span of {language} from {start_s:g} s begins before the last one ends, at {before_s:g} s; "
                "spans have to follow each other"
            )
        before_s = end_s


# Word ranges of a span in a text: counted while a text is put together, or held between words that stand in both
# texts; never estimated.
#
# A range is [first word, behind the last] in normalized words, characters in scripts without spaces.

WordRange = tuple[int, int]


def split_words(text: str, language: str) -> list[str]:
    """Normalized words, one for each word of the text (character in scripts without spaces), so that word
    ranges of it stay."""
    units = text if writes_spaces(language) else spaced_characters(text)
    return [normalize(word, language).replace(" ", "-") or word for word in units.split()]


def unique_range(said: Sequence[str], words: Sequence[str]) -> WordRange | None:
    """Range of a run of words, if the run occurs exactly once; else None."""
    size = len(said)
    starts = [i for i in range(len(words) - size + 1) if size and list(words[i : i + size]) == list(said)]
    return (starts[0], starts[0] + size) if len(starts) == 1 else None


def ranges_of_pieces(pieces: Sequence[str], whole: str, language: str) -> list[WordRange | None]:
    """Range of each piece of a text in it, in words; None for a piece without words.

    Empty when the pieces are not cut between words, so that their ranges cannot be counted.

    Args:
        pieces: parts of the text, in order.
        whole: the text.
        language: BCP-47 tag of the text.
    """
    split = [split_words(piece, language) for piece in pieces]
    if [word for words in split for word in words] != split_words(whole, language):
        return []
    ranges: list[WordRange | None] = []
    begun = 0
    for words in split:
        ranges.append((begun, begun + len(words)) if words else None)
        begun += len(words)
    return ranges


def marked_ranges(pieces: Sequence[tuple[str, bool]], whole: str, language: str) -> dict[str, object]:
    """Ranges of the marked pieces of a transcript, for a corpus's `custom`, as `embedded_ranges`: one for each of its
    `embedded_words`. Empty where words cannot be counted.

    Args:
        pieces: parts of the transcript, and whether each is marked.
        whole: the transcript.
        language: BCP-47 tag of the transcript.
    """
    ranges = ranges_of_pieces([piece for piece, _ in pieces], whole, language)
    marked = [each for each, (_, embedded) in zip(ranges, pieces, strict=False) if embedded and each]
    return {"embedded_ranges": {language: [list(each) for each in marked]}} if marked else {}


def ranges_between(runs: Sequence[tuple[str, str]], reference: str, language: str) -> list[WordRange | None]:
    """Ranges of the words that translate each run of speech, as far as runs in the reference's own language show them.

    A run in that language holds where its words stand exactly once in the reference; a run in another one
    where both neighbours (or the text's ends) hold, in the order said, and words are left between.

    Args:
        runs: language and words of each, in the order said; neighbours differ in language.
        reference: the translation.
        language: language of the reference.
    """
    words = split_words(reference, language)
    held = [unique_range(split_words(said, code), words) if code == language else None for code, said in runs]
    if not _in_order(each for each in held if each):
        return [None] * len(runs)
    return [each or _gap(held, number, len(words), runs, language) for number, each in enumerate(held)]


def _gap(
    held: Sequence[WordRange | None],
    number: int,
    num_words: int,
    runs: Sequence[tuple[str, str]],
    language: str,
) -> WordRange | None:
    """The words between the neighbours of a run in another language."""
    before = held[number - 1] if number else (0, 0)
    behind = held[number + 1] if number + 1 < len(held) else (num_words, num_words)
    if runs[number][0] == language or before is None or behind is None or len(runs) == 1:
        return None
    return (before[1], behind[0]) if before[1] < behind[0] else None


def _in_order(ranges: Iterable[WordRange]) -> bool:
    return all(one[1] <= other[0] for one, other in pairwise(ranges))
