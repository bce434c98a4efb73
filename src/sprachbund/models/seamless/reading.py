"""The files of a Seamless directory, read through transformers, with errors that a person can act on."""

from pathlib import Path
from typing import Any

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.quiet import quiet_transformers
from sprachbund.models.seamless.foreign import VERSIONS, library, speech_to_text
from sprachbund.models.seamless.tokens import SeamlessTokens
from sprachbund.models.transformers_files import check_config, one_line, read_model
from sprachbund.nn.limits import FRAMES, POSITIONS, Limit

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SPLIT_TYPE = "sprachbund-seamless"
"""`model_type` of a model that is split by language, which transformers cannot hold; `family` has its version."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
_GENERATION = "generation_config.json"
_EXTRACTOR = "preprocessor_config.json"
_CODES = "text_decoder_lang_to_code_id"  # in the settings of generation
_OTHER_PARTS = (r"^t2u_model\.", r"^vocoder\.", r"^text_encoder\.", r"^lm_head\.")
"""Of a whole SeamlessM4T model, which makes speech and reads text too; the last is tied."""
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
"""Of numbers in config.json that this package computes with, beside those of `transformers_files`."""


def check_files(directory: Path) -> None:
    """Raise SprachbundError when a file is missing, or the directory holds another kind of model."""
    from sprachbund.models.directory import family_of

    kind = family_of(directory)
    if kind not in VERSIONS:
        raise SprachbundError(
            f"{directory / CONFIG} describes a model of type {kind!r}, not Seamless; give a SeamlessM4T directory"
        )
    if not any(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        raise SprachbundError(f"{directory} has no weights, such as {SAFETENSORS}; add them")
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        raise SprachbundError(f"{directory} has no tokenizer: neither {' nor '.join(_TOKENIZERS)}; add one")


def read_foreign(directory: Path, dtype: torch.dtype) -> Any:
    """The speech-to-text model of transformers in a directory, with its weights; text-to-unit is not even read.

    Raises:
        SprachbundError: a file cannot be read, weights are missing, or there is no speech encoder.
    """
    config = _config(directory)
    foreign = read_model(
        getattr(library(), VERSIONS[config.model_type][1]),
        directory,
        config,
        build=speech_to_text,
        surplus=_OTHER_PARTS,
        parts=_NEEDED,
        dtype=dtype,
        attn_implementation="sdpa",
    )
    foreign.generation_config = _generation(directory) or foreign.generation_config
    return foreign


def empty_foreign(directory: Path) -> Any:
    """The same without weights, on the meta device but for the tables that are never stored."""
    config = _config(directory)
    with one_line(directory), quiet_transformers():
        with torch.device("meta"):
            foreign: Any = speech_to_text(config)
        foreign.generation_config = _generation(directory) or foreign.generation_config
        conformer = foreign.speech_encoder.encoder
        if getattr(conformer, "embed_positions", None) is not None:
            conformer.embed_positions = type(conformer.embed_positions)(config)
    return foreign


def read_tokens(directory: Path, foreign: Any) -> SeamlessTokens:
    """The vocabulary beside a model. Raises SprachbundError for files that are broken or of another model."""
    codes = getattr(foreign.generation_config, _CODES, None)
    if codes is not None and not (isinstance(codes, dict) and all(type(n) is int for n in codes.values())):
        raise SprachbundError(
            f"{directory / _GENERATION}: {_CODES} is {repr(codes)[:60]}, not languages with their tokens; copy it again"
        )
    with one_line(directory / "tokenizer_config.json"), quiet_transformers():
        tokenizer = library().SeamlessM4TTokenizer.from_pretrained(directory, local_files_only=True)
        return SeamlessTokens(tokenizer, codes, foreign.config.vocab_size)


def read_extractor(directory: Path) -> Any:
    """The feature extractor of a directory; None when it has no file for it."""
    path = directory / _EXTRACTOR
    if not path.is_file():
        return None
    with one_line(path), quiet_transformers():
        return library().SeamlessM4TFeatureExtractor.from_pretrained(directory, local_files_only=True)


def _config(directory: Path) -> Any:
    path = directory / CONFIG
    values = check_config(path)
    for name, limit in _SIZES.items():
        if name in values and not limit.holds(values[name]):
            raise SprachbundError(f"{path}: {name} is {repr(values[name])[:60]}, not {limit}; copy it again")
    version = values.pop("family", None) or values["model_type"]
    with one_line(path), quiet_transformers():
        config = getattr(library(), VERSIONS[version][0]).from_dict({**values, "model_type": version})
        for heads, width in (
            (config.decoder_attention_heads, config.hidden_size),
            (config.speech_encoder_attention_heads, config.hidden_size),
        ):
            if width % heads:
                raise SprachbundError(
                    f"{path}: {heads} heads do not divide hidden_size {width}; copy it again"
                )
    return config


def _generation(directory: Path) -> Any:
    """The settings of generation, None without their file. transformers itself drops the language codes from a file
    that says it was made from the model's configuration."""
    path = directory / _GENERATION
    if not path.is_file():
        return None
    values = check_config(path)
    with one_line(path):
        return library().GenerationConfig.from_dict({**values, "_from_model_config": False})
