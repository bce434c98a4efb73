"""Vocabularies of speech LLMs: `tokenizer.json`, or Mistral's `tekken.json`, read by the library tokenizers.

Text that comes from outside, such as a glossary, is never read as markup: a text that spells out a special token, which
would begin another turn of the conversation, is refused.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import ConfigPart, is_markup, one_line
from sprachbund.nn.limits import VOCABULARY
from sprachbund.util.files import read_object, validate

TOKENIZER, TEKKEN = "tokenizer.json", "tekken.json"


class LLMTokens:
    """Tokens to text and back.

    Args:
        tokenizer: from now on it takes special tokens in a text for text.
        size: V of the model; the tokenizer may have fewer.
        source: source of the tokenizer, for errors.

    Attributes:
        markup: tokens that are no text: those that were added to the vocabulary, but words.

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
        self._added = {
            token.content: number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if is_markup(token)
        }
        self.markup = frozenset(self._added.values())

    @classmethod
    def read(cls, directory: Path, size: int) -> "LLMTokens":
        """Read the tokens of a model directory. Raises SprachbundError for files that are missing, broken or of another
        model.

        Args:
            directory: directory with `tokenizer.json`, or with `tekken.json`.
            size: V of the model.
        """
        path = directory / TOKENIZER
        if path.is_file():
            with one_line(path):
                return cls(Tokenizer.from_file(str(path)), size, str(path))
        path = directory / TEKKEN
        if not path.is_file():
            raise SprachbundError(
                f"{directory} has neither {TOKENIZER} nor {TEKKEN}; add one from where the model came from"
            )
        file = validate(_TekkenFile, read_object(path), str(path), advice="copy it again")
        with one_line(path):
            return cls(read_tekken(file), size, str(path))

    def token(self, name: str) -> int:
        """Number of a special token. Raises SprachbundError where the vocabulary has none of that name."""
        if name not in self._added:
            raise SprachbundError(f"{self._source} has no token {name}; it is of another kind of model")
        return self._added[name]

    def name(self, number: int) -> str:
        """Name of a special token. Raises SprachbundError where the vocabulary has none of that number."""
        for name, own in self._added.items():
            if own == number:
                return name
        raise SprachbundError(
            f"config.json names the token {number}, which is no special token of {self._source}"
        )

    def markup_to_tokens(self, text: str) -> list[int]:
        """Tokens of a prompt that this package or a chat template wrote, in which names of special tokens mean them."""
        tokens: list[int] = []
        for part in self._names.split(text):
            tokens += [self._added[part]] if part in self._added else self._plain(part)
        return tokens

    def text_to_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text.

        Raises:
            SprachbundError: the text spells out a special token, which would steer the model.
        """
        if (steering := self._names.search(text)) is not None:
            raise SprachbundError(f"the text contains the special token {steering[0]}; take it out")
        return self._plain(text)

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens; those that are no text are left out."""
        text: str = self.tokenizer.decode(
            [t for t in tokens if t not in self.markup], skip_special_tokens=True
        )
        return text

    @cached_property
    def not_text(self) -> Tensor:
        """Boolean (V,): tokens that are never written, the end among them."""
        mask = torch.ones(self.size, dtype=torch.bool)
        mask[sorted(set(self.tokenizer.get_vocab(with_added_tokens=True).values()) - self.markup)] = False
        return mask

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = sorted(self._added, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else r"((?!))")

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids) if text else []


# tekken.json: byte pairs by rank, behind the special tokens.


class _Piece(ConfigPart):
    token_bytes: str


class _Special(ConfigPart):
    rank: Annotated[int, Field(strict=True, ge=0, le=VOCABULARY.most)]
    token_str: str


class _Settings(ConfigPart):
    pattern: str
    default_vocab_size: Annotated[int, Field(strict=True, ge=1, le=VOCABULARY.most)]
    default_num_special_tokens: Annotated[int, Field(strict=True, ge=1, le=VOCABULARY.most)]


class _TekkenFile(ConfigPart):
    config: _Settings
    vocab: list[_Piece]
    special_tokens: list[_Special]


def read_tekken(file: _TekkenFile) -> Tokenizer:
    """The tokenizer that a `tekken.json` describes.

    Its byte pairs are merged in the order of the ranks of what comes of them, as tiktoken does.

    Raises:
        SprachbundError: fewer tokens than it says, or a token twice.
    """
    settings = file.config
    first = settings.default_num_special_tokens
    count = settings.default_vocab_size - first
    pieces = [base64.b64decode(piece.token_bytes, validate=True) for piece in file.vocab[: max(0, count)]]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    if count < 256 or len(ranks) != count:
        raise SprachbundError(f"the vocabulary has {len(ranks)} different tokens and says {count}")
    letters = _letters()
    named = {"".join(letters[byte] for byte in piece): first + rank for piece, rank in ranks.items()}
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        splits = [
            (ranks[piece[:n]], ranks[piece[n:]], n)
            for n in range(1, len(piece))
            if piece[:n] in ranks and piece[n:] in ranks
        ]
        for _, _, n in sorted(splits):
            merges.append(
                ("".join(letters[byte] for byte in piece[:n]), "".join(letters[byte] for byte in piece[n:]))
            )
    special = {one.rank: one.token_str for one in file.special_tokens if one.rank < first}
    names = [special.get(rank, f"<SPECIAL_{rank}>") for rank in range(first)]
    tokenizer = Tokenizer(models.BPE({**{name: n for n, name in enumerate(names)}, **named}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(settings.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _letters() -> Mapping[int, str]:
    """The printable letter that stands for each byte in vocabularies of byte pairs, as GPT-2 has it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + n) for n, byte in enumerate(others)},
    }
