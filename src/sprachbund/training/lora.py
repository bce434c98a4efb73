"""Low-rank adapters (LoRA, arXiv 2106.09685) on the linear layers of any model, by peft, and their merging.

An adapted model is trained as any other: its own weights stay as they are, only the adapters move. Merged, it is the
plain model again, so that nothing after training knows of adapters.
"""

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sprachbund.errors import SprachbundError


def add_lora(
    model: nn.Module, modules: tuple[str, ...], rank: int, *, scale: float = 2.0, whole: tuple[str, ...] = ()
) -> int:
    """Put adapters onto linear layers, in place, and freeze everything else.

    Args:
        model: any module.
        modules: patterns of the layers' names, `*` for anything.
        rank: r, of every adapter.
        scale: factor of the adapters' product (alpha / r).
        whole: patterns of the names of parameters that are trained themselves, beside the adapters.

    Returns:
        the number of parameters that are trained.

    Raises:
        SprachbundError: a pattern without a linear layer or, of `whole`, without a parameter.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for pattern in modules:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise SprachbundError(
                f"lora: {pattern!r} matches no linear layer; there are {', '.join(linear[:3])} …"
            )
    chosen = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in modules)]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for pattern in whole:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise SprachbundError(
                f"lora.whole: {pattern!r} matches no parameter; there are {', '.join(trained[:3])} …"
            )
    alpha: Any = scale * rank  # is only divided by the rank, but declared an integer
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if name in trained and any(fnmatchcase(name, pattern) for pattern in whole):
            parameter.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def merge_lora(model: nn.Module) -> None:
    """Add every adapter to the layer it is on and take it away, in place; a model without any stays as it is."""
    if not any(name.endswith(".lora_A") for name, _ in model.named_modules()):
        return
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        model.set_submodule(name, module.get_base_layer())


def rank_for(model: nn.Module, modules: tuple[str, ...], num_parameters: int) -> int:
    """The rank at which adapters on these linear layers have nearest to so many parameters, at least 1.

    Args:
        model: model without adapters.
        modules: patterns of the names of linear layers.
        num_parameters: parameters of all adapters together.
    """
    per_rank = sum(
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(fnmatchcase(name, pattern) for pattern in modules)
    )
    return max(1, round(num_parameters / max(1, per_rank)))
