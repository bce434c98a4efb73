"""Which optimizer moves which weight."""

import torch
from torch import nn
from torch.optim import Optimizer

from sprachbund.training.options import TrainingOptions

BETAS = (0.9, 0.98)


def make_optimizers(model: nn.Module, options: TrainingOptions) -> list[Optimizer]:
    """The optimizers that together move every weight of a model that is to be moved.

    With "muon" (https://kellerjordan.github.io/posts/muon; step scaled to AdamW's as in arXiv 2502.16982,
    section 2.2, then by `muon_ratio`) the linear layers are orthogonalized and AdamW (arXiv
    1711.05101) moves the rest; with "adamw" it moves all. Norms, biases and positions do not decay.
    """
    kinds: dict[str, list[nn.Parameter]] = {"linear": [], "decays": [], "rest": []}
    linear = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("head")
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds[_kind(name, parameter, id(parameter) in linear, options)].append(parameter)
    groups = [
        {"params": kinds["decays"], "weight_decay": options.weight_decay},
        {"params": kinds["rest"], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [
        torch.optim.AdamW(groups, lr=options.learning_rate, betas=BETAS, fused=True)
    ]
    if kinds["linear"]:
        optimizers.append(
            torch.optim.Muon(
                kinds["linear"],
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def rate_ratio(optimizer: Optimizer, options: TrainingOptions) -> float:
    """What an optimizer's rate is to the run's."""
    plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    return options.muon_ratio if isinstance(plain, torch.optim.Muon) else 1.0


def _kind(name: str, parameter: nn.Parameter, linear: bool, options: TrainingOptions) -> str:
    if linear and options.optimizer == "muon":
        return "linear"
    return "decays" if parameter.ndim > 1 and "positions" not in name else "rest"
