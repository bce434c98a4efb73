"""The sharing plan: feed-forwards that are split, their groups of languages and widths, and the evidence.

It stands with the models, not with the analysis that writes it, because a model directory may hold one and
loading has to understand it. The file is JSON that a person can read and edit.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_object, validate, write_text

FILE = "sharing_plan.json"
VERSION: Final = 1

Side = Literal["source", "target", "pair"]
Start = Literal["neuron", "svd", "random"]
Matrix = tuple[tuple[float, ...], ...]
Grouping = tuple[tuple[str, ...], ...]


class ModuleEvidence(BaseModel):
    """The evidence in the gradients of one module (arXiv 2603.25836); L languages, cosines between -1 and 1.

    Attributes:
        languages: the order of rows and columns of every matrix here.
        num_vectors: gradient vectors of each language.
        similarity: (L, L) cosines between the mean gradients of two languages, S.
        mean_cosines: (L, L) mean cosines between single vectors, s; a vector is not compared with itself.
        self_similarity: mean of the diagonal of s.
        cross_similarity: mean of s beside the diagonal.
        delta: the difference of the two, which sets the shared ratio by the published rule.
        delta_margin: half width of its 95% interval by half samples; None with fewer than four vectors.
        corrected: (L, L) noise-corrected cosines, c_lk = s_lk / sqrt(s_ll s_kk); empty in plans of versions before.
        conflict: 1 - mean of c_lk; None where a language agrees with itself no better than by chance.
        conflict_margin: half width of its 95% interval by half samples.
        purity: mean over languages of the self similarity's share.
        purity_by_language: s_ll / (s_ll + mean_k s_lk).
        groups: groups that were found, after the veto.
        merged: groups that the veto joined, as they were before.
        silhouette: silhouette of the groups before the veto, on 1 - c; None where it is not defined, for groups of one.
        silhouettes: silhouette for every number of groups; in plans of versions before.
        agreements: number of groups to the mean agreement of disjoint halves of the data, which chooses the number.
        spread: mean distance (1 - c) between languages of different groups, before the veto.
        separation: silhouette (1 where undefined) times spread.
        clustering: the method that the groups are from.
        agreement: adjusted Rand index of the groups by k-means and by Ward linkage; 1 is the same.
        stability: share of half samples in which exactly these groups came out; None for one group or a group for
            each language, which come out of any sample, and as for `delta_margin`.
        energy_by_language: energy in the common subspace, as shares that sum to 1.
        energy_shares: the same for each group, p_g.
        principal_angles_deg: (L, L) mean angle between the languages' main subspaces, degrees.
        canonical_correlations: (L, L) mean of ridge CCA, as the source reports it; rows of two languages are
            paired by their order in the file, which means little, so nothing is decided by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: tuple[str, ...]
    num_vectors: dict[str, int]
    similarity: Matrix
    mean_cosines: Matrix
    self_similarity: float
    cross_similarity: float
    delta: float
    delta_margin: float | None = None
    corrected: Matrix = ()
    conflict: float | None = None
    conflict_margin: float | None = None
    purity: float
    purity_by_language: dict[str, float]
    groups: Grouping
    merged: Grouping = ()
    silhouette: float | None = None
    silhouettes: dict[int, float] = {}
    agreements: dict[int, float] = {}
    spread: float
    separation: float
    clustering: Literal["ward", "kmeans"] = "ward"
    agreement: float
    stability: float | None = None
    energy_by_language: dict[str, float]
    energy_shares: tuple[float, ...]
    principal_angles_deg: Matrix = ()
    canonical_correlations: Matrix = ()

    @property
    def clear_conflict(self) -> float:
        """The lower end of the conflict's interval; 0 where the conflict is not known."""
        return 0.0 if self.conflict is None else self.conflict - (self.conflict_margin or 0.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.languages)
        square = {"similarity": self.similarity, "mean_cosines": self.mean_cosines}
        for name, matrix in square.items():
            if len(matrix) != count or any(len(row) != count for row in matrix):
                raise ValueError(f"{name} is not {count} by {count}, one row for each of the languages")
        if sorted(tag for group in self.groups for tag in group) != sorted(self.languages):
            raise ValueError("groups do not hold each of the languages once")
        return self


class Split(BaseModel):
    """One feed-forward that becomes a shared branch and a private one for each group.

    Attributes:
        module: name of the module in `model.named_modules()`.
        side: language of a row that chooses the branch: the one heard, the one written, or both as "de>fr".
        groups: language tags (or pairs), each in one group.
        shared_ratio: share of the inner width that all languages keep in common, at least 0, below 1.
        private_shares: share of each group in the private rest; sums to 1; equal parts if not given.
        start: method that gives the branches their first weights.
        seed: seed of the weights that are drawn.
        dropout: dropout of the branches' hidden units, while training.
        evidence: evidence for the split; None for a split made by hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str = Field(min_length=1)
    side: Side = "source"
    groups: Grouping = Field(min_length=1)
    shared_ratio: float = Field(strict=True, ge=0, lt=1)
    private_shares: tuple[float, ...] = ()
    start: Start = "neuron"
    seed: int = Field(default=0, strict=True, ge=0, lt=2**63)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    evidence: ModuleEvidence | None = None

    @model_validator(mode="before")
    @classmethod
    def _equal_shares(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not data.get("private_shares") and data.get("groups"):
            count = len(data["groups"])
            return {**data, "private_shares": (1 / count,) * count}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        tags = [tag for group in self.groups for tag in group]
        if not all(self.groups) or not all(tags):
            raise ValueError(f"{self.module} has an empty group; name a language in it or delete it")
        twice = sorted({tag for tag in tags if tags.count(tag) > 1})
        if twice:
            raise ValueError(f"{self.module} has {', '.join(twice)} more than once; leave each in one group")
        if self.side == "pair" and not all(tag.count(">") == 1 for tag in tags):
            raise ValueError(f"{self.module} is for pairs, but its groups are not all written like de>fr")
        if len(self.private_shares) != len(self.groups):
            raise ValueError(
                f"{self.module} has {len(self.groups)} groups and {len(self.private_shares)} private_shares"
            )
        if min(self.private_shares) <= 0 or not math.isclose(sum(self.private_shares), 1, abs_tol=1e-4):
            raise ValueError(
                f"private_shares of {self.module} are {list(self.private_shares)}; "
                "they must be above 0 and sum to 1"
            )
        return self

    def widths(self, inner_width: int) -> tuple[int, tuple[int, ...]]:
        """Inner width of the shared branch, int(F rho), and of each private one; they sum to F exactly.

        Args:
            inner_width: F, of the feed-forward as it is.

        Raises:
            SprachbundError: when a private branch would be left without a unit.
        """
        shared = int(inner_width * self.shared_ratio + 1e-9)  # 100 * .29 is 28.999... as a float
        rest = inner_width - shared
        wanted = [rest * share / sum(self.private_shares) for share in self.private_shares]
        private = [int(width + 1e-9) for width in wanted]
        by_remainder = sorted(range(len(wanted)), key=lambda g: (round(private[g] - wanted[g], 9), g))
        for group in by_remainder[: rest - sum(private)]:
            private[group] += 1
        if min(private) < 1:
            raise SprachbundError(
                f"{self.module} has an inner width of {inner_width}, too little for {len(self.groups)} private "
                f"branches beside a shared ratio of {self.shared_ratio:g}; take fewer groups or a lower ratio"
            )
        return shared, tuple(private)

    def group_of(self, language: str) -> int:
        """Index of the group of a language tag (or pair). Raises SprachbundError for one without a group."""
        for index, group in enumerate(self.groups):
            if language in group:
                return index
        known = ", ".join(sorted(tag for group in self.groups for tag in group))
        raise SprachbundError(
            f"the sharing plan has no group for {language!r} in {self.module}; it knows {known}; "
            "add it to a group of the plan, or analyse gradients that include it"
        )


class SharingPlan(BaseModel):
    """A file that says what to split, and what was measured in every module that was looked at.

    Attributes:
        version: version of the format.
        model_hash: hash of the model whose gradients were compared; None when not known.
        splits: modules to split, each once; may be empty, when nothing is worth splitting.
        modules: evidence by name of the module, also of modules that are not split.
        notes: notes on the choice of splits, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1] = VERSION
    model_hash: str | None = None
    splits: tuple[Split, ...] = ()
    modules: dict[str, ModuleEvidence] = {}
    notes: tuple[str, ...] = ()

    @field_validator("splits")
    @classmethod
    def _different_modules(cls, splits: tuple[Split, ...]) -> tuple[Split, ...]:
        names = [split.module for split in splits]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} split more than once; leave one split for each module")
        return splits

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan, from its file or from the model directory that holds it.

        Raises:
            SprachbundError: when there is none, or it is broken or of a version unknown here.
        """
        path = path / FILE if path.is_dir() else path
        again = f"`sprachbund share plan GRADIENTS.npz --out {path}`"
        if not path.exists():
            raise SprachbundError(f"{path} does not exist; check the path, or make a plan with {again}")
        advice = f"mend it, or plan again with {again}"
        data = read_object(path, advice=advice)
        if data.get("version", VERSION) != VERSION:
            raise SprachbundError(
                f"{path} is a sharing plan of version {data['version']!r}, known here is {VERSION}; "
                f"use the release it was written by, or plan again with {again}"
            )
        return validate(cls, data, str(path), advice=advice)

    def write(self, path: Path) -> None:
        """Write the plan, into a file or under its name into an existing directory; whole or not at all."""
        path = path / FILE if path.is_dir() else path
        write_text(path, as_text(self.model_dump(mode="json")) + "\n")


def as_text(value: Any, indent: str = "") -> str:
    """JSON with lists of plain values on one line each, so that matrices stay readable."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        lines = [f"{json.dumps(str(k), ensure_ascii=False)}: {as_text(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return "[\n" + ",\n".join(deeper + as_text(part, deeper) for part in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)
