"""Speech LLMs: a speech encoder, a projector of experts by language, and a language model (arXiv 2511.10670)."""

from sprachbund.models.speech_llm.config import (
    LoraOptions,
    LossWeights,
    ProjectorOptions,
    PromptOptions,
    SpeechLLMConfig,
    dense,
    plain_mixture,
)
from sprachbund.models.speech_llm.io import assemble, load, save
from sprachbund.models.speech_llm.model import SpeechLLM
from sprachbund.models.speech_llm.objective import RoutedMemory
from sprachbund.models.speech_llm.stages import STAGES, Stage

__all__ = [
    "STAGES",
    "LoraOptions",
    "LossWeights",
    "ProjectorOptions",
    "PromptOptions",
    "RoutedMemory",
    "SpeechLLM",
    "SpeechLLMConfig",
    "Stage",
    "assemble",
    "dense",
    "load",
    "plain_mixture",
    "save",
]
