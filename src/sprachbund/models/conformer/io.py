"""Conformer models as directories: config.json, model.safetensors, tokenizer.model, card.json.

One that is split by language also has its sharing_plan.json.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer.config import ConformerConfig
from sprachbund.models.conformer.model import Conformer
from sprachbund.models.splitting import read_plan, split_feed_forwards, write_plan
from sprachbund.models.weights import (
    KEY,
    Bits,
    check_packed,
    check_weights,
    make_packed_room,
    packed_linears,
    read_metadata,
    read_packed_linears,
    read_stored_config,
    read_weights,
    write_weights,
)
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.util.files import write_text

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
TRANSCRIPT_TOKENIZER_FILE = "transcript_tokenizer.model"


def load(directory: Path) -> Conformer:
    """Load a model for inference, on the CPU in fp32 whatever the bits it is stored in; packed layers stay packed.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    config = read_config(directory)
    said = read_metadata(directory / WEIGHTS_FILE)
    tokenizer = _read_tokenizer(directory / TOKENIZER_FILE, config.target_languages, said)
    transcript_tokenizer = _read_tokenizer(directory / TRANSCRIPT_TOKENIZER_FILE, (), said)
    with torch.device("meta"):
        model = Conformer(config, tokenizer, transcript_tokenizer)
    plan = read_plan(directory, directory / WEIGHTS_FILE)
    if plan is not None:
        split_feed_forwards(model, plan)
    weights = read_weights(directory / WEIGHTS_FILE)
    if (packed := read_packed_linears(directory)) is not None:
        make_packed_room(model, packed, weights)
        check_packed(weights, directory)
    check_weights(weights, model.state_dict(), directory)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def save(model: Conformer, directory: Path, *, bits: Bits = 32, card: Card | None = None) -> None:
    """Write a model directory; the weights come last, so a broken-off writing is not taken for a model.

    Args:
        model: model to be written.
        directory: is made if need be.
        bits: bits of a stored weight.
        card: card to lie beside the weights; none is written if None.
    """
    packed = packed_linears(model)
    directory.mkdir(parents=True, exist_ok=True)
    config = {"family": Conformer.name, "config": model.config.model_dump(mode="json")}
    if packed is not None:
        config[KEY] = packed.model_dump(mode="json")
    write_text(directory / "config.json", json.dumps(config, indent=1) + "\n")
    model.tokenizer.save(directory / TOKENIZER_FILE)
    model.transcript_tokenizer.save(directory / TRANSCRIPT_TOKENIZER_FILE)
    if card is not None:
        card.model_copy(update={"bits": bits if packed is None else packed.bits}).write(directory)
    pieces = {
        TOKENIZER_FILE: _digest(model.tokenizer),
        TRANSCRIPT_TOKENIZER_FILE: _digest(model.transcript_tokenizer),
    }
    write_weights(
        directory / WEIGHTS_FILE, model.state_dict(), bits, {**write_plan(model, directory), **pieces}
    )


def _read_tokenizer(path: Path, languages: tuple[str, ...], said: Mapping[str, str]) -> Tokenizer:
    """A tokenizer that is the one that the head of the weights names, if it names one: older ones do not."""
    tokenizer = Tokenizer.load(path, languages)
    if said.get(path.name, _digest(tokenizer)) != _digest(tokenizer):
        raise SprachbundError(
            f"{path} is not the tokenizer that these weights were saved with; copy the model again"
        )
    return tokenizer


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.model).hexdigest()


def read_config(directory: Path) -> ConformerConfig:
    """Shape and languages of a model, without its weights. Raises SprachbundError for what is no configuration."""
    return read_stored_config(directory, ConformerConfig)
