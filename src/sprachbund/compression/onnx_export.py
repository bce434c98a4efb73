"""Streaming transducers as ONNX graphs with their state going in and out, for whatever runs ONNX.

A chunk through the encoder; its states as the joint network takes them; a token through the prediction network;
frames and tokens through the joint network; and what names the language. `config.json` beside them says what goes in
and out and in which shapes.
`sprachbund.models.streaming_onnx` runs them. Linear layers that are packed in 4 or 8 bits become ONNX Runtime's
MatMulNBits, which computes from the packed weights.
Shapes: B rows, C frames of a chunk, K frames looked at, M mel bins, D width, J width of the joint network, P of the
prediction network, L layers of it, V vocabulary.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.compression.onnx_graph import check_packages, write_graph
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.models.streaming_onnx import (
    ENCODER,
    JOINT,
    LANGUAGE,
    PREDICTION,
    PROJECTION,
    STATE,
    describe,
    write_description,
)
from sprachbund.models.weights import packed_linears
from sprachbund.nn.feed_forward import is_split
from sprachbund.nn.quantized import BlockLinear, packed_layers
from sprachbund.nn.streaming_conformer import SUBSAMPLING, StreamingEncoder, StreamState
from sprachbund.nn.transducer import Transducer

BITS = (4, 8)
"""Bits of packed layers that ONNX Runtime has kernels for."""


class MatMulNBits(nn.Module):
    """A packed layer as one node of ONNX Runtime's own (com.microsoft, MatMulNBits); it computes nothing on torch."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: BlockLinear) -> None:
        super().__init__()
        rows, num_blocks = layer.scales.shape
        self.out_features = rows
        self.sizes: dict[str, Any] = {
            "K": layer.in_features,
            "N": rows,
            "bits": layer.bits,
            "block_size": layer.block,
        }
        self.register_buffer("codes", layer.codes.view(rows, num_blocks, -1))
        self.register_buffer("scales", layer.scales.float().flatten())
        self.register_buffer("zeros", None if layer.zeros is None else layer.zeros.flatten())
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        inputs = [x, self.codes, self.scales, *([] if self.zeros is None else [self.zeros])]
        shape = (*x.shape[:-1], self.out_features)
        y = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits", inputs, self.sizes, dtype=x.dtype, shape=shape, version=1
        )
        return y if self.bias is None else y + self.bias


class EncoderStep(nn.Module):
    """A chunk: states, how many are valid, and the state behind it."""

    def __init__(self, encoder: StreamingEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: Tensor, num_mel: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(B, 8 C, M), (B,) and the state's tensors in order of `STATE`."""
        before = StreamState.from_tensors(dict(zip(STATE, state, strict=True)))
        states, num_frames, after = self.encoder.step(mel, num_mel, before)
        return states, num_frames, *(after.tensors()[name] for name in STATE)


class PredictionStep(nn.Module):
    """A token: what the joint network takes of the tokens so far, and the memory behind it."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.prediction, self.projection = transducer.prediction, transducer.joint.prediction

    def forward(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) and (B, L, P) twice; (B, J) and the same.

        Args:
            tokens: (B,), the newest ones.
            hidden: (B, L, P).
            cell: (B, L, P).
        """
        output, hidden, cell = self.prediction.step(tokens, hidden, cell)
        return self.projection(output), hidden, cell


class JointStep(nn.Module):
    """Logits (B, K, V) of projected frames (B, K, J) and projected tokens (B, J)."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.joint = transducer.joint

    def forward(self, frames: Tensor, predicted: Tensor) -> Tensor:
        """See above."""
        return self.joint(frames, predicted[:, None])


def check_exportable(model: Family) -> None:
    """Raise a SprachbundError for a model that is not of streaming graphs, or has layers that ONNX Runtime lacks."""
    if (streaming := model.capabilities.streaming) is None:
        raise SprachbundError(
            "only streaming encoders whose transducer writes the text, Parakeet and Canary are exported as onnx; this "
            f"model is {model.name}"
        )
    if not isinstance(model, Conformer) or not isinstance(streaming.encoder, StreamingEncoder):
        raise SprachbundError(
            f"the model {model.name} is made of exported graphs; export the model that it was made from"
        )
    if is_split(streaming.encoder):
        raise SprachbundError("the encoder is split by language, which the exported graph has no place for")
    if model.fuses_language:
        raise SprachbundError(
            "the model is given the language between its encoder and its transducer, which the exported graphs have no "
            "place for; listen and translate run it as it is"
        )
    packed = packed_linears(model)
    if packed is not None and (packed.bits not in BITS or packed.block & (packed.block - 1)):
        raise SprachbundError(
            f"ONNX Runtime computes with {' or '.join(map(str, BITS))} bits in blocks of a power of two; "
            f"this model has {packed.bits} in blocks of {packed.block}: quantize its original again"
        )
    check_packages()


def export(model: Conformer, directory: Path, card: Card | None = None) -> None:
    """Write the graphs of a model, their description, tokenizer and card into a directory.

    Raises:
        SprachbundError: see `check_exportable`.
    """
    check_exportable(model)
    directory.mkdir(parents=True, exist_ok=True)
    description = describe(model)
    modules = _modules(model)
    for name, graph in description.graphs.items():
        of_encoder = 2 if name == ENCODER else None
        write_graph(modules[name], graph, _examples(model, name), directory, num_named=of_encoder)
    model.tokenizer.save(directory / "tokenizer.model")
    if card is not None:
        packed = packed_linears(model)
        card.model_copy(update={"bits": 32 if packed is None else packed.bits}).write(directory)
    write_description(description, directory)


def _modules(model: Conformer) -> dict[str, nn.Module]:
    encoder = copy.deepcopy(model.encoder)
    assert isinstance(encoder, StreamingEncoder)
    for name, layer in packed_layers(encoder).items():
        encoder.set_submodule(name, MatMulNBits(layer))
    return {
        ENCODER: EncoderStep(encoder),
        PROJECTION: model.transducer.joint.encoder,
        PREDICTION: PredictionStep(model.transducer),
        JOINT: JointStep(model.transducer),
        LANGUAGE: model.language_head,
    }


def _examples(model: Conformer, name: str) -> tuple[Tensor, ...]:
    """Inputs of a graph, of two rows; the values do not matter."""
    encoder, shape = model.encoder, model.transducer.shape
    assert isinstance(encoder, StreamingEncoder)
    if name == ENCODER:
        tier = max(encoder.tiers, key=lambda each: each.chunk)
        num_mel = max(2, tier.chunk) * SUBSAMPLING  # an example of one would be taken for a constant
        mel = torch.zeros(2, num_mel, encoder.shape.num_mel_bins)
        state = encoder.start(2, tier).tensors()
        return mel, torch.tensor([num_mel, 3]), *(state[part] for part in STATE)
    if name == PREDICTION:
        size = (2, shape.prediction_layers, shape.prediction_width)
        hidden, cell = torch.zeros(size), torch.zeros(size)  # one tensor twice would be taken for one input
        return torch.tensor([0, 1]), hidden, cell
    if name == JOINT:
        return torch.zeros(2, 4, shape.joint_width), torch.zeros(2, shape.joint_width)
    states = torch.zeros(2, 4, encoder.shape.width)
    return (states if name == PROJECTION else states[:, 0],)
