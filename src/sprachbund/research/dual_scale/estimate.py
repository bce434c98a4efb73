"""Parameters and memory of a size of the dual-scale comparison: models of the true shape on the meta device.

Parameters are counted on the modules that would be trained; activations by a forward pass on that device.
Shapes: B utterances, R rows, U tokens of a row.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.audio.constants import FRAMES_PER_S
from sprachbund.models.base import Memory
from sprachbund.models.conformer import Conformer, ConformerConfig
from sprachbund.models.drafts import parasite_states, run_decoder
from sprachbund.models.io import load, locate
from sprachbund.models.pruning import prune_decoder
from sprachbund.models.teacher_forcing import DecoderBatch
from sprachbund.nn.drafts import MedusaHeads
from sprachbund.nn.encoder import ConvolutionalEncoder
from sprachbund.research.dual_scale.options import DRAFT_MODEL, TEACHER, DualScaleRecipe, on_encoder
from sprachbund.research.estimate import (
    PASSES,
    MemoryEstimate,
    TrainingEstimate,
    TrainingMemory,
    count_parameters,
    estimate_of,
    moments_bytes,
    weights_bytes,
)
from sprachbund.training.dual_scale import DualScale, DualScaleOptions, make_dual_scale
from sprachbund.training.memory import forward_on_meta
from sprachbund.training.optimizers import freeze_others
from sprachbund.training.options import TrainingOptions

_SPECIAL_TOKENS = 7
"""Special tokens of a new Whisper's vocabulary, without the languages."""


class DualScaleTraining(TrainingMemory):
    """One training of the comparison.

    Attributes:
        name: name of the arm.
        translation: parameters of the translator that comes out, without fixed positions.
        draft_network: parameters of it.
        trained: parameters that are trained.
        utterances: utterances in a batch, over all processes; `kept_bytes` are those of one.
    """

    name: str
    translation: int
    draft_network: int
    trained: int
    utterances: int

    @property
    def batch_bytes(self) -> int:
        """Activations of a whole batch."""
        return self.kept_bytes * self.utterances


class DualScaleEstimate(MemoryEstimate):
    """Sizes of all trainings.

    Attributes:
        model: description of the model.
        seeds: number of seeds of every arm; the teacher has one.
        parts: parameters of single parts.
        trainings: the teacher's, the draft model's and every arm's.
        tokens: tokens of a row, for which memory is estimated.
    """

    model: str
    seeds: int
    parts: dict[str, int]
    trainings: tuple[DualScaleTraining, ...]
    tokens: int

    @property
    def of_trainings(self) -> tuple[TrainingEstimate, ...]:
        """Memory of each training."""
        return tuple(estimate_of(one.name, one, one.utterances) for one in self.trainings)


def estimate_memory(recipe: DualScaleRecipe) -> DualScaleEstimate:
    """Estimate a recipe by building every arm.

    Raises:
        SprachbundError: for more layers or blocks than the model has, naming them.
    """
    with torch.device("meta"):
        model = _shape(recipe)
        arms = {
            name: make_dual_scale(_shape(recipe), options) for name, options in recipe.trained_arms.items()
        }
        plain = DualScaleOptions(text_layers=0, draft="none")
        trainings = [_training(TEACHER, DualScale(model, None, None, plain), recipe.teacher, recipe)]
        trainings += [_training(name, whole, recipe.training, recipe) for name, whole in arms.items()]
        if DRAFT_MODEL in recipe.arms:
            small = prune_decoder(next(iter(arms.values())).base, recipe.draft_layers)
            small.encoder.requires_grad_(False)
            whole = DualScale(small, None, None, plain)
            trainings.append(_training(DRAFT_MODEL, whole, recipe.drafting, recipe))
    named = f"Whisper {recipe.whisper}" if recipe.whisper else model.name
    return DualScaleEstimate(
        model=named,
        languages=recipe.languages,
        seeds=len(recipe.seeds),
        parts=_parts(next(iter(arms.values()))),
        trainings=tuple(trainings),
        tokens=recipe.checked_tokens,
    )


def _shape(recipe: DualScaleRecipe) -> Any:
    """The recipe's model before it is pruned, without memory.

    A published shape stands for the checkpoint of that shape, which need not be there.
    """
    if recipe.start is not None and recipe.whisper is None:
        with torch.device("cpu"):
            model: Any = load(locate(recipe.start))
        return model.to("meta")
    if recipe.whisper is not None or recipe.conformer is None:
        from sprachbund.models.whisper import PRESETS, Whisper

        size = recipe.model.vocabulary_size + len(recipe.languages) + _SPECIAL_TOKENS
        whisper = Whisper.shape(PRESETS[recipe.whisper] if recipe.whisper else recipe.model.config(size))
        whisper.real_length = bool(recipe.fine_tuning.real_length)
        return whisper
    if recipe.encoder is not None:
        with torch.device("cpu"):
            return on_encoder(recipe.encoder, recipe.conformer).to("meta")  # their tokenizers have sizes
    config = ConformerConfig(
        source_languages=recipe.languages,
        target_languages=recipe.languages,
        **recipe.conformer.model_dump(),
    )
    tokenizers = (_Pieces(recipe.model.vocabulary_size), _Pieces(400))
    return Conformer(config, *(cast(Any, tokenizer) for tokenizer in tokenizers))


@dataclass(frozen=True)
class _Pieces:
    """In place of a tokenizer, of which the number of pieces decides."""

    count: int
    words_only: bool = False

    def __len__(self) -> int:
        return self.count


def _parts(whole: DualScale) -> dict[str, int]:
    adapters = {name: p for name, p in whole.named_parameters() if "lora_" in name}
    matrices = (
        [] if whole.draft_network is None else [p for p in whole.draft_network.parameters() if p.ndim > 1]
    )
    return {
        "decoder layer": count_parameters(whole.base.decoder.layers[0]),
        "draft network": count_parameters(whole.draft_network),
        "draft network, matrices": sum(p.numel() for p in matrices),
        "text encoder": count_parameters(whole.text_encoder),
        "adapters": sum(p.numel() for p in adapters.values()),
    }


def _translation(whole: DualScale) -> int:
    """Parameters of the base, its adapters merged; fixed positions are no parameters."""
    encoder = whole.base.encoder
    fixed = encoder.position_table if isinstance(encoder, ConvolutionalEncoder) else None
    adapters = sum(p.numel() for name, p in whole.base.named_parameters() if "lora_" in name)
    return count_parameters(whole.base) - adapters - (0 if fixed is None else fixed.numel())


def _training(
    name: str, whole: DualScale, options: TrainingOptions, recipe: DualScaleRecipe
) -> DualScaleTraining:
    freeze_others(whole, recipe.moving_parts(whole.options))
    trained = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    seconds = min(options.max_duration_s, whole.base.max_window_s)
    fixed = whole.base.capabilities.fixed_window
    if fixed is not None and not fixed.real_length:
        seconds = whole.base.max_window_s
    whole.train()
    utterances = max(1, min(options.max_utterances, int(options.batch_s // seconds)))
    passed = forward_on_meta(whole, lambda: _forward(whole, seconds, recipe))
    return DualScaleTraining(
        name=name,
        translation=_translation(whole),
        draft_network=count_parameters(whole.draft_network),
        trained=trained,
        weights_bytes=weights_bytes(count_parameters(whole)),
        moments_bytes=moments_bytes(trained),
        kept_bytes=passed.kept_bytes,
        flops=PASSES * passed.flops * utterances * options.steps,
        utterances=utterances,
    )


def _forward(whole: DualScale, seconds: float, recipe: DualScaleRecipe) -> Tensor:
    """All passes of a training step over one utterance of so many seconds, and rows of the recipe's length."""
    base, rows = whole.base, recipe.examples.rows_per_utterance
    if recipe.cache_states:
        states = torch.zeros(1, math.ceil(seconds / base.frame_s), base.config.width)
    else:
        frames = torch.zeros(1, int(seconds * FRAMES_PER_S), base.config.num_mel_bins)
        states = base.encoder(frames, torch.full((1,), frames.shape[1]))
        states = states[0] if isinstance(states, tuple) else states
    tokens = torch.zeros(rows, min(recipe.checked_tokens, base.max_tokens), dtype=torch.long)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    memories = [states]
    if whole.text_encoder is not None:
        memories.append(
            whole.text_encoder(base.decoder.embedding, tokens[:1], torch.full((1,), tokens.shape[1]))
        )
    total = torch.zeros(())
    for memory in memories:
        decoder_batch = DecoderBatch(
            tokens=tokens,
            labels=tokens,
            loss_mask=everything,
            prompts=torch.ones(rows),
            memory=Memory(states=memory, num_frames=None),
        )
        total = total + _cross_entropy(whole, decoder_batch)
    return total


def _cross_entropy(whole: DualScale, decoder_batch: DecoderBatch) -> Tensor:
    """Cross-entropy of decoder and draft network at every position, since values cannot choose any on this device."""
    decoder, draft_network = whole.base.decoder, whole.draft_network
    seen = run_decoder(decoder, decoder_batch)
    states = [seen.hidden]
    if isinstance(draft_network, MedusaHeads):
        states += list(draft_network(seen.hidden))
    elif draft_network is not None:
        states.append(draft_network.norm(parasite_states(draft_network, decoder, decoder_batch, seen)))
    logits = decoder.outputs(torch.cat(states).flatten(0, 1))
    return F.cross_entropy(logits, decoder_batch.labels.flatten().repeat(len(states)))
