"""Whisper models as openai-whisper and CTranslate2 (faster-whisper) keep them.

openai-whisper: one `.pt` file with `dims` and `model_state_dict`, read without running anything in it. It has no
vocabulary; the `tokenizer.json` of any checkpoint of the same size goes with it.

CTranslate2: a directory with `model.bin` (version 6 of its binary form: a header, then every variable with name, shape,
type and bytes, then aliases), `config.json` and `tokenizer.json`. Weights in 8 bits have a scale for each row.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError, unreadable
from sprachbund.models.whisper.config import FIRST_MULTILINGUAL_VOCABULARY, WhisperConfig
from sprachbund.models.whisper.files import GENERATION, TOKENIZER, CheckpointFiles, read_tokenizer
from sprachbund.models.whisper.io import from_transformers, transformers_name
from sprachbund.models.whisper.model import Whisper
from sprachbund.models.whisper.tokens import WhisperTokens
from sprachbund.util.files import read_object

OPENAI_SUFFIX = ".pt"
CTRANSLATE2_FILE = "model.bin"
_AGAIN = "copy it again"
_NUM_TIMESTAMPS = 1501
"""Tokens of the times of a window of 30 s, in steps of 0.02 s, at the end of every vocabulary of openai-whisper."""


@dataclass(frozen=True, kw_only=True)
class OtherWhisper:
    """A model of another form.

    Attributes:
        config: its sizes.
        weights: by their names in Hugging Face's form.
        generation: settings, as `generation_config.json` has them.
    """

    config: WhisperConfig
    weights: Mapping[str, Tensor]
    generation: dict[str, Any] = field(default_factory=dict)


def is_other_format(path: Path) -> bool:
    """Whether a path is of one of these forms, by its name."""
    return path.suffix == OPENAI_SUFFIX or (path / CTRANSLATE2_FILE).is_file()


def load_other_format(path: Path, tokenizer: Path | None = None) -> Whisper:
    """Load a model of one of these forms, ready for inference and to be saved.

    Args:
        path: a `.pt` file, or a directory with `model.bin`.
        tokenizer: directory with `tokenizer.json`; by default that of the model.

    Raises:
        SprachbundError: it cannot be read, has no tokenizer, or is no Whisper model.
    """
    if not path.exists():
        raise SprachbundError(f"there is no file {path}; check the path")
    other = read_openai(path) if path.is_file() else read_ctranslate2(path)
    home = tokenizer or (path.parent if path.is_file() else path)
    if not (home / TOKENIZER).is_file():
        raise SprachbundError(
            f"{path} comes without a vocabulary; name a Whisper checkpoint of this size with its {TOKENIZER} by "
            "--tokenizer, such as whisper-small"
        )
    tokens, generation = WhisperTokens(read_tokenizer(home), other.config.vocabulary_size), other.generation
    if path.is_file() or tokenizer is not None:
        _check_version(tokens.timestamps, other.config.vocabulary_size, path, home)
    if path.is_file():
        # A `.pt` file has no settings: those beside its tokenizer count, or else openai-whisper's own.
        settings = home / GENERATION
        others = read_object(settings) if settings.is_file() else tokens.openai_suppressed()
        if not _is_shaped_alike(home, other.config):
            others.pop("alignment_heads", None)
        generation = {**others, **generation}
    files = CheckpointFiles(generation=generation, files={TOKENIZER: (home / TOKENIZER).read_bytes()})
    with torch.device("meta"):
        model = Whisper(other.config, tokens=tokens, checkpoint_files=files)
    weights = from_transformers(other.weights, model, source=str(path))
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return model.eval()


def _check_version(timestamps: range, vocabulary_size: int, path: Path, home: Path) -> None:
    """Check that a tokenizer is that of a version of Whisper: one of another shifts the tokens of tasks and times.

    Args:
        timestamps: tokens of times by the tokenizer.
        vocabulary_size: tokens of the model; below those of published models, there is no version.
        path: file of the model.
        home: directory of the tokenizer.
    """
    last = range(vocabulary_size - _NUM_TIMESTAMPS, vocabulary_size)
    if vocabulary_size >= FIRST_MULTILINGUAL_VOCABULARY - 1 and timestamps != last:
        raise SprachbundError(
            f"{home / TOKENIZER} has {len(timestamps)} timestamps from {timestamps.start} on, and {path} those from "
            f"{last.start} on; name a directory with the {TOKENIZER} of a checkpoint of this version by --tokenizer"
        )


def _is_shaped_alike(home: Path, config: WhisperConfig) -> bool:
    """Whether the model whose tokenizer it is has as many decoder layers and heads; not, where nothing says so."""
    path = home / "config.json"
    theirs = read_object(path) if path.is_file() else {}
    shape = (theirs.get("decoder_layers"), theirs.get("decoder_attention_heads"))
    return shape == (config.decoder_layers, config.decoder_heads)


# openai-whisper.

_OPENAI = {
    "blocks": "layers",
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "mlp_ln": "final_layer_norm",
    "ln_post": "layer_norm",
    "ln": "layer_norm",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
}
_TO_OPENAI = {
    **{theirs: ours for ours, theirs in _OPENAI.items()},
    "positions": "positional_embedding",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}
_DIMS = {
    "vocabulary_size": "n_vocab",
    "width": "n_text_state",
    "num_mel_bins": "n_mels",
    "encoder_layers": "n_audio_layer",
    "encoder_heads": "n_audio_head",
    "decoder_layers": "n_text_layer",
    "decoder_heads": "n_text_head",
    "max_frames": "n_audio_ctx",
    "max_tokens": "n_text_ctx",
}


def read_openai(path: Path) -> OtherWhisper:
    """A `.pt` file of openai-whisper.

    Raises:
        SprachbundError: it cannot be read, or is none.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged pickles raise has no common base
        raise unreadable(path, error, _AGAIN) from error
    if not isinstance(loaded, dict) or not isinstance(dims := loaded.get("dims"), dict):
        raise SprachbundError(f"{path} has no dims, so it is no model of openai-whisper")
    stored = loaded.get("model_state_dict")
    if not isinstance(stored, dict) or not all(isinstance(weight, Tensor) for weight in stored.values()):
        raise SprachbundError(f"{path} has no model_state_dict of tensors; {_AGAIN}")
    weights = {_openai_name(name): weight for name, weight in stored.items()}
    sizes = {ours: dims.get(theirs) for ours, theirs in _DIMS.items()}
    config = _config(sizes, weights, str(path))
    multilingual = config.vocabulary_size >= FIRST_MULTILINGUAL_VOCABULARY
    return OtherWhisper(config=config, weights=weights, generation={"is_multilingual": multilingual})


def openai_name(name: str) -> str:
    """The name that openai-whisper has for our parameter `name`."""
    side, *parts = (
        transformers_name(name)
        .removeprefix("model.")
        .replace("embed_positions.weight", "positions")
        .split(".")
    )
    if parts[0] == "layer_norm":
        parts[0] = "ln_post" if side == "encoder" else "ln"
    return ".".join([side, *(_TO_OPENAI.get(part, part) for part in parts)])


def _openai_name(name: str) -> str:
    name = name.replace("mlp.0.", "fc1.").replace("mlp.2.", "fc2.")
    return "model." + ".".join(_OPENAI.get(part, part) for part in name.split("."))


# CTranslate2.

_VERSION, _SPEC = 6, "WhisperSpec"
_TYPES: tuple[tuple[np.dtype[Any], torch.dtype], ...] = (
    (np.dtype("<f4"), torch.float32),
    (np.dtype("i1"), torch.int8),
    (np.dtype("<i2"), torch.int16),
    (np.dtype("<i4"), torch.int32),
    (np.dtype("<f2"), torch.float16),
    (np.dtype("<i2"), torch.bfloat16),
)
"""Storage types of a variable by number, with the meaning of their bytes."""
_MOST_DIMENSIONS = 4


def read_ctranslate2(directory: Path) -> OtherWhisper:
    """A directory of CTranslate2 with a Whisper model.

    Raises:
        SprachbundError: a file is missing, damaged, or of another model.
    """
    path = directory / CTRANSLATE2_FILE
    variables = _read_variables(path)
    layers = {
        side: len(
            {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_")} - {"layer_norm"}
        )
        for side in ("encoder", "decoder")
    }
    weights: dict[str, Tensor] = {}
    for side in ("encoder", "decoder"):
        for number in range(layers[side]):
            weights |= _layer(variables, side, number, path)
    for ours, theirs in _TOP.items():
        weights[f"model.{ours}"] = _weight(variables, theirs, path)
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            weights[f"model.encoder.{name}.{part}"] = _weight(variables, f"encoder/{name}/{part}", path)
    frames, tokens = (
        weights[f"model.{side}.embed_positions.weight"].shape[0] for side in ("encoder", "decoder")
    )
    embedding = weights["model.decoder.embed_tokens.weight"]
    sizes = {
        "vocabulary_size": embedding.shape[0],
        "width": embedding.shape[-1],
        "num_mel_bins": weights["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": layers["encoder"],
        "encoder_heads": int(_variable(variables, "encoder/num_heads", path)),
        "decoder_layers": layers["decoder"],
        "decoder_heads": int(_variable(variables, "decoder/num_heads", path)),
        "max_frames": frames,
        "max_tokens": tokens,
    }
    return OtherWhisper(
        config=_config(sizes, weights, str(path)),
        weights=weights,
        generation=_generation(directory, embedding.shape[0]),
    )


_TOP = {
    "encoder.embed_positions.weight": "encoder/position_encodings/encodings",
    "encoder.layer_norm.weight": "encoder/layer_norm/gamma",
    "encoder.layer_norm.bias": "encoder/layer_norm/beta",
    "decoder.embed_tokens.weight": "decoder/embeddings/weight",
    "decoder.embed_positions.weight": "decoder/position_encodings/encodings",
    "decoder.layer_norm.weight": "decoder/layer_norm/gamma",
    "decoder.layer_norm.bias": "decoder/layer_norm/beta",
}


def _layer(variables: Mapping[str, Tensor], side: str, number: int, path: Path) -> dict[str, Tensor]:
    """The weights of a layer; products that CTranslate2 joins are parted, and keys have no bias."""
    ours, theirs = f"model.{side}.layers.{number}", f"{side}/layer_{number}"
    norms = {"self_attn_layer_norm": "self_attention/layer_norm", "final_layer_norm": "ffn/layer_norm"}
    products = {
        "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attention/linear_1": ("self_attn.out_proj",),
        "ffn/linear_0": ("fc1",),
        "ffn/linear_1": ("fc2",),
    }
    if side == "decoder":
        norms["encoder_attn_layer_norm"] = "attention/layer_norm"
        products |= {
            "attention/linear_0": ("encoder_attn.q_proj",),
            "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
            "attention/linear_2": ("encoder_attn.out_proj",),
        }
    weights: dict[str, Tensor] = {}
    for name, source in norms.items():
        for part, stored in (("weight", "gamma"), ("bias", "beta")):
            weights[f"{ours}.{name}.{part}"] = _weight(variables, f"{theirs}/{source}/{stored}", path)
    for source, names in products.items():
        for part in ("weight", "bias"):
            joined = _weight(variables, f"{theirs}/{source}/{part}", path)
            for name, piece in zip(names, joined.chunk(len(names)), strict=True):
                if part == "weight" or not name.endswith("k_proj"):
                    weights[f"{ours}.{name}.{part}"] = piece
    return weights


def _weight(variables: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """A variable as floating-point numbers; of one in 8 bits, each row divided by its scale."""
    stored = _variable(variables, name, path)
    if stored.dtype == torch.int8:
        scale = _variable(variables, f"{name}_scale", path).float()
        return stored.float() / scale.reshape(-1, *[1] * (stored.ndim - 1))
    if not stored.is_floating_point():
        raise SprachbundError(
            f"{path}: {name} is of the type {stored.dtype}, which is not read here; convert the model anew, to "
            "float32, float16, bfloat16 or int8"
        )
    return stored


def _variable(variables: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in variables:
        raise SprachbundError(
            f"{path} has no variable {name}; it is damaged, or of another version of CTranslate2"
        )
    return variables[name]


def _read_variables(path: Path) -> dict[str, Tensor]:
    """Every variable of a `model.bin`, aliases too. Raises SprachbundError for one that is damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Binary(mapped, path).variables()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise SprachbundError(f"{path} cannot be read ({error}); {_AGAIN}") from error


class _Binary:
    """Reads the bytes of a `model.bin` one after the other."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def variables(self) -> dict[str, Tensor]:
        """All of them, by name."""
        version, spec = self._number("<I"), self._text()
        if version != _VERSION or spec != _SPEC:
            raise SprachbundError(
                f"{self._path} is a {spec[:40]} of version {version}, and a {_SPEC} of version {_VERSION} is read here"
            )
        self._number("<I")  # the revision of the names, of which there is one
        variables = dict(self._variable() for _ in range(self._number("<I")))
        for _ in range(self._number("<I")):
            alias, name = self._text(), self._text()
            variables[alias] = _variable(variables, name, self._path)
        return variables

    def _variable(self) -> tuple[str, Tensor]:
        name, rank = self._text(), self._number("<B")
        if rank > _MOST_DIMENSIONS:
            raise SprachbundError(f"{self._path}: {name[:60]} has {rank} dimensions; {_AGAIN}")
        shape = [self._number("<I") for _ in range(rank)]
        kind, size = self._number("<B"), self._number("<I")
        if kind >= len(_TYPES) or size != prod(shape) * _TYPES[kind][0].itemsize:
            raise SprachbundError(
                f"{self._path}: {name[:60]} has {size} bytes for the shape {shape}; {_AGAIN}"
            )
        stored, meaning = _TYPES[kind]
        values = torch.from_numpy(np.frombuffer(self._bytes(size), stored).reshape(shape).copy())
        return name, values.view(meaning) if values.dtype != meaning else values

    def _text(self) -> str:
        return self._bytes(self._number("<H")).rstrip(b"\0").decode()

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _bytes(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise SprachbundError(f"{self._path} ends in the middle of a variable; {_AGAIN}")
        self._at += size
        return piece


_SETTINGS: Mapping[str, str] = {
    "alignment_heads": "alignment_heads",
    "suppress_ids": "suppress_tokens",
    "suppress_ids_begin": "begin_suppress_tokens",
}


def _generation(directory: Path, vocabulary_size: int) -> dict[str, Any]:
    """CTranslate2's settings under the names of Hugging Face.

    Args:
        directory: of the model.
        vocabulary_size: tokens of the model. Converters list the languages of the tokenizer, which those of English
            models have, too.
    """
    path = directory / "config.json"
    values = read_object(path) if path.is_file() else {}
    generation = {theirs: values[ours] for ours, theirs in _SETTINGS.items() if values.get(ours)}
    languages = bool(values.get("lang_ids", True)) and vocabulary_size != FIRST_MULTILINGUAL_VOCABULARY - 1
    return {**generation, "is_multilingual": languages}


# Both.


def _config(sizes: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> WhisperConfig:
    """The sizes, checked as those of a config.json are."""
    inner = {}
    for side in ("encoder", "decoder"):
        name = f"model.{side}.layers.0.fc1.weight"
        if name not in weights:
            raise SprachbundError(f"{source} has no layers in its {side}; {_AGAIN}")
        inner[f"{side}_feed_forward_width"] = weights[name].shape[0]
    if missing := sorted(name for name, value in sizes.items() if value is None):
        raise SprachbundError(f"{source} does not say {', '.join(missing)}; {_AGAIN}")
    return WhisperConfig.from_transformers(WhisperConfig(**sizes, **inner).to_transformers(), source=source)
