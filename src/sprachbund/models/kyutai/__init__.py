"""Kyutai STT: recognisers that hear a codec's frames and write a token for each while somebody speaks."""

from sprachbund.models.kyutai.config import ExtractorConfig, KyutaiConfig
from sprachbund.models.kyutai.io import load, save
from sprachbund.models.kyutai.model import Kyutai

__all__ = ["ExtractorConfig", "Kyutai", "KyutaiConfig", "load", "save"]
