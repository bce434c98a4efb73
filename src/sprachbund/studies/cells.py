"""What a finished cell leaves behind: its scores with all that decided them, and counts of every utterance.

A cell is finished when its manifest stands; the manifest is written last, and whole or not at all.
Shapes: C tiers, Q bit widths, N utterances, K counts of the metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import hashes
from sprachbund.evaluation.metrics import Counts, metric
from sprachbund.studies.grid import Cell, Strict, StudyGrid
from sprachbund.studies.results import ENCODER, PARTS
from sprachbund.util.arrays import load_arrays, write_arrays
from sprachbund.util.files import read_model, write_json

CELL_FILE = "cell.json"
COUNTS_FILE = "counts.npz"


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """What a cell function gives back.

    Attributes:
        counts: (C, Q, N, K) statistics of the metric for every utterance, tiers and bits in the order of the grid.
        ids: N, of the utterances.
        metric: as `sprachbund.evaluation.metrics` names it.
        text: what it was given, "raw" or "normalized" texts.
        parts: "encoder", "decoder", "joint", "tokenizer" to what tells one from another, of what the cell started from.
        training: how its training went: where it converged, on how much data.
    """

    counts: Counts
    ids: Sequence[str]
    metric: str
    text: str = "raw"
    parts: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


class Score(Strict):
    """The score of a cell at a tier and a bit width."""

    tier: str
    bits: int
    value: float


class CellManifest(Strict):
    """A finished cell.

    Attributes:
        cell: which.
        metric: its name.
        better: which scores are, "lower" or "higher".
        signature: all that decides the metric, and what texts it was given.
        scores: at every tier and bit width.
        parts: see `CellScores`.
        training: see `CellScores`.
        utterances: scored.
        took_s: seconds.
        commit: of the source tree.
        machine: where it ran.
        versions: of the libraries.
        created: when, UTC.
    """

    cell: Cell
    metric: str
    better: str
    signature: str
    scores: tuple[Score, ...]
    parts: dict[str, str]
    training: dict[str, Any]
    utterances: int
    took_s: float
    commit: str | None = Field(default_factory=hashes.commit)
    machine: dict[str, str | int] = Field(default_factory=hashes.machine)
    versions: dict[str, str] = Field(default_factory=hashes.versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def value(self, tier: str, bits: int) -> float | None:
        """The score there, None if it was not asked for."""
        return next((s.value for s in self.scores if (s.tier, s.bits) == (tier, bits)), None)


def write_cell(folder: Path, cell: Cell, grid: StudyGrid, found: CellScores, took_s: float) -> CellManifest:
    """Write counts and manifest of a cell.

    Raises:
        SprachbundError: for counts that are not those of the grid.
    """
    wanted = (len(grid.tiers), len(grid.bits), len(found.ids))
    if found.counts.shape[:3] != wanted or not found.ids:
        raise SprachbundError(
            f"{cell}: counts are {found.counts.shape[:3]}, the grid has {wanted} tiers, bit widths and utterances"
        )
    how = metric(found.metric, cell.language)
    places = [(c, q) for c in range(len(grid.tiers)) for q in range(len(grid.bits))]
    scores = tuple(
        Score(tier=grid.tiers[c], bits=grid.bits[q], value=float(how.score(found.counts[c, q].sum(0))))
        for c, q in places
    )
    manifest = CellManifest(
        cell=cell,
        metric=how.name,
        better="higher" if how.higher_is_better else "lower",
        signature=f"{how.signature}|text:{found.text}",
        scores=scores,
        parts=dict(found.parts),
        training=dict(found.training),
        utterances=len(found.ids),
        took_s=round(took_s, 1),
    )
    counts = {"counts": found.counts, "ids": np.array(found.ids)}
    write_arrays(folder / COUNTS_FILE, counts, compressed=True)
    write_json(folder / CELL_FILE, manifest.model_dump(mode="json"))
    return manifest


def read_cell(folder: Path) -> CellManifest | None:
    """The manifest of a cell, None for one that is not finished.

    Raises:
        SprachbundError: for one that is broken.
    """
    path = folder / CELL_FILE
    if not path.exists():
        return None
    return read_model(path, CellManifest, advice="delete it, and the cell is made again")


def read_counts(folder: Path) -> tuple[Counts, list[str]]:
    """Counts (C, Q, N, K) and ids (N) of a finished cell. Raises SprachbundError when they cannot be read."""
    path = folder / COUNTS_FILE
    advice = f"delete {folder / CELL_FILE}, and the cell is made again"
    found = load_arrays(path, advice=advice)
    if found.keys() != {"counts", "ids"} or found["counts"].ndim != 4 or found["ids"].ndim != 1:
        raise SprachbundError(f"{path} does not hold counts and ids; {advice}")
    if found["counts"].shape[2] != len(found["ids"]) or found["counts"].dtype.kind not in "fiu":
        raise SprachbundError(
            f"{path} has counts {found['counts'].shape} of {len(found['ids'])} utterances; {advice}"
        )
    return found["counts"], found["ids"].tolist()


def finished_cells(grid: StudyGrid, out: Path) -> list[CellManifest]:
    """Manifests of the grid's cells that are finished and scored at all its tiers and bits, in the grid's order."""
    found = (read_cell(cell.folder(out)) for cell in grid.cells())
    return [one for one in found if one is not None and is_whole(one, grid)]


def is_whole(manifest: CellManifest, grid: StudyGrid) -> bool:
    """Whether a cell was scored at every tier and bit width of a grid."""
    return all(manifest.value(tier, bits) is not None for tier in grid.tiers for bits in grid.bits)


def rows_of(manifests: Sequence[CellManifest], grid: StudyGrid) -> list[dict[str, Any]]:
    """Rows of the table that `read_results` reads, one for each cell, tier and bit width."""
    named = [name for name in (ENCODER, *PARTS) if all(name in one.parts for one in manifests)]
    return [
        {
            **one.cell.model_dump(include={"start", "language", "hours"}),
            "tier": tier,
            "bits": bits,
            "seed": one.cell.seed,
            "value": one.value(tier, bits),
            **{name: one.parts[name] for name in named},
        }
        for one in manifests
        for tier in grid.tiers
        for bits in grid.bits
    ]
