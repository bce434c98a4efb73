"""From a meaning to sound: finds the recordings of one speaker that say it, and the words heard."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sprachbund.data.asterisk.clips import Clips, Samples
from sprachbund.data.asterisk.compose import calendar, telephone
from sprachbund.data.asterisk.compose.joining import join
from sprachbund.data.asterisk.compose.numbers import number
from sprachbund.data.asterisk.compose.pieces import Pieces, single_digits, written
from sprachbund.data.asterisk.packages import LANGUAGES
from sprachbund.data.phrasebook.meaning import Meaning


@dataclass(frozen=True, kw_only=True)
class Composed:
    """An utterance joined from recordings: samples (num_samples,) at 16 kHz, and the words in the order
    heard.
    """

    samples: Samples
    text: str


def compose(meaning: Meaning, language: str, clips: Clips, rng: random.Random) -> Composed | None:
    """Say ``meaning`` with the recordings ``clips`` of a speaker of ``language``.

    None when the kind cannot be composed, or a recording is missing.
    """
    builder = _BUILDERS.get(meaning.kind)
    pieces = builder(meaning, language, rng) if builder else None
    return play(pieces, clips, rng) if pieces else None


def play(pieces: Pieces, clips: Clips, rng: random.Random) -> Composed | None:
    """Join the recordings of ``pieces``; None when one is missing."""
    sounds: list[Samples] = []
    spoken: Pieces = []
    for piece in pieces:
        name = clips.first(piece.clips)
        if name is not None:
            sounds.append(clips.samples[name])
            spoken.append(piece)
        elif not piece.optional:
            return None
    return Composed(samples=join(sounds, rng), text=written(spoken)) if sounds else None


def _int(meaning: Meaning, slot: str) -> int:
    return int(str(meaning.slots[slot]))


def _digits(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return single_digits(str(meaning.slots["digits"]), language)


def _number(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return number(_int(meaning, "value"), language)


def _ordinal(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return calendar.ordinal(_int(meaning, "value"), language)


def _date(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    slots = meaning.slots
    return calendar.date(
        _int(meaning, "month"),
        _int(meaning, "day"),
        language,
        year=_int(meaning, "year") if "year" in slots else 0,
        weekday_=_int(meaning, "weekday") if "weekday" in slots else None,
    )


def _time(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return calendar.clock_time(_int(meaning, "hour"), _int(meaning, "minute"), language, rng)


_BUILDERS: dict[str, Callable[[Meaning, str, random.Random], Pieces | None]] = {
    "digits": _digits,
    "number": _number,
    "ordinal": _ordinal,
    "date": _date,
    "time": _time,
    **telephone.BUILDERS,
}
COMPOSABLE: dict[str, tuple[str, ...]] = {
    language: tuple(kind for kind in _BUILDERS if language in telephone.LANGUAGES.get(kind, LANGUAGES))
    for language in LANGUAGES
}
