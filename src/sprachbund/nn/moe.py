"""A mixture of experts whose experts stand in groups, one for each language or for several.

The layer of the projector of arXiv 2511.10670, whose figure alone is public: the formulas here are a reconstruction.
One flat router sees all experts; the groups matter to the losses, and where only some of them are allowed. A single
group is a plain mixture (the balance loss is then that over all experts), a single expert a dense feed-forward, and
as many experts chosen as there are is the dense mixture: the baselines need no layer of their own.

Shapes: N rows (the valid frames of B utterances, without their padding to P), D width, F hidden width, K experts
(K = G n, those of a group side by side), G groups, n experts of a group, C chosen experts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.nn.feed_forward import Activation, Branch


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The decision of a router for each row.

    Attributes:
        log_probs: fp32 (N, K) over all experts; minus infinity for those of groups that are not allowed.
        experts: (N, C) chosen, the likeliest first.
        weights: (N, C), of the chosen, adding up to 1.
        num_groups: G.
    """

    log_probs: Tensor
    experts: Tensor
    weights: Tensor
    num_groups: int

    def group_log_probs(self) -> Tensor:
        """Log of P_g (N, G): the mass of every group."""
        return self.log_probs.unflatten(1, (self.num_groups, -1)).logsumexp(-1)

    def select(self, rows: Tensor) -> Routing:
        """Routing of the rows where `rows` (N,) is True, alone."""
        return Routing(
            log_probs=self.log_probs[rows],
            experts=self.experts[rows],
            weights=self.weights[rows],
            num_groups=self.num_groups,
        )


class Router(nn.Module):
    """z = W LN(x); p = softmax(z) over all experts; the C likeliest are chosen, their weights p_e / sum of p.

    With a context, z = W (LN(x) + conv(LN(x))): a convolution over each channel reads the neighbours of a row, from
    which the language of a moment is easier to tell. Experts still see a row alone. The router always computes in
    fp32: in 16 bits near ties would fall another way than in training.

    Args:
        width: D.
        num_groups: G.
        group_size: n.
        num_chosen: C.
        context: neighbours that are read on each side of a row; none beyond its utterance.

    Raises:
        ValueError: C is not between 1 and K.
    """

    def __init__(
        self, width: int, *, num_groups: int, group_size: int, num_chosen: int, context: int = 0
    ) -> None:
        super().__init__()
        self.num_groups, self.num_chosen = num_groups, num_chosen
        num_experts = num_groups * group_size
        if not 1 <= num_chosen <= num_experts:
            raise ValueError(f"{num_chosen} experts cannot be chosen of {num_experts}")
        self.score = nn.Linear(width, num_experts, bias=False)
        self.context = nn.Conv1d(width, width, 2 * context + 1, groups=width, bias=False) if context else None

    def forward(self, normed: Tensor, allowed: Tensor | None = None, valid: Tensor | None = None) -> Routing:
        """Route rows (N, D), normed.

        Where fewer experts are allowed than are chosen, the weights of the others are 0.

        Args:
            normed: rows (N, D), those of an utterance one after the other.
            allowed: boolean (N, G), the groups whose experts may be chosen, one at least; all if None.
            valid: boolean (B, P), the N frames of padded utterances that the rows are; those of a single one if None.
        """
        with torch.autocast(normed.device.type, enabled=False):
            rows = normed.float()
            if self.context is not None:
                rows = rows + self._neighbours(self.context, rows, valid)
            scores = F.linear(rows, self.score.weight.float())
        if allowed is not None:
            group_size = scores.shape[1] // self.num_groups
            scores = scores.masked_fill(~allowed.repeat_interleave(group_size, dim=1), -torch.inf)
        chosen = scores.topk(self.num_chosen, dim=1)
        return Routing(
            log_probs=scores.log_softmax(-1),
            experts=chosen.indices,
            weights=chosen.values.softmax(-1),
            num_groups=self.num_groups,
        )

    def _neighbours(self, context: nn.Conv1d, rows: Tensor, valid: Tensor | None) -> Tensor:
        """The convolution (N, D) of rows, each utterance by itself."""
        if valid is None:
            valid = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
        padded = rows.new_zeros(*valid.shape, rows.shape[1])
        padded[valid] = rows
        # The module's own pass would compute in the dtype of its weights, which may be of 16 bits.
        out = F.conv1d(padded.mT, context.weight.float(), padding="same", groups=context.groups)
        return out.mT[valid]


class Experts(nn.Module):
    """Expansion, activation, contraction, K times; every row goes through those chosen for it and no other.

    Rows are sorted by expert, so that each expert multiplies once, however many rows it has: there is no capacity,
    and no row is dropped. An expert that nobody chose is not computed and has no gradient.
    """

    def __init__(self, width: int, hidden_width: int, num_experts: int, activation: Activation) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(width, hidden_width, activation) for _ in range(num_experts))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Rows (N, D), those chosen for them and their weights (N, C) to the weighted sums (N, D).

        Args:
            x: (N, D).
            experts: numbers (N, C) of the experts chosen for each row.
            weights: (N, C) of their outputs.
        """
        order = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=len(self.branches)).tolist()
        # One copy for each choice first: rows are then taken once each, and on GPUs too gradients come out the same.
        copies = x[:, None].expand(-1, experts.shape[1], -1).flatten(0, 1)
        parts = copies.index_select(0, order).split(counts)
        done = [branch(part) for branch, part in zip(self.branches, parts, strict=True) if len(part)]
        sorted_out = torch.cat(done) if done else copies
        out = sorted_out.index_select(0, order.argsort()).unflatten(0, experts.shape)
        return (out * weights.to(out.dtype)[..., None]).sum(1)


class MixtureOfExperts(nn.Module):
    """One pre-norm layer: x + sum over the chosen of w_e Expert_e(LN(x)).

    Args:
        width: D.
        hidden_width: F of every expert.
        num_groups: G.
        group_size: n.
        num_chosen: C.
        context: neighbours on each side of a row that the router reads.
        activation: activation of the experts.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        *,
        num_groups: int,
        group_size: int,
        num_chosen: int,
        context: int = 0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = Router(
            width, num_groups=num_groups, group_size=group_size, num_chosen=num_chosen, context=context
        )
        self.experts = Experts(width, hidden_width, num_groups * group_size, activation)

    def forward(
        self, x: Tensor, allowed: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """(N, D) to (N, D), and where the rows went.

        Args:
            x: rows (N, D), those of an utterance one after the other.
            allowed: groups (N, G) whose experts may be chosen, as in `Router`.
            valid: boolean (B, P), the frames that the rows are, as in `Router`.
        """
        normed = self.norm(x)
        routing = self.router(normed, allowed, valid)
        return x + self.experts(normed, routing.experts, routing.weights), routing


def has_experts(module: nn.Module) -> bool:
    """Whether a module holds a mixture, whose experts may go without rows."""
    return any(isinstance(part, Experts) for part in module.modules())


def language_losses(routing: Routing, groups: Tensor) -> Tensor:
    """-log of the mass on the groups that a row may go to, (N,): L_lang before its mean over frames.

    Args:
        routing: routing of N rows.
        groups: boolean (N, G), one True at least: the groups of the languages that the utterance, or the frame, is in.
    """
    members = groups.repeat_interleave(routing.log_probs.shape[1] // routing.num_groups, dim=1)
    # Over experts at once: a sum over a group that is not allowed, minus infinity alone, would have no gradient.
    return -routing.log_probs.masked_fill(~members, -torch.inf).logsumexp(-1)


def balance_loss(routing: Routing) -> Tensor:
    """Balance loss of the experts inside the groups, a scalar: 1 when all are used evenly, n when one takes all.

    The mean over the groups present of n sum_j f_gj Pbar_gj, over rows for which an expert of g was chosen: f_gj is the
    share of j among the choices inside g, Pbar_gj the mean of p_gj / P_g. It never moves mass between groups: it has
    no gradient along shifts of all logits of a group. 0 without rows.
    """
    num_groups, num_experts = routing.num_groups, routing.log_probs.shape[1]
    group_size = num_experts // num_groups
    choices = _choices(routing).unflatten(1, (num_groups, group_size))
    inside = choices.sum(-1, keepdim=True) > 0  # (N, G, 1)
    scores = routing.log_probs.unflatten(1, (num_groups, group_size))
    # What is not inside has no finite logit where its group is not allowed.
    within = torch.where(inside, scores, 0.0).softmax(-1) * inside
    mean = within.sum(0) / inside.sum(0).clamp(min=1)
    counts = choices.sum(0)
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    present = inside.any(0)[:, 0]
    per_group = group_size * (share * mean).sum(-1)
    return (per_group * present).sum() / present.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Counts of the use of experts and groups; loads of several batches add up with +.

    Attributes:
        num_rows: N.
        choices: (K,) times that each expert was chosen.
        mass: (G,) sum of P_g.
        first: (G,) rows in which the group has the most mass.
        entropy: sum of the entropies of p, in nats.
    """

    num_rows: Tensor
    choices: Tensor
    mass: Tensor
    first: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, routing: Routing) -> Load:
        """The load of one routing."""
        log_probs = routing.log_probs.detach()
        groups = routing.group_log_probs().detach()
        return cls(
            num_rows=torch.tensor(len(log_probs), device=log_probs.device),
            choices=_choices(routing).sum(0),
            mass=groups.exp().sum(0),
            first=groups.argmax(-1).bincount(minlength=routing.num_groups),
            entropy=torch.special.entr(log_probs.exp()).sum(),
        )

    def __add__(self, other: Load) -> Load:
        names = [field.name for field in fields(self)]
        return Load(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def shares(self) -> Tensor:
        """(K,) share of the choices that each expert got."""
        return self.choices / self.choices.sum().clamp(min=1)

    @property
    def unused(self) -> list[int]:
        """Experts that nobody chose."""
        return (self.choices == 0).nonzero().flatten().tolist()


def _choices(routing: Routing) -> Tensor:
    """(N, K): 1 where an expert was chosen, with weight."""
    weighty = (routing.weights > 0).to(routing.log_probs.dtype)
    return torch.zeros_like(routing.log_probs).scatter(1, routing.experts, weighty.detach())
