"""A conformer that reads tokens: units of speech or pieces of text, translated by one and the same weights."""

from sprachbund.models.tokens.config import (
    HEADS,
    MBART_50,
    MbartConfig,
    MbartShape,
    ReadTokens,
    TokenConfig,
    TokenShape,
)
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.mbart import TokenMbart
from sprachbund.models.tokens.text_input import Reader, ReadsTokens, Vocabulary, WrittenTokens

__all__ = [
    "HEADS",
    "MBART_50",
    "MbartConfig",
    "MbartShape",
    "ReadTokens",
    "Reader",
    "ReadsTokens",
    "TokenConfig",
    "TokenConformer",
    "TokenMbart",
    "TokenShape",
    "Vocabulary",
    "WrittenTokens",
]
