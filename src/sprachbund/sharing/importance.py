"""How much each hidden unit of a feed-forward matters to each language: mean |activation x gradient|.

The first-order estimate of what the loss would change if the unit were gone (arXiv 1611.06440, equation 8).
Shapes: B utterances, T positions, F hidden width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.splitting import feed_forward_of

Loss = Callable[[Any], Tensor]
"""From a batch of one language to what is differentiated; a sum over target tokens, so that batches add up."""


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
        model: with feed-forwards of these names.
        batches: of every language (or pair), each holding rows of that one only.
        modules: names of the feed-forwards.
        loss: of a batch; `model(batch).total` if not given.
        progress: told how many batches are done.

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
                found = torch.autograd.grad(value, list(hidden.values()), allow_unused=True)
                for (name, activation), gradient in zip(hidden.items(), found, strict=True):
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
    """What goes into each of `layers` (B, T, F) in the passes made inside, with gradients but no others' cost."""
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
