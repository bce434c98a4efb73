"""Which languages occur in an utterance, and where: what a manifest's `custom` says of mixed speech.

An utterance's languages are those named in `languages`, or else those of its `spans`, or else its own. Spans whose
times are estimated (`spans_estimated`), or that have none, say which languages occur and not where.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sprachbund.data.manifest import Utterance
from sprachbund.errors import SprachbundError

Stretch = tuple[float, float, str]
"""Start and end in seconds from the start of the utterance, and the BCP-47 tag."""
SLACK_S = 0.05
"""By so much spans may overlap or leave the audio: corpora round their times."""


def languages_in(utterance: Utterance) -> tuple[str, ...]:
    """BCP-47 tags of the languages that occur, each once; none where nobody speaks.

    Raises:
        SprachbundError: a span without its language.
    """
    named = utterance.custom.get("languages") or [str(span["language"]) for span in spans_in(utterance)]
    return tuple(dict.fromkeys(named or ([utterance.language] if utterance.language else [])))


def timed_spans(utterance: Utterance) -> tuple[Stretch, ...]:
    """When which language is spoken, in order; empty where that is not known.

    Raises:
        SprachbundError: as `check_spans`, with the utterance's id, and for a span without its language.
    """
    spans = spans_in(utterance)
    if utterance.custom.get("spans_estimated") or any(
        s.get("start_s") is None or s.get("end_s") is None for s in spans
    ):
        return ()
    found = tuple((float(s["start_s"]), float(s["end_s"]), str(s["language"])) for s in spans)
    try:
        check_spans(found, utterance.duration_s)
    except SprachbundError as error:
        raise SprachbundError(f"{utterance.id}: {error}") from error
    return found


def spans_in(utterance: Utterance) -> list[Mapping[str, Any]]:
    """Spans as the corpus has them. Raises SprachbundError for one without its language."""
    spans = list(utterance.custom.get("spans") or ())
    if not all(isinstance(span, Mapping) and span.get("language") for span in spans):
        raise SprachbundError(f"{utterance.id}: a span without its language; prepare the corpus again")
    return spans


def check_spans(spans: Sequence[Stretch], duration_s: float, *, slack_s: float = SLACK_S) -> None:
    """Check that spans stand in the audio, one behind the other.

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
