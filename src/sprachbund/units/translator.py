"""A model with token input together with the units that it reads: made anew, or loaded from its directory."""

from pathlib import Path

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.token_conformer import TokenConfig, TokenConformer
from sprachbund.models.token_conformer.directory import UNITS, WEIGHTS_FILE, read_config
from sprachbund.models.weights import read_weights
from sprachbund.units.directory import Identity, Units
from sprachbund.units.reader import UnitReader


def reader_for(config: TokenConfig, units: Units) -> UnitReader:
    """Reads with units as a model wants it."""
    return UnitReader(units, config.ratio, keep_repeats=config.keep_repeats)


def make(config: TokenConfig, units: Units) -> TokenConformer:
    """A model with random weights that reads with units, whose name and sizes go into its configuration."""
    source = units.config.source
    window_s = min(config.max_window_s, source.window_s)
    known = {"units": units.identity.model_dump(), "frame_s": source.frame_s, "max_window_s": window_s}
    complete = config.model_copy(update=known)
    return TokenConformer(complete, reader_for(complete, units))


def load(directory: Path) -> TokenConformer:
    """Load a model for inference, on the CPU in fp32; its speech encoder is loaded when speech is first read.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    config, units = read_config(directory), Units(directory / UNITS)
    trained = Identity.model_validate(config.units)
    if units.identity != trained:
        raise SprachbundError(
            f"{units.directory} holds other units ({units.identity.kmeans[:12]}) than the model was trained with "
            f"({trained.kmeans[:12]}); copy the model's directory again, whole"
        )
    with torch.device("meta"):
        model = TokenConformer(config, reader_for(config, units))
    weights = read_weights(directory / WEIGHTS_FILE)
    for name, value in model.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            seen = tuple(weights[name].shape) if name in weights else "missing"
            raise SprachbundError(
                f"{directory}: {name} is {seen}, config.json asks for {tuple(value.shape)}; copy the model again"
            )
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    return model.eval()
