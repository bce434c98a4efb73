"""Public cache-aware FastConformer transducers, in NeMo's or transformers' format, converted into conformers.

`read_nemo` and `read_transformers` return the same `TransducerCheckpoint`, and `assemble` builds the model. Blank, end
of row and languages get the token ids of our models, so vocabulary-sized weights are reordered; nothing else is
changed. The sections are names of weights, tokens, assembly, and the two readers. Shapes: V vocabulary, D width, J
width of the joint network, P of the prediction network.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.config import ConformerConfig, StreamingPart, TransducerPart
from sprachbund.models.conformer.model import Conformer
from sprachbund.models.nemo_archive import CONFIG, NemoArchive, open_archive
from sprachbund.nn.transducer import JointActivation
from sprachbund.text.languages import primary
from sprachbund.text.tokenizer import BLANK, END, UNKNOWN, Tokenizer, language_token

# Names of the weights in NeMo and transformers, and ours.

_LAYER = "encoder.layers.N."


def _layer(parts: Mapping[str, str]) -> dict[str, str]:
    return {_LAYER + theirs: _LAYER + ours for theirs, ours in parts.items()}


_BOTH = _layer(
    {
        "norm_feed_forward1": "feed_forward_in.norm",
        "feed_forward1.linear1": "feed_forward_in.expand",
        "feed_forward1.linear2": "feed_forward_in.contract",
        "norm_self_att": "attention_norm",
        "norm_conv": "convolution.norm",
        "conv.pointwise_conv1": "convolution.gate",
        "conv.depthwise_conv": "convolution.depthwise",
        "conv.pointwise_conv2": "convolution.out",
        "norm_feed_forward2": "feed_forward_out.norm",
        "feed_forward2.linear1": "feed_forward_out.expand",
        "feed_forward2.linear2": "feed_forward_out.contract",
        "norm_out": "norm",
    }
)
NEMO = {
    **_BOTH,
    **_layer(
        {
            "self_attn.linear_q": "attention.query",
            "self_attn.linear_k": "attention.key",
            "self_attn.linear_v": "attention.value",
            "self_attn.linear_out": "attention.out",
            "self_attn.linear_pos": "attention.distance",
            "self_attn.pos_bias_u": "attention.content_bias",
            "self_attn.pos_bias_v": "attention.distance_bias",
            "conv.batch_norm": "convolution.inner_norm",
        }
    ),
    "encoder.pre_encode.conv.0": "encoder.stem.first",
    "encoder.pre_encode.conv.2": "encoder.stem.depthwise.0",
    "encoder.pre_encode.conv.3": "encoder.stem.pointwise.0",
    "encoder.pre_encode.conv.5": "encoder.stem.depthwise.1",
    "encoder.pre_encode.conv.6": "encoder.stem.pointwise.1",
    "encoder.pre_encode.out": "encoder.stem.out",
    "decoder.prediction.embed": "transducer.prediction.embedding",
    "decoder.prediction.dec_rnn.lstm": "transducer.prediction.lstm",
    "joint.enc": "transducer.joint.encoder",
    "joint.pred": "transducer.joint.prediction",
    "joint.joint_net.1": "transducer.joint.out",  # trained without dropout
    "joint.joint_net.2": "transducer.joint.out",
    "ctc_decoder.decoder_layers.0": "ctc_head",
    "prompt_kernel.0": "language_fusion.states",
    "prompt_kernel.2": "language_fusion.out",
}
"""https://github.com/NVIDIA/NeMo: ConformerEncoder, RNNTDecoder, RNNTJoint, the CTC head of hybrids, and the layers
that models with prompts have behind their encoder."""

TRANSFORMERS = {
    **_BOTH,
    **_layer(
        {
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.o_proj": "attention.out",
            "self_attn.relative_k_proj": "attention.distance",
            "self_attn.bias_u": "attention.content_bias",
            "self_attn.bias_v": "attention.distance_bias",
            "conv.norm": "convolution.inner_norm",
        }
    ),
    "encoder.subsampling.conv_in": "encoder.stem.first",
    "encoder.subsampling.layers.0.depthwise_conv": "encoder.stem.depthwise.0",
    "encoder.subsampling.layers.0.pointwise_conv": "encoder.stem.pointwise.0",
    "encoder.subsampling.layers.1.depthwise_conv": "encoder.stem.depthwise.1",
    "encoder.subsampling.layers.1.pointwise_conv": "encoder.stem.pointwise.1",
    "encoder.subsampling.linear": "encoder.stem.out",
    "encoder_projector": "transducer.joint.encoder",
    "decoder.embedding": "transducer.prediction.embedding",
    "decoder.lstm": "transducer.prediction.lstm",
    "decoder.decoder_projector": "transducer.joint.prediction",
    "joint.head": "transducer.joint.out",
    "prompt_projector.linear_1": "language_fusion.states",
    "prompt_projector.linear_2": "language_fusion.out",
}
"""transformers' `nemotron_asr_streaming`, and `nemotron3_5_asr`, which has a projector of prompts."""


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under our names in single precision, and the names of those that are not known."""
    own_weights, unknown = {}, []
    for name, value in weights.items():
        own = _own_name(name, names)
        if own is None:
            unknown.append(name)
        else:
            own_weights[own] = _plain(own, value.float())
    return own_weights, unknown


def _own_name(name: str, names: Mapping[str, str]) -> str | None:
    layer = re.match(r"(encoder|decoder)\.layers\.\d+\.", name)
    general = name if layer is None else f"{layer[1]}.layers.N.{name[layer.end() :]}"
    module, _, parameter = general.rpartition(".")
    own = names.get(general) or (f"{names[module]}.{parameter}" if module in names else None)
    return own if own is None or layer is None else own.replace(f"{layer[1]}.layers.N.", layer.group(), 1)


def _plain(name: str, value: Tensor) -> Tensor:
    """Pointwise convolutions (O, I, 1) as the matrices that they are; depthwise ones stay."""
    return value[..., 0] if value.ndim == 3 and "depthwise" not in name else value


# Tokens: blank, end, unknown and languages first, then those of the checkpoint.

_NORMAL, _UNKNOWN, CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # SentencePiece's types of pieces
_TAG = re.compile(r"<[a-z]{2,3}-[A-Z]{2}>")
"""A token that names the language spoken, which is no text."""
_BPE = 2


@dataclass(frozen=True, kw_only=True)
class CheckpointPieces:
    """Pieces in the order of a checkpoint's tokens.

    Attributes:
        model: SentencePiece's description (a protobuf of its class ModelProto), whose pieces are theirs.
    """

    model: Any

    def __len__(self) -> int:
        return len(self.model.pieces)


def read_sentencepiece(data: bytes, source: str) -> CheckpointPieces:
    """Read a SentencePiece model file. Raises SprachbundError for other content."""
    model = empty_pieces()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own kinds differ by version
        raise SprachbundError(f"{source} holds no SentencePiece model; copy it again") from error
    if not model.pieces:
        raise SprachbundError(f"{source} holds a SentencePiece model without pieces; copy it again")
    return CheckpointPieces(model=model)


def from_merges(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], count: int
) -> CheckpointPieces:
    """Make a tokenizer of a byte-pair tokenizer in the form of the package tokenizers: the first `count` tokens.

    SentencePiece joins the pair whose piece has the best score, so a piece's score is minus the rank of its merge.

    Args:
        vocabulary: piece to its number.
        merges: pairs of pieces, the first to be joined first.
        count: number of tokens of the model, without the blank.

    Raises:
        SprachbundError: numbers without a piece.
    """
    by_number = {number: piece for piece, number in vocabulary.items()}
    if missing := [number for number in range(count) if number not in by_number]:
        raise SprachbundError(
            f"the tokenizer has no piece number {missing[0]}; the model has {count} and a blank"
        )
    ranks = {"".join(pair): rank for rank, pair in enumerate(merges)}
    model = empty_pieces()
    model.trainer_spec.model_type = _BPE
    model.normalizer_spec.name = "identity"
    for number in range(count):
        piece = by_number[number]
        kind = _kind(piece, ranks)
        score = -float(ranks.get(piece, len(ranks))) if kind == _NORMAL else 0.0
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.byte_fallback = any(piece.type == _BYTE for piece in model.pieces)
    return CheckpointPieces(model=model)


def _kind(piece: str, ranks: Mapping[str, int]) -> int:
    if piece == "<unk>":
        return _UNKNOWN
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return _BYTE
    special = piece.startswith("<") and piece.endswith(">") and piece not in ranks
    return CONTROL if special and len(piece) > 2 else _NORMAL


def own_tokenizer(pieces: CheckpointPieces, languages: Sequence[str]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer of ours that has all their pieces, and the id in it of each of them."""
    model = empty_pieces()
    model.CopyFrom(pieces.model)
    del model.pieces[:]
    own = ["<pad>", "</s>", "<unk>", *map(language_token, languages)]
    for number, name in enumerate(own):
        model.pieces.add(piece=name, score=0.0, type=_UNKNOWN if number == UNKNOWN else CONTROL)
    token_ids = []
    for piece in pieces.model.pieces:
        if piece.type == _UNKNOWN:
            token_ids.append(UNKNOWN)
            continue
        token_ids.append(len(model.pieces))
        # A control token of theirs may have the name of one of ours; nobody asks for theirs by name.
        name = piece.piece + "*" * (piece.piece in own)
        model.pieces.add(piece=name, score=piece.score, type=piece.type)
    spec = model.trainer_spec
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = BLANK, END, UNKNOWN, -1
    spec.pad_piece, spec.eos_piece, spec.unk_piece = own[:3]
    spec.vocab_size = len(model.pieces)
    return Tokenizer(model.SerializeToString(), languages), token_ids


def empty_pieces() -> Any:
    """A SentencePiece description (ModelProto) of nothing. Raises SprachbundError where protobuf is not installed."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as described
    except ImportError as error:
        raise SprachbundError(
            "taking a tokenizer apart needs the package protobuf; run: pip install protobuf"
        ) from error
    made: Any = described  # its classes are made when it is imported
    return made.ModelProto()


# Assembly.

NEVER = -1e4
"""Bias of tokens that a checkpoint has not got: never written, and small enough for half precision."""

_MAX_TOKENS = 512
"""Longest row in training: more than anyone says in 20 s, in pieces of any tokenizer."""


@dataclass(frozen=True, kw_only=True)
class CheckpointShape:
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
class TransducerCheckpoint:
    """The content of a checkpoint, as far as it is read.

    Attributes:
        source: for messages.
        shape: its sizes.
        weights: weights under our names, where they differ by name alone; `transducer.prediction.embedding.weight` (V,
            P), `transducer.joint.out` and perhaps `ctc_head` in its own order of tokens, the blank last. Biases it has
            not got are left out; `transducer.joint.prediction.bias` (J,) is one that ours have not got.
        pieces: its tokens, without the blank.
        prompts: prompts of a model that is given the language behind its encoder, names of languages and their numbers;
            `language_fusion.states.weight` (I, D + numbers) reads states and the number, one-hot.
    """

    source: str
    shape: CheckpointShape
    weights: Mapping[str, Tensor]
    pieces: CheckpointPieces
    prompts: Mapping[str, int] | None = None


def assemble(checkpoint: TransducerCheckpoint, languages: Sequence[str]) -> Conformer:
    """A model of ours with the weights of a checkpoint.

    Args:
        checkpoint: as read.
        languages: BCP-47 tags that it hears, and writes.

    Raises:
        SprachbundError: weights missing, too many or of another size.
    """
    tokenizer, token_ids = own_tokenizer(checkpoint.pieces, languages)
    token_ids = [*token_ids, BLANK]  # the blank is the last of theirs
    try:
        with torch.device("meta"):
            model = Conformer(_config(checkpoint, languages), tokenizer, tokenizer)
    except ValueError as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = " ".join(said.removeprefix("Value error, ").split())
        raise SprachbundError(f"{checkpoint.source}: its sizes make no model: {reason}") from error
    weights = _with_own_vocabulary(checkpoint.weights, token_ids, len(tokenizer))
    if checkpoint.prompts is not None:
        weights |= _fusion(weights, checkpoint, checkpoint.prompts, languages)
    if (of_tokens := weights.pop("transducer.joint.prediction.bias", None)) is not None:
        # It is added to every sum that the bias of the frames is added to.
        of_frames = weights.get("transducer.joint.encoder.bias", torch.zeros(()))
        weights["transducer.joint.encoder.bias"] = of_frames + of_tokens
    filled = {
        name: _filled(name, like, weights, checkpoint.source) for name, like in model.state_dict().items()
    }
    if unknown := sorted(weights.keys() - filled.keys()):
        raise SprachbundError(
            f"{checkpoint.source} holds weights of {len(unknown)} parts that the model has not got "
            f"({', '.join(unknown[:3])}); its configuration says something else"
        )
    model.load_state_dict(filled, assign=True)
    return model.eval()


def _config(checkpoint: TransducerCheckpoint, languages: Sequence[str]) -> ConformerConfig:
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
            fusion_width=None if checkpoint.prompts is None else len(checkpoint.weights[_FUSION]),
        ),
        source_languages=tuple(languages),
        target_languages=tuple(languages),
    )


_FUSION = "language_fusion.states.weight"


def _fusion(
    weights: Mapping[str, Tensor],
    checkpoint: TransducerCheckpoint,
    prompts: Mapping[str, int],
    languages: Sequence[str],
) -> dict[str, Tensor]:
    """The first layer of a fusion taken apart: what reads states, and the column of each language's number."""
    both, width = weights[_FUSION], checkpoint.shape.width
    numbers = [_prompt(language, prompts, checkpoint.source) for language in languages]
    if both.ndim != 2 or width + max(numbers) >= both.shape[1]:
        raise SprachbundError(
            f"{checkpoint.source}: {_FUSION} has shape {tuple(both.shape)}, which has no column {max(numbers)} behind "
            f"{width}; its prompts are of another model"
        )
    return {
        _FUSION: both[:, :width],
        "language_fusion.language.weight": both[:, [width + number for number in numbers]].T,
    }


def _prompt(language: str, prompts: Mapping[str, int], source: str) -> int:
    """Number of a language: of its own tag, or of the first tag of the language in some country."""
    named = {name: number for name, number in prompts.items() if name != "auto"}
    tag = language.lower()
    for same in (lambda name: name == tag, lambda name: primary(name) == tag):
        if numbers := [number for name, number in named.items() if same(name.lower())]:
            return numbers[0]
    known = sorted({primary(name) for name in named if "-" in name})
    raise SprachbundError(f"{source} has no prompt for {language!r}; it has those of {', '.join(known)}")


def _checked_prompts(value: Any, source: str) -> dict[str, int]:
    """Names of languages and their numbers. Raises SprachbundError for anything else."""
    whole = isinstance(value, Mapping) and all(
        isinstance(name, str) and type(number) is int and number >= 0 for name, number in value.items()
    )
    if not whole or not value:
        raise SprachbundError(
            f"{source} has no dictionary of prompts, which name the language; copy it from where the model came from"
        )
    return dict(value)


_BY_TOKEN = ("transducer.prediction.embedding.", "transducer.joint.out.", "ctc_head.")


def _with_own_vocabulary(
    weights: Mapping[str, Tensor], token_ids: Sequence[int], size: int
) -> dict[str, Tensor]:
    """Weights with a row for each of our tokens: theirs at `token_ids`, zeros for others, which are never written."""
    index = torch.tensor(token_ids)
    resized = dict(weights)
    for name, value in weights.items():
        if name.startswith(_BY_TOKEN):
            if len(value) != len(index):
                raise SprachbundError(
                    f"{name} has {len(value)} rows, the tokenizer {len(index)} tokens with the blank; "
                    "they are not of the same checkpoint"
                )
            fill = NEVER if name.endswith(".bias") else 0.0
            resized[name] = value.new_full((size, *value.shape[1:]), fill).index_copy(0, index, value)
    return resized


_OWN_PARTS = ("decoder.", "language_head.", "ctc_head.")
"""Parts that a checkpoint lacks, always or sometimes; nothing is computed with them then."""


def _filled(name: str, like: Tensor, weights: Mapping[str, Tensor], source: str) -> Tensor:
    value = weights.get(name)
    if value is None:
        if not name.endswith(".bias") and not name.startswith(_OWN_PARTS):
            raise SprachbundError(f"{source} has no weight for {name}; it is damaged, or of another kind")
        return torch.zeros(like.shape)  # a layer without a bias is one whose bias is nought
    if value.shape != like.shape:
        raise SprachbundError(
            f"{source}: {name} has shape {tuple(value.shape)}, its configuration asks for {tuple(like.shape)}"
        )
    return value.contiguous()


# NeMo's files, see `sprachbund.models.nemo_archive`.
#
# The layout is that of https://github.com/NVIDIA/NeMo (EncDecRNNTBPEModel, ConformerEncoder with
# dw_striding and causal convolutions, RNNTDecoder, RNNTJoint; hybrids with a CTC head too).

_IGNORED = re.compile(r"preprocessor\.|encoder\.pos_enc\.|spec_augment|loss\.|(ctc_)?wer\.")

_SUPPORTED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("preprocessor", "sample_rate"): (16_000,),
    ("preprocessor", "normalize"): ("NA", None, "None"),
    ("preprocessor", "window_size"): (0.025,),
    ("preprocessor", "window_stride"): (0.01,),
    ("preprocessor", "window"): ("hann",),
    ("preprocessor", "n_fft"): (512,),
    ("encoder", "subsampling"): ("dw_striding",),
    ("encoder", "subsampling_factor"): (8,),
    ("encoder", "causal_downsampling"): (True,),
    ("encoder", "self_attention_model"): ("rel_pos",),
    ("encoder", "att_context_style"): ("chunked_limited",),
    ("encoder", "conv_context_size"): ("causal",),
    ("encoder", "conv_norm_type"): ("layer_norm",),
    ("encoder", "untie_biases"): (True,),
    ("tokenizer", "type"): ("bpe",),
}
"""Values that fields of a configuration need to have, so that our encoder computes the same."""


def read_nemo(path: Path | NemoArchive) -> TransducerCheckpoint:
    """Read a `.nemo` file.

    Raises:
        SprachbundError: no such archive, something missing or damaged, or a model of another kind.
    """
    archive = path if isinstance(path, NemoArchive) else open_archive(path)
    source = archive.source
    if extra := archive.optional("joint", "num_extra_outputs"):
        raise SprachbundError(
            f"{source} writes durations too ({extra}); only transducers without them can stream here"
        )
    archive.check(_SUPPORTED)
    try:
        shape = _nemo_shape(archive)
    except (TypeError, ValueError, IndexError) as error:
        raise SprachbundError(
            f"{source}: {CONFIG} holds sizes that are none ({error}); copy it again"
        ) from error
    weights, others = renamed(archive.tensors(), NEMO)
    if unknown := [name for name in others if not _IGNORED.match(name)]:
        raise SprachbundError(
            f"{source} holds weights of a kind not known here ({', '.join(sorted(unknown)[:3])}); "
            "only cache-aware FastConformer transducers can be read"
        )
    return TransducerCheckpoint(
        source=source,
        shape=shape,
        weights=weights,
        pieces=_nemo_pieces(archive),
        prompts=_checked_prompts(archive.optional("model_defaults", "prompt_dictionary"), source)
        if _FUSION in weights
        else None,
    )


def _nemo_shape(archive: NemoArchive) -> CheckpointShape:
    of, source = archive.value, archive.source
    contexts = of("encoder", "att_context_size")
    contexts = contexts if isinstance(contexts[0], Sequence) else [contexts]
    if len({left for left, _ in contexts}) > 1:
        raise SprachbundError(f"{source}: att_context_size is {contexts}; all have to look equally far back")
    width, activation = int(of("encoder", "d_model")), of("joint", "jointnet", "activation")
    if activation not in ("relu", "tanh"):
        raise SprachbundError(
            f"{source}: joint.jointnet.activation is {activation!r}; relu or tanh can be read"
        )
    channels = int(of("encoder", "subsampling_conv_channels"))
    return CheckpointShape(
        num_mel_bins=int(of("preprocessor", "features")),
        width=width,
        num_heads=int(of("encoder", "n_heads")),
        num_layers=int(of("encoder", "n_layers")),
        feed_forward_width=width * int(of("encoder", "ff_expansion_factor")),
        kernel_size=int(of("encoder", "conv_kernel_size")),
        stem_channels=channels if channels > 0 else width,  # -1 says so
        scale_input=bool(of("encoder", "xscaling")),
        left_context=int(contexts[0][0]),
        right_contexts=tuple(int(right) for _, right in contexts),
        prediction_width=int(of("decoder", "prednet", "pred_hidden")),
        prediction_layers=int(of("decoder", "prednet", "pred_rnn_layers")),
        joint_width=int(of("joint", "jointnet", "joint_hidden")),
        activation=activation,
    )


def _nemo_pieces(archive: NemoArchive) -> CheckpointPieces:
    named = archive.value("tokenizer", "model_path")
    pieces = read_sentencepiece(archive.file(named), f"{archive.source}: {str(named).removeprefix('nemo:')}")
    for piece in pieces.model.pieces:
        if piece.type == _USER_DEFINED and _TAG.fullmatch(piece.piece):
            piece.type = CONTROL
    return pieces


# Directories of transformers' `nemotron_asr_streaming` and `nemotron3_5_asr`: the models of NeMo under other names.
#
# Nothing of transformers is needed to read them: config.json, safetensors, tokenizer.json.

MODEL_TYPE, PROMPTED = "nemotron_asr_streaming", "nemotron3_5_asr"
RIGHT_CONTEXTS = (13, 6, 1, 0)
"""Frames ahead that the published ones were trained with; used where processor_config.json does not say."""


def read_transformers(directory: Path) -> TransducerCheckpoint:
    """Read a directory in transformers' form.

    Raises:
        SprachbundError: something missing or damaged, or a model of another kind.
    """
    config = _json(directory / "config.json")
    try:
        shape = _transformers_shape(directory, config)
        num_pieces = int(config["blank_token_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise SprachbundError(
            f"{directory / 'config.json'}: {error!r}; it is no {MODEL_TYPE} configuration"
        ) from error
    stored = _transformers_tensors(directory)
    weights, unknown = renamed(stored, TRANSFORMERS)
    if unknown:
        raise SprachbundError(f"{directory} holds weights not known here ({', '.join(sorted(unknown)[:3])})")
    return TransducerCheckpoint(
        source=str(directory),
        shape=shape,
        weights=weights,
        pieces=_transformers_pieces(directory, num_pieces),
        prompts=_transformers_prompts(directory) if config["model_type"] == PROMPTED else None,
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SprachbundError(
            f"{path.parent} has no {path.name}; copy it from where the model came from"
        ) from None
    except ValueError as error:
        raise SprachbundError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise SprachbundError(f"{path} holds no object; copy it again")
    return content


def _transformers_shape(directory: Path, config: Mapping[str, Any]) -> CheckpointShape:
    if config.get("model_type") not in (MODEL_TYPE, PROMPTED):
        raise SprachbundError(
            f"{directory / 'config.json'} names the model {config.get('model_type')!r}; only {MODEL_TYPE} and "
            f"{PROMPTED} can be read"
        )
    encoder = config["encoder_config"]
    for key, wanted in (
        ("subsampling_factor", 8),
        ("subsampling_conv_kernel_size", 3),
        ("hidden_act", "silu"),
    ):
        if encoder.get(key, wanted) != wanted:
            raise SprachbundError(
                f"{directory / 'config.json'}: encoder_config.{key} is {encoder[key]!r}; only {wanted!r} can be read"
            )
    return CheckpointShape(
        num_mel_bins=encoder["num_mel_bins"],
        width=encoder["hidden_size"],
        num_heads=encoder["num_attention_heads"],
        num_layers=encoder["num_hidden_layers"],
        feed_forward_width=encoder["intermediate_size"],
        kernel_size=encoder["conv_kernel_size"],
        stem_channels=encoder["subsampling_conv_channels"],
        scale_input=encoder["scale_input"],
        left_context=encoder["sliding_window"] - 1,
        right_contexts=_right_contexts(directory),
        prediction_width=config["decoder_hidden_size"],
        prediction_layers=config["num_decoder_layers"],
        joint_width=config["decoder_hidden_size"],
        activation=config.get("hidden_act", "relu"),
    )


def _right_contexts(directory: Path) -> tuple[int, ...]:
    path = directory / "processor_config.json"
    lookaheads = _json(path).get("supported_num_lookahead_tokens") if path.exists() else None
    return tuple(lookaheads) if lookaheads else RIGHT_CONTEXTS


def _transformers_prompts(directory: Path) -> dict[str, int]:
    path = directory / "processor_config.json"
    return _checked_prompts(_json(path).get("prompt_dictionary"), str(path))


def _transformers_tensors(directory: Path) -> dict[str, Tensor]:
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        raise SprachbundError(f"{directory} has no model.safetensors; copy it from where the model came from")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise SprachbundError(
                f"{path} is not a whole safetensors file ({error}); copy it again"
            ) from error
    return tensors


def _transformers_pieces(directory: Path, count: int) -> CheckpointPieces:
    path = directory / "tokenizer.json"
    described = _json(path)
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise SprachbundError(
            f"{path} holds a tokenizer of the type {model.get('type')!r}; only BPE can be read"
        )
    added = {token["content"]: token["id"] for token in described.get("added_tokens", ())}
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return from_merges({**model["vocab"], **added}, merges, count)
