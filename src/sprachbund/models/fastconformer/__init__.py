"""The FastConformer families of NVIDIA: Parakeet, which transcribes, and Canary, which translates too."""

from sprachbund.models.fastconformer.config import CanaryConfig, ParakeetConfig
from sprachbund.models.fastconformer.io import load, save
from sprachbund.models.fastconformer.model import Canary, Parakeet
from sprachbund.models.fastconformer.tokens import FastConformerTokens

__all__ = ["Canary", "CanaryConfig", "FastConformerTokens", "Parakeet", "ParakeetConfig", "load", "save"]
