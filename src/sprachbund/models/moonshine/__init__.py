"""Moonshine and streaming Moonshine: small recognisers of one language that hear samples."""

from sprachbund.models.moonshine.config import MoonshineConfig, StreamingMoonshineConfig
from sprachbund.models.moonshine.io import load, save
from sprachbund.models.moonshine.model import Moonshine

__all__ = ["Moonshine", "MoonshineConfig", "StreamingMoonshineConfig", "load", "save"]
