"""The optimizer Muon (https://kellerjordan.github.io/posts/muon), on any processor."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from sprachbund.util.devices import is_fast_in_bf16

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
EPS = 1e-7


class Muon(Optimizer):
    """Muon as `torch.optim.Muon` has it, but orthogonalizing in bf16 only on devices that compute products in it.

    torch does so on all, and a processor without instructions for bf16 takes some thirty times as long as in fp32,
    longer than for the rest of a training step (`benchmarks/training_precision.py`). In bf16, a step is torch's, bit
    for bit. Steps are as long as those of AdamW (arXiv 2502.16982, section 2.2).

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decay of the weights, per rate.
    """

    def __init__(self, params: ParamsT, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights by their gradients.

        Args:
            closure: computes the loss anew, before.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        precision = torch.bfloat16 if is_fast_in_bf16(parameter.device) else torch.float32
        parameter.mul_(1 - rate * decay)
        parameter.add_(
            orthogonalized(update.to(precision)), alpha=-rate * 0.2 * math.sqrt(max(parameter.shape))
        )


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors, and singular values near 1, by Newton-Schulz iterations.

    Args:
        matrix: (O, I), in the precision that is computed in.
    """
    a, b, c = COEFFICIENTS  # an iteration makes a s + b s^3 + c s^5 of each singular value s
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=EPS)  # no singular value is above 1
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
