"""Voxtral Realtime: a recogniser that writes one token for every 80 ms of speech while it is heard."""

from sprachbund.models.voxtral_realtime.config import VoxtralRealtimeConfig
from sprachbund.models.voxtral_realtime.io import load, save
from sprachbund.models.voxtral_realtime.model import VoxtralRealtime

__all__ = ["VoxtralRealtime", "VoxtralRealtimeConfig", "load", "save"]
