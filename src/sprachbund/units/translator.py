"""A model with token input together with the units that it reads: made anew, or loaded from its directory."""

from pathlib import Path
from typing import Any, TypeVar

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.directory import family_of
from sprachbund.models.token_conformer import ReadsTokens, ReadTokens, TokenConfig, TokenConformer
from sprachbund.models.token_conformer.directory import CONFIG_FILE, UNITS, WEIGHTS_FILE, read_config
from sprachbund.models.token_mbart import MbartConfig, TokenMbart
from sprachbund.models.weights import check_weights, read_weights
from sprachbund.units.directory import Identity, Units
from sprachbund.units.reader import UnitReader
from sprachbund.util.files import validate

C = TypeVar("C", bound=ReadTokens)
FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    TokenConformer.name: (TokenConfig, TokenConformer),
    TokenMbart.name: (MbartConfig, TokenMbart),
}
"""Name to configuration and model."""


def reader_for(config: ReadTokens, units: Units) -> UnitReader:
    """Reads with units as a model wants it."""
    return UnitReader(units, config.ratio, mark_repeats=config.mark_repeats, keep_repeats=config.keep_repeats)


def named(config: C, units: Units) -> C:
    """The configuration with the name and the sizes of the units."""
    source = units.config.source
    window_s = min(config.max_window_s, source.window_s)
    known = {"units": units.identity.model_dump(), "frame_s": source.frame_s, "max_window_s": window_s}
    return config.model_copy(update=known)


def make(config: TokenConfig, units: Units) -> TokenConformer:
    """A model with random weights that reads with units, whose name and sizes go into its configuration."""
    complete = named(config, units)
    return TokenConformer(complete, reader_for(complete, units))


def load(directory: Path) -> ReadsTokens:
    """Load a model for inference, on the CPU in fp32; its speech encoder is loaded when speech is first read.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    kind, family = FAMILIES[family_of(directory)]
    config, units = read_config(directory, kind), Units(directory / UNITS)
    trained = validate(Identity, config.units, f"{directory / CONFIG_FILE}: config.units")
    if found := trained.difference(units.identity):
        raise SprachbundError(
            f"{units.directory} is of {found} than the model was trained with; copy the model's directory again, whole"
        )
    with torch.device("meta"):
        model: ReadsTokens = family(config, reader_for(config, units))
    weights = read_weights(directory / WEIGHTS_FILE)
    check_weights(weights, model.state_dict(), directory)
    model.load_state_dict(weights, assign=True)
    return model.eval()
