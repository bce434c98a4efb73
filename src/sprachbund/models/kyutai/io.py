"""Kyutai STT as directories in transformers' layout, read and written without it: JSON, safetensors and a tokenizer.

The codec computes in single precision, as transformers has it; the decoder in the precision that it is stored in. What
of the codec makes sound is carried along, so that a directory that is written holds all that transformers looks for.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.causal_lm import read_shards
from sprachbund.models.fastconformer.tokens import TOKENIZER, FastConformerTokens
from sprachbund.models.hub import CONFIG_KEY, GENERATION, check_config, find, read_files
from sprachbund.models.kyutai.config import ExtractorConfig, KyutaiConfig
from sprachbund.models.kyutai.model import Kyutai
from sprachbund.models.weights import (
    Bits,
    cast_to_bits,
    check_finite,
    check_weights,
    dtype_name,
    write_transformers_directory,
)
from sprachbund.nn.mimi import HALVING
from sprachbund.util.files import read_object, validate

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
_ADVICE = "copy the model again"
_EXTRACTORS = (("preprocessor_config.json", ""), ("processor_config.json", "feature_extractor"))
_OTHER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION,
)
_LANGUAGES = re.compile(r"stt-[\d.]+b-([a-z]{2}(?:_[a-z]{2})*)(?![a-z])")
"""Published models say what they hear in their names alone, such as `stt-1b-en_fr`."""


def load(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> Kyutai:
    """Load a Kyutai STT for inference, on the CPU.

    Args:
        path_or_id: a directory in transformers' layout, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    path = directory / CONFIG
    values = check_config(path)
    generation = directory / GENERATION
    said = read_object(generation).get("bos_token_id") if generation.is_file() else None
    config = validate(
        KyutaiConfig,
        values if said is None else {**values, "bos_token_id": said},
        str(path),
        advice=_ADVICE,
    )
    tokens = FastConformerTokens.read(directory, config.vocab_size)
    named = _LANGUAGES.search(str(directory))
    languages = config.sprachbund.source_languages or (named[1].split("_") if named else ["en"])
    with torch.device("meta"):
        model = Kyutai(config, _extractor(directory), values, tokens, languages)
    _fill(model, read_shards(directory), directory)
    model.files = read_files(directory, _OTHER_FILES)
    return model.eval()


def _extractor(directory: Path) -> ExtractorConfig:
    """Silence around the speech, as a model's directory states it."""
    for name, part in _EXTRACTORS:
        path = directory / name
        if not path.is_file():
            continue
        values = read_object(path)
        said = values.get(part) if part else values
        if said is not None:
            return validate(ExtractorConfig, said, f"{path}: {part}" if part else str(path), advice=_ADVICE)
    raise SprachbundError(
        f"{directory} has no {_EXTRACTORS[0][0]}, which says how far the text is behind the speech; add it from where "
        "the model came from"
    )


# Weights, under their names and ours.

_CODEC, _OURS = "codec_model.", "codec."
_CODEBOOKS = re.compile(r"^codec\.(quantizer\.\w+)\.codebooks$")
_LINEAR = re.compile(r"(self_attn\.[qkvo]_proj)\.weight$")
_LEAST_USE = 1e-5
"""Smallest count of a code's use, as in transformers."""


def _their_name(name: str) -> str:
    """transformers' name of our weight `name`, which is no codebook."""
    if name.startswith(_OURS):
        return _CODEC + name.removeprefix(_OURS)
    rest = _LINEAR.sub(r"\1.linear.weight", name.removeprefix("decoder."))
    if rest.startswith("lm_head."):
        return rest
    return f"model.embed_tokens.{rest}" if rest.startswith("embed_tokens.") else f"model.{rest}"


def _codebooks(quantizer: str, count: int) -> list[str]:
    """Beginnings of the names of a quantizer's codebooks."""
    return [f"{_CODEC}{quantizer}.layers.{n}.codebook." for n in range(count)]


def to_transformers(model: Kyutai) -> dict[str, Tensor]:
    """The weights that something is computed with, under transformers' names.

    A codebook is written as sums of vectors over codes that were used once each.
    """
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if (quantizer := _CODEBOOKS.match(name)) is None:
            weights[_their_name(name)] = value
            continue
        for begin, codebook in zip(_codebooks(quantizer[1], len(value)), value, strict=True):
            weights[f"{begin}embed_sum"] = codebook
            weights[f"{begin}cluster_usage"] = codebook.new_ones(len(codebook))
            weights[f"{begin}initialized"] = codebook.new_ones(1)
    return weights


def sound_weights(model: Kyutai) -> dict[str, Tensor]:
    """Empty weights of the half of the codec that makes sound of codes, under transformers' names.

    Its layers are those of the other half in the opposite order, with inputs for outputs.
    """
    config, made = model.config.codec_config, dict[str, tuple[int, ...]]()
    layers = {
        name.removeprefix("encoder.layers."): tuple(value.shape)
        for name, value in model.codec.state_dict().items()
        if name.startswith("encoder.layers.")
    }
    last = max(int(name.partition(".")[0]) for name in layers)
    for name, shape in layers.items():
        number, _, rest = name.partition(".")
        position = int(number)
        if rest.startswith("block."):  # stands in front of a stride there, and behind one here
            made[f"decoder.layers.{last - position - 1}.{rest}"] = shape
            continue
        outputs, inputs, kernel = layers[f"{number}.conv.weight"]
        if rest == "conv.bias":
            shape = (inputs,)
        elif position in (0, last):  # the others go back, and such convolutions hold inputs first
            shape = (inputs, outputs, config.kernel_size if position else config.last_kernel_size)
        else:
            shape = (outputs, inputs, kernel)
        made[f"decoder.layers.{last - position}.{rest}"] = shape
    for name, value in model.codec.state_dict().items():
        if name.startswith("encoder_transformer."):
            made[name.replace("encoder", "decoder", 1)] = tuple(value.shape)
        elif name.endswith("input_proj.weight"):
            made[name.replace("input", "output")] = (value.shape[1], value.shape[0], 1)
    width = config.hidden_size
    made["upsample.conv.weight"] = (width, width // config.upsample_groups, 2 * HALVING)
    return {_CODEC + name: torch.empty(shape, device="meta") for name, shape in made.items()}


def _decoder_type(model: Kyutai, weights: Mapping[str, Tensor]) -> torch.dtype:
    """That of the decoder's weights; where they have several, what config.json says, as transformers has it."""
    types = {value.dtype for name, value in weights.items() if not name.startswith(_CODEC)}
    if len(types) == 1:
        return types.pop()
    said = model.values.get("dtype", model.values.get("torch_dtype"))
    return torch.bfloat16 if said == "bfloat16" else torch.float32


def _fill(model: Kyutai, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Give a model on the meta device its weights; it is changed in place."""
    model.decoder.to(_decoder_type(model, weights))
    unused = sound_weights(model)
    wanted = {**to_transformers(model), **unused}
    weights = {
        name: value.to(wanted[name].dtype) if name in wanted else value for name, value in weights.items()
    }
    check_weights(weights, wanted, directory)
    check_finite(weights, directory, sorted(directory.glob("*.safetensors")))
    own: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if (quantizer := _CODEBOOKS.match(name)) is None:
            own[name] = weights[_their_name(name)]
            continue
        codebooks = []
        for begin in _codebooks(quantizer[1], len(value)):
            uses = weights[f"{begin}cluster_usage"].clamp(min=_LEAST_USE)
            codebooks.append(weights[f"{begin}embed_sum"] / uses[:, None])
        own[name] = torch.stack(codebooks)
    model.load_state_dict(own, assign=True)
    model.unused = {name: weights[name] for name in unused}


def save(
    model: Kyutai, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in transformers' layout, which transformers loads too.

    config.json comes last, so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokens.
        directory: directory to be written.
        bits: bits of a weight of the decoder: 16, or 32, which keeps the precision that it has; the codec keeps its
            own.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    weights = to_transformers(model)
    codec = {name: value.contiguous() for name, value in weights.items() if name.startswith(_CODEC)}
    decoder = cast_to_bits({name: value for name, value in weights.items() if name not in codec}, bits)
    own = {CONFIG_KEY: {"source_languages": [*model.source_languages]}}
    dtype = next(iter(decoder.values())).dtype
    values = {**model.values, **own, "dtype": dtype_name(dtype)}
    files = {SAFETENSORS: {**codec, **model.unused, **decoder}}
    write_transformers_directory(Path(directory), files, values, model.files, bits=bits, card=card)
