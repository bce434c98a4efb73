"""How much of an attempt at unfinished speech may be written for good.

Every policy is one function: it sees the words of the newest attempt behind what is committed, and says how many of
them to commit. Words, not tokens: half a word cannot be taken back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sprachbund.decoding.by_frames import writes_by_frames
from sprachbund.decoding.ctc import writes_by_ctc
from sprachbund.decoding.words import shows_attention, split_words
from sprachbund.models.family import Family
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.stretch import Line


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What the model makes of the speech heard so far, behind the committed text.

    Attributes:
        words: each with its number of tokens.
        ended: whether the model ended its text by itself.
        looks_at_s: for every token the second of the audio it looks at; empty where nobody asks.
        heard_s: length of the audio.
        steps: whole steps of the stretch heard.
        num_written: words committed before, over the whole stretch.
    """

    words: Sequence[tuple[str, int]]
    ended: bool
    looks_at_s: Sequence[float] = ()
    heard_s: float
    steps: int
    num_written: int

    @property
    def num_whole(self) -> int:
        """Words that cannot grow any more: the last may, unless the text has ended."""
        return len(self.words) if self.ended else max(0, len(self.words) - 1)


class Rule(Protocol):
    """A policy."""

    def __call__(self, attempt: Attempt, line: Line, options: LiveOptions) -> int:
        """How many words of the attempt to commit."""
        ...


def local_agreement(attempt: Attempt, line: Line, options: LiveOptions) -> int:
    """Words that this attempt and those before agree on (arXiv 2005.11185)."""
    before = line.attempts[-(options.agreement - 1) :]
    if len(before) < options.agreement - 1:
        return 0
    agreed = 0
    for index, (word, _) in enumerate(attempt.words):
        if any(index >= len(words) or words[index] != word for words in before):
            break
        agreed += 1
    return agreed


def alignatt(attempt: Attempt, line: Line, options: LiveOptions) -> int:
    """Words before the first token that looks at the newest audio (arXiv 2305.11408, section 2)."""
    latest_s = attempt.heard_s - options.border_s
    token = 0
    for index, (_, count) in enumerate(attempt.words[: attempt.num_whole]):
        if any(second >= latest_s for second in attempt.looks_at_s[token : token + count]):
            return index
        token += count
    return attempt.num_whole


def wait_k(attempt: Attempt, line: Line, options: LiveOptions) -> int:
    """One word for every step heard, `wait_k` - 1 steps behind (arXiv 1810.08398, equation 6)."""
    allowed = max(0, attempt.steps - options.wait_k + 1)
    return min(attempt.num_whole, max(0, allowed - attempt.num_written))


def nothing(attempt: Attempt, line: Line, options: LiveOptions) -> int:
    """All stays tentative until the stretch has ended (arXiv 1912.03393)."""
    return 0


RULES: Mapping[str, Rule] = {
    "local-agreement": local_agreement,
    "alignatt": alignatt,
    "wait-k": wait_k,
    "retranslation": nothing,
}


def policies_of(family: Family) -> tuple[Policy, ...]:
    """The policies that a family can work by; what "auto" stands for is the first.

    Where text is committed before its speech has ended, the audio is cut behind it, at the times of its words: without
    attention to tell them, or a way to go on from a text, nothing is committed before.
    """
    if writes_by_frames(family):
        return "frames", "span"
    if writes_by_ctc(family) or not shows_attention(family):
        return "retranslation", "span"
    return "local-agreement", "alignatt", "wait-k", "retranslation", "span"


def words_behind(
    family: Family, prefix: Sequence[int], tokens: Sequence[int], language: str
) -> list[tuple[str, int]]:
    """Words of `tokens` as they follow `prefix`, each with its number of tokens.

    Tokens that belong to the last word of the prefix are a word of their own.
    """
    words, place = [], 0
    for text, count in split_words(family, [*prefix, *tokens], language):
        begin, place = place, place + count
        if place > len(prefix):
            words.append((text, place - max(begin, len(prefix))))
    return words
