"""Gradients with groups planted in them, and the gradients of a model in one piece, as a reference."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.research.gradient_sharing.gradients import NOISE, decoder_loss
from sprachbund.research.gradient_sharing.sketches import Sketches

TAGS = ("aeb", "bem", "cs", "de", "en", "es", "est", "fr", "gle", "it", "pl", "ru")


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def planted_rows(
    parts: Sequence[int],
    *,
    noise: float = 2.0,
    seed: int = 0,
    common: float = 0.5,
    apart: float = 1.0,
    own: float = 0.3,
    num_vectors: int = 50,
    dimensions: int = 128,
) -> dict[str, np.ndarray]:
    """Unit gradients of languages in groups of the sizes given, dealt out to the tags at random."""
    random = np.random.default_rng(seed)
    tags = iter(random.permutation(TAGS[: sum(parts)]).tolist())

    def direction() -> np.ndarray:
        return unit(random.standard_normal(dimensions))

    shared, rows = direction(), {}
    for part in parts:
        group = direction()
        for _ in range(part):
            centre = common * shared + apart * group + own * direction()
            noisy = centre + noise * unit(random.standard_normal((num_vectors, dimensions)))
            rows[next(tags)] = unit(noisy).astype(np.float32)
    return rows


def planted_groups(parts: Sequence[int], rows: Mapping[str, np.ndarray]) -> set[frozenset[str]]:
    """The groups that `planted_rows` planted: it fills them one after the other."""
    tags = iter(rows)
    return {frozenset(next(tags) for _ in range(part)) for part in parts}


def sketches(*layers: Mapping[str, np.ndarray], **info: object) -> Sketches:
    name = "encoder.layers.{}.feed_forward_out"
    return Sketches(vectors={name.format(i): dict(rows) for i, rows in enumerate(layers)}, info=info)


def as_groups(groups: Sequence[Sequence[str]]) -> set[frozenset[str]]:
    return set(map(frozenset, groups))


def gradients(
    model: nn.Module,
    batches: Iterable[Any],
    parameters: Mapping[str, nn.Parameter],
    objective: Any = decoder_loss,
) -> dict[str, Tensor]:
    """Sum over batches of the gradient of the loss per target token, whole, fp32, flat, on the CPU."""
    sums: dict[str, Tensor] = {}
    for utterances in batches:
        total, count = objective(model, utterances)
        raw = torch.autograd.grad(total / max(count, 1), list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), raw, strict=True):
            new = torch.zeros_like(parameter) if gradient is None else gradient
            sums[name] = sums[name] + new.float() if name in sums else new.float()
    return {name: value.flatten().cpu() for name, value in sums.items()}


def normalised(gradient: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A module's tensors, each of length one; those that are rounding errors are zero."""
    norms = {name: float(torch.linalg.vector_norm(gradient[name].double())) for name in names}
    largest = max(norms.values())
    return {
        name: gradient[name] / norm if norm > NOISE * largest else torch.zeros_like(gradient[name])
        for name, norm in norms.items()
    }


def exact_cosines(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Cosine of two gradients of a module, each tensor normalised, without any projection."""
    one, other = (torch.cat([t.double() for t in normalised(g, g).values()]) for g in (first, second))
    return float(one @ other / (one.norm() * other.norm()))
