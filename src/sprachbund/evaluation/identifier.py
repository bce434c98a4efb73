"""The language identifier of evaluation: trained at first use on the phrasebook and on the names in CLDR.

The phrasebook has sentences of its own languages; CLDR, through Babel, has names of countries, languages,
months, days and units in some two hundred, so that any usual target language can be told from the others.
"""

import random
from collections.abc import Iterable, Sequence
from functools import lru_cache

from sprachbund.data.phrasebook import Meaning
from sprachbund.text.identify import LanguageIdentifier

_NUM_MEANINGS = 400
_SEED = 7
_ALWAYS = ("en", "es", "fr", "it", "de", "ru", "pt", "nl")


def identifier_for(languages: Iterable[str]) -> LanguageIdentifier:
    """An identifier that knows these languages, and always those of the phrasebook.

    Languages that neither the phrasebook nor CLDR has words of are left out: see its `languages`.
    """
    return _train(tuple(sorted({*languages, *_ALWAYS})))


@lru_cache(maxsize=4)
def _train(languages: tuple[str, ...]) -> LanguageIdentifier:
    texts = {tag: [*_sentences(tag), *names(tag)] for tag in languages}
    return LanguageIdentifier.train({tag: found for tag, found in texts.items() if found})


def _sentences(language: str) -> list[str]:
    from sprachbund.data.phrasebook import LANGUAGES, render

    return [render(m, language, None) for m in _meanings()] if language in LANGUAGES else []


@lru_cache(maxsize=1)
def _meanings() -> Sequence[Meaning]:
    from sprachbund.data.phrasebook import draw

    rng = random.Random(_SEED)
    return [draw(rng) for _ in range(_NUM_MEANINGS)]


def names(language: str) -> list[str]:
    """Names in CLDR of countries, languages, months, days and units, in a language; none if CLDR lacks it."""
    from babel import Locale, UnknownLocaleError

    try:
        locale = Locale.parse(language, sep="-")
    except (UnknownLocaleError, ValueError):
        return []
    found = [*locale.territories.values(), *locale.languages.values()]
    for calendar in (locale.months, locale.days):
        found += calendar["format"]["wide"].values()
    return [name for name in dict.fromkeys(map(str, found)) if name]
