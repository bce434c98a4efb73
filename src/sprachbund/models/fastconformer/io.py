"""Parakeet, Canary and Cohere ASR as directories in transformers' layout, read without it.

They hold JSON, safetensors and a tokenizer.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer.checkpoints import TRANSFORMERS as STREAMING
from sprachbund.models.conformer.checkpoints import renamed
from sprachbund.models.fastconformer.config import (
    CanaryConfig,
    CohereConfig,
    ParakeetConfig,
    library_values,
)
from sprachbund.models.fastconformer.model import Canary, CohereAsr, Parakeet
from sprachbund.models.fastconformer.tokens import TOKENIZER, FastConformerTokens, file_names
from sprachbund.models.hub import check_config, extractor_settings, family_of, find, read_files
from sprachbund.models.weights import (
    COUNTER,
    Bits,
    cast_to_bits,
    check_finite,
    check_names,
    check_weights,
    write_transformers_directory,
)
from sprachbund.util.files import validate
from sprachbund.util.tensors import load_tensors

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
PARAKEET = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
CANARY, COHERE = "canary", "cohere_asr"
_OTHER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Other files of such a directory; they are copied, so that transformers can read a saved one."""

# Names of weights, theirs and ours.

_STEM = {
    "encoder.subsampling.layers.0": "encoder.stem.first",
    "encoder.subsampling.layers.2": "encoder.stem.depthwise.0",
    "encoder.subsampling.layers.3": "encoder.stem.pointwise.0",
    "encoder.subsampling.layers.5": "encoder.stem.depthwise.1",
    "encoder.subsampling.layers.6": "encoder.stem.pointwise.1",
    "encoder.subsampling.linear": "encoder.stem.out",
}
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_DECODER_LAYER = {
    "input_layernorm": "self_norm",
    "post_attention_layernorm": "cross_norm",
    "final_layernorm": "feed_forward.norm",
    "mlp.fc1": "feed_forward.expand",
    "mlp.fc2": "feed_forward.contract",
    **{f"self_attn.{theirs}": f"self_attention.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"encoder_attn.{theirs}": f"cross_attention.{ours}" for theirs, ours in _ATTENTION.items()},
}
NAMES = {
    **{theirs: ours for theirs, ours in STREAMING.items() if "subsampling" not in theirs},
    **_STEM,
    **{f"decoder.layers.N.{theirs}": f"decoder.layers.N.{ours}" for theirs, ours in _DECODER_LAYER.items()},
    "decoder.embed_tokens": "decoder.embedding",
    "decoder.embedding_layernorm": "decoder.embedding_norm",
    "decoder.norm": "decoder.norm",
    "decoder.pos_emb.weight": "decoder.positions",
    "decoder.proj": "memory_projection",
    "proj_out.weight": "decoder.output_head.weight",
    "proj_out.bias": "decoder.logits_bias",
    "ctc_head": "ctc_head",
}
"""transformers' modules and parameters to ours; N is the number of a layer."""
_TIED = "decoder.output_head.weight"
"""A copy of the embedding, in files of tied models that hold it all the same."""
_OF_TOKENS, _OF_FRAMES = "transducer.joint.prediction.bias", "transducer.joint.encoder.bias"
_NEMO = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^encoder\.pre_encode\.conv\.", "encoder.subsampling.layers."),
        (r"^encoder\.pre_encode\.out\.", "encoder.subsampling.linear."),
        (r"\.conv\.batch_norm\.", ".conv.norm."),
        (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
        (r"\.self_attn\.linear_out\.", ".self_attn.o_proj."),
        (r"\.self_attn\.linear_pos\.", ".self_attn.relative_k_proj."),
        (r"\.self_attn\.pos_bias_([uv])$", r".self_attn.bias_\1"),
        (r"^encoder_decoder_proj\.", "decoder.proj."),
        (r"^transf_decoder\._embedding\.token_embedding\.", "decoder.embed_tokens."),
        (r"^transf_decoder\._embedding\.position_embedding\.pos_enc$", "decoder.pos_emb.weight"),
        (r"^transf_decoder\._embedding\.layer_norm\.", "decoder.embedding_layernorm."),
        (r"^transf_decoder\._decoder\.final_layer_norm\.", "decoder.norm."),
        (r"^transf_decoder\._decoder\.layers\.", "decoder.layers."),
        (r"\.layer_norm_1\.", ".input_layernorm."),
        (r"\.layer_norm_2\.", ".post_attention_layernorm."),
        (r"\.layer_norm_3\.", ".final_layernorm."),
        (r"\.first_sub_layer\.", ".self_attn."),
        (r"\.second_sub_layer\.", ".encoder_attn."),
        (r"\.third_sub_layer\.dense_in\.", ".mlp.fc1."),
        (r"\.third_sub_layer\.dense_out\.", ".mlp.fc2."),
        (r"\.(query|key|value)_net\.", lambda match: f".{match[1][0]}_proj."),
        (r"\.out_projection\.", ".o_proj."),
        (r"^log_softmax\.mlp\.layer0\.", "proj_out."),
    )
)
"""NeMo's names to transformers', one rule after the other: Cohere's files have them."""
_CONVOLUTIONS = re.compile(r"(convolution\.(gate|out)|ctc_head)\.weight$")
"""Matrices of ours that are convolutions of one frame in the files."""


def load(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> Parakeet | Canary:
    """Load a Parakeet or Canary for inference, in single precision, on the CPU.

    Args:
        path_or_id: a directory in transformers' layout, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    kind = family_of(directory)
    path = directory / CONFIG
    values = check_config(path)
    model: Parakeet | Canary
    if kind == CANARY:
        canary = validate(CanaryConfig, values, str(path), advice="copy the model again")
        canary.languages(kind, str(path))
        tokens = FastConformerTokens.read(directory, canary.vocab_size, canary.sprachbund.tokenizers)
        with torch.device("meta"):
            model = Canary(canary, values, tokens)
    elif kind == COHERE:
        cohere = validate(CohereConfig, values, str(path), advice="copy the model again")
        cohere.languages(kind, str(path))
        tokens = FastConformerTokens.read(directory, cohere.vocab_size)
        with torch.device("meta"):
            model = CohereAsr(cohere, values, tokens)
    elif kind in PARAKEET:
        parakeet = validate(ParakeetConfig, values, str(path), advice="copy the model again")
        parakeet.languages(kind, str(path))
        tokens = FastConformerTokens.read(directory, parakeet.vocab_size)
        with torch.device("meta"):
            model = Parakeet(parakeet, values, tokens)
    else:
        raise SprachbundError(
            f"{path} describes a model of type {kind!r}; give one of {', '.join((*PARAKEET, CANARY, COHERE))}"
        )
    _check_extractor(directory, model.num_mel_bins)
    paths = sorted(directory.glob("model*.safetensors"))
    fill(model, _read(directory, paths), str(directory), paths)
    model.files = read_files(directory, (*_OTHER_FILES, *file_names([*model.tokens.of_languages])[1:]))
    return model.eval()


def fill(
    model: Parakeet | Canary, weights: Mapping[str, Tensor], source: str, files: Sequence[Path] = ()
) -> None:
    """Give a model on the meta device weights under transformers' names; it is changed in place.

    Args:
        model: model without weights.
        weights: weights in any precision, without "model." in front of their names.
        source: source of the weights, for errors.
        files: files that they are mapped from; see `sprachbund.models.weights.check_once`.

    Raises:
        SprachbundError: weights are missing, too many, of another shape, or not finite.
    """
    ours, unknown = renamed(weights, NAMES)
    check_names(unknown, (), source)
    if (of_tokens := ours.pop(_OF_TOKENS, None)) is not None:
        # It is added to every sum that the bias of the frames is added to.
        ours[_OF_FRAMES] = ours.get(_OF_FRAMES, torch.zeros(())) + of_tokens
    wanted = model.state_dict()
    if _TIED not in wanted:
        ours.pop(_TIED, None)
    absent = {name for name in wanted if name not in ours and _has_no_bias(_their_name(name), model.values)}
    for name, like in wanted.items():
        if name.endswith(COUNTER):
            ours[name] = torch.zeros((), dtype=torch.long)
        elif name in absent:
            ours[name] = torch.zeros(like.shape)
    check_weights(ours, wanted, source)
    check_finite(ours, source, files)
    model.load_state_dict(ours, assign=True)
    for name, parameter in model.named_parameters():
        if name in absent:  # the layout has no place for what training would make of it
            parameter.requires_grad_(False)


def _read(directory: Path, paths: Sequence[Path]) -> dict[str, Tensor]:
    """All weights of the files of a directory, under transformers' present names without "model." in front."""
    if not paths:
        raise SprachbundError(f"{directory} has no {SAFETENSORS}; copy it from where the model came from")
    weights: dict[str, Tensor] = {}
    for path in paths:
        for name, value in load_tensors(path).items():
            if not value.is_floating_point() and not name.endswith(COUNTER):
                raise SprachbundError(f"{path}: {name} is {value.dtype}, which no weight has; copy it again")
            weights[from_nemo(name.removeprefix("model."))] = value
    return weights


def from_nemo(name: str) -> str:
    """transformers' name of a weight that may have NeMo's."""
    for pattern, theirs in _NEMO:
        name = pattern.sub(theirs, name)
    return name


def _check_extractor(directory: Path, bins: int) -> None:
    """See that the features of a directory are those that are computed here."""
    wanted = {
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": 0.97,
        "feature_size": bins,
    }
    for path, said in extractor_settings(directory):
        for key, value in wanted.items():
            if said.get(key, value) != value:
                raise SprachbundError(
                    f"{path}: {key} is {repr(said[key])[:60]}, and features are computed here with {value}"
                )


def to_transformers(model: Parakeet | Canary) -> dict[str, Tensor]:
    """The weights of a model under transformers' names and in its shapes."""
    theirs = {
        other: value[..., None] if _CONVOLUTIONS.search(name) else value
        for name, value in model.state_dict().items()
        if not _has_no_bias(other := _their_name(name), model.values)
    }
    if _OF_FRAMES in model.state_dict():
        bias = theirs["encoder_projector.bias"]
        theirs["decoder.decoder_projector.bias"] = torch.zeros_like(bias)
    if isinstance(model, Canary):
        theirs = {name if name.startswith("proj_out") else f"model.{name}": v for name, v in theirs.items()}
    return theirs


_THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
_BIASES = (
    (
        "encoder_config",
        "attention_bias",
        r"encoder\.layers\.\d+\.(feed_forward[12]\.linear[12]|self_attn\.\w_proj)\.bias",
    ),
    ("encoder_config", "convolution_bias", r"encoder\.layers\.\d+\.conv\.\w+_conv[12]?\.bias"),
    ("decoder_config", "attention_bias", r"decoder\.layers\.\d+\.(self|encoder)_attn\.\w_proj\.bias"),
)
"""Parts of config.json, their fields, and biases that are not there where a field is false; ours are nought then."""


def _their_name(name: str) -> str:
    """transformers' name of our parameter or buffer `name`."""
    layer = re.match(r"(encoder|decoder)\.layers\.(\d+)\.", name)
    general = name if layer is None else f"{layer[1]}.layers.N.{name[layer.end() :]}"
    module, _, parameter = general.rpartition(".")
    theirs = _THEIRS.get(general) or f"{_THEIRS[module]}.{parameter}"
    return theirs if layer is None else theirs.replace(".N.", f".{layer[2]}.")


def _has_no_bias(name: str, values: Mapping[str, Any]) -> bool:
    """Whether `name`, as transformers calls it, is a bias that the model described by `values` has not got."""
    return any(
        not values.get(part, {}).get(field, True) and re.fullmatch(pattern, name) is not None
        for part, field, pattern in _BIASES
    )


def save(
    model: Parakeet | Canary,
    directory: str | os.PathLike[str],
    *,
    bits: Bits = 32,
    card: Card | None = None,
) -> None:
    """Write a model in transformers' layout, which transformers loads too.

    config.json comes last, so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokens.
        directory: directory to be written.
        bits: bits of a weight, 16 or 32.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    weights = to_transformers(model)
    counters = {name: value for name, value in weights.items() if name.endswith(COUNTER)}
    values = library_values(model.values, model.source_languages)
    values["dtype"] = {16: "float16"}.get(bits, "float32")
    files = {SAFETENSORS: {**cast_to_bits(weights, bits), **counters}}
    write_transformers_directory(Path(directory), files, values, model.files, bits=bits, card=card)
