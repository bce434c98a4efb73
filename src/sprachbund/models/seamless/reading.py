"""The files of a Seamless directory, read through transformers, with errors that a person can act on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.quiet import quiet_transformers
from sprachbund.models.seamless.foreign import VERSIONS, library, speech_to_text
from sprachbund.models.seamless.tokens import SeamlessTokens

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SPLIT_TYPE = "sprachbund-seamless"
"""`model_type` of a model that is split by language, which transformers cannot hold; `family` has its version."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
_GENERATION = "generation_config.json"
_EXTRACTOR = "preprocessor_config.json"
_CODES = "text_decoder_lang_to_code_id"  # in the settings of generation


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
    transformers = library()
    with _one_line(directory), quiet_transformers():
        config = _config(directory)
        kind = getattr(transformers, VERSIONS[config.model_type][1])
        foreign, report = kind.from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
        foreign.generation_config = _generation(directory) or foreign.generation_config
    _check_complete(sorted(report["missing_keys"]), directory)
    return foreign


def empty_foreign(directory: Path) -> Any:
    """The same without weights, on the meta device but for the tables that are never stored."""
    with _one_line(directory), quiet_transformers():
        config = _config(directory)
        with torch.device("meta"):
            foreign: Any = speech_to_text(config)
        foreign.generation_config = _generation(directory) or foreign.generation_config
    conformer = foreign.speech_encoder.encoder
    if getattr(conformer, "embed_positions", None) is not None:
        conformer.embed_positions = type(conformer.embed_positions)(config)
    return foreign


def read_tokens(directory: Path, foreign: Any) -> SeamlessTokens:
    """The vocabulary beside a model. Raises SprachbundError for files that are broken or of another model."""
    with _one_line(directory / "tokenizer_config.json"), quiet_transformers():
        tokenizer = library().SeamlessM4TTokenizer.from_pretrained(directory, local_files_only=True)
    return SeamlessTokens(
        tokenizer, getattr(foreign.generation_config, _CODES, None), foreign.config.vocab_size
    )


def read_extractor(directory: Path) -> Any:
    """The feature extractor of a directory; None when it has no file for it."""
    path = directory / _EXTRACTOR
    if not path.is_file():
        return None
    with _one_line(path), quiet_transformers():
        return library().SeamlessM4TFeatureExtractor.from_pretrained(directory, local_files_only=True)


def _config(directory: Path) -> Any:
    values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    version = values.pop("family", None) or values["model_type"]
    kind = getattr(library(), VERSIONS[version][0])
    return kind.from_dict({**values, "model_type": version})


def _generation(directory: Path) -> Any:
    """The settings of generation, None without their file. transformers itself drops the language codes from a file
    that says it was made from the model's configuration."""
    path = directory / _GENERATION
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return library().GenerationConfig.from_dict({**values, "_from_model_config": False})


def _check_complete(missing: list[str], directory: Path) -> None:
    if any(name.startswith("speech_encoder.") for name in missing):
        raise SprachbundError(
            f"{directory} lacks the speech encoder ({len(missing)} tensors, such as {missing[0]}); a text-to-text "
            "checkpoint cannot hear, take the whole SeamlessM4T model or its speech-to-text part"
        )
    if missing:
        raise SprachbundError(
            f"{directory} lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}; "
            "copy it again"
        )


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what transformers raises over files into one line."""
    try:
        yield
    except SprachbundError:
        raise
    except Exception as error:  # of many libraries below; none documents what it raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise SprachbundError(f"{path} cannot be read ({reason}); copy it again") from error
