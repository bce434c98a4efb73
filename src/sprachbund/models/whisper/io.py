"""Whisper models as directories in the Hugging Face layout: read whole, and written whole or not at all.

That layout cannot hold feed-forwards that are split by language, nor for weights of 8 bits. Such models are
written with their weights under our own names (in 8 bits as `sprachbund.models.weights` describes), a sharing plan if
they are split, and a model type of their own, so that transformers does not take them for one of its models.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sprachbund.audio.constants import FRAMES_PER_S, HOP, SAMPLE_RATE, WINDOW
from sprachbund.errors import SprachbundError, unreadable
from sprachbund.models.card import Card
from sprachbund.models.hub import CONFIG_KEY, check_memory, find
from sprachbund.models.splitting import read_plan, split_feed_forwards, write_plan
from sprachbund.models.weights import (
    Bits,
    cast_to_bits,
    check_finite,
    check_once,
    check_replaceable,
    check_weights,
    dtype_name,
    some,
    write_weights,
)
from sprachbund.models.weights import read_weights as read_own_weights
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.models.whisper.files import (
    CONFIG,
    FEATURE_EXTRACTOR,
    GENERATION,
    TOKENIZER,
    CheckpointFiles,
    read_tokenizer,
)
from sprachbund.models.whisper.model import Whisper
from sprachbund.models.whisper.tokens import WhisperTokens
from sprachbund.util.files import atomic_directory, read_object, write_bytes, write_json, write_text
from sprachbund.util.tensors import load_tensors, save_tensors

# Whisper weights in the files of Hugging Face, under their names there, to our modules and back.
#
# One table says how names differ; it is read forwards for saving and, over the names a model has,
# backwards for loading. Files: safetensors or pytorch_model.bin, in one piece or sharded with an index.

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_INDEX = ".index.json"

_SEGMENTS = {
    "positions": "embed_positions.weight",
    "embedding": "embed_tokens",
    "norm": "layer_norm",
    "self_norm": "self_attn_layer_norm",
    "self_attention": "self_attn",
    "cross_norm": "encoder_attn_layer_norm",
    "cross_attention": "encoder_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
}
"""Segment of our parameter names to theirs; segments not listed are the same in both."""

_FEED_FORWARD = {"norm": "final_layer_norm", "expand": "fc1", "contract": "fc2"}
"""Parts of our feed-forwards to what lies directly in their layers."""

_PREFIX = "model."  # of a WhisperForConditionalGeneration; a bare WhisperModel is saved without it
_EMBEDDING = _PREFIX + "decoder.embed_tokens.weight"
_OUTPUT = "proj_out.weight"  # the embedding again, where it is stored at all


def transformers_name(name: str) -> str:
    """The Hugging Face name of our parameter `name`."""
    for ours, theirs in _FEED_FORWARD.items():
        name = name.replace(f".feed_forward.{ours}.", f".{theirs}.")
    return _PREFIX + ".".join(_SEGMENTS.get(segment, segment) for segment in name.split("."))


def to_transformers(model: Whisper) -> dict[str, Tensor]:
    """The weights of a model under their Hugging Face names."""
    return {transformers_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}


def from_transformers(
    weights: Mapping[str, Tensor], model: Whisper, *, source: str, files: Sequence[Path] = ()
) -> dict[str, Tensor]:
    """The weights of a checkpoint under our names, checked against `model`, which may be on the meta device.

    Args:
        weights: by their Hugging Face names.
        model: gives names and shapes; may be on the meta device.
        source: source of the weights, for messages.
        files: files that the weights are mapped from; see `check_once`.

    Raises:
        SprachbundError: tensors are missing, too many, or of another shape, or the output matrix is not tied.
    """
    if not any(name.startswith(_PREFIX) for name in weights):
        weights = {_PREFIX + name: tensor for name, tensor in weights.items()}
    wanted = {transformers_name(name): name for name in model.state_dict()}
    _check_names(set(weights) - {_OUTPUT}, set(wanted), source)
    shapes = model.state_dict()
    for stored_name, name in wanted.items():
        if weights[stored_name].shape != shapes[name].shape:
            raise SprachbundError(
                f"{source}: {stored_name} has shape {_sizes(weights[stored_name])}, config.json asks for "
                f"{_sizes(shapes[name])}; the two files belong to different models"
            )
        if not weights[stored_name].is_floating_point():
            raise SprachbundError(
                f"{source}: {stored_name} is of the type {weights[stored_name].dtype}; download it again"
            )

    def check_values() -> None:
        check_finite({stored_name: weights[stored_name] for stored_name in wanted}, source)
        _check_tied(weights, source)

    check_once(files, check_values)
    return {name: weights[stored_name] for stored_name, name in wanted.items()}


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a Hugging Face directory, under its name there, on the CPU.

    Raises:
        SprachbundError: no weights, a shard that is missing, or a file that cannot be read.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(directory):
        weights |= _read_file(path)
    return weights


def _weight_files(directory: Path) -> list[Path]:
    for name in (SAFETENSORS, PICKLED):
        if (directory / name).is_file():
            return [directory / name]
        if (index := directory / (name + _INDEX)).is_file():
            return _shards(index)
    raise SprachbundError(
        f"{directory} has no weights: neither {SAFETENSORS} nor {PICKLED}, nor an index of shards; add them"
    )


def _shards(index: Path) -> list[Path]:
    listed = read_object(index, advice="download it again").get("weight_map")
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(name, str) for name in listed.values())
    ):
        raise SprachbundError(f"{index} is not an index of weight shards; download it again")
    names = sorted(set(listed.values()))
    paths = [index.parent / str(name) for name in names]
    for path in paths:
        if not path.is_file() or path.parent != index.parent:
            raise SprachbundError(f"{index} names the shard {path.name}, which is missing; download it again")
    return paths


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path, advice="download it again")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged pickles raise has no common base
        raise unreadable(path, error, "download it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise SprachbundError(f"{path} holds no table of tensors; it is not a Hugging Face checkpoint")
    return loaded


def _check_names(stored: set[str], wanted: set[str], source: str) -> None:
    if missing := sorted(wanted - stored):
        raise SprachbundError(
            f"{source} lacks {len(missing)} tensors that config.json asks for: {some(missing)}; "
            "the checkpoint is incomplete or belongs to another config.json"
        )
    if extra := sorted(stored - wanted):
        raise SprachbundError(
            f"{source} holds {len(extra)} tensors that config.json has no place for: {some(extra)}; "
            "the weights belong to another config.json"
        )


def _check_tied(weights: Mapping[str, Tensor], source: str) -> None:
    output = weights.get(_OUTPUT)
    if output is not None and not torch.equal(output, weights[_EMBEDDING]):
        raise SprachbundError(
            f"{source}: {_OUTPUT} differs from the embedding; Whisper ties the two, only that is supported"
        )


def _sizes(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


REAL_LENGTH = "real_length"
"""Our key, below that of `tasks`, of a model that was trained on utterances at their own length."""
_OWN_TYPE = "sprachbund-whisper"
"""Model type of a model that transformers cannot hold."""


def load(
    path_or_id: str | os.PathLike[str],
    *,
    offline: bool = False,
    dtype: torch.dtype | None = torch.float32,
    real_length: bool | None = None,
) -> Whisper:
    """Load a Whisper or Distil-Whisper model, ready for inference, on the CPU.

    Args:
        path_or_id: a directory, or the name of a model on the Hugging Face hub, which is then downloaded.
        offline: never use the network.
        dtype: dtype of the weights; None keeps those of 16 bits as they are in the file, which is then mapped and not
            read.
        real_length: see `Whisper`; as the model was trained if None.

    Raises:
        SprachbundError: nothing there, not a Whisper model, or broken; the message names what is wrong.
    """
    directory = find(path_or_id, offline=offline)
    checkpoint_files, own_layout = _checkpoint_files(directory)
    config = WhisperConfig.from_transformers(checkpoint_files.config, source=str(directory / CONFIG))
    if real_length is None:
        ours = checkpoint_files.config.get(CONFIG_KEY)
        real_length = isinstance(ours, dict) and ours.get(REAL_LENGTH) is True
    tokens = WhisperTokens(read_tokenizer(directory), config.vocabulary_size)
    with torch.device("meta"):
        model = Whisper(config, tokens=tokens, checkpoint_files=checkpoint_files, real_length=real_length)
    plan = read_plan(directory, directory / SAFETENSORS)
    if plan is not None:
        split_feed_forwards(model, plan)
    if own_layout:
        check_memory(sum(w.numel() for w in model.parameters()) * torch.float32.itemsize, directory)
        weights = _own_weights(directory / SAFETENSORS, model)
    else:
        files = _weight_files(directory)
        weights = from_transformers(read_weights(directory), model, source=str(directory), files=files)
    model.load_state_dict({name: w.to(dtype or w.dtype) for name, w in weights.items()}, assign=True)
    model.as_stored = dtype is None and any(
        w.dtype.itemsize < torch.float32.itemsize for w in weights.values()
    )
    return model.eval()


def save(
    model: Whisper, directory: str | os.PathLike[str], *, bits: Bits = 32, card: Card | None = None
) -> None:
    """Write a model in the Hugging Face layout; transformers loads it and gives the same logits.

    A model that is split by language, or whose weights are to have 8 bits, is written in our own layout, which only
    `load` reads.

    The directory appears whole or not at all; one that is there already is replaced, if it holds a model.

    Args:
        model: model with its tokens and checkpoint_files.
        directory: directory to be written.
        bits: bits of a weight; 32 keeps the precision that the model has.
        card: card in place of the one that came with the model.

    Raises:
        SprachbundError: the directory is taken by something else, or cannot be written.
    """
    final = Path(directory)
    check_replaceable(final)
    try:
        with atomic_directory(final) as draft:
            _write(model, draft, bits)
            if card is not None:
                card.model_copy(update={"bits": bits}).write(draft)
    except (OSError, SafetensorError) as error:
        raise SprachbundError(f"{final} could not be written ({error}); nothing was left there") from error


def _checkpoint_files(directory: Path) -> tuple[CheckpointFiles, bool]:
    """The files beside the weights, and whether these are in our own layout."""
    checkpoint_files = CheckpointFiles.read(directory)
    if checkpoint_files.config.get("model_type") != _OWN_TYPE:
        return checkpoint_files, False
    own = ("family", "model_type")
    rest = {key: value for key, value in checkpoint_files.config.items() if key not in own}
    return replace(checkpoint_files, config={**rest, "model_type": Whisper.name}), True


def _own_weights(path: Path, model: Whisper) -> dict[str, torch.Tensor]:
    """The weights of a model in our own layout."""
    weights = read_own_weights(path)
    check_weights(weights, model.state_dict(), path)
    return weights


def _write(model: Whisper, directory: Path, bits: Bits) -> None:
    checkpoint_files = model.checkpoint_files
    metadata = write_plan(model, directory)
    own_layout = model.sharing_plan is not None or bits == 8
    if bits == 8:
        write_weights(directory / SAFETENSORS, model.state_dict(), bits, metadata)
        dtype = "int8"
    else:
        weights = cast_to_bits(model.state_dict() if own_layout else to_transformers(model), bits)
        save_tensors(directory / SAFETENSORS, weights, {"format": "pt", **metadata})
        dtype = dtype_name(next(iter(weights.values())).dtype)
    write_json(
        directory / CONFIG, {**_transformers_config(model, own_layout=own_layout), "dtype": dtype}, indent=2
    )
    if checkpoint_files.generation:
        write_json(directory / GENERATION, checkpoint_files.generation, indent=2)
    if FEATURE_EXTRACTOR not in checkpoint_files.files:
        write_json(directory / FEATURE_EXTRACTOR, _feature_extractor_config(model), indent=2)
    if model.has_tokens and not checkpoint_files.files:
        write_text(directory / TOKENIZER, model.tokens.to_json())
    for name, content in checkpoint_files.files.items():
        write_bytes(directory / name, content)


def _transformers_config(model: Whisper, *, own_layout: bool) -> dict[str, Any]:
    config = {**model.checkpoint_files.config, **model.config.to_transformers()}
    if own_layout:
        config |= {"family": Whisper.name, "model_type": _OWN_TYPE}
        config.pop("architectures", None)
    config.pop("torch_dtype", None)  # the older name of `dtype`
    if model.has_tokens:
        end = model.tokens.end
        named = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
        config = {**named, "decoder_start_token_id": model.tokens.start, **config}
    return config


def _feature_extractor_config(model: Whisper) -> dict[str, Any]:
    """Configuration of transformers' feature extractor for a model that came without its file."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": model.config.num_mel_bins,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": HOP,
        "n_fft": WINDOW,
        "chunk_length": round(model.max_window_s),
        "nb_max_frames": round(model.max_window_s * FRAMES_PER_S),
        "n_samples": round(model.max_window_s * SAMPLE_RATE),
    }
