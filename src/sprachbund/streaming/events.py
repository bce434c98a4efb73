"""Events of a live session: text, and notices of errors and overloads."""

from dataclasses import dataclass
from typing import Literal

from sprachbund.decoding.result import LanguageSpan, Word


@dataclass(frozen=True, kw_only=True)
class LiveText:
    """New text of one stretch of speech in one language.

    Attributes:
        target: language wanted, or "transcribe", as the client named it.
        segment: number of the stretch, from 0.
        committed: characters to append to what was committed before in this target, over all stretches; where a
            stretch begins behind another one, they begin with a space, in languages that write them. Never taken back.
        tentative: text behind the committed text, in place of the one before; may still change.
        retracted: number of words of the earlier tentative text that were replaced; of characters, in languages
            without spaces.
        start_s: start of the stretch, in seconds of the session.
        end_s: second up to which it has been heard; its end when `final`.
        source_language: language spoken, as far as it is known.
        target_language: language of the text.
        audio_s: seconds of audio that had been taken in when this was decided.
        final: whether this is the last text of the stretch.
        dropped: reason why the guard kept text back.
        out_of_domain: probability that the text of the stretch so far is not what was said; None of models that were
            not calibrated, and of models that write by frames until the stretch has ended.
        spans: languages spoken and their times, as far as the stretch has been heard; only of models whose experts
            belong to languages.
        words: words of `committed`, in seconds of the session; only where `word_timestamps` asks for them.
    """

    target: str
    segment: int
    committed: str
    tentative: str
    retracted: int
    start_s: float
    end_s: float
    source_language: str
    target_language: str
    audio_s: float
    final: bool
    dropped: str | None = None
    out_of_domain: float | None = None
    spans: tuple[LanguageSpan, ...] = ()
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LiveNotice:
    """An overload or an error of a session, or a warning about its speech.

    Attributes:
        kind: "overload", "warning", or "error" when the session has ended by it.
        message: message in one line, with what is done about it.
        audio_s: seconds of audio that had been taken in by then.
        lost_s: seconds of speech that will never be written.
    """

    kind: Literal["overload", "warning", "error"]
    message: str
    audio_s: float
    lost_s: float = 0.0


LiveEvent = LiveText | LiveNotice
