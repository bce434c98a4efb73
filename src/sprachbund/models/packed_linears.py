"""Linear layers that a model directory holds packed: what config.json says of them, and room for them in a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import is_packed
from sprachbund.nn.block_linear import PACKED, linear_names, make_room, packed_layers
from sprachbund.nn.block_quantization import BlockBits

KEY = "packed"
"""Of config.json."""


class PackedLinears(BaseModel):
    """How all packed linear layers of a model are packed; which they are, the names of the weights tell.

    Attributes:
        bits: of a code.
        block: inputs that share a scale.
        symmetric: whether no zero points are stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: BlockBits
    block: int = 32
    symmetric: bool = False


def packed_linears(model: nn.Module) -> PackedLinears | None:
    """How a model's linear layers are packed; None where none is. Raises SprachbundError where they differ."""
    layers = packed_layers(model).values()
    found = {(layer.bits, layer.block, layer.zeros is None) for layer in layers}
    if len(found) > 1:
        seen = " and ".join(str(each[0]) for each in sorted(found))
        raise SprachbundError(
            f"linear layers are packed in different ways ({seen} bits); a directory holds one"
        )
    if not found:
        return None
    bits, block, symmetric = found.pop()
    return PackedLinears.model_validate({"bits": bits, "block": block, "symmetric": symmetric})


def read_packed_linears(directory: Path) -> PackedLinears | None:
    """What the config.json of a model directory says; None for one without packed layers."""
    try:
        config: Any = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return PackedLinears.model_validate(config[KEY]) if config.get(KEY) else None
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise SprachbundError(f"{directory / 'config.json'}: {KEY}: {reason}; copy it again") from error


def make_packed_room(model: nn.Module, packed: PackedLinears, weights: Mapping[str, Tensor]) -> None:
    """Make a model on the meta device ready for weights of which some are packed."""
    there = {name.rpartition(".")[0] for name in weights if is_packed(name, weights)}
    names = [name for name in linear_names(model) if name in there]
    make_room(model, names, bits=packed.bits, block=packed.block, symmetric=packed.symmetric)


def check_packed(weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise a SprachbundError for scales that no quantization gives, as damaged files have them."""
    for name, value in weights.items():
        if name.endswith(f".{PACKED[1]}") and is_packed(name, weights):
            sound = value.is_floating_point() and bool((value.isfinite() & (value > 0)).all())
            if not sound:
                raise SprachbundError(f"{where}: {name} holds scales that are not above 0; copy it again")
