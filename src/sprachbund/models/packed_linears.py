"""Linear layers that a model directory holds packed: what config.json says of them, and room for them in a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import is_packed
from sprachbund.nn.block_linear import PACKED, linear_names, make_room, packed_layers
from sprachbund.nn.block_quantization import BlockBits
from sprachbund.nn.limits import WIDTH, Flag
from sprachbund.util.files import read_object, validate

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
    block: int = Field(default=32, strict=True, ge=8, le=WIDTH.most)
    symmetric: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.block % 8:
            raise ValueError(f"block is {self.block}, which is no multiple of 8")
        return self


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
    """What the config.json of a model directory says; None for one without packed layers.

    Raises:
        SprachbundError: it is not JSON, or says what cannot be.
    """
    path = directory / "config.json"
    said = read_object(path).get(KEY)
    return None if said is None else validate(PackedLinears, said, f"{path}: {KEY}")


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
