"""An mBART that reads tokens: what it knew of text, and units of speech as new rows of its embedding."""

from sprachbund.models.token_mbart.model import TokenMbart
from sprachbund.models.token_mbart.shape import MBART_50, MbartConfig, MbartShape

__all__ = ["MBART_50", "MbartConfig", "MbartShape", "TokenMbart"]
