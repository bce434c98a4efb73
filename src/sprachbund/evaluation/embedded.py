"""What a corpus says of languages mixed in an utterance, as lines of hypotheses carry it.

An utterance is code-switched when its `custom` says so (`code_switched`) or has `spans` of more than one
language. Embedded is what is said in another language than its main one: `custom["main_language"]`, or its
language. Of an embedded span the scores need two things, and each may be missing:

- its words: `text` of the span, or else `custom["foreign_words"]` where `custom["languages"]` are two;
- the place of its translation in the reference: `places` of the span (of the words: `foreign_places`), target
  to [first word, behind the last], or the one place where the reference has the span's words as they were
  said, looked for only where they have to stand there (the span is in the target language already, or the
  reference is the transcript).

No other place is guessed. Spans of times alone have neither. Their times (`start_s`, `end_s`) say when they are
heard, which is what a router is judged by; times marked as estimated (`spans_estimated`) do not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sprachbund.data.corpora.spans import Place, only_place, split_words
from sprachbund.data.language_spans import spans_in
from sprachbund.data.manifest import Utterance
from sprachbund.errors import SprachbundError


@dataclass(frozen=True, kw_only=True)
class EmbeddedSpan:
    """Words of the embedded language in an utterance.

    Attributes:
        language: BCP-47 tag of it.
        said: the words, in the embedded language; empty when the corpus does not tell them.
        start: first word of their translation in the reference; None when the place is not known.
        end: behind the last word of their translation in the reference; None with `start`.
    """

    language: str
    said: str = ""
    start: int | None = None
    end: int | None = None

    @property
    def place(self) -> Place | None:
        """(start, end) when the place is known."""
        return None if self.start is None or self.end is None else (self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class SpokenSpan:
    """A span of speech, of the main language or embedded, and when it is heard.

    Attributes:
        language: BCP-47 tag of it.
        start_s: from the beginning of the utterance; None when the corpus does not tell.
        end_s: its end; None with `start_s`.
        embedded: whether it is in another language than the main one.

    Raises:
        ValueError: for one time without the other, and for times that are none.
    """

    language: str
    start_s: float | None = None
    end_s: float | None = None
    embedded: bool = False

    def __post_init__(self) -> None:
        start_s, end_s = self.start_s, self.end_s
        whole = start_s is not None and end_s is not None and 0 <= start_s <= end_s < math.inf
        if not whole and (start_s, end_s) != (None, None):
            raise ValueError(f"a span from {start_s} to {end_s} s")


def is_code_switched(utterance: Utterance) -> bool:
    """Whether the corpus says that several languages are spoken in it."""
    marked = utterance.custom.get("code_switched") is True
    return marked or len({span["language"] for span in spans_in(utterance)}) > 1


def embedded_spans(utterance: Utterance, target: str) -> tuple[EmbeddedSpan, ...]:
    """The embedded spans of a code-switched utterance, with their places in the reference of a target.

    Raises:
        SprachbundError: for spans without a language, and places that the reference does not have.
    """
    if not is_code_switched(utterance):
        return ()
    words = split_words(utterance.text_in(target) or "", target)
    return tuple(_embedded(row, utterance, target, words) for row in _rows(utterance))


def spoken_spans(utterance: Utterance) -> tuple[SpokenSpan, ...]:
    """All spans of an utterance, in the order they are said; empty when the corpus has none.

    Raises:
        SprachbundError: for spans without a language, and for times that are none.
    """
    estimated = utterance.custom.get("spans_estimated") is True
    return tuple(_spoken(span, utterance, estimated=estimated) for span in spans_in(utterance))


def same_language(one: str, other: str) -> bool:
    """Whether two tags are of one language, whatever its region or script."""
    return one.split("-")[0] == other.split("-")[0]


def _main_language(utterance: Utterance) -> str:
    return str(utterance.custom.get("main_language") or utterance.language)


def _spoken(span: Mapping[str, Any], utterance: Utterance, *, estimated: bool) -> SpokenSpan:
    times = {} if estimated else {name: span.get(name) for name in ("start_s", "end_s")}
    language = str(span["language"])
    try:
        return SpokenSpan(language=language, embedded=language != _main_language(utterance), **times)
    except (TypeError, ValueError) as error:
        raise SprachbundError(f"{utterance.id}: {error}; prepare the corpus again") from error


def _rows(utterance: Utterance) -> list[Mapping[str, Any]]:
    """Embedded spans as the corpus has them."""
    main = _main_language(utterance)
    rows = [span for span in spans_in(utterance) if span["language"] != main]
    words = utterance.custom.get("foreign_words") or []
    others = [tag for tag in utterance.custom.get("languages") or [] if tag != main]
    if words and len(others) == 1 and not any(row.get("text") for row in rows):
        return [_told(others[0], said, number, utterance) for number, said in enumerate(words)]
    return rows


def _told(language: str, said: str, number: int, utterance: Utterance) -> dict[str, Any]:
    """The words of an embedded span as a row, with the places told for all of them."""
    places = utterance.custom.get("foreign_places") or {}
    size = len(utterance.custom["foreign_words"])
    known = {target: found[number] for target, found in places.items() if len(found) == size}
    return {"language": language, "text": said, "places": known}


def _embedded(row: Mapping[str, Any], utterance: Utterance, target: str, words: list[str]) -> EmbeddedSpan:
    said, language = str(row.get("text") or ""), str(row["language"])
    given = (row.get("places") or {}).get(target)
    place: Place | None = None
    if given is not None:
        place = _checked(given, utterance, target, len(words))
    elif same_language(language, target) or target == utterance.language:
        place = only_place(split_words(said, language), words)
    start, end = place or (None, None)
    return EmbeddedSpan(language=language, said=said, start=start, end=end)


def _checked(place: Any, utterance: Utterance, target: str, num_words: int) -> Place:
    try:
        start, end = map(int, place)
    except (TypeError, ValueError):
        start, end = 0, 0
    if not 0 <= start < end <= num_words:
        raise SprachbundError(
            f"{utterance.id}: a span's place {place} is not in its reference into {target} of "
            f"{num_words} words; prepare the corpus again"
        )
    return start, end
