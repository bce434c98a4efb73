"""What a model's gradient is on given utterances, module by module: what languages are compared by.

The loss is the decoder's cross-entropy alone, without label smoothing: smoothing, CTC and language heads pull all
languages the same way. What the decoder is given (the language tag, a prompt) is never a target.
Shapes: B utterances, U tokens of a row, V vocabulary.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Features, Target
from sprachbund.models.routing import start_route

FEED_FORWARDS = ("feed_forward_out", "feed_forward")
"""Second feed-forward of a conformer's layers; the one feed-forward of plain layers."""
NOISE = 1e-6
"""A tensor whose gradient is so small beside the largest of its module holds rounding errors only: biases before a
softmax, for one. Normalised it would count as much as any other, so it counts as zero."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """An utterance and what is to be written of it.

    Attributes:
        samples: (num_samples,) float32 at 16 kHz, mono.
        text: in the language `target`.
        source: BCP-47 tag of the speech.
        target: BCP-47 tag of the text.
    """

    samples: np.ndarray
    text: str
    source: str
    target: str


class Objective(Protocol):
    """The one thing a model has to have: a differentiable loss of utterances."""

    def __call__(self, model: Any, utterances: Sequence[Spoken]) -> tuple[Tensor, int]:
        """Loss summed over target tokens, and how many tokens were counted."""
        ...


def decoder_loss(model: Any, utterances: Sequence[Spoken]) -> tuple[Tensor, int]:
    """`Objective` of the families with a text decoder: cross-entropy of what follows the prompt."""
    targets = [Target(language=u.target, source=u.source) for u in utterances]
    prompts = [model.prompt(target) for target in targets]
    rows = [p + target_tokens(model, u.text, u.target) for p, u in zip(prompts, utterances, strict=True)]
    memory = model.encode(_features(model, utterances))
    device = memory.states.device
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    places = torch.arange(1, tokens.shape[1], device=device)
    first = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    end = torch.tensor([len(row) for row in rows], device=device)[:, None]
    counted = (places >= first) & (places < end)
    route = start_route(model, targets, device)
    hidden = model.decoder(tokens[:, :-1], memory.states, memory.num_frames, route)
    logits = model.decoder.logits(hidden[counted]).float()
    return F.cross_entropy(logits, tokens[:, 1:][counted], reduction="sum"), int(counted.sum())


def target_tokens(model: Any, text: str, language: str) -> list[int]:
    """Tokens of a text as the model is taught to write it, the end included.

    Raises:
        SprachbundError: a family that has no such rows.
    """
    if model.name == "conformer":
        return [*model.tokenizer.encode(text), model.end_token]
    if model.name == "whisper":
        from sprachbund.models.whisper.objective import target_tokens as whisper_tokens

        return whisper_tokens(model, text, language)
    if hasattr(model, "target_tokens"):
        return list(model.target_tokens(text))
    raise SprachbundError(
        f"family {model.name!r} does not say which tokens it is taught; give the collection an objective of your own"
    )


def _features(model: Any, utterances: Sequence[Spoken]) -> Features:
    """Features of utterances whose languages are told, on the model's device."""
    features: Features = model.features([u.samples for u in utterances])
    heard = list(model.source_languages)
    device = next(model.parameters()).device
    return Features(
        values=features.values.to(device),
        num_frames=features.num_frames.to(device),
        source_language=torch.tensor([heard.index(u.source) for u in utterances], device=device),
    )


def choose_modules(
    model: nn.Module, patterns: Sequence[str] = (), *, whole_layers: bool = False, side: str = "encoder"
) -> dict[str, dict[str, nn.Parameter]]:
    """Module name to its trainable parameters under their full names, in the model's order.

    Args:
        model: any module.
        patterns: of names as `named_modules` gives them; `*` stands for anything between two dots. None given:
            the second feed-forward, or the only one, of every layer.
        whole_layers: every layer as a whole, where no patterns are given.
        side: "encoder" or "decoder", whose layers are meant where no patterns are given.

    Raises:
        SprachbundError: a pattern that no module with trainable parameters matches; the nearest are named.
    """
    modules = dict(model.named_modules())
    if not patterns:
        layers = f"{side}.layers.*"
        choices = [layers] if whole_layers else [f"{layers}.{name}" for name in FEED_FORWARDS]
        patterns = [p for p in choices if _matching(modules, p)][:1] or choices[:1]
    found = {name: None for pattern in patterns for name in _matched(modules, pattern)}
    return {name: _parameters(name, modules[name]) for name in modules if name in found}


def _matched(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    found = _matching(modules, pattern)
    if not found:
        trained = (name for name, module in modules.items() if name and _parameters(name, module))
        general = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in trained)
        as_deep = [name for name in general if name.count(".") == pattern.count(".")]
        nearest = difflib.get_close_matches(pattern, as_deep or list(general), n=5, cutoff=0.0)
        raise SprachbundError(
            f"no module with trainable parameters matches {pattern!r}; nearest: {', '.join(nearest)}"
        )
    return found


def _matching(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    wanted = pattern.split(".")
    return [
        name
        for name, module in modules.items()
        if name
        and len(parts := name.split(".")) == len(wanted)
        and all(map(fnmatchcase, parts, wanted))
        and _parameters(name, module)
    ]


def _parameters(name: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{name}.{inner}": p for inner, p in module.named_parameters() if p.requires_grad}


@contextmanager
def probing(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The model without dropout, and nothing but `parameters` tracked; as it was before when left."""
    trained, tracked = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.requires_grad_(False).train(trained)
        for parameter in tracked:
            parameter.requires_grad_(True)


def gradients(
    model: nn.Module,
    batches: Iterable[Sequence[Spoken]],
    parameters: Mapping[str, nn.Parameter],
    objective: Objective = decoder_loss,
    *,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Sum over batches of the gradient of the loss per target token, fp32, flat, on the CPU.

    To be called within `probing`.
    """
    sums: dict[str, Tensor] = {}
    for utterances in batches:
        total, count = objective(model, utterances)
        found = torch.autograd.grad(total / max(count, 1), list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
            new = torch.zeros_like(parameter) if gradient is None else gradient
            sums[name] = sums[name] + new.float() if name in sums else new.float()
        after_batch()
    return {name: value.flatten().cpu() for name, value in sums.items()}


def normalised(gradient: Mapping[str, Tensor], names: Iterable[str], where: str) -> dict[str, Tensor]:
    """A module's tensors, each of length one; those without a gradient are zero.

    Args:
        gradient: of all parameters.
        names: of the module's parameters.
        where: language and module, for messages.

    Raises:
        SprachbundError: a gradient is not finite, or all are zero.
    """
    norms = {name: float(torch.linalg.vector_norm(gradient[name].double())) for name in names}
    if not all(map(np.isfinite, norms.values())):
        raise SprachbundError(
            f"{where}: a gradient is not finite; the checkpoint or an utterance is broken, "
            "see whether its loss is finite"
        )
    if not (largest := max(norms.values(), default=0.0)):
        raise SprachbundError(
            f"{where}: all gradients are zero; the module plays no part for this language, "
            "leave one of the two out (--modules, --languages)"
        )
    return {
        name: gradient[name] / norm if norm > NOISE * largest else torch.zeros_like(gradient[name])
        for name, norm in norms.items()
    }


def exact_cosines(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Cosine of two gradients of a module, each tensor normalised, without any projection."""
    one, other = (
        torch.cat([tensor.double() for tensor in normalised(g, g, "exact cosine").values()])
        for g in (first, second)
    )
    return float(one @ other / (one.norm() * other.norm()))
