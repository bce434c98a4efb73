"""Options of a sharing plan; they load no NumPy, since the command line is made of them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from sprachbund.errors import SprachbundError
from sprachbund.models.sharing_plan import Start
from sprachbund.util.options import Option, check

Clustering = Literal["ward", "kmeans"]
ChooseBy = Literal["purity", "separation"]
Widths = Literal["equal", "energy"]
Conflict = Literal["corrected", "raw"]
THRESHOLDS: Mapping[Conflict, tuple[float, ...]] = {"corrected": (0.1, 0.5), "raw": (0.05, 0.15)}
"""The raw ones are published. The published layers, .15 and .32 when corrected, keep the published ratio of .50."""
RATIOS = (0.75, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class SharingPlanOptions:
    """Options of making a plan.

    Attributes:
        num_modules: modules to split.
        num_groups: K, in every module; None finds it, see `find_groups`. The paper takes 2.
        clustering: "ward", the same every time, or "kmeans".
        choose_by: "purity" as published, or "separation"; see `analyses.ranked`.
        conflict: measure of conflict that sets the shared ratio: "corrected" for 1 - mean of c_lk, or "raw" for delta
            as published, which grows and shrinks with the noise of the gradients.
        thresholds: thresholds of the conflict, rising; those of its kind if None.
        ratios: shared ratio below the first threshold, between them, from the last on; one more than thresholds.
        shared_ratio: for every split in place of the table.
        private_widths: "equal", or "energy" for widths in proportion to the groups' energy.
        start: method that gives branches their first weights.
        veto: groups with a mean corrected cosine above are merged; None, or a number of groups by hand, merges none.
        seed: seed of k-means, of half samples, and of the weights that branches draw.

    Raises:
        SprachbundError: for a value that cannot be.
    """

    num_modules: Annotated[int, Option("--modules", metavar="N")] = 1
    num_groups: Annotated[
        int | None, Option("--groups", metavar="K", help="Groups of languages; found if not given.")
    ] = None
    clustering: Annotated[Clustering, Option("--cluster", help="ward or kmeans.")] = "ward"
    choose_by: Annotated[ChooseBy, Option("--choose-by", help="purity, as published, or separation.")] = (
        "purity"
    )
    conflict: Annotated[
        Conflict, Option("--conflict", help="What sets the ratio: corrected for noise, or raw, as published.")
    ] = "corrected"
    thresholds: Annotated[
        tuple[float, ...] | None,
        Option("--thresholds", metavar="X,…", help="Of the conflict, between the ratios."),
    ] = None
    ratios: Annotated[
        tuple[float, ...],
        Option("--ratios", metavar="X,…", help="Shared part, for a conflict below each threshold."),
    ] = RATIOS
    shared_ratio: Annotated[
        float | None, Option("--rho", metavar="X", help="Shared part, whatever the conflict.")
    ] = None
    private_widths: Annotated[
        Widths, Option("--private-widths", help="equal, or energy for more where gradients are larger.")
    ] = "equal"
    start: Annotated[Start, Option("--start", help="First weights: neuron, svd or random.")] = "neuron"
    veto: Annotated[
        float | None,
        Option("--veto", metavar="X", help="Groups more similar than this are one; 1 for never."),
    ] = 0.9
    seed: Annotated[int, Option("--seed", metavar="N", help="Of everything drawn.")] = 0

    def __post_init__(self) -> None:
        check(self)
        ratios = self.ratios if self.shared_ratio is None else (*self.ratios, self.shared_ratio)
        if not all(0 <= ratio < 1 for ratio in ratios):
            raise SprachbundError(f"shared ratios are {_plain(ratios)}; each must be at least 0 and below 1")
        bounds = self.bounds
        if not all(a < b for a, b in itertools.pairwise(bounds)):
            raise SprachbundError(f"thresholds are {_plain(bounds)}; they must rise")
        if not all(map(math.isfinite, bounds)):
            raise SprachbundError(f"thresholds are {_plain(bounds)}; they must be finite")
        if len(self.ratios) != len(bounds) + 1:
            raise SprachbundError(
                f"{len(bounds)} thresholds need {len(bounds) + 1} ratios, one below, "
                f"between and above them; {len(self.ratios)} are given: {_plain(self.ratios)}"
            )
        if self.veto is not None and not -1 <= self.veto <= 1:
            raise SprachbundError(f"the veto is {self.veto:g}; a similarity lies between -1 and 1")
        if self.seed < 0:
            raise SprachbundError(f"the seed is {self.seed}; it must be 0 or more")

    @property
    def bounds(self) -> tuple[float, ...]:
        """The thresholds, those of the kind of conflict where none are given."""
        return THRESHOLDS[self.conflict] if self.thresholds is None else self.thresholds


def _plain(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
