"""What of the native engine's exactness may be given up for speed, each by its name; nothing unless asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from sprachbund.errors import SprachbundError

MemoryNumbers = Literal["bf16", "int8"]


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """Options of the native engine.

    Attributes:
        memory: numbers in which the decoder keeps the keys and values of the speech. "int8" halves, nearly, what a
            token reads of them.

    Raises:
        SprachbundError: a value that is not offered.
    """

    memory: MemoryNumbers = "bf16"

    def __post_init__(self) -> None:
        if self.memory not in get_args(MemoryNumbers):
            raise SprachbundError(
                f"memory={self.memory!r} is not offered; choose {' or '.join(get_args(MemoryNumbers))}"
            )
