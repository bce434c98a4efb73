"""Identifies the language of a text, or says that it is unknown.

py3langid computes: naive Bayes over n-grams of bytes, trained on 140 languages, its 4 MB part of the package (Lui and
Baldwin 2012, https://aclanthology.org/P12-3005). It has no word for "I cannot tell", and single words and numbers hold
little that tells languages apart; here a text is unknown below a probability that was chosen by measurement.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from sprachbund.errors import SprachbundError

UNKNOWN = "und"
"""The language of a text that may be in any."""
LEAST_PROBABILITY = 0.7
"""Texts that are less sure are mostly of one to three words; `benchmarks/identify.py` counts what is wrong above it."""
_FURTHER = {"nb": "no", "fil": "tl"}
"""Tags that py3langid has other names for, beside those that BCP-47 itself calls the same."""


@dataclass(frozen=True, kw_only=True)
class IdentifiedText:
    """The identified language of a text.

    Attributes:
        language: the likeliest; `UNKNOWN` where none is likely enough.
        probability: probability of the likeliest.
        probabilities: probabilities of every language allowed. Tags of one language, such as pt and pt-BR, have that of
            the language.
    """

    language: str
    probability: float
    probabilities: Mapping[str, float]


class LanguageIdentifier:
    """Chooses among some languages.

    Args:
        languages: BCP-47 tags; those that py3langid does not know are left out.

    Attributes:
        languages: the tags that it knows, sorted.

    Raises:
        SprachbundError: it knows fewer than two of them.
    """

    def __init__(self, languages: Iterable[str]) -> None:
        wanted = sorted(set(languages))
        known = {tag: label for tag in wanted if (label := _label(tag)) in _labels()}
        if len(set(known.values())) < 2:
            raise SprachbundError(
                f"identification chooses among two languages or more, and knows {', '.join(known) or 'none'} of "
                f"{', '.join(wanted) or 'none'}; add others that may occur"
            )
        self._label_of = known
        self.languages = tuple(known)

    @property
    def name(self) -> str:
        """The name of the identifier, with its version; for result manifests."""
        return f"py3langid {version('py3langid')}"

    def identify(self, text: str, allowed: Iterable[str] | None = None) -> IdentifiedText:
        """The likeliest of the allowed languages, all if none are named.

        Args:
            text: any.
            allowed: some of `languages`.

        Raises:
            SprachbundError: for an allowed language that it does not know.
        """
        choices = self.languages if allowed is None else tuple(sorted(set(allowed)))
        if unknown := [tag for tag in choices if tag not in self._label_of]:
            raise SprachbundError(
                f"{', '.join(unknown)} cannot be identified here; the languages are {', '.join(self.languages)}"
            )
        scores: Mapping[str, float] = dict(_model().rank(text))
        total = sum(scores[label] for label in {self._label_of[tag] for tag in choices})
        probabilities = {
            tag: scores[self._label_of[tag]] / total if total else 1 / len(choices) for tag in choices
        }
        likeliest = max(choices, key=lambda tag: probabilities[tag])
        is_sure = probabilities[likeliest] >= LEAST_PROBABILITY and any(c.isalpha() for c in text)
        return IdentifiedText(
            language=likeliest if is_sure else UNKNOWN,
            probability=probabilities[likeliest],
            probabilities=probabilities,
        )


def _label(tag: str) -> str:
    """py3langid's name of a language."""
    import langcodes  # here, since its tables are large and most models need none

    language = langcodes.Language.get(tag).prefer_macrolanguage().language or tag
    return language if language in _labels() else _FURTHER.get(language, language)


@cache
def _labels() -> frozenset[str]:
    return frozenset(_model().labels)


@cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
