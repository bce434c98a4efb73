"""Composes longer utterances from recorded digits, numbers, dates, times and prompts, as a telephone exchange
does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk import numbers as calendar
from sprachbund.corpora.asterisk.numbers import (
    Pieces,
    PromptPiece,
    counted,
    digit,
    number,
    russian_form,
    single_digits,
    written,
)
from sprachbund.corpora.asterisk.packages import LANGUAGES
from sprachbund.corpora.asterisk.prompts import CARRIERS, NUMBER_PROMPTS, Clips, PromptSet, is_clip
from sprachbund.corpora.phrasebook.sentences import Meaning, split_of
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples

__all__ = ["COMPOSABLE", "Composed", "ComposedUtterance", "compose", "composed_utterances"]


# Joining recordings: gaps of varying length, short overlaps, soft edges.

MIN_GAP_S, MAX_GAP_S = -0.03, 0.30
# Some people leave half a second and more between digits.
SLOW_SHARE, SLOW_GAP_S = 0.25, 0.9
FADE_S = 0.008
EDGE_S = 0.15
_FADE = np.linspace(0.0, 1.0, int(FADE_S * SAMPLE_RATE), dtype=np.float32)


def draw_gaps(count: int, rng: random.Random) -> list[float]:
    """Seconds between clips, -0.03 (overlap) to 0.30, or 0.9 in a slow one; one pace per utterance, with jitter."""
    longest = SLOW_GAP_S if rng.random() < SLOW_SHARE else MAX_GAP_S
    pace = rng.betavariate(1.2, 3.0)
    span = longest - MIN_GAP_S
    gaps = (MIN_GAP_S + span * (pace + rng.gauss(0.0, 0.07)) for _ in range(count))
    return [min(longest, max(MIN_GAP_S, gap)) for gap in gaps]


def join(clips: Sequence[Samples], rng: random.Random) -> Samples:
    """Join clips (each (num_samples,), 16 kHz) with drawn gaps and up to 0.15 s of silence at both ends."""
    gaps = draw_gaps(len(clips) - 1, rng)
    position = start = int(rng.uniform(0.0, EDGE_S) * SAMPLE_RATE)
    starts = []
    for clip, gap in zip(clips, [*gaps, 0.0], strict=True):
        starts.append(position)
        position += max(0, len(clip) + int(gap * SAMPLE_RATE))
    total = max([start, *(at + len(clip) for at, clip in zip(starts, clips, strict=True))])
    joined = np.zeros(total + int(rng.uniform(0.0, EDGE_S) * SAMPLE_RATE), dtype=np.float32)
    for at, clip in zip(starts, clips, strict=True):
        joined[at : at + len(clip)] += clip
        if len(clip) > 2 * len(_FADE):
            _soften(joined, at, clip)
    np.clip(joined, -1.0, 1.0, out=joined)
    return joined


def _soften(joined: Samples, at: int, clip: Samples) -> None:
    """Fade both edges of a clip already added (in place, so that clips in memory stay as they are)."""
    size = len(_FADE)
    end = at + len(clip)
    joined[at : at + size] -= clip[:size] * (1.0 - _FADE)
    joined[end - size : end] -= clip[-size:] * _FADE


# Announcements: new messages, position in the queue, busy extensions, amounts, durations.

Builder = Callable[[Meaning, str, random.Random], Pieces | None]
Run = tuple[tuple[str, ...], Builder]
_YOU_HAVE = {"en": "you have", "es": "usted tiene", "fr": "vous avez", "it": "hai", "ru": "у вас"}
_AND = {"en": "and", "es": "y", "fr": "et", "it": "e", "ru": "и"}
# Noun and adjective for one and for several: (recordings, words), in the order they are said.
_Words = tuple[tuple[tuple[str, ...], str], ...]
_NEW: dict[str, tuple[_Words, _Words]] = {
    "en": (
        ((("vm-inbox",), "new"), (("vm-message",), "message")),
        ((("vm-inbox",), "new"), (("vm-messages",), "messages")),
    ),
    "es": (
        ((("vm-message",), "mensaje"), (("vm-inboxs",), "nuevo")),
        ((("vm-messages",), "mensajes"), (("vm-inbox",), "nuevos")),
    ),
    "fr": (
        ((("vm-inbox",), "nouveau"), (("vm-message",), "message")),
        ((("vm-inbox",), "nouveaux"), (("vm-messages",), "messages")),
    ),
    "it": (
        ((("vm-nuovo",), "nuovo"), (("vm-message",), "messaggio")),
        ((("vm-nuovi",), "nuovi"), (("vm-messages",), "messaggi")),
    ),
}
_OLD: dict[str, tuple[_Words, _Words]] = {
    "en": (
        ((("vm-old",), "old"), (("vm-message",), "message")),
        ((("vm-old",), "old"), (("vm-messages",), "messages")),
    ),
    "es": (
        ((("vm-message",), "mensaje"), (("vm-olds",), "viejo")),
        ((("vm-messages",), "mensajes"), (("vm-old",), "viejos")),
    ),
    "fr": (
        ((("vm-old",), "ancien"), (("vm-message",), "message")),
        ((("vm-old",), "anciens"), (("vm-messages",), "messages")),
    ),
    "it": (
        ((("vm-vecchio",), "vecchio"), (("vm-message",), "messaggio")),
        ((("vm-vecchi",), "vecchi"), (("vm-messages",), "messaggi")),
    ),
}
_RU_MESSAGES = (("vm-message", "сообщение"), ("vm-messagex1", "сообщения"), ("vm-messagex2", "сообщений"))
_RU_NEW = (("vm-newn", "новое"), ("vm-newx", "новых"), ("vm-newx", "новых"))
_RU_OLD = (("vm-oldn", "старое"), ("vm-oldx", "старых"), ("vm-oldx", "старых"))
_MINUTE_CLIPS = (("queue-minute", "minute"), ("queue-minutes", "minutes", "vm-minutes"))
_MINUTES = {
    "en": ("m", "minute", "minutes"),
    "es": ("m", "minuto", "minutos"),
    "fr": ("f", "minute", "minutes"),
    "it": ("m", "minuto", "minuti"),
    "ru": ("f", "минута", "минут"),
}
# Only the plural of "hours" was recorded.
_HOURS = {
    "en": ("m", "hours"),
    "es": ("f", "horas"),
    "fr": ("f", "heures"),
    "it": ("f", "ore"),
    "ru": ("m", "часов"),
}
_DOLLARS = {"en": "dollars", "es": "dólares", "fr": "dollars", "it": "dollari", "ru": "долларов"}
_PERCENT = {"en": "percent", "it": "per cento", "ru": "процент"}


def _carrier(name: str, texts: dict[str, str], language: str) -> PromptPiece:
    return PromptPiece((name,), texts[language])


_QUEUE = {
    "en": "you are currently caller number",
    "es": "usted es el cliente número",
    "fr": "vous êtes présentement l'appelant numéro",
    "it": "attualmente sei il chiamante numero",
    "ru": "ваша позиция в очереди",
}
_HOLD_TIME = {
    "en": "the estimated hold time is currently",
    "es": "tiempo de espera estimado es de",
    "fr": "le temps d'attente est évalué à",
    "it": "il tempo di attesa stimato è attualmente di",
    "ru": "прогнозируемое время ожидания составляет",
}
_PERSON = {
    "en": "the person at extension",
    "es": "la persona en la extensión",
    "fr": "la personne au poste",
    "it": "la persona all'interno",
    "ru": "абонент с номером",
}
_ON_PHONE = {
    "en": "is on the phone",
    "es": "se encuentra ocupada",
    "fr": "est présentement en ligne",
    "it": "è al telefono",
    "ru": "занят",
}
_UNAVAILABLE = {
    "en": "is unavailable",
    "es": "no está libre",
    "fr": "n'est pas disponible",
    "it": "non è disponibile",
    "ru": "недоступен",
}
_MESSAGE = {"en": "message", "es": "mensaje", "fr": "message", "it": "messaggio", "ru": "сообщение"}
_RECEIVED = {"en": "received", "es": "recibido", "fr": "reçu", "it": "ricevuto", "ru": "получено"}


def _int(meaning: Meaning, slot: str) -> int:
    return int(str(meaning.slots[slot]))


def _counted_messages(value: int, language: str, *, old: bool) -> Pieces | None:
    if language == "ru":
        form = russian_form(value)
        words = ((_RU_OLD if old else _RU_NEW)[form], _RU_MESSAGES[form])
        pieces = [PromptPiece((name,), text) for name, text in words]
    else:
        pieces = [PromptPiece(names, text) for names, text in (_OLD if old else _NEW)[language][value != 1]]
    head = counted(value, language, "n" if language == "ru" else "m")
    return [*head, *pieces] if head else None


def _new_and_old(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    head = _whole(RUNS["new_messages"])(meaning, language, rng)
    tail = _counted_messages(_int(meaning, "m"), language, old=True)
    return [*head, _carrier("vm-and", _AND, language), *tail] if head and tail else None


def _minutes(value: int, language: str) -> Pieces | None:
    gender, one, many = _MINUTES[language]
    form = russian_form(value) if language == "ru" else int(value != 1)
    head = counted(value, language, gender)
    if head is None or (language == "ru" and form == 1):
        return None
    return [*head, PromptPiece(_MINUTE_CLIPS[bool(form)], many if form else one)]


def _hours(value: int, language: str) -> Pieces | None:
    gender, many = _HOURS[language]
    head = counted(value, language, gender)
    if head is None or value == 1 or (language == "ru" and russian_form(value) != 2):
        return None
    return [*head, PromptPiece(("hours", "digits/hours"), many)]


def _duration(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    hours, minutes = _int(meaning, "hours"), _int(meaning, "minutes")
    head = _hours(hours, language) if hours else []
    tail = _minutes(minutes, language) if minutes else []
    if head is None or tail is None:
        return None
    joint = [_carrier("vm-and", _AND, language)] if head and tail and language != "ru" else []
    return [*head, *joint, *tail]


def _tuple_date(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    month, day, year, weekday = (int(str(part)) for part in meaning.slots["date"])  # type: ignore[union-attr]
    return calendar.date(month, day, language, year=year, weekday_=None if weekday < 0 else weekday)


def _at_time(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    hour, minute = (int(str(part)) for part in meaning.slots["time"])  # type: ignore[union-attr]
    time = calendar.clock_time(hour, minute, language, rng)
    at = {"en": [digit("at", "at")], "ru": [digit("at", "в")]}.get(language, [])
    return [*at, *time] if time else None


def _message_received(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    tail = _whole(RUNS["date_time"])(meaning, language, rng)
    head = [_carrier("vm-message", _MESSAGE, language), _carrier("vm-received", _RECEIVED, language)]
    return [*head, *tail] if tail else None


def _money(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    """Whole dollars, in the plural."""
    amount, cents, currency = (str(part) for part in meaning.slots["price"])  # type: ignore[union-attr]
    value = int(amount)
    if currency != "dollar" or cents != "0" or value == 1 or (language == "ru" and russian_form(value) != 2):
        return None
    head = counted(value, language, "m")
    return [*head, digit("dollars", _DOLLARS[language])] if head else None


def _percent(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    value = _int(meaning, "value")
    if language == "ru" and russian_form(value) != 0:
        return None
    head = number(value, language)
    return [*head, PromptPiece(("letters/ascii37",), _PERCENT[language])] if head else None


def _words(name: str, texts: dict[str, str]) -> Builder:
    """The exchange's own words."""
    return lambda meaning, language, rng: [_carrier(name, texts, language)]


def _whole(runs: tuple[Run, ...]) -> Builder:
    """All runs by one speaker; None where one cannot be said."""

    def build(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
        built = [build_run(meaning, language, rng) for _, build_run in runs]
        return None if None in built else [piece for pieces in built for piece in pieces or ()]

    return build


_EXTENSION: tuple[Run, ...] = (
    ((), _words("vm-theperson", _PERSON)),
    (("number",), lambda meaning, language, rng: single_digits(str(meaning.slots["number"]), language)),
)
RUNS: dict[str, tuple[Run, ...]] = {
    "new_messages": (
        ((), _words("vm-youhave", _YOU_HAVE)),
        (("n",), lambda meaning, language, rng: _counted_messages(_int(meaning, "n"), language, old=False)),
    ),
    "queue_position": (
        ((), _words("queue-thereare", _QUEUE)),
        (("n",), lambda meaning, language, rng: number(_int(meaning, "n"), language)),
    ),
    "waiting_time": (
        ((), _words("queue-holdtime", _HOLD_TIME)),
        (("n",), lambda meaning, language, rng: _minutes(_int(meaning, "n"), language)),
    ),
    "extension_busy": (*_EXTENSION, ((), _words("vm-isonphone", _ON_PHONE))),
    "extension_unavailable": (*_EXTENSION, ((), _words("vm-isunavail", _UNAVAILABLE))),
    "date_time": (((), _tuple_date), (("time",), _at_time)),
    "weekday_time": (
        ((), lambda meaning, language, rng: [calendar.weekday(_int(meaning, "day"), language)]),
        (("time",), _at_time),
    ),
}
"""Kinds cut into what different speakers may say, in the order it is said: the slots that a run says (none for what
stands around the value), and what composes it."""

BUILDERS: dict[str, Builder] = {
    **{kind: _whole(runs) for kind, runs in RUNS.items()},
    "new_and_old_messages": _new_and_old,
    "duration": _duration,
    "message_received": _message_received,
    "money": _money,
    "percent": _percent,
}
# Kinds that only some languages have the recordings for.
LANGUAGES_OF_KIND: dict[str, tuple[str, ...]] = {"percent": tuple(_PERCENT)}


# From a meaning to the recordings of one speaker, and the words heard.


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

    Args:
        meaning: language-neutral meaning.
        language: BCP-47 tag.
        clips: recordings of the speaker by name.
        rng: source of all random choices.
    """
    builder = _BUILDERS.get(meaning.kind)
    pieces = builder(meaning, language, rng) if builder else None
    return play(pieces, clips, rng) if pieces else None


def play(pieces: Pieces, clips: Clips, rng: random.Random) -> Composed | None:
    """Join the recordings of ``pieces``; None when one is missing.

    Args:
        pieces: recordings to play, and their words.
        clips: recordings of the speaker by name.
        rng: source of all random choices.
    """
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


def _as_int(meaning: Meaning, slot: str) -> int:
    return int(str(meaning.slots[slot]))


def _digits(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return single_digits(str(meaning.slots["digits"]), language)


def _number(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return number(_as_int(meaning, "value"), language)


def _ordinal(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return calendar.ordinal(_as_int(meaning, "value"), language)


def _date(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    slots = meaning.slots
    return calendar.date(
        _as_int(meaning, "month"),
        _as_int(meaning, "day"),
        language,
        year=_as_int(meaning, "year") if "year" in slots else 0,
        weekday_=_as_int(meaning, "weekday") if "weekday" in slots else None,
    )


def _time(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
    return calendar.clock_time(_as_int(meaning, "hour"), _as_int(meaning, "minute"), language, rng)


_BUILDERS: dict[str, Callable[[Meaning, str, random.Random], Pieces | None]] = {
    "digits": _digits,
    "number": _number,
    "ordinal": _ordinal,
    "date": _date,
    "time": _time,
    **BUILDERS,
}
COMPOSABLE: dict[str, tuple[str, ...]] = {
    language: tuple(kind for kind in _BUILDERS if language in LANGUAGES_OF_KIND.get(kind, LANGUAGES))
    for language in LANGUAGES
}


# The stream of composed utterances.

# Shares of: a composed meaning, two prompts, a prompt and a number.
SHARES = (0.6, 0.2, 0.2)
KIND_WEIGHTS = {"digits": 3.0, "number": 4.0, "ordinal": 1.0, "date": 3.0, "time": 3.0}
OTHER_WEIGHT = 1.0
MIN_PROMPT_WORDS, MAX_PROMPT_WORDS = 2, 14
# A meaning belongs to the test part once in fifty draws, and not every meaning can be said by every speaker.
MAX_DRAWS = 400
MAX_FAILURES = 50


@dataclass(frozen=True, kw_only=True)
class ComposedUtterance:
    """A composed utterance with its words and their translations (language to text); samples are
    (num_samples,).
    """

    samples: Samples
    text: str
    language: str
    speaker: str
    translations: Mapping[str, str]
    kind: str


def composed_utterances(
    clips_by_speaker: Mapping[str, Clips],
    rng: random.Random,
    split: str,
    *,
    prompts: PromptSet | None = None,
    kinds: Sequence[str] | None = None,
    speakers: Sequence[str] | None = None,
) -> Iterator[ComposedUtterance]:
    """Yield composed utterances of ``split`` without end, speaker after speaker at random.

    Meanings belong to one split by their hash, prompts by their sentence; without ``prompts`` only meanings
    are composed. Speakers kept for testing take part only when named in ``speakers``. Raises SprachbundError
    when no speaker is left or nothing can be composed.

    Args:
        clips_by_speaker: recordings of each speaker by name.
        rng: source of all random choices.
        split: part of the corpus.
        prompts: prompts to join; None joins none.
        kinds: kinds of meaning; None for all.
        speakers: names; None for all but the held-out ones.
    """
    chosen = [c for c in clips_by_speaker.values() if (c.speaker in speakers if speakers else not c.held_out)]
    if not chosen:
        raise SprachbundError(
            f"no speaker to compose with; there are {', '.join(clips_by_speaker) or 'none'}"
        )
    composers = [_SpeakerComposer(clips, split, prompts, kinds) for clips in chosen]
    failures = 0
    while failures < MAX_FAILURES:
        made = rng.choice(composers).draw(rng)
        failures = failures + 1 if made is None else 0
        if made is not None:
            yield made
    raise SprachbundError(f"nothing can be composed for split {split!r}; give more kinds or more speakers")


class _SpeakerComposer:
    """Composes for one speaker and split."""

    def __init__(
        self, clips: Clips, split: str, prompts: PromptSet | None, kinds: Sequence[str] | None
    ) -> None:
        self.clips, self.split, self.prompts = clips, split, prompts
        self.kinds = [kind for kind in COMPOSABLE[clips.language] if kinds is None or kind in kinds]
        self.weights = [KIND_WEIGHTS.get(kind, OTHER_WEIGHT) for kind in self.kinds]
        names = [name for name in clips.samples if prompts and prompts.split_of_prompt(name) == split]
        self.names = [name for name in names if _joinable(name, clips)]
        self.openers = [name for name in clips.samples if prompts and name in NUMBER_PROMPTS]
        ways: tuple[tuple[Callable[[random.Random], ComposedUtterance | None], bool], ...] = (
            (self.meaning, bool(self.kinds)),
            (self.two_prompts, len(self.names) > 1),
            (self.prompt_and_number, bool(self.openers)),
        )
        usable = [(way, share) for (way, ok), share in zip(ways, SHARES, strict=True) if ok]
        self.ways, self.shares = [way for way, _ in usable], [share for _, share in usable]

    def draw(self, rng: random.Random) -> ComposedUtterance | None:
        """One utterance; None when all draws fell into another split or lacked a recording.

        The way is chosen first and kept, so that the shares are the same in every split.
        """
        if not self.ways:
            return None
        way = rng.choices(self.ways, self.shares)[0]
        return next((made for _ in range(MAX_DRAWS) if (made := way(rng)) is not None), None)

    def meaning(self, rng: random.Random) -> ComposedUtterance | None:
        """A meaning of the phrasebook."""
        meaning = _drawn(rng.choices(self.kinds, self.weights)[0], rng)
        if split_of(meaning) != self.split:
            return None
        made = compose(meaning, self.clips.language, self.clips, rng)
        return None if made is None else self._utterance(made, _renderings(meaning), meaning.kind)

    def two_prompts(self, rng: random.Random) -> ComposedUtterance | None:
        """Two prompts one after the other; translated one after the other."""
        first, second = rng.sample(self.names, 2)
        samples = join([self.clips.samples[first], self.clips.samples[second]], rng)
        text = f"{self.clips.texts[first]} {self.clips.texts[second]}"
        return self._utterance(
            Composed(samples=samples, text=text), _both(self._texts(first), self._texts(second)), "prompts"
        )

    def prompt_and_number(self, rng: random.Random) -> ComposedUtterance | None:
        """A prompt that an exchange follows with a number, a time or digits."""
        opener = rng.choice(self.openers)
        meaning = _argument(NUMBER_PROMPTS[opener], rng)
        if split_of(meaning) != self.split:
            return None
        tail = compose(meaning, self.clips.language, self.clips, rng)
        if tail is None:
            return None
        samples = join([self.clips.samples[opener], tail.samples], rng)
        text = f"{self.clips.texts[opener]} {tail.text}"
        return self._utterance(
            Composed(samples=samples, text=text),
            _both(self._texts(opener), _renderings(meaning)),
            "prompt+number",
        )

    def _texts(self, name: str) -> Mapping[str, str]:
        return self.prompts.texts[name] if self.prompts else {}

    def _utterance(
        self, made: Composed, renderings: Mapping[str, str], kind: str
    ) -> ComposedUtterance | None:
        language = self.clips.language
        translations = {other: text for other, text in renderings.items() if other != language}
        return ComposedUtterance(
            samples=made.samples,
            text=made.text,
            language=language,
            speaker=self.clips.speaker,
            translations=translations,
            kind=kind,
        )


def _joinable(name: str, clips: Clips) -> bool:
    """Whether a recording is a whole prompt of moderate length, not a building block."""
    num_words = len(clips.texts[name].split())
    return not is_clip(name) and name not in CARRIERS and MIN_PROMPT_WORDS <= num_words <= MAX_PROMPT_WORDS


def _both(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    return {language: f"{first[language]} {second[language]}" for language in first if language in second}


def _argument(kind: str, rng: random.Random) -> Meaning:
    if kind == "digit":
        return Meaning(kind="digits", slots={"digits": str(rng.randint(0, 9))})
    if kind == "digits":
        return Meaning(
            kind="digits", slots={"digits": "".join(str(rng.randint(0, 9)) for _ in range(rng.randint(2, 7)))}
        )
    if kind == "number":
        return Meaning(kind="number", slots={"value": rng.randint(1, 120)})
    return _drawn(kind, rng)


def _drawn(kind: str, rng: random.Random) -> Meaning:
    from sprachbund.corpora.phrasebook import draw_kind

    return draw_kind(kind, rng)


def _renderings(meaning: Meaning) -> dict[str, str]:
    from sprachbund.corpora.phrasebook import LANGUAGES, render

    return {language: render(meaning, language) for language in LANGUAGES}
