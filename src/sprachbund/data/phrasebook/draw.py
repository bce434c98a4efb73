"""Draws meanings at random and renders them: the two halves of the text side of the phrasebook."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from types import MappingProxyType

from sprachbund.data.phrasebook import slots as slot_types
from sprachbund.data.phrasebook.meaning import LANGUAGES, Meaning, Slot
from sprachbund.data.phrasebook.sentences import Template, phrases, templates
from sprachbund.errors import SprachbundError

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
        pair = slot_types.draw_slot(slot_type, rng)
        assert isinstance(pair, tuple)
        return {first: pair[0], second: pair[1]}

    return draw_pair


def _draw_date(rng: random.Random) -> dict[str, Slot]:
    value = slot_types.draw_slot("date:year" if rng.random() < 0.3 else "date:", rng)
    assert isinstance(value, tuple)
    month, day, year, weekday = value
    found: dict[str, Slot] = {"month": month, "day": day}
    if year:
        found["year"] = year
    if weekday != -1:
        found["weekday"] = weekday
    return found


def _pack_date(slots: Slots) -> Slot:
    year, weekday = _number(slots.get("year", 0)), _number(slots.get("weekday", -1))
    return _number(slots["month"]), _number(slots["day"]), year, weekday


def _draw_ordinal(rng: random.Random) -> dict[str, Slot]:
    return {"value": rng.randint(1, 12) if rng.random() < 0.5 else rng.randint(13, 31)}


_PLAIN: dict[str, _Plain] = {
    "number": _Plain(
        weight=9.0,
        slot_type="number",
        draw=lambda rng: {"value": slot_types.draw_slot("number", rng)},
        pack=lambda slots: slots["value"],
    ),
    "digits": _Plain(
        weight=8.0,
        slot_type="digits",
        draw=lambda rng: {"digits": slot_types.draw_slot("digits:1-10", rng)},
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
    found: dict[str, Slot] = {}
    taken: set[tuple[str, Slot]] = set()
    for name, spec in specs.items():
        value = slot_types.draw_slot(spec, rng)
        while (spec, value) in taken:
            value = slot_types.draw_slot(spec, rng)
        taken.add((spec, value))
        found[name] = value
    return found


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a rendered meaning.

    Attributes:
        text: with the spaces around it.
        language: that it is in.
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
        meaning: to be said.
        language: of the sentence.
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
        text = slot_types.say_slot(plain.slot_type, plain.pack(meaning.slots), "", language, rng)
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
    text = slot_types.say_slot(template.slots[slot], values[slot], form, tag, rng)
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
