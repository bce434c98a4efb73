"""The engines there are, and what of the native one's exactness may be given up for speed; nothing unless asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from sprachbund.errors import SprachbundError
from sprachbund.util.devices import ANY_DEVICE, CPU

EngineChoice = Literal["auto", "native", "native-int4", "torch", "torch-fp32", "torch-bf16", "torch-int8"]
CHOICES: tuple[EngineChoice, ...] = get_args(EngineChoice)
NATIVE: tuple[EngineChoice, ...] = ("native", "native-int4")
ENGINE_DEVICES: dict[EngineChoice, tuple[str, ...]] = {
    engine: (CPU,) if engine in (*NATIVE, "torch-int8") else ANY_DEVICE for engine in CHOICES
}
"""Kinds of devices that an engine computes on; "auto" is plain torch elsewhere than on a CPU."""
MemoryNumbers = Literal["bf16", "int8"]
WeightNumbers = Literal["int8", "int4"]


class EngineWarning(UserWarning):
    """An engine was asked for that is slower here than plain torch."""


@dataclass(frozen=True, kw_only=True)
class NativeOptions:
    """Options of the native engine.

    Attributes:
        memory: numbers in which the decoder keeps the keys and values of the speech. "int8" halves, nearly, what a
            token reads of them.
        weights: numbers of the linear layers of decoder and encoder. "int4" are codes of k-quant
            (`sprachbund.nn.quantized`): 4.6 bits a weight in place of 8. Convolutions and the output
            matrix, which is the embeddings too, have 8 bits in any case.

    Raises:
        SprachbundError: a value that is not offered.
    """

    memory: MemoryNumbers = "bf16"
    weights: WeightNumbers = "int8"

    def __post_init__(self) -> None:
        for name, offered in (("memory", get_args(MemoryNumbers)), ("weights", get_args(WeightNumbers))):
            if (value := vars(self)[name]) not in offered:
                raise SprachbundError(f"{name}={value!r} is not offered; choose {' or '.join(offered)}")
