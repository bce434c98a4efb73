"""What a size of the transfer study needs, told without running it: the model of the true shape on the meta device.

Parameters are counted on the very modules that would be trained, and what the encoder keeps for its backward pass by
making the forward pass on that device; the transducer's logits are counted by their shape.
Shapes: B utterances, T frames of 80 ms, U target tokens, V vocabulary, M mel bins.
"""

from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, computed_field
from torch import nn

from sprachbund.audio.constants import FRAMES_PER_S
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerConfig, ConformerShape
from sprachbund.models.conformer.io import read_config
from sprachbund.models.io import family_of, locate
from sprachbund.models.weights import read_packed_linears
from sprachbund.nn.streaming_conformer import SUBSAMPLING
from sprachbund.research.encoder_transfer.grid import BITS_OF_FLOAT
from sprachbund.research.encoder_transfer.options import FRAME_MS, EncoderTransferRecipe
from sprachbund.research.encoder_transfer.splice import read_layers
from sprachbund.training.memory import kept_on_meta

_FLOAT = 4
_MOMENTS = 2
"""Of AdamW; Muon keeps one of matrices, so this is at most."""
_TOKENS_PER_S = 5
"""About: pieces of fluent speech, with a vocabulary of some thousand."""


class Needs(BaseModel):
    """What a size needs.

    Attributes:
        languages: that are learned.
        starts: that they are learned from.
        trainings: of cells.
        pretrainings: that come before them.
        scored: tiers and bit widths at which every cell is scored.
        parts: parameters of the model's parts.
        parameters: of the model.
        weights_bytes: in 32 bits.
        moments_bytes: gradients and the optimizer's moments.
        kept_bytes: what the longest utterance keeps of the encoder for the backward pass, in 32 bits.
        logits_bytes: of the longest utterance, with their gradient; 0 for the attention head.
        utterances: in a batch, at most.
        encoder_bytes: bit width to bytes of the encoder's linear layers, scales and zero points included.
    """

    model_config = ConfigDict(frozen=True)

    languages: tuple[str, ...]
    starts: tuple[str, ...]
    trainings: int
    pretrainings: int
    scored: int
    parts: dict[str, int]
    parameters: int
    weights_bytes: int
    moments_bytes: int
    kept_bytes: int
    logits_bytes: int
    utterances: int
    encoder_bytes: dict[int, int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bytes(self) -> int:
        """Memory of a training in all, where every utterance of a batch is as long as the longest."""
        each = self.kept_bytes + self.logits_bytes
        return self.weights_bytes + self.moments_bytes + each * self.utterances


def needs(recipe: EncoderTransferRecipe) -> Needs:
    """What a recipe needs."""
    grid, options = recipe.grid, recipe.tuning
    with torch.device("meta"):
        model = _shape(recipe).eval()  # which draws no tier
        longest = int(options.max_duration_s * FRAMES_PER_S)
        mel = torch.zeros(1, longest, recipe.model.num_mel_bins)
        kept = kept_on_meta(model, lambda: model.encoder(mel, torch.tensor([longest])))
    parameters = _count(model)
    return Needs(
        languages=grid.languages,
        starts=grid.starts,
        trainings=len(grid.cells()),
        pretrainings=sum(one.checkpoint is None for one in recipe.pretrained.values()),
        scored=len(grid.tiers) * len(grid.bits),
        parts=_parts(model),
        parameters=parameters,
        weights_bytes=_FLOAT * parameters,
        moments_bytes=_FLOAT * (1 + _MOMENTS) * parameters,
        kept_bytes=kept,
        logits_bytes=_logits_bytes(recipe, longest),
        utterances=min(options.max_utterances, max(1, int(options.batch_s / options.max_duration_s))),
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
    found = {
        "encoder layers": _count(model.encoder.layers),
        "encoder before its layers": _count(model.encoder) - _count(model.encoder.layers),
        "decoder": _count(model.decoder),
        "CTC and language heads": _count(model.ctc_head) + _count(model.language_head),
    }
    if model.config.transducer is not None:
        found["prediction network"] = _count(model.transducer.prediction)
        found["joint network"] = _count(model.transducer.joint)
    return found


def _logits_bytes(recipe: EncoderTransferRecipe, longest: int) -> int:
    """(T, U+1, V) numbers; the gradient is written over them. Of some frames at a time where the shape says so."""
    transducer = recipe.shape.transducer
    if transducer is None:
        return 0
    num_frames = -(-longest // SUBSAMPLING)
    held = min(num_frames, transducer.frames_at_once or num_frames)
    num_tokens = min(recipe.model.max_tokens, int(_TOKENS_PER_S * recipe.tuning.max_duration_s))
    return _FLOAT * held * (num_tokens + 1) * recipe.vocabulary_size


def _encoder_bytes(model: Conformer, bits: int, block: int = 32) -> int:
    """Codes, and for each block of inputs a 16-bit scale and a zero point of so many bits."""
    weights = [m.weight for m in model.encoder.modules() if type(m) is nn.Linear]
    if bits == BITS_OF_FLOAT:
        return sum(_FLOAT * w.numel() for w in weights)
    blocks = sum(w.shape[0] * -(-w.shape[1] // block) for w in weights)
    return (sum(bits * w.numel() for w in weights) + blocks * (16 + bits)) // 8


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# What checkpoints have to be for the transfer study, told from their configurations before anything is
# trained.

_OF_ENCODER = (
    "num_mel_bins",
    "width",
    "num_heads",
    "num_encoder_layers",
    "feed_forward_width",
    "kernel_size",
)
_CONTEXTS = ("left_context", "right_contexts")
"""Which may differ: no tensor knows them, and the study's tiers are looked at by themselves."""


def check_checkpoints(recipe: EncoderTransferRecipe) -> None:
    """See that the checkpoints are what the study asks for, before anything is trained.

    Raises:
        SprachbundError: one of another family or head, that does not stream, or not at a tier of the grid; encoders of
            different kinds; layers that there are not.
    """
    shapes: dict[str, ConformerShape] = {}
    for name, one in recipe.pretrained.items():
        if one.checkpoint is not None:
            _check_checkpoint(recipe, one.checkpoint)
        shapes[name] = recipe.shape if one.checkpoint is None else read_config(one.checkpoint)
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


def _encoder_kind(shape: ConformerShape) -> dict[str, object]:
    """All that an encoder is made by, but what it is trained with."""
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
            told = ", ".join(f"{(tier.right + 1) * FRAME_MS} ms" for tier in known)
            raise SprachbundError(
                f"{directory} was trained with {known[0].left} frames of the past at {told}, not with {wanted.left} at "
                f"{name}; change [model.streaming] and grid.tiers to what it has"
            )
    head = "transducer" if config.writes_by_frames else "attention"
    if head != recipe.head:
        raise SprachbundError(
            f'{directory} writes by its {head} head, not {recipe.head}; set head = "{head}"'
        )
