"""Public cache-aware FastConformer transducers made into models of ours: what a checkpoint is, and how it is assembled.

`nemo_file` and `transformers_directory` read checkpoints; both hand over the same value. Blank, end of row and the
languages get the places that our models have for them, so vocabulary-sized weights are put in another order; nothing
else is changed. Shapes: V vocabulary, D width, J width of the joint network, P of the prediction network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.foreign_pieces import ForeignPieces, own_tokenizer
from sprachbund.models.conformer.model import Conformer
from sprachbund.models.conformer.shape import ConformerConfig, StreamingPart, TransducerPart
from sprachbund.nn.transducer import JointActivation
from sprachbund.text.tokenizer import BLANK

NEVER = -1e4
"""Bias of tokens that a checkpoint has not got: never written, and small enough for half precision."""

_MAX_TOKENS = 512
"""Of a row in training: more than anyone says in 20 s, in pieces of any tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ForeignShape:
    """Sizes of a checkpoint, in our terms; see `StreamingShape` and `TransducerShape`."""

    num_mel_bins: int
    width: int
    num_heads: int
    num_layers: int
    feed_forward_width: int
    kernel_size: int
    stem_channels: int
    scale_input: bool
    left_context: int
    right_contexts: tuple[int, ...]
    prediction_width: int
    prediction_layers: int
    joint_width: int
    activation: JointActivation


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """What is read of a checkpoint.

    Attributes:
        place: for messages.
        shape: its sizes.
        weights: under our names, where they differ by name alone; `transducer.prediction.embedding.weight` (V, P),
            `transducer.joint.out` and perhaps `ctc_head` in its own order of tokens, the blank last. Biases it has not
            got are left out; `transducer.joint.prediction.bias` (J,) is one that ours have not got.
        pieces: its tokens, without the blank.
    """

    place: str
    shape: ForeignShape
    weights: Mapping[str, Tensor]
    pieces: ForeignPieces


def assemble(checkpoint: ForeignCheckpoint, languages: Sequence[str]) -> Conformer:
    """A model of ours with the weights of a checkpoint.

    Args:
        checkpoint: as read.
        languages: BCP-47 tags that it hears, and writes.

    Raises:
        SprachbundError: weights missing, too many or of another size.
    """
    tokenizer, places = own_tokenizer(checkpoint.pieces, languages)
    places = [*places, BLANK]  # the blank is the last of theirs
    try:
        with torch.device("meta"):
            model = Conformer(_config(checkpoint, languages), tokenizer, tokenizer)
    except ValueError as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = " ".join(said.removeprefix("Value error, ").split())
        raise SprachbundError(f"{checkpoint.place}: its sizes make no model: {reason}") from error
    weights = _with_own_vocabulary(checkpoint.weights, places, len(tokenizer))
    if (of_tokens := weights.pop("transducer.joint.prediction.bias", None)) is not None:
        # It is added to every sum that the bias of the frames is added to.
        of_frames = weights.get("transducer.joint.encoder.bias", torch.zeros(()))
        weights["transducer.joint.encoder.bias"] = of_frames + of_tokens
    filled = {
        name: _filled(name, like, weights, checkpoint.place) for name, like in model.state_dict().items()
    }
    if unknown := sorted(weights.keys() - filled.keys()):
        raise SprachbundError(
            f"{checkpoint.place} holds weights of {len(unknown)} parts that the model has not got "
            f"({', '.join(unknown[:3])}); its configuration says something else"
        )
    model.load_state_dict(filled, assign=True)
    return model.eval()


def _config(checkpoint: ForeignCheckpoint, languages: Sequence[str]) -> ConformerConfig:
    shape = checkpoint.shape
    return ConformerConfig(
        num_mel_bins=shape.num_mel_bins,
        width=shape.width,
        num_heads=shape.num_heads,
        num_encoder_layers=shape.num_layers,
        num_decoder_layers=0,
        max_tokens=_MAX_TOKENS,
        feed_forward_width=shape.feed_forward_width,
        kernel_size=shape.kernel_size,
        ctc_weight=0.5 if "ctc_head.weight" in checkpoint.weights else 0.0,
        streaming=StreamingPart(
            left_context=shape.left_context,
            right_contexts=shape.right_contexts,
            stem_channels=shape.stem_channels,
            scale_input=shape.scale_input,
            front_end="nemo",
        ),
        transducer=TransducerPart(
            prediction_width=shape.prediction_width,
            prediction_layers=shape.prediction_layers,
            joint_width=shape.joint_width,
            activation=shape.activation,
            prompted=False,
        ),
        source_languages=tuple(languages),
        target_languages=tuple(languages),
    )


_BY_TOKEN = ("transducer.prediction.embedding.", "transducer.joint.out.", "ctc_head.")


def _with_own_vocabulary(
    weights: Mapping[str, Tensor], places: Sequence[int], size: int
) -> dict[str, Tensor]:
    """Weights with a row for each of our tokens: theirs at `places`, and for others zeros, which are never written."""
    index = torch.tensor(places)
    found = dict(weights)
    for name, value in weights.items():
        if name.startswith(_BY_TOKEN):
            if len(value) != len(index):
                raise SprachbundError(
                    f"{name} has {len(value)} rows, the tokenizer {len(index)} tokens with the blank; "
                    "they are not of the same checkpoint"
                )
            fill = NEVER if name.endswith(".bias") else 0.0
            found[name] = value.new_full((size, *value.shape[1:]), fill).index_copy(0, index, value)
    return found


_OWN_PARTS = ("decoder.", "language_head.", "ctc_head.")
"""What a checkpoint has not got, or not always; nothing is computed with it then."""


def _filled(name: str, like: Tensor, weights: Mapping[str, Tensor], place: str) -> Tensor:
    value = weights.get(name)
    if value is None:
        if not name.endswith(".bias") and not name.startswith(_OWN_PARTS):
            raise SprachbundError(f"{place} has no weight for {name}; it is damaged, or of another kind")
        return torch.zeros(like.shape)  # a layer without a bias is one whose bias is nought
    if value.shape != like.shape:
        raise SprachbundError(
            f"{place}: {name} has shape {tuple(value.shape)}, its configuration asks for {tuple(like.shape)}"
        )
    return value.contiguous()
