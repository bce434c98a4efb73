"""A sharing plan carried out: feed-forwards split in place, their branches started from the weights that were there.

Three starts, arXiv 2603.25836: the singular directions of the linear part ("svd", as published), the hidden units
themselves ("neuron", ours), and drawn weights ("random", the ablation). Shapes: D width, F hidden width, G groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.models.splitting import feed_forward_of, split_feed_forwards
from sprachbund.nn.feed_forward import Branch, FeedForward, SplitFeedForward
from sprachbund.research.gradient_sharing.gradients import (
    GradientExample,
    GradientRow,
    check_decoder,
    choose_rows,
    decoder_loss,
)
from sprachbund.util.progress import Progress, nothing

Importance = Mapping[str, Mapping[str, Tensor]]
"""Module to language (or pair) to the importance (F,) of its hidden units."""


@torch.no_grad()
def apply_plan(model: Any, plan: SharingPlan, *, importance: Importance | None = None) -> None:
    """Split a model's feed-forwards as a plan says, in place; the same plan gives the same weights.

    Norms are kept as they are. Nothing is changed when the plan does not fit.

    Args:
        model: any family whose feed-forwards the plan names.
        plan: modules to split, with groups and widths.
        importance: importance of the hidden units of every module that starts by "neuron"; see
            `sprachbund.research.gradient_sharing.surgery`.

    Raises:
        SprachbundError: naming the module that does not fit and why, or whose importance is missing.
    """
    old = {split.module: feed_forward_of(model, split.module) for split in plan.splits}
    if model.sharing_plan is not None:
        raise SprachbundError("this model is split already; apply the plan to the model it was before")
    ranked = {s.module: _ranked(s, old[s.module], importance) for s in plan.splits if s.start == "neuron"}
    split_feed_forwards(model, plan)
    for split in plan.splits:
        new = model.get_submodule(split.module)
        new.norm.load_state_dict(old[split.module].norm.state_dict())
        if split.start == "neuron":
            _start_by_neuron(new, old[split.module], *ranked[split.module])
        elif split.start == "svd":
            _start_by_svd(new, old[split.module], split)
        else:
            _start_at_random(new, split.seed)
        new.train(model.training)


def _ranked(split: Split, old: FeedForward, importance: Importance | None) -> tuple[Tensor, list[Tensor]]:
    """Importance (F,) of the units for all languages together, and for each group.

    Languages count alike: each one's importances are brought to sum 1.
    """
    by_tag = (importance or {}).get(split.module, {})
    missing = [tag for group in split.groups for tag in group if tag not in by_tag]
    if missing:
        raise SprachbundError(
            f"{split.module} starts by 'neuron', but how much its units matter to {', '.join(missing)} is not known; "
            "give data to measure it on, or start by 'svd'"
        )
    width = old.expand.out_features
    shares = {}
    for tag in (tag for group in split.groups for tag in group):
        value = by_tag[tag].detach().double().cpu()
        if value.shape != (width,) or not bool(value.isfinite().all()):
            raise SprachbundError(
                f"{split.module}: the importance for {tag} is not {width} finite numbers; measure it on this model"
            )
        shares[tag] = value / value.sum().clamp(min=torch.finfo(value.dtype).tiny)
    groups = [torch.stack([shares[tag] for tag in group]).mean(0) for group in split.groups]
    return torch.stack(list(shares.values())).mean(0), groups


def _start_by_neuron(
    new: SplitFeedForward, old: FeedForward, overall: Tensor, groups: Sequence[Tensor]
) -> None:
    """Units that matter most to all languages become the shared branch; each group gets the best of the rest.

    What no group takes is lost, and what several take they all have. With one group nothing is lost: the function
    stays what it was.
    """
    order = overall.argsort(descending=True, stable=True)
    num_shared = new.shared.expand.out_features
    _take_units(new.shared, old, order[:num_shared])
    new.shared.contract.bias.copy_(old.contract.bias)
    rest = order[num_shared:].sort().values
    for branch, group in zip(_branches(new), groups, strict=True):
        best = rest[group[rest].argsort(descending=True, stable=True)]
        _take_units(branch, old, best[: branch.expand.out_features])
        branch.contract.bias.zero_()


def _take_units(branch: Branch, old: FeedForward, units: Tensor) -> None:
    units = units.to(old.expand.weight.device)
    branch.expand.weight.copy_(old.expand.weight[units])
    branch.expand.bias.copy_(old.expand.bias[units])
    branch.contract.weight.copy_(old.contract.weight[:, units])


def _start_by_svd(new: SplitFeedForward, old: FeedForward, split: Split) -> None:
    """W = (W2 W1)^T: its first int(D rho) directions are shared, the rest goes to every group by its energy.

    Directions are split by the root of their singular values. Inner biases are the old ones, in their order: first
    those of the shared branch, then those of the rest. Published so; not function preserving, since an activation
    lies between the matrices. A unit beyond the directions has drawn weights in and none out: it changes nothing at
    first, and gets a gradient. With zeros on both sides it would stay zero for ever.
    """
    equivalent = (old.contract.weight.double() @ old.expand.weight.double()).T
    num_shared = int(equivalent.shape[0] * split.shared_ratio + 1e-9)
    generator = torch.Generator().manual_seed(split.seed)
    shared = _set_directions(new.shared, equivalent, num_shared, generator)
    new.shared.contract.bias.copy_(old.contract.bias)
    taken = new.shared.expand.out_features
    new.shared.expand.bias.copy_(old.expand.bias[:taken])
    for branch, share in zip(_branches(new), _energies(split), strict=True):
        width = branch.expand.out_features
        _set_directions(branch, share * (equivalent - shared), width, generator)
        branch.contract.bias.zero_()
        branch.expand.bias.copy_(old.expand.bias[taken : taken + width])
        taken += width


def _energies(split: Split) -> Sequence[float]:
    """The share of each group of the gradients' energy; the share of its width, where other groups were measured."""
    measured: dict[frozenset[str], float] = {}
    if split.evidence is not None and len(split.evidence.groups) == len(split.evidence.energy_shares):
        measured = dict(zip(map(frozenset, split.evidence.groups), split.evidence.energy_shares, strict=True))
    groups = [frozenset(group) for group in split.groups]
    # A plan may have been changed by hand: groups put in another order are those that were measured, others are not.
    return [measured[group] for group in groups] if measured.keys() == set(groups) else split.private_shares


def _set_directions(branch: Branch, equivalent: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Give a branch the first `count` directions of a matrix (D, D), as many as it has units; what it now is."""
    u, s, vh = torch.linalg.svd(equivalent)
    count = min(count, branch.expand.out_features, len(s))
    root = s[:count].sqrt()
    bound = max(1, branch.expand.in_features) ** -0.5
    drawn = torch.rand(branch.expand.weight.shape, generator=generator)
    branch.expand.weight.copy_((2 * drawn - 1) * bound)
    branch.contract.weight.zero_()
    branch.expand.weight[:count] = (u[:, :count] * root).T.to(branch.expand.weight.dtype)
    branch.contract.weight[:, :count] = (vh[:count].T * root).to(branch.contract.weight.dtype)
    return (u[:, :count] * s[:count]) @ vh[:count]


def _start_at_random(new: SplitFeedForward, seed: int) -> None:
    """Every branch as torch starts linear layers, drawn from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for branch in (new.shared, *_branches(new)):
        for layer in (branch.expand, branch.contract):
            bound = max(1, layer.in_features) ** -0.5
            for parameter in (layer.weight, layer.bias):
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * drawn - 1) * bound)


def _branches(split: SplitFeedForward) -> list[Branch]:
    return [branch for branch in split.private if isinstance(branch, Branch)]


# Importance of hidden units: mean |activation x gradient| (arXiv 1611.06440, equation 8).

Loss = Callable[[Any], Tensor]
"""Loss of a batch of one language, to be differentiated; a sum over target tokens, so that batches add up."""


def collect_importance(
    model: nn.Module,
    batches: Mapping[str, Iterable[Any]],
    modules: Sequence[str],
    *,
    loss: Loss | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Tensor]]:
    """Importance (F,) of the hidden units, by module and language.

    Sums of |activation x gradient| over all positions of all batches, in fp64; only the proportions within a
    language mean something. The model runs without dropout and its weights get no gradients.

    Args:
        model: model with feed-forwards of these names.
        batches: batches of every language (or pair), each holding rows of that one only.
        modules: names of the feed-forwards.
        loss: loss of a batch; `model(batch).total` if not given.
        progress: called with the number of batches done.

    Raises:
        SprachbundError: a module that is no feed-forward, or a language without batches or whose gradient is zero
            or not finite.
    """
    loss = loss or (lambda batch: model(batch).total)
    feed_forwards = {name: feed_forward_of(model, name) for name in modules}
    sums = {
        name: {tag: _zeros(f.expand.out_features) for tag in batches} for name, f in feed_forwards.items()
    }
    done = 0
    with _hidden(model, {name: f.contract for name, f in feed_forwards.items()}) as hidden:
        for tag, own in batches.items():
            for batch in own:
                hidden.clear()
                value = loss(batch)
                gradients = torch.autograd.grad(value, list(hidden.values()), allow_unused=True)
                for (name, activation), gradient in zip(hidden.items(), gradients, strict=True):
                    if gradient is not None:
                        each = (activation.detach() * gradient).abs().double()
                        sums[name][tag] += each.flatten(0, -2).sum(0).cpu()
                done += 1
                progress(done)
            _check(sums, tag)
    return sums


def _zeros(width: int) -> Tensor:
    return torch.zeros(width, dtype=torch.float64)


@contextmanager
def _hidden(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the inputs (B, T, F) of each of `layers` in the passes made inside, with gradients of these alone."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # A gradient can be asked for even where no weight before has one.
            seen[name] = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            return (seen[name],)

        return hook

    training, tracked = model.training, [p for p in model.parameters() if p.requires_grad]
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    model.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield seen
    finally:
        model.train(training)
        for parameter in tracked:
            parameter.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def _check(sums: Mapping[str, Mapping[str, Tensor]], tag: str) -> None:
    for name, by_language in sums.items():
        total = float(by_language[tag].sum())
        if not 0 < total < float("inf"):
            what = "no gradient reaches it" if total == 0 else "its gradients are not finite"
            raise SprachbundError(
                f"{name}: for {tag} {what}; give data in {tag} and a model whose loss on them is finite"
            )


# Importance for the modules and languages of a plan.

BATCH = 8
Key = tuple[str, tuple[str, ...], int]


def measure_importance(
    model: Any,
    plan: SharingPlan,
    manifests: Sequence[Manifest],
    utterances: int,
    *,
    targets: Sequence[str] = (),
    progress: Progress = nothing,
) -> Importance:
    """Importance (F,) of the hidden units, by module and language, of every module that starts by "neuron".

    Args:
        model: model that the plan is for, not split yet.
        plan: modules that will be split.
        manifests: speech to measure on.
        utterances: utterances of each language, or pair.
        targets: languages written; all that the model knows if none are given.
        progress: called with the number of batches done, and of all.

    Raises:
        SprachbundError: a model without a text decoder, too few utterances of a language, or gradients that are zero or
            not finite.
    """
    alike: dict[Key, list[str]] = {}  # modules that are measured in the same passes
    for split in plan.splits:
        if split.start == "neuron":
            check_decoder(model)
            languages = tuple(sorted(tag for group in split.groups for tag in group))
            alike.setdefault((split.side, languages, split.seed), []).append(split.module)
    total = sum(len(languages) for _, languages, _ in alike) * -(-utterances // BATCH)
    importance: dict[str, Any] = {}
    done = 0
    for (side, languages, seed), modules in alike.items():
        chosen = choose_rows(
            model,
            manifests,
            by=side,  # type: ignore[arg-type]
            count=utterances,
            seed=seed,
            languages=languages,
            targets=targets,
        ).rows
        importance |= collect_importance(
            model,
            {tag: _batches(rows, manifests) for tag, rows in chosen.items()},
            modules,
            loss=lambda batch: decoder_loss(model, batch)[0],
            progress=lambda batches, before=done: progress(before + batches, total),  # type: ignore[misc]
        )
        done += len(languages) * -(-utterances // BATCH)
    return importance


def _batches(rows: Sequence[GradientRow], manifests: Sequence[Manifest]) -> Iterator[list[GradientExample]]:
    for start in range(0, len(rows), BATCH):
        yield [row.read(manifests) for row in rows[start : start + BATCH]]
