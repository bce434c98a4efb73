"""Parameters and memory of a size of the comparison, counted on models of the true shape on the meta device.

The published shape is our reconstruction of arXiv 2511.10670: Whisper-large-v3's encoder and Qwen2.5-7B.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from sprachbund.models.io import load
from sprachbund.models.speech_llm.checkpoints import is_adapter, library
from sprachbund.models.speech_llm.config import ProjectorOptions, SpeechLLMConfig
from sprachbund.models.speech_llm.encoders import WhisperSpeech, of_family
from sprachbund.models.speech_llm.llm import make_text_llm
from sprachbund.models.speech_llm.model import SpeechLLM
from sprachbund.models.speech_llm.stages import STAGES
from sprachbund.models.whisper.config import PRESETS
from sprachbund.research.code_switch.options import ARMS, CodeSwitchRecipe
from sprachbund.research.estimate import MemoryEstimate, count_parameters, moments_bytes, weights_bytes

# Sizes of a speech LLM.

_GIB = 2**30
_QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
"""Qwen2.5-7B-Instruct, from its config.json."""


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        encoder: of the speech encoder, without adapters.
        llm: of the language model, without adapters.
        projector: all its experts.
        active: of the projector, what one speech token goes through.
        encoder_adapters: of the speech encoder.
        llm_adapters: of the language model.
    """

    encoder: int
    llm: int
    projector: int
    active: int
    encoder_adapters: int
    llm_adapters: int

    @property
    def trained(self) -> int:
        """Projector and adapters."""
        return self.projector + self.encoder_adapters + self.llm_adapters

    @property
    def total(self) -> int:
        """All."""
        return self.encoder + self.llm + self.trained

    def inference_gib(self, bytes_per_weight: int = 2) -> float:
        """Memory of the weights alone."""
        return self.total * bytes_per_weight / _GIB

    def training_gib(self) -> float:
        """Memory of frozen weights in 16 bits, and of what is trained in fp32 with AdamW; activations come on top."""
        trained = weights_bytes(self.trained) + moments_bytes(self.trained)
        return (2 * (self.encoder + self.llm) + trained) / _GIB


def sizes_of(model: SpeechLLM) -> ParameterCounts:
    """Count a model, on the meta device or not."""
    encoder, encoder_adapters = _split(model.encoder)
    llm, llm_adapters = _split(model.llm)
    options = model.config.projector
    experts = sum(p.numel() for n, p in model.projector.named_parameters() if ".experts." in n)
    projector = count_parameters(model.projector)
    idle = experts * (options.num_experts - options.num_chosen) // options.num_experts
    return ParameterCounts(
        encoder=encoder,
        llm=llm,
        projector=projector,
        active=projector - idle,
        encoder_adapters=encoder_adapters,
        llm_adapters=llm_adapters,
    )


def paper_shape(projector: ProjectorOptions | None = None) -> SpeechLLM:
    """The published pair of encoder and language model on the meta device, two languages if nothing else is said."""
    options = projector or ProjectorOptions(groups=(("es",), ("en",)))
    with torch.device("meta"):
        llm: Any = library().Qwen2ForCausalLM(library().Qwen2Config(**_QWEN_7B))
        return SpeechLLM(
            WhisperSpeech(PRESETS["large-v3"]),
            llm,
            SpeechLLMConfig(projector=options, target_languages=("en",)),
        )


def _split(module: torch.nn.Module) -> tuple[int, int]:
    """Parameters of a module without its adapters, and of them."""
    adapters = sum(p.numel() for name, p in module.named_parameters() if is_adapter(name))
    return count_parameters(module) - adapters, adapters


# Sizes of the recipe's arms.


PUBLISHED = "openai/whisper-large-v3"
"""The encoder whose shape is counted without weights, with Qwen2.5-7B's."""


class CodeSwitchTraining(BaseModel):
    """One arm.

    Attributes:
        name: of the arm.
        projector: parameters of all experts, router and splicing.
        active: of them, what a speech token goes through.
        adapters: of both.
        total: with encoder and language model.
        weights_gib: of all in 16 bits.
        training_gib: frozen weights in 16 bits; weight, gradient and two moments in 32 of what is trained. Activations
            come on top.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    projector: int
    active: int
    adapters: int
    total: int
    weights_gib: float
    training_gib: float


class CodeSwitchEstimate(MemoryEstimate):
    """Sizes of all arms.

    Attributes:
        model: in words.
        encoder: its parameters.
        llm: of the language model.
        arms: of all.
        stages: trainings in all, those that arms share counted once.
        steps: of all trainings together.
    """

    model: str
    encoder: int
    llm: int
    arms: tuple[CodeSwitchTraining, ...]
    stages: int
    steps: int


def estimate_memory(recipe: CodeSwitchRecipe) -> CodeSwitchEstimate:
    """Estimate every arm, around the published pair of models or the recipe's encoder and a small language model.

    Raises:
        SprachbundError: for an encoder that does not exist or is of an unsupported kind.
    """
    arms = []
    size_of = cache(lambda projector: sizes_of(_shape(recipe, projector)))
    for name in recipe.all_arms:
        sizes = size_of(recipe.projector_of(ARMS[name]))
        arms.append(
            CodeSwitchTraining(
                name=name,
                projector=sizes.projector,
                active=sizes.active,
                adapters=sizes.encoder_adapters + sizes.llm_adapters,
                total=sizes.total,
                weights_gib=sizes.inference_gib(),
                training_gib=sizes.training_gib(),
            )
        )
    lasts = [stages[-1] for length in range(1, len(STAGES) + 1) for _, _, stages in recipe.chains(length)]
    return CodeSwitchEstimate(
        model="Whisper-large-v3's encoder and Qwen2.5-7B"
        if recipe.encoder == PUBLISHED
        else f"the encoder of {recipe.encoder} and a language model of its own",
        languages=recipe.languages,
        encoder=sizes.encoder,
        llm=sizes.llm,
        arms=tuple(arms),
        stages=len(lasts),
        steps=sum(recipe.steps[stage.name] for stage in lasts),
    )


def _shape(recipe: CodeSwitchRecipe, projector: ProjectorOptions) -> SpeechLLM:
    if recipe.encoder == PUBLISHED:
        return paper_shape(projector)
    encoder = of_family(load(recipe.encoder, offline=True))
    config = SpeechLLMConfig(projector=projector, target_languages=recipe.targets, lora=recipe.lora)
    return SpeechLLM(encoder, make_text_llm(recipe.text_llm), config)
