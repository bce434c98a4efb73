"""Whisper's vocabulary: text, and the special tokens by which it is told the language and the task.

Special tokens are found by name: their numbers differ between checkpoints, and fine-tuning adds more.
"""

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

from sprachbund.errors import SprachbundError

TIMESTAMP_STEP_S = 0.02
"""Seconds from one timestamp token to the next."""

_SPECIAL = re.compile(r"<\|.*\|>")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)\|>")
_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
_BCP47 = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi"}  # withdrawn ISO 639 codes that Whisper still uses


class WhisperTokens:
    """Text to tokens and back, and the special tokens.

    Attributes:
        end: <|endoftext|>.
        start: <|startoftranscript|>.
        previous: <|startofprev|>, before earlier text; None if there is none.
        transcribe: the task token; None in vocabularies without tasks.
        translate: the task token for translation into English; None if there is none.
        no_timestamps: <|notimestamps|>; None if there is none.
        no_speech: <|nospeech|> or, in older checkpoints, <|nocaptions|>; None if there is none.
        timestamps: the timestamp tokens, <|0.00|> first, one every `TIMESTAMP_STEP_S`; may be empty.
        not_text: every token that is not text: special ones and timestamps.
        languages: BCP-47 tag to language token, in the order of the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self._special, num_named = _special_tokens(tokenizer, vocabulary_size)
        if num_named < tokenizer.get_vocab_size(with_added_tokens=True):
            _check_fits(tokenizer.get_vocab(with_added_tokens=True), vocabulary_size)
        self.end = self._needed("<|endoftext|>")
        self.start = self._needed("<|startoftranscript|>")
        self.previous = self._special.get("<|startofprev|>")
        self.transcribe = self._special.get("<|transcribe|>")
        self.translate = self._special.get("<|translate|>")
        self.no_timestamps = self._special.get("<|notimestamps|>")
        self.no_speech = self._special.get("<|nospeech|>", self._special.get("<|nocaptions|>"))
        self.timestamps = self._find_timestamps()
        self.not_text = frozenset(self._special.values()) | frozenset(self.timestamps)
        self.languages = _languages(self._special)

    def text_to_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text.

        Raises:
            SprachbundError: the text spells out a special token, which would steer the model.
        """
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        steering = [name for name, i in self._special.items() if i in tokens]
        if steering:
            raise SprachbundError(f"the text contains the special token {steering[0]}; take it out")
        return tokens

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones and timestamps left out; a leading space is kept."""
        visible = [t for t in tokens if t not in self.not_text]
        text: str = self._tokenizer.decode(visible, skip_special_tokens=True)
        return text

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    def _needed(self, name: str) -> int:
        if name not in self._special:
            raise SprachbundError(f"the tokenizer has no token {name}; it is not Whisper's, restore the file")
        return self._special[name]

    def _find_timestamps(self) -> range:
        named = [i for name, i in self._special.items() if _TIMESTAMP.fullmatch(name)]
        if named:
            return range(min(named), max(named) + 1)
        if self.no_timestamps is None:
            return range(0)
        # Older tokenizer files leave them out; they are the last tokens of every published vocabulary.
        return range(self.no_timestamps + 1, self.vocabulary_size)


def with_languages(tokens: WhisperTokens, languages: Sequence[str]) -> Tokenizer:
    """The tokenizer of a vocabulary with a token more for each BCP-47 tag, after all others.

    Timestamps that the file leaves out are written into it first: their numbers are taken.

    Raises:
        SprachbundError: a language that is there already, or that cannot be the name of a token.
    """
    for language in languages:
        if language in tokens.languages:
            raise SprachbundError(
                f"the model has a token for {language!r} already; take it out of new_languages"
            )
        if not _LANGUAGE.fullmatch(language_name(language)):
            raise SprachbundError(f"{language!r} is not a BCP-47 tag such as 'gsw' or 'pt-BR'; correct it")
    tokenizer = Tokenizer.from_str(tokens.to_json())
    stamps = [f"<|{TIMESTAMP_STEP_S * i:.2f}|>" for i in range(len(tokens.timestamps))]
    names = [*stamps, *map(language_name, languages)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def language_name(language: str) -> str:
    """Name of the token of a BCP-47 tag."""
    return f"<|{language}|>"


def _special_tokens(tokenizer: Tokenizer, vocabulary_size: int) -> tuple[dict[str, int], int]:
    """Special tokens by name, and how many tokens have a name at all."""
    special, num_named = dict[str, int](), 0
    for i in range(
        vocabulary_size
    ):  # one by one: a table of all would take 12 MiB that the process never gives back
        if (name := tokenizer.id_to_token(i)) is not None:
            num_named += 1
            if _SPECIAL.fullmatch(name):
                special[name] = i
    return special, num_named


def _check_fits(vocabulary: dict[str, int], vocabulary_size: int) -> None:
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocabulary_size:
        raise SprachbundError(
            f"the tokenizer numbers its tokens up to {largest} but the model has {vocabulary_size}; "
            "the tokenizer belongs to another checkpoint"
        )


def _languages(special: dict[str, int]) -> dict[str, int]:
    found = sorted((i, match[1]) for name, i in special.items() if (match := _LANGUAGE.fullmatch(name)))
    return {_BCP47.get(code, code): i for i, code in found}
