"""Published speech LLMs: Voxtral and Granite Speech transcribe and translate, Qwen3-ASR transcribes."""

from sprachbund.models.audio_llm.config import GraniteSpeechConfig, QwenAsrConfig, VoxtralConfig
from sprachbund.models.audio_llm.granite import GraniteSpeech
from sprachbund.models.audio_llm.io import load, save
from sprachbund.models.audio_llm.model import AudioLLM, AudioLLMExamples
from sprachbund.models.audio_llm.qwen3_asr import QwenAsr
from sprachbund.models.audio_llm.voxtral import Voxtral

__all__ = [
    "AudioLLM",
    "AudioLLMExamples",
    "GraniteSpeech",
    "GraniteSpeechConfig",
    "QwenAsr",
    "QwenAsrConfig",
    "Voxtral",
    "VoxtralConfig",
    "load",
    "save",
]
