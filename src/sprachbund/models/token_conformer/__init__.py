"""A conformer that reads tokens: units of speech or pieces of text, translated by one and the same weights."""

from sprachbund.models.token_conformer.model import TokenConformer
from sprachbund.models.token_conformer.reading import Reader, Vocabulary, WrittenTokens
from sprachbund.models.token_conformer.reads_tokens import ReadsTokens
from sprachbund.models.token_conformer.shape import HEADS, ReadTokens, TokenConfig, TokenShape

__all__ = [
    "HEADS",
    "ReadTokens",
    "Reader",
    "ReadsTokens",
    "TokenConfig",
    "TokenConformer",
    "TokenShape",
    "Vocabulary",
    "WrittenTokens",
]
