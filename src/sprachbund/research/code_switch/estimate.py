"""Parameters, memory and operations of a size of the comparison, counted on models of the true shape.

Those of the published shape are tensors without memory: on the meta device, and fake ones while a step is counted.

The published shape is our reconstruction of arXiv 2511.10670: Whisper-large-v3's encoder and Qwen2.5-7B.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.io import load
from sprachbund.models.speech_llm.checkpoints import is_adapter, library
from sprachbund.models.speech_llm.config import LoraOptions, ProjectorOptions, SpeechLLMConfig
from sprachbund.models.speech_llm.encoders import SpeechEncoder, WhisperSpeech, of_family
from sprachbund.models.speech_llm.llm import make_text_llm
from sprachbund.models.speech_llm.model import SpeechLLM
from sprachbund.models.speech_llm.projector import Projector
from sprachbund.models.speech_llm.stages import STAGES, enter
from sprachbund.models.whisper.config import PRESETS
from sprachbund.nn.moe import MixtureOfExperts
from sprachbund.research.code_switch.options import ARMS, CodeSwitchRecipe
from sprachbund.research.estimate import MemoryEstimate, count_parameters, moments_bytes, weights_bytes
from sprachbund.training.check import Shape, probe, recomputed, shape_of
from sprachbund.training.optimizers import make_optimizers
from sprachbund.training.parallel import in_16_bits

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
        encoder: parameters of the speech encoder, without adapters.
        llm: parameters of the language model, without adapters.
        projector: all its experts.
        active: parameters of the projector that one speech token goes through.
        encoder_adapters: parameters of the speech encoder's adapters.
        llm_adapters: parameters of the language model's adapters.
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
        """Number of all parameters."""
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


class _WholeWindows(WhisperSpeech):
    """Hears whole windows alone, whose states need not be counted: fake tensors have no values."""

    def forward(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`."""
        return self.encoder(values.to(self.encoder.positions.dtype)), num_frames


def paper_shape(
    projector: ProjectorOptions | None = None,
    lora: LoraOptions | None = None,
    targets: tuple[str, ...] = ("en",),
) -> SpeechLLM:
    """The published pair of encoder and language model on the meta device, two languages if nothing else is said.

    Args:
        projector: sizes and groups; those that are published if None.
        lora: adapters; the usual ones if None.
        targets: languages written.
    """
    options = projector or ProjectorOptions(groups=(("es",), ("en",)))
    with torch.device("meta"):
        llm: Any = library().Qwen2ForCausalLM(library().Qwen2Config(**_QWEN_7B))
        config = SpeechLLMConfig(projector=options, target_languages=targets, lora=lora or LoraOptions())
        return SpeechLLM(_WholeWindows(PRESETS["large-v3"]), llm, config)


def _split(module: torch.nn.Module) -> tuple[int, int]:
    """Parameters of a module without its adapters, and of them."""
    adapters = sum(p.numel() for name, p in module.named_parameters() if is_adapter(name))
    return count_parameters(module) - adapters, adapters


# Sizes of the recipe's arms.


PUBLISHED = "openai/whisper-large-v3"
"""The encoder whose shape is counted without weights, with Qwen2.5-7B's."""


class CodeSwitchTraining(BaseModel):
    """Estimate of the training of one arm.

    Attributes:
        name: name of the arm.
        projector: parameters of all experts, router and splicing.
        active: parameters of these that a speech token goes through.
        adapters: parameters of the adapters of both.
        total: total with encoder and language model.
        weights_gib: GiB of all weights in 16 bits.
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
        model: description of the model.
        encoder: its parameters.
        llm: parameters of the language model.
        arms: estimates of all arms.
        stages: trainings in all, those that arms share counted once, and short ones that try learning rates among them.
        steps: steps of all trainings together.
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
    in_short = recipe.in_short(1.0).steps
    trials = [stage for arm in recipe.kinds.values() for stage in recipe.stages_of(arm)]
    num_tried = len(recipe.tuning_rate_factors)
    return CodeSwitchEstimate(
        model="Whisper-large-v3's encoder and Qwen2.5-7B"
        if recipe.encoder == PUBLISHED
        else f"the encoder of {recipe.encoder} and a language model of its own",
        languages=recipe.languages,
        encoder=sizes.encoder,
        llm=sizes.llm,
        arms=tuple(arms),
        stages=len(lasts) + num_tried * len(trials),
        steps=sum(recipe.steps[stage.name] for stage in lasts)
        + num_tried * sum(in_short[stage.name] for stage in trials),
    )


def _shape(recipe: CodeSwitchRecipe, projector: ProjectorOptions) -> SpeechLLM:
    if recipe.encoder == PUBLISHED:
        return paper_shape(projector, recipe.lora, recipe.targets)
    encoder = of_family(load(recipe.encoder, offline=True))
    config = SpeechLLMConfig(projector=projector, target_languages=recipe.targets, lora=recipe.lora)
    return SpeechLLM(encoder, make_text_llm(recipe.text_llm), config)


# A step of training.

_PROBED = (2, 5)
_PROMPT_TOKENS = 32
"""Instruction and template of a conversation."""


def training_shape(recipe: CodeSwitchRecipe) -> tuple[str, Shape]:
    """The arm with the most parameters, and what its training needs, from two probes of a step in which all parts move.

    Utterances are as long as `training.max_duration_s` allows, and rows have as many tokens as may be written, so that
    memory and operations are upper bounds. The operations are of all stages of the arm.

    Args:
        recipe: options of the comparison.

    Raises:
        SprachbundError: for an encoder that does not exist or is of an unsupported kind.
    """
    sizes = {
        name: sizes_of(_shape(recipe, recipe.projector_of(ARMS[name]))).total for name in recipe.all_arms
    }
    name = max(sizes, key=lambda name: sizes[name])
    arm = ARMS[name]
    model, stages = _shape(recipe, recipe.projector_of(arm)), recipe.stages_of(arm)
    moving = max(stages, key=lambda stage: len(stage.trained))
    options = recipe.options_of(moving, recipe.seeds[0])
    seconds = min(options.max_duration_s, model.encoder.max_window_s)
    utterances = max(1, min(options.max_utterances, int(options.batch_s // seconds)))
    features = model.encoder.features([np.zeros(int(seconds * SAMPLE_RATE), np.float32)])[0].shape[1:]
    mode = FakeTensorMode(allow_non_fake_inputs=True) if recipe.encoder == PUBLISHED else nullcontext()
    with mode:
        if recipe.encoder == PUBLISHED:
            without_values(model)
        enter(model, moving)
        if options.frozen_bf16:
            in_16_bits(model)
        model.train()
        passes = {}
        for again in (False, True):
            with recomputed(model) if again else nullcontext():
                few, more = (
                    probe(model, lambda count=count: step_loss(model, recipe, torch.zeros(count, *features)))  # type: ignore[misc]
                    for count in _PROBED
                )
                passes[again] = (few, more)
        shape = shape_of(
            model,
            make_optimizers(model, options),
            probed=_PROBED,
            passes=passes,
            utterances=utterances,
            probes=sum(recipe.steps[stage.name] for stage in stages) * utterances / _PROBED[1],
            ema=bool(options.ema),
        )
    return name, shape


def without_values(model: SpeechLLM) -> None:
    """Fake tensors in place of those on the meta device, where neither autocast nor attention knows what to do."""
    fake: dict[int, Tensor] = {}
    for module in model.modules():
        of_module: list[dict[str, Any]] = [module._parameters, module._buffers]
        for held in of_module:
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in fake:  # tied weights stay tied
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = tensor.requires_grad
                    fake[id(tensor)] = (
                        nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
                    )
                held[name] = fake[id(tensor)]


def step_loss(
    model: SpeechLLM, recipe: CodeSwitchRecipe, frames: Tensor, prompt_tokens: int = _PROMPT_TOKENS
) -> Tensor:
    """The cross-entropy of some utterances, in rows as long as may be written, by the operations of the true loss.

    The router's losses, a few numbers for each speech token, are left out.

    Args:
        model: as it is trained.
        recipe: options of the comparison.
        frames: features (B, T, M), all of them valid.
        prompt_tokens: around the speech.
    """
    options, each = recipe.training, recipe.rows_per_utterance
    encoder: SpeechEncoder = model.encoder
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision != "no"):
        lengths = torch.full((len(frames),), frames.shape[1])
        with torch.set_grad_enabled(not recipe.cache_states):
            states, _ = encoder.read(frames, lengths, recipe.projector.encoder_layers)
        speech = _speech_tokens(model.projector, states.to(model.projector.expand.weight.dtype))
        text = torch.zeros(len(frames) * each, recipe.max_new_tokens, dtype=torch.long)
        embedded = model.llm.embed(F.pad(text, (prompt_tokens, 0)))
        rows = torch.cat([speech.repeat_interleave(each, 0).to(embedded.dtype), embedded[:, :-1]], dim=1)
        wanted = torch.arange(rows.shape[1] - text.shape[1], rows.shape[1])
        logits = _logits(model, rows, wanted).float()
        return F.cross_entropy(logits.flatten(0, 1), text.flatten(), reduction="sum")


def _logits(model: SpeechLLM, rows: Tensor, wanted: Tensor) -> Tensor:
    if not isinstance(rows, FakeTensor):
        logits: Tensor = model.llm(rows, wanted)
        return logits
    # Where positions have no values, transformers would make a mask that it does without in training.
    positions = torch.arange(rows.shape[1]).expand(len(rows), -1)
    output = model.llm.model(
        inputs_embeds=rows,
        position_ids=positions,
        attention_mask={"full_attention": None},
        use_cache=False,
        logits_to_keep=wanted,
    )
    logits = output.logits
    return logits


def _speech_tokens(projector: Projector, states: Tensor) -> Tensor:
    """As the projector makes them of states (B, S, D) that are all valid, with as many rows for each expert: which ones
    a row chooses is a matter of values."""
    size = projector.spliced_frames
    count = -(-states.shape[1] // size)
    padded = F.pad(states, (0, 0, 0, count * size - states.shape[1])).unflatten(1, (count, size))
    x = projector.expand(padded.flatten(2).flatten(0, 1))
    for layer in projector.layers:
        assert isinstance(layer, MixtureOfExperts)
        normed = layer.norm(x)
        routing = layer.router(normed)
        order = routing.experts.flatten().argsort(stable=True)
        copies = normed[:, None].expand(-1, routing.experts.shape[1], -1).flatten(0, 1).index_select(0, order)
        parts = copies.tensor_split(len(layer.experts.branches))
        done = torch.cat([branch(part) for branch, part in zip(layer.experts.branches, parts, strict=True)])
        out = done.index_select(0, order.argsort()).unflatten(0, routing.experts.shape)
        x = x + (out * routing.weights.to(out.dtype)[..., None]).sum(1)
    return x.unflatten(0, (len(states), count))
