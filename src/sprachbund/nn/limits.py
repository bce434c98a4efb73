"""Limits of the sizes of a model's parts: the values of a configuration are checked against them first.

The limits are several times what any published model of these kinds has. They are there so that a damaged or hostile
configuration is refused with the name of its field, before anything is built of it: layers are built one by one even
where they take no memory. A number has to be one: texts, true and false, and fractions where whole numbers belong are
refused too.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class Limit:
    """Whole numbers from `least` to `most`."""

    least: int
    most: int

    def holds(self, value: object) -> bool:
        """Whether a value is such a number."""
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


WIDTH = Limit(1, 65_536)
"""Width of states, embeddings and channels, of an LSTM or of a joint network."""
INNER_WIDTH = Limit(1, 2**20)
"""Hidden width of a feed-forward or an expert."""
LAYERS = Limit(0, 512)
HEADS = Limit(1, 1024)
KERNEL = Limit(1, 4096)
"""Frames of a convolution."""
MEL_BINS = Limit(1, 1024)
POSITIONS = Limit(1, 65_536)
"""Rows of a table of positions, and tokens of a row."""
PRUNE_RANGE = Limit(2, 65_536)
"""Tokens of a text that one frame may write."""
VOCABULARY = Limit(1, 2**21)
FRAMES = Limit(0, 65_536)
"""Frames of context."""
EXPERTS = Limit(1, 4096)


def _field(limit: Limit, least: int | None = None) -> object:
    return Field(strict=True, ge=limit.least if least is None else least, le=limit.most)


Width = Annotated[int, _field(WIDTH)]
InnerWidth = Annotated[int, _field(INNER_WIDTH)]
Layers = Annotated[int, _field(LAYERS)]
SomeLayers = Annotated[int, _field(LAYERS, least=1)]
Heads = Annotated[int, _field(HEADS)]
Kernel = Annotated[int, _field(KERNEL)]
MelBins = Annotated[int, _field(MEL_BINS)]
Positions = Annotated[int, _field(POSITIONS)]
PruneRange = Annotated[int, _field(PRUNE_RANGE)]
Vocabulary = Annotated[int, _field(VOCABULARY)]
Frames = Annotated[int, _field(FRAMES)]
Experts = Annotated[int, _field(EXPERTS)]
Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
"""Such as dropout."""
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""Weight of a loss."""
