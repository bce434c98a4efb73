"""Conformers with token input as directories: config.json, model.safetensors, card.json, and their units in `units`.

The speech encoder that the units are made of is named by hash and not copied, for it may be large; text is translated
without it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.hub import family_of
from sprachbund.models.tokens.config import MbartConfig, TokenConfig
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.directory import Identity, Units
from sprachbund.models.tokens.mbart import TokenMbart
from sprachbund.models.tokens.reader import reader_for
from sprachbund.models.tokens.text_input import ReadsTokens
from sprachbund.models.weights import Bits, check_weights, read_stored_config, read_weights, write_weights
from sprachbund.util.files import atomic_directory, validate, write_text

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
UNITS = "units"
FAMILY_CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    TokenConformer.name: (TokenConfig, TokenConformer),
    TokenMbart.name: (MbartConfig, TokenMbart),
}
"""Name to configuration and model."""


def save(model: ReadsTokens, directory: Path, *, bits: Bits = 32, card: Card | None = None) -> None:
    """Write a model directory; the weights come last, so a broken-off writing is not taken for a model.

    Args:
        model: model to be written.
        directory: is made if need be.
        bits: bits of a stored weight.
        card: card to lie beside the weights; none is written if None.
    """
    directory.mkdir(parents=True, exist_ok=True)
    units = directory / UNITS
    if units.resolve() != model.reader.directory.resolve():
        with atomic_directory(units) as draft:
            shutil.copytree(model.reader.directory, draft, dirs_exist_ok=True)
    config = {"family": model.name, "config": model.config.model_dump(mode="json")}
    write_text(directory / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    if card is not None:
        card.model_copy(update={"bits": bits}).write(directory)
    write_weights(directory / WEIGHTS_FILE, model.state_dict(), bits)


def load(directory: Path) -> TokenConformer | TokenMbart:
    """Load a model for inference, on the CPU in fp32; its speech encoder is loaded when speech is first read.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    kind, family = FAMILY_CLASSES[family_of(directory)]
    config, units = read_stored_config(directory, kind), Units(directory / UNITS)
    trained = validate(Identity, config.units, f"{directory / CONFIG_FILE}: config.units")
    if difference := trained.difference(units.identity):
        raise SprachbundError(
            f"{units.directory} is of {difference} than the model was trained with; "
            "copy the model's directory again, whole"
        )
    with torch.device("meta"):
        model: TokenConformer | TokenMbart = family(config, reader_for(config, units))
    weights = read_weights(directory / WEIGHTS_FILE)
    check_weights(weights, model.state_dict(), directory)
    model.load_state_dict(weights, assign=True)
    return model.eval()
