"""Parameters and memory of a size of the transfer study, and whether its checkpoints fit the study.

Parameters are counted on a model of the true shape on the meta device, the encoder's activations by a forward pass on
that device, and the transducer's logits by their shape. Checkpoints are checked by their configurations.
Shapes: B utterances, T frames of 80 ms, U target tokens, V vocabulary, M mel bins.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sprachbund.audio.constants import FRAMES_PER_S
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape, TransducerPart
from sprachbund.models.conformer.io import read_config
from sprachbund.models.io import family_of, locate
from sprachbund.models.weights import read_packed_linears
from sprachbund.nn.streaming_conformer import SUBSAMPLING
from sprachbund.research.encoder_transfer.grid import BITS_OF_FLOAT
from sprachbund.research.encoder_transfer.options import FRAME_MS, EncoderTransferRecipe
from sprachbund.research.encoder_transfer.rates import tuned
from sprachbund.research.encoder_transfer.splice import read_layers
from sprachbund.research.estimate import (
    FLOAT_BYTES,
    PASSES,
    MemoryEstimate,
    TrainingEstimate,
    TrainingMemory,
    count_parameters,
    estimate_of,
    moments_bytes,
    weights_bytes,
)
from sprachbund.training.memory import forward_on_meta

_TOKENS_PER_S = 5
"""About: pieces of fluent speech, with a vocabulary of some thousand."""


class EncoderTransferEstimate(TrainingMemory, MemoryEstimate):
    """Size of the study and of the training of a cell.

    `kept_bytes` are those of the encoder for the longest utterance.

    Attributes:
        starts: starts that cells are learned from.
        trainings: trainings of cells; those that try given learning rates are among them, those beyond are not known
            before.
        pretrainings: trainings that come before them.
        scored: tiers and bit widths at which every cell is scored.
        parts: parameters of the model's parts.
        parameters: parameters of the model.
        logits_bytes: bytes of the longest utterance's logits, with their gradient; 0 for the attention head.
        utterances: utterances in a batch, at most.
        encoder_bytes: bit width to bytes of the encoder's linear layers, scales and zero points included.
    """

    starts: tuple[str, ...]
    trainings: int
    pretrainings: int
    scored: int
    parts: dict[str, int]
    parameters: int
    logits_bytes: int
    utterances: int
    encoder_bytes: dict[int, int]

    @property
    def batch_bytes(self) -> int:
        """Activations of a batch whose utterances are all as long as the longest."""
        return (self.kept_bytes + self.logits_bytes) * self.utterances

    @property
    def of_trainings(self) -> tuple[TrainingEstimate, ...]:
        """Memory of the training of a cell."""
        return (estimate_of("a cell", self, self.utterances),)


def estimate_memory(recipe: EncoderTransferRecipe) -> EncoderTransferEstimate:
    """Estimate the study of a recipe."""
    grid, options = recipe.grid, recipe.tuning
    with torch.device("meta"):
        model = _shape(recipe).eval()  # which draws no tier
        longest = int(options.max_duration_s * FRAMES_PER_S)
        mel = torch.zeros(1, longest, recipe.model.num_mel_bins)
        passed = forward_on_meta(model, lambda: model.encoder(mel, torch.tensor([longest])))
    parameters = count_parameters(model)
    utterances = min(options.max_utterances, max(1, int(options.batch_s / options.max_duration_s)))
    tried = sum(len(cells) for cells in tuned(grid).values())
    return EncoderTransferEstimate(
        languages=grid.languages,
        starts=grid.starts,
        trainings=len(grid.cells()) + tried * max(0, len(recipe.learning_rates) - 1),
        pretrainings=sum(one.checkpoint is None for one in recipe.pretrained.values()),
        scored=len(grid.tiers) * len(grid.bits),
        parts=_parts(model),
        parameters=parameters,
        weights_bytes=weights_bytes(parameters),
        moments_bytes=moments_bytes(parameters),
        kept_bytes=passed.kept_bytes,
        flops=PASSES * (passed.flops + _joint_flops(recipe, longest)) * utterances * options.steps,
        logits_bytes=_logits_bytes(recipe, longest),
        utterances=utterances,
        encoder_bytes={bits: _encoder_bytes(model, bits) for bits in grid.bits},
    )


def _shape(recipe: EncoderTransferRecipe) -> Conformer:
    config = ConformerConfig(
        source_languages=recipe.languages, target_languages=recipe.languages, **recipe.shape.model_dump()
    )
    # Of the tokenizers, the numbers of pieces decide.
    sizes = (recipe.vocabulary_size, recipe.transcript_vocabulary_size)
    return Conformer(config, *(cast(Any, range(size)) for size in sizes))


def _parts(model: Conformer) -> dict[str, int]:
    parts = {
        "encoder layers": count_parameters(model.encoder.layers),
        "encoder before its layers": count_parameters(model.encoder) - count_parameters(model.encoder.layers),
        "decoder": count_parameters(model.decoder),
        "CTC and language heads": count_parameters(model.ctc_head) + count_parameters(model.language_head),
    }
    if model.config.transducer is not None:
        parts["prediction network"] = count_parameters(model.transducer.prediction)
        parts["joint network"] = count_parameters(model.transducer.joint)
        if model.config.transducer.prune_range is not None:
            parts["joint network of the pruned loss"] = count_parameters(model.transducer.simple_joint)
    return parts


def _logits_bytes(recipe: EncoderTransferRecipe, longest: int) -> int:
    """(T, U+1 or the band, V) numbers, of some frames at a time if the shape says so; the gradient overwrites them."""
    transducer = recipe.shape.transducer
    if transducer is None:
        return 0
    num_frames = -(-longest // SUBSAMPLING)
    held = min(num_frames, transducer.frames_at_once or num_frames)
    return FLOAT_BYTES * held * _tokens_of_a_frame(recipe, transducer) * recipe.vocabulary_size


def _joint_flops(recipe: EncoderTransferRecipe, longest: int) -> int:
    """Of the logits (T, U+1 or the band, V) of the longest utterance, forward."""
    transducer = recipe.shape.transducer
    if transducer is None:
        return 0
    num_logits = -(-longest // SUBSAMPLING) * _tokens_of_a_frame(recipe, transducer) * recipe.vocabulary_size
    return 2 * transducer.joint_width * num_logits


def _tokens_of_a_frame(recipe: EncoderTransferRecipe, transducer: TransducerPart) -> int:
    """Tokens so far that the longest utterance's frames are joined with."""
    num_tokens = min(recipe.model.max_tokens, int(_TOKENS_PER_S * recipe.tuning.max_duration_s)) + 1
    return min(num_tokens, transducer.prune_range or num_tokens)


def _encoder_bytes(model: Conformer, bits: int, block: int = 32) -> int:
    """Codes, and for each block of inputs a 16-bit scale and a zero point of so many bits."""
    weights = [m.weight for m in model.encoder.modules() if type(m) is nn.Linear]
    if bits == BITS_OF_FLOAT:
        return sum(FLOAT_BYTES * w.numel() for w in weights)
    blocks = sum(w.shape[0] * -(-w.shape[1] // block) for w in weights)
    return (sum(bits * w.numel() for w in weights) + blocks * (16 + bits)) // 8


# Checkpoints that a study starts from.

_OF_ENCODER = (
    "num_mel_bins",
    "width",
    "num_heads",
    "num_encoder_layers",
    "feed_forward_width",
    "kernel_size",
)
_CONTEXTS = ("left_context", "right_contexts")
"""Fields that may differ: no tensor depends on them, and the study's tiers are checked by themselves."""


def check_checkpoints(recipe: EncoderTransferRecipe) -> None:
    """Check that the checkpoints are what the study asks for, before anything is trained.

    Raises:
        SprachbundError: one of another family or head, that does not stream, or not at a tier of the grid; encoders of
            different kinds; layers that there are not.
    """
    for one in recipe.pretrained.values():
        if one.checkpoint is not None:
            _check_checkpoint(recipe, one.checkpoint)
    shapes = {name: _shape_of(recipe, name) for name in recipe.pretrained}
    shared = shapes[recipe.shared]
    for name, shape in shapes.items():
        wanted = _encoder_kind(shared)
        for key, value in _encoder_kind(shape).items():
            if value != wanted[key]:
                raise SprachbundError(
                    f"{name} and {recipe.shared} have encoders of different kinds, whose layers cannot be exchanged: "
                    f"model.{key} is {value} and {wanted[key]}"
                )
    for name in recipe.grid.starts:
        read_layers(recipe.starts[name], shared.num_encoder_layers)


def _shape_of(recipe: EncoderTransferRecipe, name: str) -> ConformerShape:
    """Shape of a pretrained model; one that goes on from another has the shape of that."""
    one = recipe.pretrained[name]
    if one.checkpoint is not None:
        return read_config(one.checkpoint)
    return recipe.shape if one.start is None else _shape_of(recipe, one.start)


def _encoder_kind(shape: ConformerShape) -> dict[str, object]:
    """Sizes of an encoder's weights, without what it is trained with."""
    streaming = {} if shape.streaming is None else shape.streaming.model_dump()
    own = {f"streaming.{key}": value for key, value in streaming.items() if key not in _CONTEXTS}
    return {key: getattr(shape, key) for key in _OF_ENCODER} | own


def _check_checkpoint(recipe: EncoderTransferRecipe, directory: Path) -> None:
    if directory.is_file():
        locate(directory, offline=True)  # says how a model is made of it
    if family_of(directory) != Conformer.name:
        raise SprachbundError(
            f"{directory} is a {family_of(directory)} model; starts are made of {Conformer.name} ones"
        )
    config = read_config(directory)
    if config.streaming is None:
        raise SprachbundError(f"{directory} has no encoder that streams; take a model that has one")
    if (packed := read_packed_linears(directory)) is not None:
        raise SprachbundError(
            f"{directory} has an encoder in {packed.bits} bits, which is not trained; take the model that it "
            "was made of"
        )
    known = config.streaming.tiers()
    for name in recipe.grid.tiers:
        if (wanted := recipe.tier(name)) not in known:
            latencies = ", ".join(f"{(tier.right + 1) * FRAME_MS} ms" for tier in known)
            raise SprachbundError(
                f"{directory} was trained with {known[0].left} frames of the past at {latencies}, not with "
                f"{wanted.left} at {name}; change [model.streaming] and grid.tiers to what it has"
            )
    head = "transducer" if config.writes_by_frames else "attention"
    if head != recipe.head:
        raise SprachbundError(
            f'{directory} writes by its {head} head, not {recipe.head}; set head = "{head}"'
        )
