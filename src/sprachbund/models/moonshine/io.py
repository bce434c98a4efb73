"""Moonshine as directories in transformers' layout, read and written without it: JSON, safetensors and a tokenizer."""

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.fastconformer.tokens import TOKENIZER, FastConformerTokens
from sprachbund.models.hub import CONFIG_KEY, check_config, extractor_settings, family_of, find, read_files
from sprachbund.models.moonshine.config import MoonshineConfig, StreamingMoonshineConfig
from sprachbund.models.moonshine.model import Moonshine
from sprachbund.models.weights import (
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
MOONSHINE, STREAMING = "moonshine", "moonshine_streaming"
_OTHER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
_OUTSIDE = ("decoder.pos_emb.", "decoder.proj.")
"""Parts of theirs that the decoder has, and the model itself here."""
_OF_ONE_LANGUAGE = re.compile(r"moonshine-(?:streaming-)?(?:tiny|base|small|medium)-([a-z]{2})(?![a-z])")
"""Published models of other languages than English say so in their names alone, such as `moonshine-tiny-ja`."""


def load(path_or_id: str | os.PathLike[str], *, offline: bool = False) -> Moonshine:
    """Load a Moonshine for inference, in single precision, on the CPU.

    Args:
        path_or_id: a directory in transformers' layout, or the name of a model on the Hugging Face hub.
        offline: never use the network.

    Raises:
        SprachbundError: files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    kind, path = family_of(directory), directory / CONFIG
    values = check_config(path)
    config: MoonshineConfig | StreamingMoonshineConfig
    if kind == MOONSHINE:
        config = validate(MoonshineConfig, values, str(path), advice="copy the model again")
    elif kind == STREAMING:
        config = validate(StreamingMoonshineConfig, values, str(path), advice="copy the model again")
    else:
        raise SprachbundError(f"{path} describes a model of type {kind!r}; give {MOONSHINE} or {STREAMING}")
    _check_extractor(directory)
    tokens = FastConformerTokens.read(directory, config.vocab_size)
    named = _OF_ONE_LANGUAGE.search(str(directory))
    language = (config.sprachbund.source_languages or [named[1] if named else "en"])[0]
    with torch.device("meta"):
        model = Moonshine(config, values, tokens, language)
    weights = _read(directory)
    wanted = model.state_dict()
    if model.proj_out is None:
        weights.pop("proj_out.weight", None)  # a copy of the embedding
    check_names([name for name in weights if name not in wanted], (), str(directory))
    check_weights(weights, wanted, str(directory))
    check_finite(weights, str(directory))
    model.load_state_dict(weights, assign=True)
    model.files = read_files(directory, _OTHER_FILES)
    return model.eval()


def _read(directory: Path) -> dict[str, Tensor]:
    """All weights of a directory, in single precision, under our names."""
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        raise SprachbundError(f"{directory} has no {SAFETENSORS}; copy it from where the model came from")
    weights: dict[str, Tensor] = {}
    for path in paths:
        for name, value in load_tensors(path).items():
            if not value.is_floating_point():
                raise SprachbundError(f"{path}: {name} is {value.dtype}, which no weight has; copy it again")
            own = name.removeprefix("model.")
            if own.startswith(_OUTSIDE):
                own = own.removeprefix("decoder.")
            weights[own] = value.float()
    return weights


def _their_name(name: str) -> str:
    """transformers' name of our parameter `name`."""
    if name.startswith("proj_out."):
        return name
    return f"model.decoder.{name}" if f"decoder.{name}".startswith(_OUTSIDE) else f"model.{name}"


def _check_extractor(directory: Path) -> None:
    """See that the samples of a directory are read as they are here: at 16 kHz, not normed."""
    for path, said in extractor_settings(directory):
        for key, value in (("sampling_rate", 16_000), ("do_normalize", False), ("feature_size", 1)):
            if said.get(key, value) != value:
                raise SprachbundError(
                    f"{path}: {key} is {repr(said[key])[:60]}; only {value} is computed here"
                )


def save(
    model: Moonshine, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
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
    weights = cast_to_bits({_their_name(name): value for name, value in model.state_dict().items()}, bits)
    own = {CONFIG_KEY: {"source_languages": [*model.source_languages]}}
    values = {**model.values, **own, "dtype": {16: "float16"}.get(bits, "float32")}
    write_transformers_directory(
        Path(directory), {SAFETENSORS: weights}, values, model.files, bits=bits, card=card
    )
