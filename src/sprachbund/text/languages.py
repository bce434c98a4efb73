"""Language names and tags as people type them, to the BCP-47 tags a model knows."""

import difflib
from collections.abc import Iterable
from functools import lru_cache

from sprachbund.errors import SprachbundError

MIXED = "mul"
"""BCP-47's tag for several languages: as a target, speech that mixes them, written as it is spoken."""
_ANY = ("auto", "detect")
"""What other programs have for a language that is to be identified."""
_MIXED_NAME, _MIXED_TYPED = "mixed, as spoken", "mixed"
CHINESE = frozenset({"zh", "cmn", "yue", "nan", "wuu", "hak", "gan", "hsn", "lzh"})
"""Chinese languages, which are written in its characters unless their tag says Latin letters."""
_WITHOUT_SPACES = CHINESE | {"ja", "th", "lo", "my", "km", "bo", "dz"}
"""Languages whose words are not set apart by spaces: their error rate is counted in characters."""


class UnknownLanguageError(SprachbundError):
    """A language that was asked for is not among those of a model or a corpus.

    Args:
        message: one line.
        typed: the language as it was asked for.
    """

    def __init__(self, message: str, typed: str = "") -> None:
        super().__init__(message)
        self.typed = typed


def primary(tag: str) -> str:
    """A BCP-47 tag without script and region: "pt" of "pt-BR"."""
    return tag.partition("-")[0]


def writes_spaces(tag: str) -> bool:
    """Whether the language of a BCP-47 tag separates words by spaces; all do in Latin letters, as "ja-Latn"."""
    return primary(tag) not in _WITHOUT_SPACES or "Latn" in tag.split("-")


def text_units(text: str, tag: str) -> list[str]:
    """The units in which text is counted: words, or characters without white space where a language has no spaces.

    Args:
        text: of any length.
        tag: BCP-47 tag of its language.
    """
    return text.split() if writes_spaces(tag) else list("".join(text.split()))


def join_units(units: Iterable[str], tag: str) -> str:
    """The inverse of `text_units`."""
    return (" " if writes_spaces(tag) else "").join(units)


def language_name(tag: str) -> str:
    """English name of a BCP-47 tag, for messages; the tag itself when it has none."""
    import langcodes

    if tag == MIXED:
        return _MIXED_NAME
    try:
        return langcodes.Language.get(tag).display_name("en")
    except ValueError:
        return tag


def parse_language(tag: str, known: Iterable[str]) -> str:
    """The one of `known` that is meant by `tag`: "de" for "German", "Deutsch", "deu", "DE" and "de-DE".

    Raises:
        UnknownLanguageError: none is meant; the message names one that is spelled alike, and lists all.
    """
    if not isinstance(tag, str):
        raise SprachbundError(
            f"a language is {tag!r}; give its tag or name as text, such as 'de' or 'German'"
        )
    choices = sorted(set(known))
    wanted = tag.strip()
    for candidate in _readings(wanted):
        for choice in choices:
            if choice.casefold() == candidate.casefold():
                return choice
    twins = [c for c in choices if "-" not in c and _same_in_practice(wanted, c)]
    if len(twins) == 1:
        return twins[0]
    same = [c for c in choices if primary(c) in {primary(r) for r in _readings(wanted)}]
    if len(same) == 1 and "-" not in wanted:
        return same[0]
    if wanted.casefold() in _ANY:
        advice = "leave it out, and the language spoken is identified; "
    else:
        nearest = _nearest(wanted, choices)
        advice = "" if nearest is None else f"nearest: {nearest}; "
    raise UnknownLanguageError(
        f"language {tag!r} is not among those of this model; {advice}it knows {described(choices)}", tag
    )


@lru_cache(maxsize=256)
def tag_of(typed: str, where: str) -> str:
    """The BCP-47 tag that a person means by a tag or a name, whatever models know: "qu" for "Quechua".

    Args:
        typed: a tag, or the English or own name of a language.
        where: begins the message.

    Raises:
        SprachbundError: it is neither; the message has the nearest name.
    """
    import langcodes

    wanted = typed.strip()
    if langcodes.tag_is_valid(wanted):
        return str(langcodes.standardize_tag(wanted))
    named = _named(wanted)
    if named is None:
        raise SprachbundError(f"{where} {typed!r} is not a language; write it like en, de or pt-BR")
    names = {
        language_name(named),
        langcodes.Language.get(named).autonym(),
        _MIXED_TYPED if named == MIXED else "",
    }
    if wanted.casefold() not in {name.casefold() for name in names}:
        raise SprachbundError(
            f"{where} {typed!r} is not a language; write {named} if you mean {language_name(named)}"
        )
    return named


def described(tags: Iterable[str]) -> str:
    """Tags with their English names, for messages: "de (German), en (English)"."""
    return ", ".join(f"{tag} ({language_name(tag)})" for tag in sorted(tags)) or "none"


@lru_cache(maxsize=256)
def _readings(wanted: str) -> tuple[str, ...]:
    """Tags that `wanted` may stand for, the most literal first."""
    import langcodes

    readings = [wanted]
    try:
        language = langcodes.Language.get(wanted)
        known = language.is_valid()
    except ValueError:
        known = False
    if not known:
        named = _named(wanted)
        if named is None:
            return (wanted,)
        language = langcodes.Language.get(named)
    readings.append(language.to_tag())
    readings.append(langcodes.standardize_tag(language.to_tag(), macro=True))
    if language.language:
        readings += [language.language, langcodes.standardize_tag(language.language, macro=True)]
    return tuple(dict.fromkeys(readings))


def _named(name: str) -> str | None:
    """Tag of the language called `name` in any language; None when there is no such name."""
    import langcodes

    if name.casefold() == _MIXED_TYPED:
        return MIXED
    try:
        language = langcodes.find(name)
    except LookupError:
        return None
    if len(name.split()) > 1:  # the search takes a language for a name that only begins like its own
        names = {language.display_name("en").casefold(), language.autonym().casefold()}
        return language.to_tag() if name.casefold() in names else None
    return str(language.to_tag())


def _same_in_practice(wanted: str, choice: str) -> bool:
    """Whether CLDR takes the two for one language under two tags ("nb" and "no")."""
    import langcodes

    tag = _readings(wanted)[-1]
    return langcodes.tag_is_valid(tag) and langcodes.tag_distance(tag, choice) <= 1


_LEAST_ALIKE = 0.65
"""Least ratio of `difflib` for a spelling that may have been meant: "ita1" and "it" are at 0.67."""


def _nearest(wanted: str, choices: list[str]) -> str | None:
    """The choice most alike in spelling, of its tag, its English or its own name; None where none is alike.

    A tag or name of a language has only choices of the same language beside it: Japanese is no Spanish.
    """
    import langcodes

    readings = _readings(wanted)
    if langcodes.tag_is_valid(readings[-1]):
        same = {primary(reading) for reading in readings}
        best = next((choice for choice in choices if primary(choice) in same), None)
    else:
        spellings = {
            spelling.casefold(): choice for choice in choices for spelling in (choice, *_names(choice))
        }
        typed = wanted.casefold()
        scored = [
            (difflib.SequenceMatcher(None, spelling, typed).ratio(), spelling) for spelling in spellings
        ]
        ratio, spelling = max(scored, default=(0.0, ""))
        best = spellings[spelling] if ratio >= _LEAST_ALIKE else None
    return None if best is None else f"{best} ({language_name(best)})"


def _names(tag: str) -> tuple[str, str]:
    """The English name of a tag, and the one in the language itself."""
    import langcodes

    name = language_name(tag)
    try:
        return name, name if tag == MIXED else langcodes.Language.get(tag).autonym()
    except ValueError:
        return name, name
