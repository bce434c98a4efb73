"""What a stream remembers between chunks, and how far its frames see: values without arithmetic.

Shapes: B rows, L layers, H heads, P frames of the past, D width, K kernel size, c channels, m bins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SUBSAMPLING = 8
"""Mel frames of a frame."""

NUM_HALVINGS = 3
MARGIN = 2  # input frames that a convolution of kernel 3 sees before its own


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How far a frame sees (arXiv 2312.17279, section 3.2).

    Attributes:
        left: frames of the past, at most.
        right: frames after it in its chunk; the first of a chunk sees all of these, the last none.
    """

    left: int = 70
    right: int = 13

    def __post_init__(self) -> None:
        if self.right < 0 or self.left < self.chunk:
            raise ValueError(
                f"a tier of {self.left} frames back and {self.right} ahead; back needs a whole chunk"
            )

    @property
    def chunk(self) -> int:
        """Frames of a chunk."""
        return self.right + 1

    @property
    def past(self) -> int:
        """Frames of the past that are kept: whole chunks."""
        return self.left // self.chunk * self.chunk


@dataclass(frozen=True, kw_only=True)
class LayerPast:
    """Keys and values (B, H, P, D/H) and convolution inputs (B, D, K - 1) of one layer."""

    keys: Tensor
    values: Tensor
    convolution: Tensor


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What rows remember of their streams. It is never changed in place.

    Attributes:
        stem: last two input frames of every convolution of the subsampling, each (B, c, 2, m).
        keys: (B, L, H, P, D/H), the newest last.
        values: (B, L, H, P, D/H).
        convolution: (B, L, D, K - 1) inputs of the depthwise convolutions.
        num_past: (B,) how many of the P are real.
    """

    stem: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor
    convolution: Tensor
    num_past: Tensor

    def take(self, rows: Tensor) -> Self:
        """The rows whose indices are given (b,), in that order."""
        return self.from_tensors({name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.from_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, ready for `safetensors.torch.save`."""
        stem = {f"stem.{n}": tensor for n, tensor in enumerate(self.stem)}
        return {
            **stem,
            "keys": self.keys,
            "values": self.values,
            "convolution": self.convolution,
            "num_past": self.num_past,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`.

        Raises:
            ValueError: naming what is missing or too much.
        """
        names = {f"stem.{n}" for n in range(NUM_HALVINGS)} | {"keys", "values", "convolution", "num_past"}
        if different := names ^ set(tensors):
            raise ValueError(f"{', '.join(sorted(different))}: too much or missing in an encoder's state")
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith("stem.")}
        return cls(stem=tuple(tensors[f"stem.{n}"] for n in range(NUM_HALVINGS)), **others)

    @classmethod
    def stack(cls, states: Sequence["StreamState"]) -> Self:
        """Rows of several streams as one batch, in order."""
        parts = [state.tensors() for state in states]
        return cls.from_tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
