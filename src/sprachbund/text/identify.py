"""Tells which language a text is in, by its character n-grams: small, trained in a second, no download.

Naive Bayes over n-grams of one to four characters with word borders (after Cavnar and Trenkle, 1994). It
chooses among the languages it was trained on and cannot say "none of these"; short texts get an honest,
flat posterior.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.text.normalize import normalize

MAX_ORDER = 4
_SMOOTHING = 0.5
_TEMPERATURE = 2.5  # neighbouring n-grams overlap, so their evidence is not independent; this flattens it


@dataclass(frozen=True, kw_only=True)
class IdentifiedText:
    """The likeliest language and the probability of every language allowed."""

    language: str
    probability: float
    probabilities: Mapping[str, float]


class LanguageIdentifier:
    """Counts of character n-grams for each language."""

    def __init__(self, counts: Mapping[str, Counter[str]]) -> None:
        self._counts = counts
        self.languages = tuple(sorted(counts))

    @classmethod
    def train(cls, texts: Mapping[str, Iterable[str]]) -> "LanguageIdentifier":
        """Count the n-grams of texts, given by language (BCP-47).

        Raises:
            SprachbundError: for fewer than two languages or one without texts.
        """
        counts = {tag: Counter(g for text in some for g in ngrams(text)) for tag, some in texts.items()}
        empty = [tag for tag, grams in counts.items() if not grams]
        if len(counts) < 2 or empty:
            raise SprachbundError(
                f"identification needs texts in two languages or more; got {sorted(counts)}, empty: {empty}"
            )
        return cls(counts)

    @cached_property
    def _rows(self) -> dict[str, int]:
        seen = {gram for grams in self._counts.values() for gram in grams}
        return {gram: row for row, gram in enumerate(sorted(seen))}

    @cached_property
    def _log_probs(self) -> NDArray[np.float32]:
        """(number of n-grams + 1, L); the last row is for n-grams never seen."""
        table = np.full((len(self._rows) + 1, len(self.languages)), _SMOOTHING)
        for column, tag in enumerate(self.languages):
            for gram, count in self._counts[tag].items():
                table[self._rows[gram], column] += count
        # Languages have texts of different amount; orders are pooled, which weighs all languages alike.
        log_probs: NDArray[np.float32] = np.log(table / table.sum(0)).astype(np.float32)
        return log_probs

    def identify(self, text: str, allowed: Iterable[str] | None = None) -> IdentifiedText:
        """The likeliest of the allowed languages.

        Raises:
            SprachbundError: for an allowed language it was not trained on.
        """
        choices = self.languages if allowed is None else tuple(sorted(set(allowed)))
        if unknown := [tag for tag in choices if tag not in self.languages]:
            raise SprachbundError(
                f"no texts of {', '.join(unknown)}; the identifier knows {', '.join(self.languages)}"
            )
        grams = list(ngrams(text))
        rows = [self._rows.get(gram, len(self._rows)) for gram in grams]
        columns = [self.languages.index(tag) for tag in choices]
        total = self._log_probs[rows][:, columns].sum(0, dtype=np.float64) / (MAX_ORDER * _TEMPERATURE)
        posterior = np.exp(total - total.max()) if len(grams) else np.ones(len(choices))
        posterior /= posterior.sum()
        best = int(posterior.argmax())
        return IdentifiedText(
            language=choices[best],
            probability=float(posterior[best]),
            probabilities={tag: float(p) for tag, p in zip(choices, posterior, strict=True)},
        )


def ngrams(text: str) -> Iterator[str]:
    """N-grams of one to four characters of the normalized text, digits left out, words between spaces."""
    words = normalize(text).split()
    for word in words:
        if not any(c.isalpha() for c in word):
            continue
        padded = f" {word} "
        for order in range(1, MAX_ORDER + 1):
            for start in range(max(0, len(padded) - order + 1)):
                gram = padded[start : start + order]
                if gram != " ":
                    yield gram
