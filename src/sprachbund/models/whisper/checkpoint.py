"""Whisper weights in the files of Hugging Face, under their names there, to our modules and back.

One table says how names differ; it is read forwards for saving and, over the names a model has, backwards for
loading. Files: safetensors or pytorch_model.bin, in one piece or sharded with an index.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import check_finite, some
from sprachbund.models.whisper.model import Whisper
from sprachbund.util.files import read_object
from sprachbund.util.tensors import load_tensors

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


def foreign_name(name: str) -> str:
    """The Hugging Face name of our parameter `name`."""
    for ours, theirs in _FEED_FORWARD.items():
        name = name.replace(f".feed_forward.{ours}.", f".{theirs}.")
    return _PREFIX + ".".join(_SEGMENTS.get(segment, segment) for segment in name.split("."))


def to_foreign(model: Whisper) -> dict[str, Tensor]:
    """The weights of a model under their Hugging Face names."""
    return {foreign_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}


def from_foreign(weights: Mapping[str, Tensor], model: Whisper, *, source: str) -> dict[str, Tensor]:
    """The weights of a checkpoint under our names, checked against `model`, which may be on the meta device.

    Raises:
        SprachbundError: tensors are missing, too many, or of another shape, or the output matrix is not tied.
    """
    if not any(name.startswith(_PREFIX) for name in weights):
        weights = {_PREFIX + name: tensor for name, tensor in weights.items()}
    wanted = {foreign_name(name): name for name in model.state_dict()}
    _check_names(set(weights) - {_OUTPUT}, set(wanted), source)
    shapes = model.state_dict()
    for foreign, name in wanted.items():
        if weights[foreign].shape != shapes[name].shape:
            raise SprachbundError(
                f"{source}: {foreign} has shape {_sizes(weights[foreign])}, config.json asks for "
                f"{_sizes(shapes[name])}; the two files belong to different models"
            )
        if not weights[foreign].is_floating_point():
            raise SprachbundError(
                f"{source}: {foreign} is of the type {weights[foreign].dtype}; download it again"
            )
    check_finite({foreign: weights[foreign] for foreign in wanted}, source)
    _check_tied(weights, source)
    return {name: weights[foreign] for foreign, name in wanted.items()}


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
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SprachbundError(f"{path} cannot be read ({reason}); download it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise SprachbundError(f"{path} holds no table of tensors; it is not a Hugging Face checkpoint")
    return loaded


def _check_names(found: set[str], wanted: set[str], source: str) -> None:
    if missing := sorted(wanted - found):
        raise SprachbundError(
            f"{source} lacks {len(missing)} tensors that config.json asks for: {some(missing)}; "
            "the checkpoint is incomplete or belongs to another config.json"
        )
    if extra := sorted(found - wanted):
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
