"""Gradients with groups planted in them."""

from collections.abc import Mapping, Sequence

import numpy as np

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
