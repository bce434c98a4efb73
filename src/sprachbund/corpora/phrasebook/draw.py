"""Draws meanings at random and renders them: the two halves of the text side of the phrasebook."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from types import MappingProxyType

from sprachbund.corpora.phrasebook import dates
from sprachbund.corpora.phrasebook import dates as clock
from sprachbund.corpora.phrasebook import sentences as lexicon
from sprachbund.corpora.phrasebook.sentences import LANGUAGES, Meaning, Slot, Template, phrases, templates
from sprachbund.errors import SprachbundError
from sprachbund.text import numbers

# The types of things that fill a sentence: how each is drawn and how each is said.
#
# A slot is declared in a template file as "type" or "type:argument": "int:1-24" or "digits:2-5". What it
# draws is JSON-able; what it says depends on the form named in the template: {city:to},
# {n:count.minute.acc}.

_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CURRENCIES = ("euro", "dollar", "pound", "rouble", "franc", "yen")
_CURRENCY_WEIGHTS = (40, 20, 12, 16, 8, 4)
_CENTS_JOINT = {"en": " ", "es": " con ", "fr": " ", "it": " e ", "de": " ", "nl": " "}
_AND = {
    "en": " and ",
    "es": " y ",
    "fr": " et ",
    "it": " e ",
    "de": " und ",
    "ru": " и ",
    "pt": " e ",
    "nl": " en ",
}
_VARIANT_CHANCE = 0.3


def draw_slot(spec: str, rng: random.Random) -> Slot:
    """Draw a value for a slot declared as `spec`."""
    name, _, argument = spec.partition(":")
    draw = _DRAWERS.get(name)
    return draw(argument, rng) if draw else rng.choice(lexicon.keys(name))


def say_slot(spec: str, value: Slot, form: str, language: str, rng: random.Random | None) -> str:
    """Say a slot's value in a language; without `rng` in the canonical wording.

    Args:
        spec: "type" or "type:argument".
        value: value that was drawn.
        form: form named in the template.
        language: BCP-47 tag.
        rng: chooses the wording; None takes the canonical one.
    """
    name = spec.partition(":")[0]
    say = _SAYERS.get(name)
    if say is None:
        return lexicon.word(name, str(value), form, language)
    return say(value, form, language, int(rng is not None and rng.random() < _VARIANT_CHANCE))


def _draw_int(argument: str, rng: random.Random) -> int:
    bounds, _, step = argument.partition("/")
    low, _, high = bounds.rpartition("-")
    return rng.randrange(int(low), int(high) + 1, int(step or 1))


def _draw_number(_: str, rng: random.Random) -> int:
    bands = ((0, 20), (21, 99), (100, 999), (1000, 9999), (10_000, numbers.MAX_VALUE))
    low, high = rng.choices(bands, weights=(34, 32, 20, 10, 4))[0]
    value = rng.randint(low, high)
    return value if value < 1000 or rng.random() < 0.5 else value // 100 * 100


def _draw_digits(argument: str, rng: random.Random) -> str:
    low, high = (int(bound) for bound in argument.split("-"))
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))


def _draw_time(_: str, rng: random.Random) -> tuple[int, int]:
    hour = rng.randint(6, 21) if rng.random() < 0.7 else rng.randint(0, 23)
    choice = rng.random()
    if choice < 0.35:
        return hour, 0
    if choice < 0.65:
        return hour, rng.choice((15, 30, 45))
    return hour, rng.randrange(5, 60, 5) if choice < 0.85 else rng.randint(1, 59)


def _draw_any_date(argument: str, rng: random.Random) -> tuple[int, int, int, int]:
    month = rng.randint(1, 12)
    day = rng.randint(1, _DAYS_IN_MONTH[month - 1])
    weekday = rng.randint(0, 6) if "weekday" in argument or rng.random() < 0.3 else -1
    year = rng.randint(1950, 2039) if "year" in argument else 0
    return month, day, year, weekday


def _draw_money(argument: str, rng: random.Random) -> tuple[int, int, str]:
    currency = rng.choices(_CURRENCIES, weights=_CURRENCY_WEIGHTS)[0]
    weights = (3, 4, 5, 0, 0) if argument == "small" else (3, 4, 5, 2, 1)
    high = rng.choices((10, 20, 99, 999, 9999), weights=weights)[0]
    amount = rng.randint(1, high)
    if amount > 999:
        amount = amount // 100 * 100
    cents = rng.choice((0, 0, 10, 20, 25, 50, 50, 75, 80, 90, 95, 99)) if amount < 100 else 0
    return amount, 0 if currency == "yen" else cents, currency


def _say_int(value: Slot, form: str, language: str, _variant: int) -> str:
    number = int(str(value))
    name, _, rest = form.partition(".")
    if name == "count":
        noun, _, case = rest.partition(".")
        return lexicon.counted(number, noun, case, language)
    if name == "ord":
        return numbers.ordinal(number, language, rest or "m")
    if name == "year":
        return numbers.year(number, language, rest)
    if name == "noun":  # the digit as a thing: German "die Eins"
        words = numbers.cardinal(number, language)
        return words.capitalize() if language == "de" else words
    return numbers.cardinal(number, language, form)


def _say_money(value: Slot, form: str, language: str, variant: int) -> str:
    assert isinstance(value, tuple)
    amount, cents, currency = int(value[0]), int(value[1]), str(value[2])
    words = lexicon.counted(amount, currency, form, language)
    if not cents:
        return words
    if language in ("ru", "pt") or (variant and language == "en"):
        joint = {"ru": " ", "pt": " e ", "en": " and "}[language]
        return words + joint + lexicon.counted(cents, f"{currency}.cent", form, language)
    return words + _CENTS_JOINT[language] + numbers.cardinal(cents, language)


def _draw_duration(_: str, rng: random.Random) -> tuple[int, int]:
    hours = rng.choice((0, 0, rng.randint(1, 6), rng.randint(1, 24)))
    minutes = rng.choice((0, rng.randrange(5, 60, 5), rng.randint(1, 59)))
    return (hours, minutes) if hours or minutes else (0, 30)


def _say_duration(value: Slot, form: str, language: str, _: int) -> str:
    assert isinstance(value, tuple)
    parts = [
        lexicon.counted(int(count), noun, form, language)
        for count, noun in zip(value, ("hour", "minute"), strict=True)
        if count
    ]
    return _AND[language].join(parts)


def _say_ordinal(value: Slot, form: str, language: str, _: int) -> str:
    return numbers.ordinal(int(str(value)), language, form or "m")


def _say_time(value: Slot, form: str, language: str, variant: int) -> str:
    assert isinstance(value, tuple)
    return clock.clock_time(int(value[0]), int(value[1]), language, form, variant)


def _say_date(value: Slot, form: str, language: str, variant: int) -> str:
    assert isinstance(value, tuple)
    month, day, year, weekday = (int(part) for part in value)
    return dates.date((month, day, year, weekday), language, form, variant)


_DRAWERS: dict[str, Callable[[str, random.Random], Slot]] = {
    "int": _draw_int,
    "number": _draw_number,
    "digits": _draw_digits,
    "time": _draw_time,
    "hour": lambda argument, rng: (_draw_int(argument, rng), 0),
    "date": _draw_any_date,
    "weekday": lambda _, rng: rng.randint(0, 6),
    "month": lambda _, rng: rng.randint(1, 12),
    "money": _draw_money,
    "duration": _draw_duration,
    "decimal": lambda _, rng: (rng.choice((rng.randint(0, 20), rng.randint(0, 120))), str(rng.randint(1, 9))),
}
_SAYERS: dict[str, Callable[[Slot, str, str, int], str]] = {
    "int": _say_int,
    "number": _say_int,
    "ordinal": _say_ordinal,
    "duration": _say_duration,
    "digits": lambda value, _form, language, _v: numbers.digits(str(value), language),
    "time": _say_time,
    "hour": _say_time,
    "date": _say_date,
    "weekday": lambda value, form, language, _: dates.weekday(int(str(value)), language, form),
    "month": lambda value, form, language, _: dates.month(int(str(value)), language, form),
    "money": _say_money,
    "country": lambda value, form, language, _: lexicon.country(str(value), form, language),
    "city": lambda value, form, language, _: lexicon.city(str(value), form, language),
    "language": lambda value, form, language, _: lexicon.spoken_language(str(value), form, language),
    "decimal": lambda value, _f, language, _: numbers.decimal(int(value[0]), str(value[1]), language),  # type: ignore[index]
}


Slots = Mapping[str, Slot]
_SENTENCE_WEIGHT = (
    55.0  # shared by all template kinds, in percent; the rest is for the plain kinds and phrases
)
_PHRASE_WEIGHT = 12.0


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """A kind that is a bare value: its share in percent, how it is drawn, how its slots make one value."""

    weight: float
    slot_type: str
    draw: Callable[[random.Random], dict[str, Slot]]
    pack: Callable[[Slots], Slot]


def _number(value: Slot) -> int:
    return int(str(value))


def _draw_pair(slot_type: str, first: str, second: str) -> Callable[[random.Random], dict[str, Slot]]:
    def draw_pair(rng: random.Random) -> dict[str, Slot]:
        pair = draw_slot(slot_type, rng)
        assert isinstance(pair, tuple)
        return {first: pair[0], second: pair[1]}

    return draw_pair


def _draw_date(rng: random.Random) -> dict[str, Slot]:
    value = draw_slot("date:year" if rng.random() < 0.3 else "date:", rng)
    assert isinstance(value, tuple)
    month, day, year, weekday = value
    slots: dict[str, Slot] = {"month": month, "day": day}
    if year:
        slots["year"] = year
    if weekday != -1:
        slots["weekday"] = weekday
    return slots


def _pack_date(slots: Slots) -> Slot:
    year, weekday = _number(slots.get("year", 0)), _number(slots.get("weekday", -1))
    return _number(slots["month"]), _number(slots["day"]), year, weekday


def _draw_ordinal(rng: random.Random) -> dict[str, Slot]:
    return {"value": rng.randint(1, 12) if rng.random() < 0.5 else rng.randint(13, 31)}


_PLAIN: dict[str, _Plain] = {
    "number": _Plain(
        weight=9.0,
        slot_type="number",
        draw=lambda rng: {"value": draw_slot("number", rng)},
        pack=lambda slots: slots["value"],
    ),
    "digits": _Plain(
        weight=8.0,
        slot_type="digits",
        draw=lambda rng: {"digits": draw_slot("digits:1-10", rng)},
        pack=lambda slots: slots["digits"],
    ),
    "ordinal": _Plain(weight=2.0, slot_type="ordinal", draw=_draw_ordinal, pack=lambda slots: slots["value"]),
    "date": _Plain(weight=7.0, slot_type="date", draw=_draw_date, pack=_pack_date),
    "time": _Plain(
        weight=5.0,
        slot_type="time",
        draw=_draw_pair("time", "hour", "minute"),
        pack=lambda slots: (_number(slots["hour"]), _number(slots["minute"])),
    ),
    "duration": _Plain(
        weight=2.0,
        slot_type="duration",
        draw=_draw_pair("duration", "hours", "minutes"),
        pack=lambda slots: (_number(slots["hours"]), _number(slots["minutes"])),
    ),
}

KINDS: tuple[str, ...] = (*_PLAIN, "phrase", *templates())


@cache
def _cumulative_weights() -> list[float]:
    total = sum(template.weight for template in templates().values())
    sentences = [_SENTENCE_WEIGHT * template.weight / total for template in templates().values()]
    return list(accumulate([*(plain.weight for plain in _PLAIN.values()), _PHRASE_WEIGHT, *sentences]))


def draw(rng: random.Random) -> Meaning:
    """Draw a meaning of any kind, weighted over the kinds."""
    return draw_kind(rng.choices(KINDS, cum_weights=_cumulative_weights())[0], rng)


def draw_kind(kind: str, rng: random.Random) -> Meaning:
    """Draw a meaning of one kind. Raises SprachbundError for a kind that is not in `KINDS`."""
    if kind in _PLAIN:
        return Meaning(kind=kind, slots=_PLAIN[kind].draw(rng))
    if kind == "phrase":
        return Meaning(kind=kind, slots={"phrase": rng.choice(list(phrases()))})
    _check_kind(kind)
    return Meaning(kind=kind, slots=_draw_slots(templates()[kind].slots, rng))


def _draw_slots(specs: dict[str, str], rng: random.Random) -> dict[str, Slot]:
    """Draw all slots; two slots of one type never get the same value ("from Rome to Rome")."""
    drawn: dict[str, Slot] = {}
    taken: set[tuple[str, Slot]] = set()
    for name, spec in specs.items():
        value = draw_slot(spec, rng)
        while (spec, value) in taken:
            value = draw_slot(spec, rng)
        taken.add((spec, value))
        drawn[name] = value
    return drawn


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a rendered meaning.

    Attributes:
        text: text with the spaces around it.
        language: language of the text.
        slot: name of the slot that it says; empty for the words of the template.
    """

    text: str
    language: str
    slot: str = ""


def render(meaning: Meaning, language: str, rng: random.Random | None = None) -> str:
    """Say a meaning in a language, in the words as spoken, without punctuation or digits.

    Without `rng` the wording is the canonical one; with it, one of the paraphrases of that language.
    Raises SprachbundError for a language that is not in `LANGUAGES` or an unknown kind.
    """
    return "".join(piece.text for piece in render_pieces(meaning, language, rng))


def render_pieces(
    meaning: Meaning,
    language: str,
    rng: random.Random | None = None,
    *,
    embedded: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Piece, ...]:
    """The same piece by piece, some slots said in another language.

    Args:
        meaning: meaning that is said.
        language: language of the sentence.
        rng: see `render`.
        embedded: slot to the language that it is said in, in the form that its own sentence would have.

    Raises:
        SprachbundError: as `render`.
        ValueError: slots that the meaning has not: numbers, dates and phrases are no sentences with slots.
    """
    template = templates().get(meaning.kind)
    if strange := set(embedded) - set(template.slots if template else ()):
        raise ValueError(f"{meaning.kind} has no slot {', '.join(sorted(strange))}")
    for tag in (language, *embedded.values()):
        if tag not in LANGUAGES:
            raise SprachbundError(
                f"language {tag!r} is not in the phrasebook; choose from {' '.join(LANGUAGES)}"
            )
    if meaning.kind in _PLAIN:
        plain = _PLAIN[meaning.kind]
        text = say_slot(plain.slot_type, plain.pack(meaning.slots), "", language, rng)
        return (Piece(text=text, language=language),)
    if meaning.kind == "phrase":
        wordings = phrases()[str(meaning.slots["phrase"])][language]
        return (Piece(text=rng.choice(wordings) if rng else wordings[0], language=language),)
    _check_kind(meaning.kind)
    assert template is not None
    options = template.wordings[language]
    wording = rng.choice(options) if rng else options[0]
    pieces = tuple(_said(part, template, meaning.slots, language, embedded, rng) for part in wording)
    return _euphonic(pieces) if language == "es" else pieces


def _said(
    part: str | tuple[str, str],
    template: Template,
    values: Slots,
    language: str,
    embedded: Mapping[str, str],
    rng: random.Random | None,
) -> Piece:
    if isinstance(part, str):
        return Piece(text=part, language=language)
    slot, form = part
    tag = embedded.get(slot, language)
    if tag != language:
        form = dict(part for part in template.wordings[tag][0] if not isinstance(part, str))[slot]
    text = say_slot(template.slots[slot], values[slot], form, tag, rng)
    return Piece(text=text, language=tag, slot=slot)


def _euphonic(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Spanish "y" is "e" before the sound of "i": "español e inglés"."""
    text = "".join(piece.text for piece in pieces).replace(" y i", " e i")
    ends = list(accumulate(len(piece.text) for piece in pieces))
    return tuple(
        replace(piece, text=text[end - len(piece.text) : end])
        for piece, end in zip(pieces, ends, strict=True)
    )


def _check_kind(kind: str) -> None:
    if kind not in templates():
        raise SprachbundError(f"kind {kind!r} is not in the phrasebook; choose from {' '.join(KINDS)}")
