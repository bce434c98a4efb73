"""Directories of transformers' `nemotron_asr_streaming`: the same models as NeMo's, under other names.

Nothing of transformers is needed to read them: config.json, safetensors, tokenizer.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.foreign import ForeignCheckpoint, ForeignShape
from sprachbund.models.conformer.foreign_names import TRANSFORMERS, renamed
from sprachbund.models.conformer.foreign_pieces import ForeignPieces, from_merges

MODEL_TYPE = "nemotron_asr_streaming"
RIGHT_CONTEXTS = (13, 6, 1, 0)
"""Frames ahead that the published ones were trained with; used where processor_config.json does not say."""


def read_transformers(directory: Path) -> ForeignCheckpoint:
    """Read a directory in transformers' form.

    Raises:
        SprachbundError: something missing or damaged, or a model of another kind.
    """
    config = _json(directory / "config.json")
    try:
        shape = _shape(directory, config)
        num_pieces = int(config["blank_token_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise SprachbundError(
            f"{directory / 'config.json'}: {error!r}; it is no {MODEL_TYPE} configuration"
        ) from error
    stored = _tensors(directory)
    weights, unknown = renamed(stored, TRANSFORMERS)
    if unknown:
        raise SprachbundError(f"{directory} holds weights not known here ({', '.join(sorted(unknown)[:3])})")
    return ForeignCheckpoint(
        place=str(directory), shape=shape, weights=weights, pieces=_pieces(directory, num_pieces)
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SprachbundError(
            f"{path.parent} has no {path.name}; copy it from where the model came from"
        ) from None
    except ValueError as error:
        raise SprachbundError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise SprachbundError(f"{path} holds no object; copy it again")
    return found


def _shape(directory: Path, config: Mapping[str, Any]) -> ForeignShape:
    if config.get("model_type") != MODEL_TYPE:
        raise SprachbundError(
            f"{directory / 'config.json'} names the model {config.get('model_type')!r}; only {MODEL_TYPE} can be read"
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
    return ForeignShape(
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
    told = _json(path).get("supported_num_lookahead_tokens") if path.exists() else None
    return tuple(told) if told else RIGHT_CONTEXTS


def _tensors(directory: Path) -> dict[str, Tensor]:
    paths = sorted(directory.glob("model*.safetensors"))
    if not paths:
        raise SprachbundError(f"{directory} has no model.safetensors; copy it from where the model came from")
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            found |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise SprachbundError(
                f"{path} is not a whole safetensors file ({error}); copy it again"
            ) from error
    return found


def _pieces(directory: Path, count: int) -> ForeignPieces:
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
