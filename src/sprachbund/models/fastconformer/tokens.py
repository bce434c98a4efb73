"""Vocabularies of Parakeet and Canary: `tokenizer.json`, read by the library tokenizers.

Canaries before version 2 have a tokenizer for each language, whose tokens follow those of the special tokens; each has
a file of its own then, such as `tokenizer.de.json`. NeMo's SentencePiece models are made into such files here.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import one_line
from sprachbund.text.punctuation import FULL_STOP

TOKENIZER = "tokenizer.json"
_UNIGRAM, _BPE = 1, 2  # SentencePiece's kinds of models
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # and of pieces
_SPACE = "▁"


class FastConformerTokens:
    """Tokens to text and back.

    Args:
        tokenizer: from now on it takes special tokens in a text for text.
        size: V of the model; the tokenizer may have fewer, such as no blank.
        source: source of the tokenizer, for errors.
        of_languages: a tokenizer for each language, in the order of their tokens, which follow those of `tokenizer`;
            empty where there is one for all.

    Attributes:
        special: tokens that are no text.
        num_tokens: tokens that the tokenizer has, those of all languages together.

    Raises:
        SprachbundError: the tokenizer has a token that the model has not.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        size: int,
        source: str,
        *,
        of_languages: Mapping[str, Tokenizer] | None = None,
    ) -> None:
        self.tokenizer, self.size, self._source = tokenizer, size, source
        self.of_languages = dict(of_languages or {})
        self._first: dict[str, int] = {}
        highest = _highest(tokenizer)
        for language, one in self.of_languages.items():
            self._first[language] = highest + 1
            highest += 1 + _highest(one)
        if highest >= size:
            raise SprachbundError(
                f"{source} has a token {highest} and config.json a vocab_size of {size}; they are not of one model"
            )
        self.num_tokens = highest + 1
        for one in (tokenizer, *self.of_languages.values()):
            one.encode_special_tokens = True
        self.special = frozenset(
            number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def read(cls, directory: Path, size: int, languages: Sequence[str] = ()) -> "FastConformerTokens":
        """Read the tokens of a model directory. Raises SprachbundError for files that are missing, broken or of another
        model.

        Args:
            directory: directory with `tokenizer.json`.
            size: V of the model.
            languages: languages that have a tokenizer each.
        """
        first, *others = (_read(directory, name) for name in file_names(languages))
        of_languages = dict(zip(languages, others, strict=True))
        return cls(first, size, str(directory / TOKENIZER), of_languages=of_languages)

    def token(self, name: str) -> int:
        """Number of a special token. Raises SprachbundError where the vocabulary has none of that name."""
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise SprachbundError(f"{self._source} has no token {name}; it is of another kind of model")
        return int(number)

    def has(self, name: str) -> bool:
        """Whether there is a token of that name."""
        return self.tokenizer.token_to_id(name) is not None

    def suppressed(self, end: int) -> Tensor:
        """Boolean (V,): every token that is no text, but `end`."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[sorted(self.special - {end})] = True
        return mask

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Tokens of a text.

        Args:
            text: text of any language.
            language: language of the text; needed where each has a tokenizer.

        Raises:
            SprachbundError: there is no tokenizer for the language.
        """
        if not self.of_languages:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
            return tokens
        if language not in self.of_languages:
            raise SprachbundError(
                f"{self._source} has no tokenizer for {language!r}; there is one for each of "
                f"{', '.join(self.of_languages)}"
            )
        first = self._first[language]
        return [first + n for n in self.of_languages[language].encode(text, add_special_tokens=False).ids]

    @cached_property
    def words_only(self) -> bool:
        """Whether no token that is not special has a full stop."""
        return not any(
            FULL_STOP in token
            and token not in {one.content for one in tokenizer.get_added_tokens_decoder().values()}
            for tokenizer in (self.tokenizer, *self.of_languages.values())
            for token in tokenizer.get_vocab()
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        if not self.of_languages:
            text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
            return text
        pieces = (self.piece(token) for token in tokens if token not in self.special)
        return "".join(pieces).replace(_SPACE, " ").strip()

    def piece(self, token: int) -> str:
        """A token as the vocabulary has it, "▁" before a word; empty for a number that it leaves out."""
        tokenizer, first = self.tokenizer, 0
        for language, begins in self._first.items():
            if token >= begins:
                tokenizer, first = self.of_languages[language], begins
        return tokenizer.id_to_token(token - first) or ""

    def files(self) -> dict[str, bytes]:
        """Return the files that `read` reads, by name."""
        parts = (self.tokenizer, *self.of_languages.values())
        names = file_names([*self.of_languages])
        return {name: part.to_str(pretty=True).encode() for name, part in zip(names, parts, strict=True)}


def file_names(languages: Sequence[str]) -> list[str]:
    """Files of tokenizers, of the special tokens or all first, where `languages` have one each."""
    return [TOKENIZER, *(f"tokenizer.{language}.json" for language in languages)]


def _highest(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _read(directory: Path, name: str) -> Tokenizer:
    path = directory / name
    if not path.is_file():
        raise SprachbundError(f"{directory} has no {name}; add it from where the model came from")
    with one_line(path):
        return Tokenizer.from_file(str(path))


def add_special(tokenizer: Tokenizer, name: str) -> None:
    """Add a special token, with the next number."""
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])


def from_sentencepiece(model: Any, source: str) -> Tokenizer:
    """The tokenizer of a SentencePiece model, with its numbers.

    Args:
        model: SentencePiece's description (ModelProto), of byte pairs or unigrams.
        source: source of the model, for errors.

    Raises:
        SprachbundError: a model of another kind.
    """
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    kind, fallback = model.trainer_spec.model_type, bool(model.trainer_spec.byte_fallback)
    unknown = [number for number, piece in enumerate(model.pieces) if piece.type == _UNKNOWN]
    if len(unknown) != 1 or len(dict(pieces)) != len(pieces):
        raise SprachbundError(
            f"{source} has {len(unknown)} unknown tokens, or one token twice; copy it again"
        )
    if kind == _BPE:
        vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
        tokenizer = Tokenizer(
            BPE(
                vocabulary,
                _merges(model, vocabulary),
                unk_token=pieces[unknown[0]][0],
                fuse_unk=True,
                byte_fallback=fallback,
            )
        )
    elif kind == _UNIGRAM:
        tokenizer = Tokenizer(Unigram(pieces, unk_id=unknown[0], byte_fallback=fallback))
    else:
        raise SprachbundError(
            f"{source} holds a SentencePiece model of the kind {kind}; give byte pairs or unigrams"
        )
    for piece in model.pieces:
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            mark = piece.type != _USER_DEFINED or piece.piece == "<pad>"
            mark = mark or (piece.piece.startswith("<|") and piece.piece.endswith("|>"))
            add = tokenizer.add_special_tokens if mark else tokenizer.add_tokens
            add([AddedToken(piece.piece, normalized=False, special=mark)])
    steps: list[normalizers.Normalizer] = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.normalizer_spec.precompiled_charsmap:
        with one_line(Path(source)):
            steps.insert(0, normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    spaced = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaced]) if fallback else spaced
    return tokenizer


def _merges(model: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs that byte pairs are joined by, the first to be joined first: SentencePiece scores what they make."""
    apart = {piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)}
    scored = [
        (-piece.score, number, (piece.piece[:cut], piece.piece[cut:]))
        for number, piece in enumerate(model.pieces)
        if piece.piece not in apart
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in vocabulary and piece.piece[cut:] in vocabulary
    ]
    return [pair for _, _, pair in sorted(scored, key=lambda one: one[:2])]
