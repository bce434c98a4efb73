"""Options of collecting gradients, and the cost of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sprachbund.util.options import Option, OptionValueError, Range, check

Granularity = Literal["source", "target", "pair"]
Kind = Literal["count", "gaussian"]
LEAST_VECTORS = 2
"""Vectors of a language that a plan needs."""


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Options of collecting gradients.

    Attributes:
        modules: names of modules, * for anything between dots; may be repeated. If not given: the second feed-forward
            of every encoder layer.
        whole_layers: whole layers in place of feed-forwards.
        by: languages that are compared: source, languages spoken; target, languages written (in the decoder); or pair.
        languages: languages compared (pairs as de>fr); all in the data if not given.
        targets: languages written; all that the model knows if not given.
        utterances: utterances of each language.
        batch: utterances of a backward pass.
        accumulate: passes whose gradients are added up to one vector.
        dimensions: dimensions of a sketch.
        projection: projection of the gradients to fewer dimensions: count, which is much faster, or gaussian.
        seed: seed of the choice of utterances and of the projection.
    """

    modules: Annotated[tuple[str, ...], Option("--modules", metavar="PATTERN")] = ()
    whole_layers: Annotated[bool, Option("--whole-layers")] = False
    by: Annotated[Granularity, Option("--by", metavar="WHAT")] = "source"
    languages: Annotated[tuple[str, ...], Option("--languages", metavar="LANG,…")] = ()
    targets: Annotated[tuple[str, ...], Option("--to", metavar="LANG,…")] = ()
    utterances: Annotated[int, Range(1), Option("--utterances", metavar="N")] = 800
    batch: Annotated[int, Range(1), Option("--batch", metavar="N")] = 4
    accumulate: Annotated[int, Range(1), Option("--accumulate", metavar="N")] = 4
    dimensions: Annotated[int, Range(2, 4096), Option("--dimensions", metavar="N")] = 128
    projection: Annotated[Kind, Option("--projection", metavar="HOW")] = "count"
    seed: Annotated[int, Option("--seed", metavar="N")] = 0

    def __post_init__(self) -> None:
        check(self)
        each, rest = self.batch * self.accumulate, self.utterances % (self.batch * self.accumulate)
        if rest:
            near = max(LEAST_VECTORS * each, self.utterances - rest)
            raise OptionValueError(
                "utterances",
                self.utterances,
                f"take {near} or {near + each}, or change `batch` or `accumulate`",
                reason=f"which do not divide into vectors of {self.batch} x {self.accumulate}",
            )

    @property
    def vectors(self) -> int:
        """Number N of vectors."""
        return self.utterances // (self.batch * self.accumulate)

    def check_vectors(self) -> None:
        """Check that a plan can be made of so many vectors.

        Raises:
            OptionValueError: one vector of each language.
        """
        if self.vectors < LEAST_VECTORS:
            raise OptionValueError(
                "utterances",
                self.utterances,
                f"take {LEAST_VECTORS * self.batch * self.accumulate} or more, or change `batch` or `accumulate`",
                reason=f"which make one vector of {self.batch} x {self.accumulate}, and how far a language agrees with "
                "itself takes two",
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated cost of a collection.

    Attributes:
        passes: forward and backward, in all.
        passes_left: passes not made yet.
        parameters: coordinates of a gradient.
        seconds: seconds that the passes left and their projections take one process, from one timed batch.
        file_bytes: bytes of the sketches.
        memory_bytes: bytes of the gradients held at a time on the model's device, besides what a backward pass holds.
    """

    passes: int
    passes_left: int
    parameters: int
    seconds: float
    file_bytes: int
    memory_bytes: int
