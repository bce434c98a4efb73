"""Whole announcements of a telephone exchange: new messages, place in the queue, busy extensions, amounts,
durations.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from sprachbund.data.asterisk.compose import calendar
from sprachbund.data.asterisk.compose.numbers import counted, number, russian_form
from sprachbund.data.asterisk.compose.pieces import Piece, Pieces, digit, single_digits
from sprachbund.data.phrasebook.meaning import Meaning

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


def _carrier(name: str, texts: dict[str, str], language: str) -> Piece:
    return Piece((name,), texts[language])


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
        pieces = [Piece((name,), text) for name, text in words]
    else:
        pieces = [Piece(names, text) for names, text in (_OLD if old else _NEW)[language][value != 1]]
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
    return [*head, Piece(_MINUTE_CLIPS[bool(form)], many if form else one)]


def _hours(value: int, language: str) -> Pieces | None:
    gender, many = _HOURS[language]
    head = counted(value, language, gender)
    if head is None or value == 1 or (language == "ru" and russian_form(value) != 2):
        return None
    return [*head, Piece(("hours", "digits/hours"), many)]


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
    return [*head, Piece(("letters/ascii37",), _PERCENT[language])] if head else None


def _words(name: str, texts: dict[str, str]) -> Builder:
    """The exchange's own words."""
    return lambda meaning, language, rng: [_carrier(name, texts, language)]


def _whole(runs: tuple[Run, ...]) -> Builder:
    """All runs by one speaker; None where one cannot be said."""

    def build(meaning: Meaning, language: str, rng: random.Random) -> Pieces | None:
        found = [build_run(meaning, language, rng) for _, build_run in runs]
        return None if None in found else [piece for pieces in found for piece in pieces or ()]

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
LANGUAGES: dict[str, tuple[str, ...]] = {"percent": tuple(_PERCENT)}
