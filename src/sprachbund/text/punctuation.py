"""Restoration of punctuation and capitals: the labels that a punctuator gives each word, and the text written by them.

A punctuator reads the words of a text and says, for each, which mark stands behind it and how it is cased. `restore`
writes that down by the rules of the language: Spanish sentences get their opening marks, French ones a space in front
of the high marks, and words keep capitals that a model has written itself. Words stay words, so their times survive.

`FullStop` is the simplest punctuator: a full stop behind everything and a capital in front.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sprachbund.text.languages import primary

Mark = Literal["", ".", ",", "?", "!", ":"]
Case = Literal["lower", "capital", "upper"]
LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
"""BCP-47 tags that the punctuator of the package knows."""
MARKS: tuple[Mark, ...] = ("", ".", ",", "?", "!", ":")
CASES: tuple[Case, ...] = ("lower", "capital", "upper")
FULL_STOP = "."
ENDS = (FULL_STOP, "?", "!")
"""Marks behind which a sentence begins."""
_NBSP = "\u00a0"
_OPENING = {"?": "¿", "!": "¡"}
_MARKED = re.compile(r"[.,;:!?…][\"'”“’‘»«)\]]*$")


@dataclass(frozen=True, kw_only=True)
class Label:
    """The mark and case that a punctuator gives a word.

    Attributes:
        mark: mark behind the word.
        case: case of the word; None leaves it as it is, but for the first of a sentence.
    """

    mark: Mark
    case: Case | None = None


class Punctuator(Protocol):
    """Finds punctuation and capitals.

    Attributes:
        name: for messages.
        languages: BCP-47 tags without region that it reads; None where it does not say.
    """

    @property
    def name(self) -> str:
        """Name of the punctuator for messages."""
        ...

    @property
    def languages(self) -> tuple[str, ...] | None:
        """Tags without region; None where it does not say."""
        ...

    def label(self, texts: Sequence[Sequence[str]], language: str) -> list[list[Label]]:
        """A label for every word of every text; the labels of a text do not depend on the others.

        Args:
            texts: words without white space around them.
            language: BCP-47 tag without region, of all texts.
        """
        ...


class FullStop:
    """Takes every text for one sentence: a full stop at the end and a capital in front."""

    name = "rule"
    languages: tuple[str, ...] | None = None

    def label(self, texts: Sequence[Sequence[str]], language: str) -> list[list[Label]]:
        """A full stop behind the last word."""
        return [
            [Label(mark="." if n + 1 == len(words) else "") for n in range(len(words))] for words in texts
        ]


def restore(words: Sequence[str], labels: Sequence[Label], language: str) -> list[str]:
    """The words of a text with their marks and capitals.

    A word that ends with a mark, such as "3.", gets no second one. Capitals stay as they are, unless all letters of the
    text are capitals: a model that writes some knows more than a punctuator.

    Args:
        words: words of the text.
        labels: one for each.
        language: BCP-47 tag.
    """
    language = primary(language)
    all_capitals = is_all_capitals(words)
    written: list[str] = []
    start = 0  # index of the first word of the sentence
    begins = False  # whether a mark ended the sentence before
    for n, (word, label) in enumerate(zip(words, labels, strict=True)):
        text = _cased(
            word.lower() if all_capitals else word,
            label.case,
            begins=begins or (n == 0 and label.case is None),
        )
        marked = _MARKED.search(text) is not None
        if label.mark and not marked:
            text += (_NBSP if language == "fr" and label.mark in "?!:" else "") + label.mark
        written.append(text)
        begins = label.mark in ENDS or (marked and label.mark != "" and text.rstrip("\"'”»)]")[-1] in ENDS)
        if begins:
            if language == "es" and label.mark in _OPENING and not marked:
                written[start] = _OPENING[label.mark] + written[start]
            start = n + 1
    return written


def is_all_capitals(words: Sequence[str]) -> bool:
    """Whether all letters of a text are capitals, so that capitals say nothing; never of a single word."""
    letters = [letter for word in words for letter in word if letter.lower() != letter.upper()]
    return len(words) > 1 and len(letters) > 1 and all(letter == letter.upper() for letter in letters)


def _cased(word: str, case: Case | None, *, begins: bool) -> str:
    if word != word.lower():
        return word
    if case == "upper":
        return word.upper()
    return _capitalized(word) if begins or case == "capital" else word


def _capitalized(word: str) -> str:
    """With its first letter as a capital; what is behind it stays."""
    for n, letter in enumerate(word):
        if letter.isalpha():
            return word[:n] + letter.upper() + word[n + 1 :]
        if letter.isdigit():
            break
    return word


# Reading: labels of a text that has marks, for training and for measuring.


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A word as it stands in a text.

    Attributes:
        text: text in its case, without the mark.
        mark: mark behind it.
    """

    text: str
    mark: Mark

    @property
    def case(self) -> Case:
        """Case of the word: one capital letter alone counts as "capital"."""
        letters = [letter for letter in self.text if letter.isalpha()]
        if all(letter == letter.lower() for letter in letters):
            return "lower"
        return (
            "upper" if len(letters) > 1 and all(letter == letter.upper() for letter in letters) else "capital"
        )


_QUOTES = re.compile(r"[\"“”„«»¿¡‹›‘‚]|(?<!\w)['’]|['’](?!\w)")
_DASH = re.compile(r"\s*[—–]+\s*|\s+-+\s+")
_TOKEN = re.compile(r"(?P<word>[^\W_]+(?:['-][^\W_]+|(?<=\d)[.,:](?=\d)[^\W_]+)*)(?P<marks>[.,;:?!]*)")
_ABBREVIATED = re.compile(r"[.]\s+[^\W\dA-ZÀ-ÞА-ЯЁ]|\b[^\W\d]\.\s?[^\W\d]\.")


def read_marked(text: str, language: str) -> list[Marked] | None:
    """The words of sentences with their marks; None of what is no plain sentence.

    Brackets and quotation marks are left out. Semicolons and dashes count as commas, but for Russian dashes, which are
    not heard.

    Args:
        text: begins with a capital and ends with a mark that ends a sentence.
        language: BCP-47 tag.
    """
    text = re.sub(r"\s*\([^()]*\)", "", text)
    text = _QUOTES.sub("", text.replace("’", "'").replace("ʼ", "'"))
    text = _DASH.sub(" " if language == "ru" else ", ", text)
    text = re.sub(r"(\.\.\.|…)(?=\s*[^\W\d_])", lambda match: "." if _ends(text, match.end()) else ",", text)
    text = re.sub(r"\.\.\.|…", ".", text)
    text = " ".join(re.sub(r"\s+(?=[.,;:?!])", "", text).split())
    if len(text) < 2 or text[-1] not in ENDS or text[0] == text[0].lower() or _ABBREVIATED.search(text):
        return None
    words: list[Marked] = []
    for one in text.split(" "):
        if (match := _TOKEN.fullmatch(one)) is None:
            return None
        words.append(Marked(text=match["word"], mark=_mark(match["marks"])))
    all_capitals = sum(word.case == "upper" for word in words)
    return None if len(words) < 2 or 2 * all_capitals > len(words) else words


def _ends(text: str, index: int) -> bool:
    rest = text[index:].lstrip()
    return bool(rest) and rest[0] != rest[0].lower()


def _mark(marks: str) -> Mark:
    for mark in ("?", "!", ".", ":"):
        if mark in marks:
            return mark
    return "," if marks else ""


def split_mark(word: str) -> Marked:
    """A word as it was written down, with at most one mark."""
    mark = word[-1] if word[-1] in MARKS else ""
    return Marked(text=word.removesuffix(mark), mark=mark)
