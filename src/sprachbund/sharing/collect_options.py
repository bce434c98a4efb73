"""What is collected, and what that costs."""

from dataclasses import dataclass

from sprachbund.errors import SprachbundError
from sprachbund.sharing.projection import Kind
from sprachbund.sharing.utterances import Granularity


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """What is collected.

    Attributes:
        modules: patterns of module names; none for the default, see `choose_modules`.
        whole_layers: whole layers in their place.
        by: what is compared.
        languages: compared; none for all in the data.
        targets: languages written; none for all that the model knows.
        utterances: of each language.
        batch: utterances of a backward pass.
        accumulate: passes whose gradients are added up to one vector.
        dimensions: d of a sketch.
        projection: "count" or "gaussian".
        seed: of the choice of utterances and of the projection.
    """

    modules: tuple[str, ...] = ()
    whole_layers: bool = False
    by: Granularity = "source"
    languages: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    utterances: int = 800
    batch: int = 4
    accumulate: int = 4
    dimensions: int = 128
    projection: Kind = "count"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.utterances, self.batch, self.accumulate) < 1:
            raise SprachbundError("utterances, batch and accumulate have to be 1 at least")
        each, rest = self.batch * self.accumulate, self.utterances % (self.batch * self.accumulate)
        if rest:
            near = max(each, self.utterances - rest)
            raise SprachbundError(
                f"{self.utterances} utterances do not divide into vectors of {self.batch} x {self.accumulate}; "
                f"take {near} or {near + each}, or change --batch or --accumulate"
            )
        if not 2 <= self.dimensions <= 4096:
            raise SprachbundError(f"{self.dimensions} dimensions; take 2 to 4096")

    @property
    def vectors(self) -> int:
        """N."""
        return self.utterances // (self.batch * self.accumulate)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a collection takes, told beforehand.

    Attributes:
        passes: forward and backward, in all.
        passes_left: those not made yet.
        parameters: coordinates of a gradient.
        seconds: that the passes left and their projections take one process, from one timed batch.
        file_bytes: of the sketches.
        memory_bytes: of the gradients held at a time, besides what a training step holds.
    """

    passes: int
    passes_left: int
    parameters: int
    seconds: float
    file_bytes: int
    memory_bytes: int
