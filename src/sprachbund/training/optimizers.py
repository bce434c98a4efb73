"""Which weights are trained, the optimizers that move them, and their learning rates.

AdamW moves every weight, or Muon the linear layers and AdamW the rest. Every group of parameters carries its ratio to
the run's rate, so that one schedule drives them all.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from sprachbund.errors import SprachbundError
from sprachbund.training.muon import Muon
from sprachbund.training.options import TrainingOptions

BETAS = (0.9, 0.98)
RATIO = "ratio"
"""Key of an optimizer's parameter group: what its rate is to the run's."""
Kind = Literal["linear", "decays", "rest"]


def freeze_others(model: nn.Module, trainable: Sequence[str]) -> None:
    """Leave training to the parameters whose names match one of the patterns; to all when there is none.

    Raises:
        SprachbundError: a pattern that matches no parameter.
    """
    if not trainable:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        _check_pattern("trainable", pattern, names)
    for name, parameter in model.named_parameters():
        if not any(fnmatchcase(name, pattern) for pattern in trainable):
            parameter.requires_grad_(False)


def make_optimizers(model: nn.Module, options: TrainingOptions) -> list[Optimizer]:
    """The optimizers that together move every weight of a model that is to be moved.

    With "muon" (https://kellerjordan.github.io/posts/muon; step scaled to AdamW's as in arXiv 2502.16982,
    section 2.2, then by `muon_ratio`) the linear layers are orthogonalized and AdamW (arXiv
    1711.05101) moves the rest; with "adamw" it moves all. Norms, biases and positions do not decay. Every parameter
    group carries its `RATIO`, so that one schedule drives all of them: see `set_rates`.

    Raises:
        SprachbundError: a pattern of `options.rates` that matches no parameter that is trained.
    """
    groups = _groups(model, options)
    optimizers: list[Optimizer] = []
    if plain := groups["decays"] + groups["rest"]:
        optimizers.append(torch.optim.AdamW(plain, lr=options.learning_rate, betas=BETAS, fused=True))
    if groups["linear"]:
        optimizers.append(Muon(groups["linear"], lr=options.learning_rate, weight_decay=options.weight_decay))
    return optimizers


def set_rates(optimizers: Sequence[Any], rate: float) -> None:
    """Bring every parameter group to its share of the run's rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group[RATIO]


def _groups(model: nn.Module, options: TrainingOptions) -> dict[str, list[dict[str, Any]]]:
    """Parameter groups by kind, one for every rate; empty ones are left out."""
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("head")
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for pattern in options.rates:
        _check_pattern("rates", pattern, list(trained))
    sorted_in: dict[tuple[Kind, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        kind = _kind(name, parameter, id(parameter) in linear, options)
        ratio = _ratio(name, options) * (options.muon_ratio if kind == "linear" else 1.0)
        sorted_in.setdefault((kind, ratio), []).append(parameter)
    groups: dict[str, list[dict[str, Any]]] = {"linear": [], "decays": [], "rest": []}
    for (kind, ratio), parameters in sorted_in.items():
        decay = 0.0 if kind == "rest" else options.weight_decay
        groups[kind].append({"params": parameters, "weight_decay": decay, RATIO: ratio})
    return groups


def _ratio(name: str, options: TrainingOptions) -> float:
    rates = (rate for pattern, rate in options.rates.items() if fnmatchcase(name, pattern))
    return next(rates, options.learning_rate) / options.learning_rate


def _kind(name: str, parameter: nn.Parameter, linear: bool, options: TrainingOptions) -> Kind:
    if linear and options.optimizer == "muon":
        return "linear"
    return "decays" if parameter.ndim > 1 and "positions" not in name else "rest"


def _check_pattern(option: str, pattern: str, names: Sequence[str]) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        nearest = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
        raise SprachbundError(
            f"{option}: {pattern!r} matches no parameter that is trained; nearest: {nearest}"
        )
