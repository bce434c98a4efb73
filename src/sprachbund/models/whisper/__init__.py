"""The Whisper family: any Whisper or Distil-Whisper checkpoint in our own modules."""

from sprachbund.models.whisper.config import PRESETS, WhisperConfig
from sprachbund.models.whisper.files import CheckpointFiles
from sprachbund.models.whisper.io import load, save
from sprachbund.models.whisper.model import Whisper, num_parameters
from sprachbund.models.whisper.tokens import WhisperTokens

__all__ = [
    "PRESETS",
    "CheckpointFiles",
    "Whisper",
    "WhisperConfig",
    "WhisperTokens",
    "load",
    "num_parameters",
    "save",
]
