"""The feed-forward of every layer, in one class, so that whatever splits, shrinks or measures it works everywhere.

Shapes: B rows, T positions, D width, F hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "NO_GROUP",
    "UNPLANNED",
    "Route",
    "Side",
    "SplitFeedForward",
    "is_split",
    "splits_in",
]


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
    """Expansion, activation, dropout while training, contraction: a feed-forward without its norm."""

    def __init__(self, width: int, hidden_width: int, activation: Activation, dropout: float = 0.0) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.dropout = dropout
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D), normed, to (B, T, D)."""
        hidden = ACTIVATIONS[self.activation](self.expand(x))
        return self.contract(F.dropout(hidden, self.dropout, self.training))


class FeedForward(nn.Module):
    """Layer norm, expansion, activation, contraction; the residual around it is the layer's.

    With SiLU it is the conformer's (arXiv 2005.08100, section 2.1.3), with GELU that of a pre-norm transformer.

    Args:
        width: D.
        hidden_width: F.
        activation: activation between the two matrices.
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


# A feed-forward split into a branch that all rows share and private ones for groups of languages.
#
# The split module of arXiv 2603.25836: y(x; l) = F_shared(norm(x)) + F_g(l)(norm(x)). Which language
# belongs to which group is a table of numbers; tags are unknown here. Shapes: B rows, T positions, D
# width, F hidden width, G groups, S source languages, U target languages.

Side = Literal["source", "target", "pair"]
NO_GROUP = -1
"""A row of no language (nobody speaks, or it is not known yet): it goes through the shared branch alone."""
UNPLANNED = -2
"""A language that no group holds; a row of it is an error."""


class SplitFeedForward(nn.Module):
    """One shared branch, and a private one for each group; takes the place of a `FeedForward`.

    Every row passes the shared branch and that of its own group, nothing else, and only the groups present are
    computed: a branch without rows has no gradient at all. Each branch has its own biases.

    Args:
        width: D.
        shared_width: hidden width of the shared branch.
        private_widths: hidden width of each group's branch.
        table: group of each language: (S,) or (U,) for the sides "source" and "target", (S, U) for "pair";
            `UNPLANNED` where there is none.
        side: language of a row that chooses its group.
        activation: inside the branches.
        dropout: dropout of the branches' hidden units, while training.
    """

    table: Tensor

    def __init__(
        self,
        width: int,
        shared_width: int,
        private_widths: Sequence[int],
        table: Tensor,
        *,
        side: Side = "source",
        activation: Activation = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.side: Side = side
        self.norm = nn.LayerNorm(width)
        self.shared = Branch(width, shared_width, activation, dropout)
        self.private = nn.ModuleList(Branch(width, hidden, activation, dropout) for hidden in private_widths)
        # One entry more, so that the number -1, no language, finds "no group" by counting from the end.
        padded = torch.nn.functional.pad(table, (0, 1) * table.ndim, value=NO_GROUP)
        self.register_buffer("table", padded, persistent=False)

    def groups(self, route: Route | None) -> Tensor:
        """The group (B,) of each row, `NO_GROUP` for rows of no language.

        Raises:
            ValueError: the route lacks what decides, or names a language without a group.
        """
        sides = ("source", "target") if self.side == "pair" else (self.side,)
        known = {} if route is None else {"source": route.source, "target": route.target}
        ids = [known.get(side) for side in sides]
        if any(i is None for i in ids):
            raise ValueError(
                f"a feed-forward split by {self.side} needs the {' and '.join(sides)} of every row"
            )
        groups = self.table[tuple(ids)]
        if bool((groups == UNPLANNED).any()):
            raise ValueError(f"no group holds the {self.side} of some rows; check the languages beforehand")
        return groups

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        """(B, T, D) to (B, T, D), each row by its own branch. Raises ValueError as `groups` does."""
        groups = self.groups(route)
        if groups.shape[0] != x.shape[0]:
            raise ValueError(f"a route of {groups.shape[0]} rows does not fit {x.shape[0]}")
        normed = self.norm(x)
        y = self.shared(normed)
        for group in sorted(set(groups.tolist()) - {NO_GROUP}):
            rows = (groups == group).nonzero().flatten()
            y = y.index_add(0, rows, self.private[group](normed[rows]))
        return y


def splits_in(module: nn.Module) -> list[SplitFeedForward]:
    """The split feed-forwards somewhere inside a module, in its order."""
    return [part for part in module.modules() if isinstance(part, SplitFeedForward)]


def is_split(module: nn.Module) -> bool:
    """Whether a module holds a split feed-forward."""
    return any(isinstance(part, SplitFeedForward) for part in module.modules())
