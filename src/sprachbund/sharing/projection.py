"""Random projections of gradients, of which no matrix is ever held.

A projection is a function of seed, parameter name and coordinate alone: the same for every language, device and
process, and remade piece by piece whenever it is needed. Random bits are the raw output of the counter-based
generator Philox, which no release of numpy changes.

Either kind keeps inner products of unit vectors x, y on average, and spreads them by a variance of at most
(1 + <x, y>^2) / d. Shapes: N vectors, P coordinates of a parameter, d dimensions of a sketch.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Kind = Literal["count", "gaussian"]
_WORDS = 1 << 18
"""Random 64-bit words made at a time: 2 MiB."""
_SHARE = 4
"""A word gives so many draws of 16 bits."""


class Projection(Protocol):
    """A random linear map for every parameter."""

    dimensions: int

    def project(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """(N, d) float64 from float32 `vectors` (N, P) of the parameter called `name`."""
        ...

    def block(self, num_coordinates: int) -> int:
        """How many vectors of so many coordinates in all are best projected together."""
        ...


def cosine_error(dimensions: int, cosine: float = 0.0) -> float:
    """Standard deviation of a sketch's cosine about the exact one: (1 - cosine^2) / sqrt(d), to first order."""
    return (1 - cosine**2) / math.sqrt(dimensions)


def make_projection(kind: Kind, dimensions: int, seed: int) -> Projection:
    """The projection of that kind."""
    kinds = {"count": CountSketch, "gaussian": Gaussian}
    return kinds[kind](dimensions=dimensions, seed=seed)


@dataclass(frozen=True, kw_only=True)
class CountSketch:
    """Every coordinate is added, with a random sign, to one random dimension (Charikar, Chen, Farach-Colton 2004).

    P steps instead of d P, and by its second moments no worse than a Gaussian: the variance of an inner product is
    (1 + <x, y>^2 - 2 sum x_i^2 y_i^2) / d.

    Attributes:
        dimensions: d, at most 4096 so that 16 bits fall evenly enough on 2 d places.
        seed: of all parameters' maps.
    """

    dimensions: int
    seed: int

    def project(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """See `Projection`."""
        places = 2 * self.dimensions
        sums = np.zeros((len(vectors), places))
        random = _generator(self.seed, name)
        for start in range(0, vectors.shape[1], _WORDS * _SHARE):
            piece = vectors[:, start : start + _WORDS * _SHARE]
            words = random.random_raw(-(-piece.shape[1] // _SHARE)).astype("<u8", copy=False)
            place = (words.view("<u2")[: piece.shape[1]] % places).astype(np.intp)
            for row, values in zip(sums, piece, strict=True):
                row += np.bincount(place, weights=values, minlength=places)
        return sums[:, : self.dimensions] - sums[:, self.dimensions :]

    def block(self, num_coordinates: int) -> int:
        """One: making the map anew costs less than adding up a vector."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """The published projection: a dense matrix of independent normal numbers of variance 1 / d.

    Remaking the matrix is what costs, so as many vectors as memory allows share it.

    Attributes:
        dimensions: d.
        seed: of all parameters' matrices.
        memory_bytes: for the vectors that wait to be projected together.
    """

    dimensions: int
    seed: int
    memory_bytes: int = 1 << 30

    def project(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """See `Projection`."""
        sums = np.zeros((len(vectors), self.dimensions))
        normal = np.random.Generator(_generator(self.seed, name))
        step = max(1, _WORDS // self.dimensions)
        for start in range(0, vectors.shape[1], step):
            piece = vectors[:, start : start + step]
            sums += piece @ normal.standard_normal((piece.shape[1], self.dimensions), dtype=np.float32)
        return sums / math.sqrt(self.dimensions)

    def block(self, num_coordinates: int) -> int:
        """As many as fit into `memory_bytes`, one at least."""
        return max(1, self.memory_bytes // (4 * max(1, num_coordinates)))


def _generator(seed: int, name: str) -> np.random.Philox:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
