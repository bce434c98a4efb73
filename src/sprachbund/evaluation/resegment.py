"""Gives every word of a long talk's output to a segment of its references, so that segments can be scored.

Output comes without the references' borders. Two published ways find them, both by aligning all words of a talk
at once: least word errors (Matusov et al. 2005, https://aclanthology.org/2005.iwslt-1.19; used by StreamLAAL, arXiv
2406.06097) and greatest likeness of letters (arXiv 2509.17349; used by LongYAAL).
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import SprachbundError
from sprachbund.text.normalize import normalize

Owners = NDArray[np.int64]
"""The number of the segment that each unit of the output belongs to, (U,); it never falls."""

Resegmenter = Callable[[Sequence[str], Sequence[Sequence[str]]], Owners]

MAX_CELLS = 2_000_000_000
"""Bytes that the table of an alignment may take; 44,000 words against as many."""

_PAIR, _SKIP_REFERENCE, _SKIP_OUTPUT = 0, 1, 2
_PUNCTUATION = frozenset(".!?,;:-()。！？，；：—（）ー")  # the set is part of the definition


def by_word_errors(output: Sequence[str], references: Sequence[Sequence[str]]) -> Owners:
    """Borders at which the sum of the segments' edit distances is least, case and punctuation aside.

    Of several such, that in which words are paired as late as possible; words that answer nothing go with the
    words before them.

    Args:
        output: units of the talk's output (U).
        references: units of each segment; at least one unit in all.

    Returns:
        The segment of each unit.

    Raises:
        SprachbundError: for a talk too long to be aligned in memory.
    """
    wanted, segments = _joined(references)
    _check_size(wanted, output)
    expected, written = _numbered([normalize(w) or w for w in wanted], [normalize(w) or w for w in output])
    path = _trace(_fewest_errors(expected, written))
    return segments[np.maximum(path.passed - 1, 0)]


def by_likeness(output: Sequence[str], references: Sequence[Sequence[str]]) -> Owners:
    """Borders of the alignment whose pairs of words have the most letters in common.

    Likeness of two words is the Jaccard index of their sets of letters, lower case; a punctuation mark is never
    paired with a word, and what is left out costs nothing. Words that answer nothing stay with the segment before
    until one of them is more like the next reference word than the last. Arguments and errors as of
    `by_word_errors`.
    """
    wanted, segments = _joined(references)
    _check_size(wanted, output)
    likeness = _Likeness([_folded(word) for word in wanted], [_folded(word) for word in output])
    path = _trace(_most_alike(likeness))
    owners = np.zeros(len(output), np.int64)
    ahead = -1  # the reference word that drew the rest of a gap to itself
    for place, after in enumerate(path.passed.tolist()):
        before = after - 1
        if not path.paired[place] and after < len(wanted) and after != ahead:
            drawn = before < 0 or likeness.of(after, place) > likeness.of(before, place)
            ahead = after if drawn else ahead
        owners[place] = after if after == ahead and not path.paired[place] else before
    return segments[owners]


@dataclass(frozen=True, kw_only=True)
class _Path:
    """What an alignment says of each unit of the output.

    Attributes:
        passed: reference words used up when it was reached, its own partner included, (U,).
        paired: whether it has a partner, (U,).
    """

    passed: NDArray[np.int64]
    paired: NDArray[np.bool_]


def _fewest_errors(expected: NDArray[np.int64], written: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The last step of the best way to every cell of the edit distance's table, (R + 1, U + 1)."""
    columns = np.arange(len(written) + 1)
    steps = np.full((len(expected) + 1, len(columns)), _SKIP_OUTPUT, np.uint8)
    row = columns
    for number, word in enumerate(expected, start=1):
        pair = row[:-1] + (written != word)
        skip = row[1:] + 1
        best = np.concatenate([[number], np.minimum(pair, skip)])
        row = np.minimum.accumulate(best - columns) + columns  # words may be extra from any cell on the left
        steps[number, 0] = _SKIP_REFERENCE
        steps[number, 1:] = np.select(
            [row[1:] == pair, row[1:] == skip], [_PAIR, _SKIP_REFERENCE], _SKIP_OUTPUT
        )
    return steps


def _most_alike(likeness: "_Likeness") -> NDArray[np.uint8]:
    """The last step of the best way to every cell of the table of likeness, (R + 1, U + 1)."""
    row = np.zeros(likeness.num_written + 1)
    steps = np.full((likeness.num_expected + 1, len(row)), _SKIP_OUTPUT, np.uint8)
    for number, alike in enumerate(likeness.rows(), start=1):
        pair, skip = row[:-1] + alike, row[1:]
        row = np.maximum.accumulate(np.concatenate([[0.0], np.maximum(pair, skip)]))
        left = row[:-1]
        steps[number, 0] = _SKIP_REFERENCE
        steps[number, 1:] = np.select(
            [(pair >= skip) & (pair >= left), skip >= left], [_PAIR, _SKIP_REFERENCE], _SKIP_OUTPUT
        )
    return steps


def _trace(steps: NDArray[np.uint8]) -> _Path:
    """Follow the steps back from the end of both texts."""
    i, j = steps.shape[0] - 1, steps.shape[1] - 1
    passed, paired = np.zeros(j, np.int64), np.zeros(j, np.bool_)
    while j > 0:
        step = steps[i, j]
        if step == _SKIP_REFERENCE:
            i -= 1
            continue
        j -= 1
        passed[j], paired[j] = i, step == _PAIR
        i -= int(step == _PAIR)
    return _Path(passed=passed, paired=paired)


class _Likeness:
    """Likeness of every reference word to every unit of the output, worked out once per different word."""

    def __init__(self, expected: Sequence[str], written: Sequence[str]) -> None:
        self.num_expected, self.num_written = len(expected), len(written)
        rows, self._row = np.unique(np.array(expected, dtype=object), return_inverse=True)
        columns, self._column = np.unique(np.array(written, dtype=object), return_inverse=True)
        letters = {letter: n for n, letter in enumerate(sorted(set("".join([*rows, *columns]))))}
        first, second = _letter_table(rows, letters), _letter_table(columns, letters)
        common = (first @ second.T).astype(np.float64)
        union = first.sum(1)[:, None] + second.sum(1)[None, :] - common
        self._table = common / np.maximum(union, 1)
        marks = [np.array([w in _PUNCTUATION for w in words], np.bool_) for words in (rows, columns)]
        self._table[marks[0][:, None] ^ marks[1][None, :]] = -np.inf

    def rows(self) -> Iterator[NDArray[np.float64]]:
        """For each reference word its likeness to all units, (U,)."""
        return (self._table[row][self._column] for row in self._row)

    def of(self, expected: int, written: int) -> float:
        """Likeness of the words at two places."""
        return float(self._table[self._row[expected], self._column[written]])


def _letter_table(words: NDArray[np.object_], letters: dict[str, int]) -> NDArray[np.float32]:
    table = np.zeros((len(words), len(letters)), np.float32)
    for row, word in enumerate(words):
        table[row, [letters[letter] for letter in word]] = 1
    return table


def _joined(references: Sequence[Sequence[str]]) -> tuple[list[str], Owners]:
    """All reference words in a row and the segment of each."""
    words = [word for reference in references for word in reference]
    return words, np.repeat(np.arange(len(references)), [len(reference) for reference in references])


def _numbered(*texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Words as numbers, the same for the same word in all texts."""
    numbers: dict[str, int] = {}
    return [np.array([numbers.setdefault(w, len(numbers)) for w in words], np.int64) for words in texts]


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).lower()


def _check_size(wanted: Sequence[str], output: Sequence[str]) -> None:
    if (len(wanted) + 1) * (len(output) + 1) > MAX_CELLS:
        raise SprachbundError(
            f"{len(output)} units of output against {len(wanted)} of the references are too many to align at once; "
            "cut the talk into parts at a pause, each a talk of its own"
        )
