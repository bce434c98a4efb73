"""Conformers with token input as directories: config.json, model.safetensors, card.json, and their units in `units`.

The speech encoder that the units are made of is named by hash and not copied, for it may be large; text is translated
without it.
"""

import json
import shutil
from pathlib import Path

from sprachbund.models.card import Card
from sprachbund.models.tokens.text_input import ReadsTokens
from sprachbund.models.weights import Bits, write_weights
from sprachbund.util.files import atomic_directory, write_text

__all__ = ["save"]


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
UNITS = "units"


def save(model: ReadsTokens, directory: Path, *, bits: Bits = 32, card: Card | None = None) -> None:
    """Write a model directory; the weights come last, so a broken-off writing is not taken for a model.

    Args:
        model: to be written.
        directory: is made if need be.
        bits: of a stored weight.
        card: to lie beside the weights; none is written if None.
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
