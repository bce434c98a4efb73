"""One vocabulary of SentencePiece pieces for all languages, and one token for each language.

The token of a language doubles as the start of a row: it says which language the row is to be written in.
"""

import io
from collections.abc import Iterable, Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError, first_line
from sprachbund.text.punctuation import FULL_STOP
from sprachbund.util.files import write_bytes

BLANK, END, UNKNOWN = 0, 1, 2
_UNKNOWN_TYPE = 2  # of SentencePiece's types of pieces
_MOST_PIECES = 2**21


def language_token(language: str) -> str:
    """Name of a language's token in the vocabulary."""
    return f"<{language}>"


class Tokenizer:
    """SentencePiece model with language tokens.

    Token 0 is padding and the CTC blank, 1 ends a row, 2 is unknown; then one token for each language.
    """

    def __init__(self, model: bytes, languages: Sequence[str]) -> None:
        self.model = model
        self.languages = tuple(languages)
        self._pieces = read_pieces(model)
        if len(self._pieces) <= UNKNOWN:
            raise SprachbundError(
                f"the tokenizer has {len(self._pieces)} pieces, too few for a model; copy it again"
            )
        self._language_tokens = {tag: self._pieces.piece_to_id(language_token(tag)) for tag in languages}
        missing = [tag for tag, token in self._language_tokens.items() if token == UNKNOWN]
        if missing:
            raise SprachbundError(f"tokenizer has no token for {', '.join(missing)}; train it for them")

    @classmethod
    def train(cls, texts: Iterable[str], languages: Sequence[str], vocabulary_size: int) -> "Tokenizer":
        """Fit a unigram model (arXiv 1804.10959) on texts; every character seen gets a piece.

        Args:
            texts: one sentence each.
            languages: tags that get a token of their own.
            vocabulary_size: pieces in all.
        """
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocabulary_size,
            model_type="unigram",
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=BLANK,
            eos_id=END,
            unk_id=UNKNOWN,
            bos_id=-1,
            control_symbols=[language_token(tag) for tag in languages],
            hard_vocab_limit=False,
            num_threads=2,
            minloglevel=2,
        )
        return cls(model.getvalue(), languages)

    @classmethod
    def load(cls, path: Path, languages: Sequence[str]) -> "Tokenizer":
        """Read a model file written by `save`. Raises SprachbundError: it is missing, or no such file."""
        try:
            model = path.read_bytes()
        except FileNotFoundError:
            raise SprachbundError(
                f"{path.parent} has no {path.name}; copy it from where the model came from"
            ) from None
        except OSError as error:
            raise SprachbundError(
                f"{path} cannot be read ({error.strerror}); copy the model again"
            ) from error
        try:
            return cls(model, languages)
        except SprachbundError as error:
            raise SprachbundError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the SentencePiece model file."""
        write_bytes(path, self.model)

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    def language_id(self, language: str) -> int:
        """Token of a language. Raises KeyError for one the vocabulary lacks."""
        return self._language_tokens[language]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without start or end."""
        return self._pieces.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; padding, end and language tokens vanish."""
        special = {BLANK, END, *self._language_tokens.values()}
        return self._pieces.decode([int(token) for token in tokens if int(token) not in special])

    def unknown(self, text: str) -> list[str]:
        """Return the parts of a text that have no piece, and are `UNKNOWN` among its tokens."""
        written, tokens = self._pieces.encode(text, out_type=str), self.encode(text)
        return [piece for piece, token in zip(written, tokens, strict=True) if token == UNKNOWN]

    @cached_property
    def words_only(self) -> bool:
        """Whether no piece that may be written has a full stop."""
        special = {BLANK, END, UNKNOWN, *self._language_tokens.values()}
        return not any(FULL_STOP in self.piece(token) for token in range(len(self)) if token not in special)

    def piece(self, token: int) -> str:
        """The written form of one token, with a leading U+2581 where a word begins."""
        return self._pieces.id_to_piece(token)


def read_pieces(model: bytes) -> Any:
    """A SentencePiece processor of a model, which is looked through first: native code would read past its ends.

    Raises:
        SprachbundError: it is no whole SentencePiece model.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    described: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    try:
        parsed = described.ModelProto.FromString(model)
        # What is not UTF-8 protobuf gives as bytes.
        names = [piece.piece for piece in parsed.pieces if isinstance(piece.piece, str)]
        sound = (
            0 < len(names) == len(parsed.pieces) <= _MOST_PIECES
            and all(names)
            and all(isfinite(piece.score) for piece in parsed.pieces)
            and sum(piece.type == _UNKNOWN_TYPE for piece in parsed.pieces) == 1
        )
        if not sound:
            raise ValueError(
                "it has pieces that are empty or without a score, or none or two for the unknown"
            )
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # protobuf's and SentencePiece's own kinds differ by version
        raise SprachbundError(
            f"it is not a whole SentencePiece model ({first_line(error)[:120]}); copy it again"
        ) from error
