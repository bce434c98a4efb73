"""Text-to-text translators that are public checkpoints: M2M-100, NLLB-200, mBART-50, Marian, MADLAD-400."""

from sprachbund.models.translation.io import from_transformers, load, save
from sprachbund.models.translation.model import TextTranslator
from sprachbund.models.translation.tokens import TranslationTokens, read_tokens

__all__ = ["TextTranslator", "TranslationTokens", "from_transformers", "load", "read_tokens", "save"]
