"""Medusa heads: each guesses, from the decoder's last hidden state alone, one token further ahead.

The baseline that a parasite has to beat (arXiv 2401.10774, section 2.1): the same number of weights, trained the
same way. Shapes: K heads, D width, V vocabulary.
"""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.limits import Heads, SomeLayers, Width

PARASITE_BLOCK_SQUARES = 14
"""Squares of D in the matrices of a parasite's block: two of attention, four crossing, eight feeding forward."""


@dataclass(frozen=True, kw_only=True)
class MedusaShape:
    """Sizes of Medusa heads.

    Attributes:
        width: D.
        num_heads: K, tokens guessed ahead.
        num_blocks: residual blocks of a head, D^2 weights each.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    width: Width
    num_heads: Heads
    num_blocks: SomeLayers

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_blocks < 1:
            raise ValueError(f"{self.num_heads} heads of {self.num_blocks} blocks; give at least one of each")

    @classmethod
    def like_parasite(cls, *, width: int, num_heads: int, parasite_blocks: int) -> "MedusaShape":
        """As many weights in matrices as a parasite of so many blocks has, or as near below as blocks come."""
        num_blocks = max(1, PARASITE_BLOCK_SQUARES * parasite_blocks // num_heads)
        return cls(width=width, num_heads=num_heads, num_blocks=num_blocks)


class _Residual(nn.Module):
    """x + SiLU(W x); starts as x, so that a head starts as the decoder's own output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        if not self.linear.weight.is_meta:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class MedusaHeads(nn.Module):
    """K stacks of residual blocks between the decoder's last hidden state and its output matrix."""

    def __init__(self, shape: MedusaShape) -> None:
        super().__init__()
        self.shape = shape
        self.stacks = nn.ModuleList(
            nn.Sequential(*(_Residual(shape.width) for _ in range(shape.num_blocks)))
            for _ in range(shape.num_heads)
        )

    def forward(self, hidden: Tensor, count: int | None = None) -> Tensor:
        """Hidden states (K, ..., D), of the first `count` heads, out of the decoder's, (..., D), behind its last norm.

        Entry k stands for the token k + 1 after the one that the decoder itself predicts there.
        """
        return torch.stack([stack(hidden) for stack in islice(self.stacks, count)])

    def logits(self, decoder: TextDecoder, hidden: Tensor, count: int | None = None) -> Tensor:
        """Logits (K, ..., V) through the decoder's output matrix."""
        return decoder.outputs(self(hidden, count))
