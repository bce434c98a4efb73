"""The feed-forward of every layer, in one place, so that whatever splits, shrinks or measures it works everywhere.

Shapes: B rows, T positions, D width, F hidden width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["silu", "gelu", "relu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True, kw_only=True)
class Route:
    """The languages of each row, as numbers; -1 where there is none or it is unknown.

    Attributes:
        source: (B,) of the speech; None where nobody asks.
        target: (B,) of the text; None where nobody asks, as in an encoder.
    """

    source: Tensor | None = None
    target: Tensor | None = None

    def take(self, rows: Tensor) -> "Route":
        """The languages of the rows at the indices `rows` (b,)."""
        source, target = (None if ids is None else ids[rows] for ids in (self.source, self.target))
        return Route(source=source, target=target)


class Branch(nn.Module):
    """Expansion, activation, contraction: a feed-forward without its norm."""

    def __init__(self, width: int, hidden_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), normed, to (B, T, D)."""
        return self.contract(ACTIVATIONS[self.activation](self.expand(x)))


class FeedForward(nn.Module):
    """Layer norm, expansion, activation, contraction; the residual around it is the layer's.

    With SiLU it is the conformer's (arXiv 2005.08100, section 2.1.3), with GELU that of a pre-norm transformer.

    Args:
        width: D.
        hidden_width: F.
        activation: between the two matrices.
    """

    def __init__(self, width: int, hidden_width: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D); every row goes the same way, whatever the route says."""
        return self.contract(ACTIVATIONS[self.activation](self.expand(self.norm(x))))
