"""Parakeet and Canary as ONNX graphs that the package onnx-asr runs (https://github.com/istupakov/onnx-asr).

Files, inputs and outputs have the names of NeMo's own export, by which onnx-asr finds them: `model.onnx` of CTC,
`encoder-model.onnx` with `decoder_joint-model.onnx` of a transducer or `decoder-model.onnx` of Canary, `vocab.txt` and
`config.json`. Features are made outside; they are NeMo's.
Shapes: B rows, T mel frames, S encoder frames, M mel bins, D width of the encoder, W of the decoder, L layers of the
decoder or the prediction network, P width of the prediction network, U tokens, N tokens before them, V vocabulary, E
durations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sprachbund.compression.onnx_graph import check_packages, write_graph, write_quantized_graph
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features
from sprachbund.models.card import Card
from sprachbund.models.fastconformer import Canary, CohereAsr, Parakeet
from sprachbund.models.streaming_onnx import Graph, Value
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.decoder import DecoderLayer
from sprachbund.nn.fast_conformer import SUBSAMPLING
from sprachbund.nn.feed_forward import is_split
from sprachbund.nn.text_to_text import CanaryDecoder
from sprachbund.nn.transducer import Transducer
from sprachbund.util.files import file_sha256, write_json, write_text

GraphBits = Literal[8, 32]
LAYOUTS = {
    "parakeet_ctc": "nemo-conformer-ctc",
    "parakeet_rnnt": "nemo-conformer-rnnt",
    "parakeet_tdt": "nemo-conformer-tdt",
    "canary": "nemo-conformer-aed",
}
"""Kinds of models, and what onnx-asr calls their layouts."""
BLANK = "<blk>"
_MEL_BINS = (80, 128)
_END = "<|endoftext|>"
_PROMPT = (
    *("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>"),
    *("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
)
"""Tokens of the prompt that onnx-asr gives to a Canary."""


class _CtcModel(nn.Module):
    """Log-mel (B, M, T) and its lengths (B,) to log-probabilities (B, S, V)."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.ctc_head

    def forward(self, audio_signal: Tensor, length: Tensor) -> Tensor:
        states, _ = self.encoder(audio_signal.transpose(1, 2), length)
        return self.head(states).log_softmax(-1)


class _Encoder(nn.Module):
    """Log-mel (B, M, T) and its lengths (B,) to states (B, D, S) and how many of them are valid (B,)."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        states, num_frames = self.encoder(audio_signal.transpose(1, 2), length)
        return states.transpose(1, 2), num_frames


class _DecoderJoint(nn.Module):
    """States (B, D, S) and the newest token (B, 1) to logits (B, S, 1, V + E), with the memory (L, B, P) behind it."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.prediction, self.joint = transducer.prediction, transducer.joint

    def forward(
        self, states: Tensor, targets: Tensor, num_targets: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output, (hidden, cell) = self.prediction.lstm(self.prediction.embedding(targets), (hidden, cell))
        frames = self.joint.encoder(states.transpose(1, 2))
        logits = self.joint(frames[:, :, None], self.joint.prediction(output)[:, None])
        return logits, num_targets, hidden, cell


class _CanaryEncoder(nn.Module):
    """Log-mel (B, M, T) and its lengths (B,) to what the decoder attends to (B, S, 2 L W), and which of it is valid.

    These are keys and values of every layer, made here once; NeMo's export makes them of the states at every token.
    """

    def __init__(self, model: Canary) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.model.encode(Features(values=audio_signal.transpose(1, 2), num_frames=length))
        assert memory.num_frames is not None
        layers: Any = self.model.decoder.layers
        pairs = [(one.cross_attention.key, one.cross_attention.value) for one in layers]
        parts = [make(memory.states) for pair in pairs for make in pair]
        valid = valid_frames(memory.num_frames, memory.states.shape[1])
        return torch.cat(parts, dim=-1), valid.long()


class _CanaryStep(nn.Module):
    """Tokens (B, U) behind N others to log-probabilities (B, U, V), and the decoder's memory (2 L, B, N + U, W).

    The memory holds keys and values of every layer's self-attention.
    """

    def __init__(self, decoder: CanaryDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, encoded: Tensor, mask: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        num_before, layers = memory.shape[2], cast("list[DecoderLayer]", list(self.decoder.layers))
        columns = torch.arange(num_before + tokens.shape[1])
        positions = columns[num_before:]
        x = self.decoder.embedded(tokens, self.decoder.positions[positions])
        heard = encoded.chunk(2 * len(layers), dim=-1)
        kept: list[Tensor] = []
        for number, layer in enumerate(layers):
            split = layer.cross_attention.split_heads
            cross = (split(heard[2 * number]), split(heard[2 * number + 1]), mask.bool()[:, None, None])
            store = partial(self._behind, memory[2 * number : 2 * number + 2], split, kept)
            x = layer(x, store, columns <= positions[:, None], cross)
        return self.decoder.logits(x).log_softmax(-1), torch.stack(kept)

    @staticmethod
    def _behind(
        before: Tensor, split: Callable[[Tensor], Tensor], kept: list[Tensor], keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens (B, H, N + U, W / H), which are added to `kept`, heads side by side."""
        keys, values = (
            torch.cat([split(old), new], dim=2) for old, new in zip(before, (keys, values), strict=True)
        )
        kept.extend(part.transpose(1, 2).flatten(2) for part in (keys, values))
        return keys, values


@dataclass(frozen=True)
class _Part:
    """A module that becomes a file of its own."""

    module: nn.Module
    graph: Graph
    examples: tuple[Tensor, ...]


def check_exportable(model: Family) -> Parakeet | Canary:
    """The model, if onnx-asr can compute it.

    Args:
        model: any.

    Raises:
        SprachbundError: it is another kind of model, has features, durations or a vocabulary that onnx-asr does not
            know, or is split by language.
    """
    if not isinstance(model, Parakeet | Canary) or isinstance(model, CohereAsr):
        raise SprachbundError(
            f"onnx-asr runs Parakeet and Canary, and has no layout for a model of the kind {model.name}"
        )
    if model.num_mel_bins not in _MEL_BINS:
        raise SprachbundError(
            f"onnx-asr makes features of {' or '.join(map(str, _MEL_BINS))} mel bins; this model hears "
            f"{model.num_mel_bins}"
        )
    if is_split(model):
        raise SprachbundError("the model is split by language, which the exported graphs have no place for")
    if isinstance(model, Parakeet) and model.transducer is not None:
        durations = model.transducer.shape.durations
        if durations != tuple(range(len(durations))):
            raise SprachbundError(
                f"onnx-asr counts durations from 0 on, one by one; those of this model are {list(durations)}"
            )
    vocabulary(model)
    check_packages()
    return model


def vocabulary(model: Parakeet | Canary) -> list[str]:
    """Names of all tokens by number, as `vocab.txt` has them.

    Args:
        model: model whose tokens they are.

    Raises:
        SprachbundError: a token that a line of the file cannot hold, or one missing that onnx-asr begins a Canary's
            prompt with.
    """
    names = [model.tokens.piece(token) or f"<|unused_{token}|>" for token in range(model.tokens.size)]
    if isinstance(model, Canary):
        missing = [name for name in _PROMPT if name not in names]
        if missing:
            raise SprachbundError(
                f"the vocabulary has no token {missing[0]}, which onnx-asr begins every text with"
            )
        if names[model.end_token] != _END:
            raise SprachbundError(
                f"texts end with the token {names[model.end_token]!r}, and onnx-asr waits for {_END}"
            )
    else:
        names[model.blank] = ""
    for token, name in enumerate(names):
        if name == BLANK or any(letter in name for letter in " \r\n"):
            raise SprachbundError(f"the token {token}, {name!r}, cannot be written into vocab.txt")
    return [name or BLANK for name in names]


def export(model: Parakeet | Canary, directory: Path, card: Card | None = None, bits: GraphBits = 32) -> None:
    """Write a directory that onnx-asr loads; `config.json` comes last, with checksums of the other files.

    Args:
        model: see `check_exportable`.
        directory: directory to be made.
        card: card to lie beside the graphs.
        bits: bits of a matrix; with 8, see `write_quantized_graph`, and ".int8" is added to the graphs' names.

    Raises:
        SprachbundError: see `check_exportable`.
    """
    check_exportable(model)
    directory.mkdir(parents=True, exist_ok=True)
    write = write_quantized_graph if bits == 8 else write_graph
    for part in _parts(model, ".int8" if bits == 8 else ""):
        write(part.module, part.graph, part.examples, directory)
    lines = [f"{name} {token}\n" for token, name in enumerate(vocabulary(model))]
    write_text(directory / "vocab.txt", "".join(lines))
    if card is not None:
        card.model_copy(update={"bits": bits}).write(directory)
    names = sorted(path.name for path in directory.iterdir() if ".onnx" in path.name)
    config = {
        "model_type": LAYOUTS[model.name],
        "features_size": model.num_mel_bins,
        "subsampling_factor": SUBSAMPLING,
        **_limits(model),
        "sha256": {name: file_sha256(directory / name) for name in (*names, "vocab.txt")},
    }
    write_json(directory / "config.json", config)


def _limits(model: Parakeet | Canary) -> Mapping[str, int]:
    """Limits that end a search."""
    if isinstance(model, Canary):
        return {"max_sequence_length": model.max_tokens}
    return {} if model.transducer is None else {"max_tokens_per_step": model.transducer.shape.max_symbols}


def _parts(model: Parakeet | Canary, suffix: str) -> list[_Part]:
    """Modules, each with its graph, whose file's name ends with `suffix`."""
    mel = Value(name="audio_signal", shape=("batch", model.num_mel_bins, "frames"))
    length = Value(name="length", type="int64", shape=("batch",))
    sound = (torch.zeros(2, model.num_mel_bins, 72), torch.tensor([72, 9]))

    def of_sound(module: nn.Module, name: str, *outputs: Value) -> _Part:
        return _Part(module, Graph(file=f"{name}{suffix}.onnx", inputs=(mel, length), outputs=outputs), sound)

    if isinstance(model, Canary):
        width = 2 * len(model.decoder.layers) * model.decoder.positions.shape[1]
        encoded = Value(name="encoder_embeddings", shape=("batch", "states", width))
        mask = Value(name="encoder_mask", type="int64", shape=("batch", "states"))
        encoder = of_sound(_CanaryEncoder(model), "encoder-model", encoded, mask)
        return [encoder, _decoder(model.decoder, f"decoder-model{suffix}.onnx", encoded, mask)]
    if model.transducer is None:
        logprobs = Value(name="logprobs", shape=("batch", "states", model.tokens.size))
        return [of_sound(_CtcModel(model), "model", logprobs)]
    states = Value(name="outputs", shape=("batch", model.encoder.shape.width, "states"))
    lengths = Value(name="encoded_lengths", type="int64", shape=("batch",))
    encoder = of_sound(_Encoder(model), "encoder-model", states, lengths)
    return [encoder, _decoder_joint(model.transducer, f"decoder_joint-model{suffix}.onnx")]


def _decoder_joint(transducer: Transducer, file: str) -> _Part:
    shape = transducer.shape
    size = (shape.prediction_layers, "batch", shape.prediction_width)
    num_logits = shape.vocabulary_size + len(shape.durations)
    graph = Graph(
        file=file,
        inputs=(
            Value(name="encoder_outputs", shape=("batch", shape.encoder_width, "states")),
            Value(name="targets", type="int32", shape=("batch", 1)),
            Value(name="target_length", type="int32", shape=("batch",)),
            Value(name="input_states_1", shape=size),
            Value(name="input_states_2", shape=size),
        ),
        outputs=(
            Value(name="outputs", shape=("batch", "states", 1, num_logits)),
            Value(name="prednet_lengths", type="int32", shape=("batch",)),
            Value(name="output_states_1", shape=size),
            Value(name="output_states_2", shape=size),
        ),
    )
    memory = torch.zeros(2, shape.prediction_layers, 2, shape.prediction_width)
    states = torch.zeros(2, shape.encoder_width, 3)
    targets, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    return _Part(_DecoderJoint(transducer), graph, (states, targets, lengths, *memory))


def _decoder(decoder: CanaryDecoder, file: str, encoded: Value, mask: Value) -> _Part:
    width, num_parts = decoder.positions.shape[1], 2 * len(decoder.layers)
    graph = Graph(
        file=file,
        inputs=(
            Value(name="input_ids", type="int64", shape=("batch", "tokens")),
            encoded,
            mask,
            Value(name="decoder_mems", shape=(num_parts, "batch", "before", width)),
        ),
        outputs=(
            Value(name="logits", shape=("batch", "tokens", len(decoder.output_matrix))),
            Value(name="decoder_hidden_states", shape=(num_parts, "batch", "after", width)),
        ),
    )
    tokens, heard = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    memory = torch.zeros(num_parts, 2, 4, width)
    return _Part(_CanaryStep(decoder), graph, (tokens, torch.zeros(2, 5, num_parts * width), heard, memory))
