"""Models with a FastConformer encoder: Parakeet and Cohere ASR, which transcribe, and Canary, which translates too."""

from sprachbund.models.fastconformer.config import CanaryConfig, CohereConfig, ParakeetConfig
from sprachbund.models.fastconformer.io import load, save
from sprachbund.models.fastconformer.model import Canary, CohereAsr, Parakeet
from sprachbund.models.fastconformer.tokens import FastConformerTokens

__all__ = [
    "Canary",
    "CanaryConfig",
    "CohereAsr",
    "CohereConfig",
    "FastConformerTokens",
    "Parakeet",
    "ParakeetConfig",
    "load",
    "save",
]
