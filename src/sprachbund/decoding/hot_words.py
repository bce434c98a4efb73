"""Hot words: a search prefers words that its caller expects, by shallow fusion with a trie of their tokens.

Every token that goes on a hot word adds a bonus to the score of a text, and one that breaks it off takes the bonus of
the broken part back (contextual biasing by shallow fusion, see arXiv 1808.02480). Words may overlap: the trie has
failure links (Aho and Corasick 1975), so that a word that begins within a broken one is found. A hypothesis's bonus is
a function of its tokens, so that searches need no state for it, and it is taken off its log-probability in the end: the
guard rejects text by what the model thinks of it.

Shapes: R rows, Q positions, U tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.spelling import spellings
from sprachbund.models.base import Family


@dataclass(kw_only=True, eq=False)
class _Node:
    """A beginning of words.

    Attributes:
        depth: its tokens.
        word_length: tokens of the longest word that ends here, whether all of it or the end of it; 0 of none.
        next: by the token that follows.
        fail: the longest beginning that is an end of this one; None of the root.
    """

    depth: int
    word_length: int = 0
    next: dict[int, _Node] = field(default_factory=dict)
    fail: _Node | None = None


@dataclass(frozen=True, kw_only=True)
class _State:
    """Position of a text in the trie.

    Attributes:
        node: the longest beginning of a word that the text ends with.
        kept: tokens of it whose bonus stays, since a word with them has ended; a bit each, the last token's lowest.
        num_kept: tokens of the whole text whose bonus stays.
    """

    node: _Node
    kept: int = 0
    num_kept: int = 0

    @property
    def pending(self) -> int:
        """Tokens whose bonus is lost if the word is not gone on with."""
        return self.node.depth - self.kept.bit_count()

    @property
    def total(self) -> int:
        """Tokens whose bonus the text has."""
        return self.num_kept + self.pending


class HotWords:
    """The trie of some words, and the bonus of texts.

    Args:
        words: their tokens; a word may have several spellings.
        weight: bonus of a token, in the unit of log-probabilities.
    """

    def __init__(self, words: Iterable[Sequence[int]], weight: float) -> None:
        self.weight = weight
        self._root = _Node(depth=0)
        for word in words:
            node = self._root
            for token in word:
                node = node.next.setdefault(token, _Node(depth=node.depth + 1))
            node.word_length = node.depth
        self._link()
        self._known: dict[tuple[int, ...], _State] = {(): _State(node=self._root)}

    @classmethod
    def of(cls, family: Family, options: DecodingOptions) -> HotWords | None:
        """Return the hot words of a search; None without any.

        Args:
            family: writes them.
            options: words and weight.

        Raises:
            SprachbundError: the family does not spell one of the words.
        """
        if not options.hot_words:
            return None
        spelled = {tokens for word in options.hot_words for tokens in spellings(family, word)}
        return cls(sorted(spelled), options.hot_words_weight)

    def bonus(self, tokens: Sequence[int], *, ended: bool) -> float:
        """Bonus of a whole text.

        Args:
            tokens: tokens of the text.
            ended: whether nothing follows; a word that has only begun then has none.
        """
        state = self.state(tuple(tokens))
        return self.weight * (state.total - (state.pending if ended else 0))

    def gains(self, text: tuple[int, ...]) -> tuple[float, dict[int, float]]:
        """Return what most tokens add to the bonus of a text, and what each token adds for which that differs."""
        state = self.state(text)
        broken = -state.pending
        tokens = dict.fromkeys(token for node in self._ends_of(state.node) for token in node.next)
        now = state.total
        return self.weight * broken, {
            token: self.weight * (self._after(state, token).total - now) for token in tokens
        }

    def row(self, text: tuple[int, ...], like: Tensor) -> Tensor:
        """Return what each token of the vocabulary adds to the bonus of a text (V,), of the kind of `like` (..., V)."""
        usual, others = self.gains(text)
        row = like.new_full((like.shape[-1],), usual)
        if others:
            row[list(others)] = like.new_tensor(list(others.values()))
        return row

    def scores(self, texts: Tensor, like: Tensor) -> Tensor:
        """The same of rows of texts (R, Q, U), negative tokens standing for none; (R, Q, V) as `like`."""
        rows = [
            torch.stack([self.row(tuple(t for t in text if t >= 0), like) for text in row])
            for row in texts.tolist()
        ]
        return torch.stack(rows)

    def state(self, text: tuple[int, ...]) -> _State:
        """State of a text in the trie."""
        if (known := self._known.get(text)) is None:
            known = self._after(self.state(text[:-1]), text[-1])
            self._known[text] = known
        return known

    def _after(self, state: _State, token: int) -> _State:
        node = state.node
        while token not in node.next and node.fail is not None:
            node = node.fail
        reached = node.next.get(token, self._root)
        kept = (state.kept << 1) & ((1 << reached.depth) - 1)
        word = (1 << reached.word_length) - 1
        return _State(node=reached, kept=kept | word, num_kept=state.num_kept + (word & ~kept).bit_count())

    def _ends_of(self, node: _Node | None) -> Iterable[_Node]:
        while node is not None:
            yield node
            node = node.fail

    def _link(self) -> None:
        waiting = deque([self._root])
        while waiting:
            node = waiting.popleft()
            for token, child in node.next.items():
                fail = node.fail
                while fail is not None and token not in fail.next:
                    fail = fail.fail
                child.fail = self._root if fail is None else fail.next[token]
                child.word_length = child.word_length or child.fail.word_length
                waiting.append(child)
