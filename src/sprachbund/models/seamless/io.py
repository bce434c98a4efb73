"""Seamless models as directories in the Hugging Face layout; speech-to-text and text-to-text alone are written.

That layout has no place for feed-forwards that are split by language: a split model is written with its weights
under our own names, a sharing plan, and a model type that transformers does not take for one of its own.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.hub import (
    GENERATION,
    check_config,
    family_of,
    find,
    one_line,
    optional_setting,
    quiet_transformers,
    read_generation,
    read_model,
)
from sprachbund.models.seamless.checkpoints import (
    VERSIONS,
    classes,
    library,
    speech_to_text,
    to_transformers,
    transformers_name,
)
from sprachbund.models.seamless.layers import shared_positions
from sprachbund.models.seamless.model import Seamless
from sprachbund.models.seamless.tokens import SeamlessTokens
from sprachbund.models.splitting import read_plan, split_feed_forwards, write_plan
from sprachbund.models.weights import (
    COUNTER,
    Bits,
    cast_to_bits,
    check_finite,
    check_weights,
    directory_of_a_model,
    dtype_name,
    read_weights,
    some,
)
from sprachbund.nn.limits import FRAMES, POSITIONS, Limit
from sprachbund.util.files import atomic_files, write_json
from sprachbund.util.tensors import save_tensors

# The files of a Seamless directory, read through transformers.

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SPLIT_TYPE = "sprachbund-seamless"
"""`model_type` of a model that is split by language, which transformers cannot hold; `family` has its version."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
_EXTRACTOR = "preprocessor_config.json"
_CODES = "text_decoder_lang_to_code_id"  # in the settings of generation
_OTHER_PARTS = (r"^t2u_model\.", r"^vocoder\.", r"^text_encoder\.", r"^lm_head\.")
"""Other parts of a whole SeamlessM4T model, which makes speech and reads text too; the last is tied."""
_NEEDED = {
    "speech_encoder.": "the speech encoder; a text-to-text checkpoint cannot hear, take the whole SeamlessM4T model "
    "or its speech-to-text part"
}
_SIZES = {
    "max_position_embeddings": POSITIONS,
    "pad_token_id": FRAMES,
    "adaptor_kernel_size": Limit(1, 64),
    "adaptor_stride": Limit(1, 64),
    "num_adapter_layers": Limit(1, 16),
    "conv_depthwise_kernel_size": Limit(1, 4096),
}
"""Limits of numbers in config.json that this package computes with, beside those of `sprachbund.models.hub`."""


def check_files(directory: Path) -> None:
    """Raise SprachbundError when a file is missing, or the directory holds another kind of model."""
    kind = family_of(directory)
    if kind not in VERSIONS:
        raise SprachbundError(
            f"{directory / CONFIG} describes a model of type {kind!r}, not Seamless; give a SeamlessM4T directory"
        )
    if not any(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        raise SprachbundError(f"{directory} has no weights, such as {SAFETENSORS}; add them")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise SprachbundError(f"{directory} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}; add one")


def read_transformers(directory: Path, dtype: torch.dtype) -> Any:
    """The speech-to-text model of transformers in a directory, with its weights; text-to-unit is not even read.

    Raises:
        SprachbundError: a file cannot be read, weights are missing, or there is no speech encoder.
    """
    config = _config(directory)
    hf_model = read_model(
        classes(config.model_type)[1],
        directory,
        config,
        build=speech_to_text,
        surplus=_OTHER_PARTS,
        parts=_NEEDED,
        dtype=dtype,
        attn_implementation="sdpa",
    )
    hf_model.generation_config = read_generation(directory) or hf_model.generation_config
    return hf_model


def empty_transformers(directory: Path) -> Any:
    """The same without weights, on the meta device but for the tables that are never stored."""
    config = _config(directory)
    with one_line(directory), quiet_transformers():
        with torch.device("meta"):
            hf_model: Any = speech_to_text(config)
        hf_model.generation_config = read_generation(directory) or hf_model.generation_config
        if (positions := shared_positions(hf_model.speech_encoder)) is not None:
            hf_model.speech_encoder.encoder.embed_positions = type(positions)(config)
    return hf_model


def read_tokens(directory: Path, hf_model: Any) -> SeamlessTokens:
    """The vocabulary beside a model. Raises SprachbundError for files that are broken or of another model."""
    codes = optional_setting(hf_model.generation_config, _CODES)
    if codes is not None and not (isinstance(codes, dict) and all(type(n) is int for n in codes.values())):
        raise SprachbundError(
            f"{directory / GENERATION}: {_CODES} is {repr(codes)[:60]}, not languages with their tokens; copy it again"
        )
    with one_line(directory / "tokenizer_config.json"), quiet_transformers():
        tokenizer = library().SeamlessM4TTokenizer.from_pretrained(directory, local_files_only=True)
        return SeamlessTokens(tokenizer, codes, hf_model.config.vocab_size)


def read_extractor(directory: Path) -> Any:
    """The feature extractor of a directory; None when it has no file for it."""
    path = directory / _EXTRACTOR
    if not path.is_file():
        return None
    with one_line(path), quiet_transformers():
        return library().SeamlessM4TFeatureExtractor.from_pretrained(directory, local_files_only=True)


def _config(directory: Path) -> Any:
    path = directory / CONFIG
    values = check_config(path, _SIZES)
    version = values.pop("family", None) or values["model_type"]
    with one_line(path), quiet_transformers():
        config = classes(version)[0].from_dict({**values, "model_type": version})
        for heads, width in (
            (config.decoder_attention_heads, config.hidden_size),
            (config.encoder_attention_heads, config.hidden_size),
            (config.speech_encoder_attention_heads, config.hidden_size),
        ):
            if width % heads:
                raise SprachbundError(
                    f"{path}: {heads} heads do not divide hidden_size {width}; copy it again"
                )
    return config


_EMBEDDING = "decoder.embedding.weight"


def load(
    path_or_id: str | os.PathLike[str], *, offline: bool = False, dtype: torch.dtype = torch.float32
) -> Seamless:
    """Load the parts of a SeamlessM4T model of either version that write text, for inference, on the CPU.

    The encoder of texts is read from safetensors, and mapped rather than read where it has the precision wanted: who
    only hears does not pay for it.

    Args:
        path_or_id: a directory, or the name of a model on the Hugging Face hub.
        offline: never use the network.
        dtype: dtype of the weights.

    Raises:
        SprachbundError: transformers is not installed, files are missing or broken, or it is another model.
    """
    directory = find(path_or_id, offline=offline)
    library()
    check_files(directory)
    plan = read_plan(directory, directory / SAFETENSORS)
    hf_model = read_transformers(directory, dtype) if plan is None else empty_transformers(directory)
    tokens, extractor = read_tokens(directory, hf_model), read_extractor(directory)
    if plan is None:
        text = _text_encoder(directory, dtype)
        return from_transformers(hf_model, tokens=tokens, extractor=extractor, text_encoder=text).eval()
    stored = read_weights(directory / SAFETENSORS)
    reads_text = any(name.startswith(_TEXT_ENCODER) for name in stored)
    with torch.device("meta"):
        model = Seamless(hf_model, tokens=tokens, extractor=extractor, reads_text=reads_text)
    split_feed_forwards(model, plan)
    weights = {n: weight.long() if n.endswith(COUNTER) else weight.to(dtype) for n, weight in stored.items()}
    return _filled(model, weights, str(directory)).eval()


_TEXT_ENCODER = "text_encoder."
_COMPUTED = ("embed_tokens.weight", "embed_positions.weights")
"""Tied or computed weights of the encoder of texts, which not every version of transformers stores."""


def _text_encoder(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of the encoder of texts, in transformers' names; none where the files have none."""
    weights: dict[str, Tensor] = {}
    files = sorted(directory.glob("model*.safetensors"))
    for path in files:
        with one_line(path), safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name.startswith(_TEXT_ENCODER) and not name.endswith(_COMPUTED):
                    weights[name] = file.get_tensor(name).to(dtype)
    check_finite(weights, directory, files)
    return weights


def from_transformers(
    hf_model: Any,
    *,
    tokens: SeamlessTokens | None = None,
    extractor: Any = None,
    text_encoder: Mapping[str, Tensor] | None = None,
) -> Seamless:
    """Our model with the weights of a speech-to-text model of transformers; they are shared, not copied.

    Args:
        hf_model: speech-to-text model of transformers, of either version.
        tokens: its vocabulary; without it the model has shapes and weights, but no prompts.
        extractor: its feature extractor.
        text_encoder: weights of the encoder of texts, in transformers' names; without them the model reads none.

    Raises:
        SprachbundError: some of those weights are missing.
    """
    weights: dict[str, Tensor] = {**hf_model.state_dict(), **(text_encoder or {})}
    with torch.device("meta"):
        model = Seamless(hf_model, tokens=tokens, extractor=extractor, reads_text=bool(text_encoder))
    names = {name: transformers_name(name) for name in model.state_dict()}
    if missing := sorted({theirs for theirs in names.values() if theirs not in weights}):
        raise SprachbundError(
            f"the model lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}; copy it again"
        )
    if text_encoder and (surplus := sorted(set(text_encoder) - set(names.values()))):
        raise SprachbundError(
            f"the model holds {len(surplus)} tensors that config.json has no place for ({some(surplus)}); copy it again"
        )
    return _filled(model, {name: weights[theirs] for name, theirs in names.items()}, "the model")


def save(
    model: Seamless, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in the Hugging Face layout; transformers loads it as speech-to-text.

    A model that is split by language is written in our own layout, which only `load` reads. The weights come last,
    so a broken-off writing is not taken for a model.

    Args:
        model: model with its tokens.
        directory: directory to be written.
        bits: bits of a weight, 16 or 32; 32 keeps the precision that the model has.
        card: card to lie beside the weights.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    final = Path(directory)
    with directory_of_a_model(final):
        with atomic_files(final, last="config.json") as draft:
            for part in (model.generation, model.tokens.tokenizer, model.extractor):
                part.save_pretrained(draft)
        own = cast_to_bits(model.state_dict(), bits)
        if card is not None:
            card.model_copy(update={"bits": bits}).write(final)
        _write_weights(model, final, own)
        _write_config(model, final / CONFIG, own[_EMBEDDING].dtype)


def _write_config(model: Seamless, path: Path, dtype: torch.dtype) -> None:
    version = model.config.model_type
    values = {**model.config.to_dict(), "architectures": [VERSIONS[version][1]]}
    values["dtype"] = dtype_name(dtype)
    if model.sharing_plan is not None:
        del values["architectures"]
        values |= {"family": version, "model_type": SPLIT_TYPE}
    write_json(path, values, indent=2)


def _write_weights(model: Seamless, directory: Path, own: dict[str, Tensor]) -> None:
    metadata = {"format": "pt", **write_plan(model, directory)}
    weights = to_transformers(own) if model.sharing_plan is None else own
    save_tensors(directory / SAFETENSORS, weights, metadata)


def _filled(model: Seamless, weights: dict[str, Tensor], source: str) -> Seamless:
    """The model with these weights, under our names, in place of those on the meta device."""
    dtype = next((weight.dtype for weight in weights.values() if weight.is_floating_point()), torch.float32)
    wanted = {n: v.to(dtype) if v.is_floating_point() else v for n, v in model.state_dict().items()}
    check_weights(weights, wanted, source)
    model.load_state_dict(weights, assign=True)
    table = model.decoder.positions.to(model.decoder.embedding.weight.dtype)
    model.decoder.register_buffer("positions", table, persistent=False)
    if (text := model.text_encoder) is not None:
        text.register_buffer("positions", text.positions.to(table.dtype), persistent=False)
    return model
