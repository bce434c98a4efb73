"""A planted conflict for headroom: half of each language's utterances are to be written with other words.

The words that are most frequent in the texts of a language are exchanged in pairs. Nothing in the sound says which
utterances have exchanged words, so weights that all share cannot write both halves, and weights of their own can. A
training that is to show a gain of weights of their own has to show this one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from sprachbund.text.languages import join_units, text_units

NUM_SWAPPED = 40
"""Words that are exchanged, the most frequent ones of a language."""
SWAPPED = "*"
"""Added to the tag of a language for the utterances whose words are exchanged."""
T = TypeVar("T")


class Exchange:
    """Exchanges the most frequent words of each language: the first for the second, the third for the fourth, ….

    Args:
        texts: language and text of the sentences whose words are counted.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        counts: dict[str, Counter[str]] = {}
        for language, text in texts:
            counts.setdefault(language, Counter()).update(text_units(text, language))
        self._other = {language: _pairs(of_language) for language, of_language in counts.items()}

    def __call__(self, text: str, language: str) -> str:
        """The text with its words exchanged.

        Args:
            text: any text.
            language: BCP-47 tag of the text.
        """
        other = self._other.get(language, {})
        return join_units((other.get(word, word) for word in text_units(text, language)), language)


def _pairs(counts: Counter[str]) -> Mapping[str, str]:
    """Each exchanged word to the one that takes its place."""
    words = sorted(counts, key=lambda word: (-counts[word], word))[:NUM_SWAPPED]
    pairs = list(zip(words[::2], words[1::2], strict=False))
    return dict(pairs) | {second: first for first, second in pairs}


def in_halves(examples: Mapping[str, Sequence[T]], change: Callable[[T], T], seed: int) -> dict[str, list[T]]:
    """Every language as two: a random half of its examples as it is, the rest changed, its tag with `SWAPPED`.

    Args:
        examples: language to its examples.
        change: makes the changed form of an example.
        seed: seed of the choice.
    """
    halves: dict[str, list[T]] = {}
    for language, own in examples.items():
        order = np.random.default_rng([seed, len(own)]).permutation(len(own)).tolist()
        half = len(own) // 2
        halves[language] = [own[index] for index in order[:half]]
        halves[f"{language}{SWAPPED}"] = [change(own[index]) for index in order[half : 2 * half]]
    return halves
