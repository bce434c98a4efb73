"""Vocabularies of Parakeet and Canary: `tokenizer.json`, read by the library tokenizers."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import one_line

TOKENIZER = "tokenizer.json"


class FastConformerTokens:
    """Tokens to text and back.

    Args:
        tokenizer: from now on it takes special tokens in a text for text.
        size: V of the model; the tokenizer may have fewer, such as no blank.
        source: of the tokenizer, for errors.

    Attributes:
        special: tokens that are no text.

    Raises:
        SprachbundError: the tokenizer has a token that the model has not.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, source: str) -> None:
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= size:
            raise SprachbundError(
                f"{source} has a token {highest} and config.json a vocab_size of {size}; they are not of one model"
            )
        tokenizer.encode_special_tokens = True
        self.tokenizer, self.size, self._source = tokenizer, size, source
        self.special = frozenset(
            number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def read(cls, directory: Path, size: int) -> "FastConformerTokens":
        """Of a model directory. Raises SprachbundError for files that are missing, broken or of another model.

        Args:
            directory: with `tokenizer.json`.
            size: V of the model.
        """
        path = directory / TOKENIZER
        if not path.is_file():
            raise SprachbundError(f"{directory} has no {TOKENIZER}; add it from where the model came from")
        with one_line(path):
            tokenizer = Tokenizer.from_file(str(path))
        return cls(tokenizer, size, str(path))

    def token(self, name: str) -> int:
        """Number of a special token. Raises SprachbundError where the vocabulary has none of that name."""
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise SprachbundError(f"{self._source} has no token {name}; it is of another kind of model")
        return int(number)

    def has(self, name: str) -> bool:
        """Whether there is a token of that name."""
        return self.tokenizer.token_to_id(name) is not None

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
