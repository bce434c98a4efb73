"""One vocabulary of SentencePiece pieces for all languages, and one token for each language.

The token of a language doubles as the start of a row: it says which language the row is to be written in.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.util.files import write_bytes

BLANK, END, UNKNOWN = 0, 1, 2


def language_token(language: str) -> str:
    """Name of a language's token in the vocabulary."""
    return f"<{language}>"


class Tokenizer:
    """SentencePiece model with language tokens.

    Token 0 is padding and the CTC blank, 1 ends a row, 2 is unknown; then one token for each language.
    """

    def __init__(self, model: bytes, languages: Sequence[str]) -> None:
        import sentencepiece

        self.model = model
        self.languages = tuple(languages)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._language_tokens = {tag: self._pieces.piece_to_id(language_token(tag)) for tag in languages}
        missing = [tag for tag, token in self._language_tokens.items() if token == UNKNOWN]
        if missing:
            raise SprachbundError(f"tokenizer has no token for {', '.join(missing)}; train it for them")

    @classmethod
    def train(cls, texts: Iterable[str], languages: Sequence[str], vocabulary_size: int) -> "Tokenizer":
        """Fit a unigram model (arXiv 1804.10959) on texts; every character seen gets a piece."""
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
        """Read a model file written by `save`."""
        return cls(path.read_bytes(), languages)

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
        """What of a text has no piece, and is `UNKNOWN` among its tokens."""
        written, tokens = self._pieces.encode(text, out_type=str), self.encode(text)
        return [piece for piece, token in zip(written, tokens, strict=True) if token == UNKNOWN]

    def piece(self, token: int) -> str:
        """The written form of one token, with a leading U+2581 where a word begins."""
        return self._pieces.id_to_piece(token)
