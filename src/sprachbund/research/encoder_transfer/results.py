"""Results of a grid of runs: a table from any source with one row for each run, and the files of finished cells.

Reading is strict, since a study compares cells: a cell that is missing, repeated or misspelt would change the result
silently. A cell is finished when its manifest exists; the manifest is written last and atomically.
Shapes: L languages, H scales of hours, C tiers, Q bit widths, S seeds, N utterances, K counts of the metric.
"""

import csv
import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.metrics import Counts, metric
from sprachbund.research.encoder_transfer.grid import Cell, StudyGrid
from sprachbund.research.encoder_transfer.study_options import VALUE, Better, ReadOptions
from sprachbund.training.options import Strict
from sprachbund.util import provenance
from sprachbund.util.files import read_model, read_text, write_json
from sprachbund.util.tensors import load_arrays, write_arrays

START = "start"
AXES = ("language", "hours", "tier", "bits", "seed")
PARTS = ("decoder", "joint", "tokenizer")
"""Parts that both arms have to share."""
NO_RESULT = frozenset({"", "-", "–", "—"})
"""Cells of printed tables that have no result."""
ENCODER = "encoder"
_SHOWN = 5
_Row = Mapping[str, str]
Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scores of two arms in every cell.

    Attributes:
        arms: two starts; a gap is how much better the first is.
        better: direction of better scores, "lower" or "higher".
        metric: name of the metric.
        languages: L, sorted.
        hours: H, ascending; (nan,) where the table has none.
        tiers: C, in the table's order.
        bits: Q, most first; (nan,) where the table has none.
        seeds: S.
        values: (2, L, H, C, Q, S); nan for seeds that a cell does not have, and in both arms for cells that one of them
            lacks.
        holes: cells that are not in the table, or not for both arms, in words.
    """

    arms: tuple[str, str]
    better: Better
    metric: str
    languages: tuple[str, ...]
    hours: tuple[float, ...]
    tiers: tuple[str, ...]
    bits: tuple[float, ...]
    seeds: tuple[str, ...]
    values: Values
    holes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit of gaps."""
        return "points" if self.metric == VALUE else f"points of {self.metric}"

    @property
    def sign(self) -> float:
        """Makes "worse" positive: 1 where lower scores are better, else -1."""
        return 1.0 if self.better == "lower" else -1.0

    @property
    def means(self) -> Values:
        """(2, L, H, C, Q), over seeds; nan where there is no cell."""
        return mean_of_known(self.values, axis=-1)

    @property
    def gaps(self) -> Values:
        """(L, H, C, Q), positive where the first arm is better."""
        first, second = self.means
        return self.sign * (second - first)

    @property
    def distinct_tiers(self) -> list[int]:
        """Indices of the tiers whose scores differ from those of every earlier tier; means are over these.

        `offline` often has the limits of the largest latency, and would count twice.
        """
        kept: list[int] = []
        for tier in range(len(self.tiers)):
            own, earlier = self.values[:, :, :, tier], (self.values[:, :, :, other] for other in kept)
            if not any(np.array_equal(own, values, equal_nan=True) for values in earlier):
                kept.append(tier)
        return kept

    @property
    def seed_noise(self) -> float | None:
        """Standard deviation over seeds of one run, pooled over cells of distinct tiers; None with one seed."""
        values = self.values[:, :, :, self.distinct_tiers]
        count = (~np.isnan(values)).sum(-1)
        freedom = np.maximum(count - 1, 0).sum()
        if freedom < 1:
            return None
        squares = np.nansum((values - mean_of_known(values, axis=-1)[..., None]) ** 2)
        return float(np.sqrt(squares / freedom))


def mean_of_known(values: Values, axis: int | tuple[int, ...] | None = None) -> Values:
    """The mean of what is not nan; nan where nothing is, without a warning.

    Args:
        values: any shape.
        axis: as NumPy has it.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def read_results(path: Path, options: ReadOptions | None = None) -> Grid:
    """Read a table of results (CSV; separated by commas, semicolons or tabs).

    Columns that are missing are constant: all runs are of one language, tier, bit width or seed. A dash stands for no
    result. Cells that are not there are holes, which the grid names; a cell of one arm only counts for neither.

    Raises:
        SprachbundError: naming line, column or cell, for what is not a grid of two arms.
    """
    options = options or ReadOptions()
    rows = [
        (line, row)
        for line, row in _rows(path, options)
        if _wanted(row, options.conditions) and row[options.metric] not in NO_RESULT
    ]
    if not rows:
        conditions = ", ".join(options.where)
        raise SprachbundError(
            f"{path}: no row has {conditions}" if conditions else f"{path}: no results; add rows"
        )
    arms = options.arms or _two_arms(path, rows, options)
    for arm in arms:
        if all(row[START] != arm for _, row in rows):
            starts = ", ".join(_distinct(rows, START))
            raise SprachbundError(f"{path}: no start {arm!r}; there are {starts}")
    rows = [(line, row) for line, row in rows if row[START] in arms]
    _check_parts(path, rows, arms)
    return _grid(path, rows, arms, options)


def _rows(path: Path, options: ReadOptions) -> Iterator[tuple[int, _Row]]:
    """Line number and cells of every row."""
    lines = read_text(path, advice="check the path, and save it as UTF-8").removeprefix("\ufeff").splitlines()
    head = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    _check_columns(path, [name.strip() for name in reader.fieldnames or ()], options)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    for row in _whole_rows(path, reader):
        if None in row or None in row.values():
            raise SprachbundError(
                f"{path}:{reader.line_num}: not {len(reader.fieldnames)} cells as in the head; mend the line"
            )
        yield reader.line_num, {name: cell.strip() for name, cell in row.items()}


def _whole_rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[_Row]:
    """Rows; what csv cannot read is said with its line."""
    try:
        yield from reader
    except csv.Error as error:
        raise SprachbundError(f"{path}:{reader.line_num}: {error}; mend the line") from error


def _check_columns(path: Path, columns: Sequence[str], options: ReadOptions) -> None:
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise SprachbundError(f"{path}: column {twice[0]!r} is there twice; rename one")
    for name in (START, options.metric, *options.ignore, *options.conditions):
        if name not in columns:
            known_columns = ", ".join(columns) or "none"
            advice = "; name the scores by --metric" if name == options.metric else ""
            raise SprachbundError(f"{path}: no column {name!r}; there are: {known_columns}{advice}")
    known = {START, *AXES, *PARTS, ENCODER, options.metric, *options.ignore}
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, [*AXES, *PARTS], n=1)
            advice = f"is it {near[0]!r}? Rename it" if near else "rename it"
            raise SprachbundError(f"{path}: unknown column {name!r}; {advice}, or give --ignore {name}")


def _wanted(row: _Row, wanted: Mapping[str, Sequence[str]]) -> bool:
    return all(any(_same(row[column], value) for value in values) for column, values in wanted.items())


def _same(cell: str, value: str) -> bool:
    try:
        return float(cell) == float(value)
    except ValueError:
        return cell == value


def _distinct(rows: Sequence[tuple[int, _Row]], column: str) -> list[str]:
    return list(dict.fromkeys(row.get(column, "") for _, row in rows))


def _two_arms(path: Path, rows: Sequence[tuple[int, _Row]], options: ReadOptions) -> tuple[str, str]:
    """The only two starts, the better one by mean first."""
    starts = _distinct(rows, START)
    if len(starts) < 2:
        raise SprachbundError(
            f"{path}: one start ({', '.join(starts)}); a gap is between two, add rows of another"
        )
    if len(starts) > 2:
        raise SprachbundError(f"{path}: {len(starts)} starts ({', '.join(starts)}); choose two by --arms A,B")
    means = {
        start: np.mean([_score(path, at, row, options) for at, row in rows if row[START] == start])
        for start in starts
    }
    first, second = sorted(starts, key=lambda start: means[start], reverse=options.better == "higher")
    return first, second


def _check_parts(path: Path, rows: Sequence[tuple[int, _Row]], arms: tuple[str, str]) -> None:
    for part in PARTS:
        one, other = (set(_distinct([r for r in rows if r[1][START] == arm], part)) for arm in arms)
        if one != other:
            a, b = ("/".join(sorted(values)) for values in (one, other))
            raise SprachbundError(
                f"{path}: {arms[0]} and {arms[1]} differ in {part} ({a}, {b}), not in the encoder alone; "
                "compare arms that share all else"
            )


def _number(path: Path, line: int, row: _Row, column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SprachbundError(f"{path}:{line}: {column} is {row[column]!r}; give a number")
    return value


def _score(path: Path, line: int, row: _Row, options: ReadOptions) -> float:
    value = _number(path, line, row, options.metric)
    if value < 0 and options.better == "lower":
        raise SprachbundError(
            f"{path}:{line}: {options.metric} is {row[options.metric]}; an error rate is not below 0: mend the line, "
            "or give --better higher"
        )
    return value


def _hours(path: Path, line: int, row: _Row) -> float:
    value = _number(path, line, row, "hours")
    if value <= 0:
        raise SprachbundError(f"{path}:{line}: hours is {row['hours']!r}; give more than 0")
    return value


def _bits(path: Path, line: int, row: _Row) -> float:
    """32, fp32, int4, 4.25."""
    match = re.fullmatch(r"[A-Za-z]*(\d+(?:\.\d+)?)", row["bits"])
    if match is None or not 0 < float(match[1]) <= 64:
        raise SprachbundError(f"{path}:{line}: bits is {row['bits']!r}; give a number such as 4 or 32")
    return float(match[1])


def _grid(path: Path, rows: Sequence[tuple[int, _Row]], arms: tuple[str, str], options: ReadOptions) -> Grid:
    cells: dict[tuple[str | float, ...], tuple[int, float]] = {}
    for line, row in rows:
        hours = _hours(path, line, row) if "hours" in row else math.nan
        bits = _bits(path, line, row) if "bits" in row else math.nan
        texts = {axis: row.get(axis, "") for axis in AXES}
        key = (row[START], texts["language"], hours, texts["tier"], bits, texts["seed"])
        if key in cells:
            raise SprachbundError(
                f"{path}:{line}: {_cell_name(key)} is there already, in line {cells[key][0]}; keep one"
            )
        cells[key] = line, _score(path, line, row, options)
    axes = [list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True)]
    axes[0] = list(arms)
    axes[1].sort()
    axes[2].sort()
    axes[4].sort(reverse=True)
    values = np.full([len(axis) for axis in axes], np.nan)
    for index, key in zip(np.ndindex(*values.shape), itertools.product(*axes), strict=True):
        values[index] = cells.get(key, (0, math.nan))[1]
    if not options.uneven_seeds:
        _check_seeds(path, axes, values)
    holes = np.isnan(values).all(-1)
    values[:, holes.any(0)] = np.nan
    names = [tuple(axis) for axis in axes[1:]]
    fields = dict(zip(("languages", "hours", "tiers", "bits", "seeds"), names, strict=True))
    absent = [
        _cell_name((*key, ""))
        for key, gone in zip(itertools.product(*axes[:-1]), holes.ravel(), strict=True)
        if gone
    ]
    return Grid(
        arms=arms, better=options.better, metric=options.metric, values=values, holes=tuple(absent), **fields
    )


def _check_seeds(path: Path, axes: Sequence[Sequence[str | float]], values: Values) -> None:
    """See that no cell lacks some of the seeds."""
    empty: NDArray[np.bool_] = np.isnan(values)
    empty &= ~empty.all(-1, keepdims=True)  # of a cell that lacks all of them, that is no matter of seeds
    missing = [key for key, gone in zip(itertools.product(*axes), empty.ravel(), strict=True) if gone]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise SprachbundError(
            f"{path}: {len(missing)} of {empty.size} cells are missing: "
            f"{'; '.join(map(_cell_name, missing[:_SHOWN]))}{more}; add them, read a part by --where, or allow "
            "cells to have different seeds by --uneven-seeds"
        )


def _cell_name(key: Sequence[str | float]) -> str:
    """A cell in words, without axes that are constant because they have no column."""
    start, language, hours, tier, bits, seed = key
    parts = [start, language, f"{hours:g} h", tier, f"{bits:g} bits", f"seed {seed}" if seed else ""]
    return " ".join(str(part) for part in parts if part and not str(part).startswith("nan"))


# Files of finished cells: scores with all settings, and the counts of every utterance.

CELL_FILE = "cell.json"
COUNTS_FILE = "counts.npz"
LEARNING_RATE = "learning_rate"
"""Key of `CellManifest.training`."""


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """The result of a cell function.

    Attributes:
        counts: (C, Q, N, K) statistics of the metric for every utterance, tiers and bits in the order of the grid.
        ids: N, of the utterances.
        metric: as `sprachbund.evaluation.metrics` names it.
        text: form of the texts that it scored, "raw" or "normalized".
        parts: "encoder", "decoder", "joint", "tokenizer" to what identifies it, of what the cell started from.
        training: course of its training: the best step, and the amount of data.
    """

    counts: Counts
    ids: Sequence[str]
    metric: str
    text: str = "raw"
    parts: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


class CellScore(Strict):
    """The score of a cell at a tier and a bit width."""

    tier: str
    bits: int
    value: float


class CellManifest(Strict):
    """A finished cell.

    Attributes:
        cell: start, language, hours and seed.
        metric: name of the metric.
        better: direction of better scores, "lower" or "higher".
        signature: everything that the metric depends on, and the form of the texts.
        scores: scores at every tier and bit width.
        parts: see `CellScores`.
        training: see `CellScores`.
        utterances: utterances that were scored.
        took_s: seconds.
        commit: commit of the source tree.
        machine: machine that computed.
        versions: versions of the libraries.
        created: date and time, UTC.
    """

    cell: Cell
    metric: str
    better: str
    signature: str
    scores: tuple[CellScore, ...]
    parts: dict[str, str]
    training: dict[str, Any]
    utterances: int
    took_s: float
    commit: str | None = Field(default_factory=provenance.commit)
    machine: dict[str, str | int] = Field(default_factory=provenance.machine)
    versions: dict[str, str] = Field(default_factory=provenance.versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def value(self, tier: str, bits: int) -> float | None:
        """The score there, None if it was not asked for."""
        return next((s.value for s in self.scores if (s.tier, s.bits) == (tier, bits)), None)

    def index_of(self, tier: str, bits: int) -> tuple[int, int]:
        """Indices of a tier and a bit width in the counts of the cell, which are in the order of its scores.

        Args:
            tier: one that the cell was scored at.
            bits: likewise.
        """
        asked = [(score.tier, score.bits) for score in self.scores]
        return divmod(asked.index((tier, bits)), len({score.bits for score in self.scores}))


def write_cell(folder: Path, cell: Cell, grid: StudyGrid, scored: CellScores, took_s: float) -> CellManifest:
    """Write counts and manifest of a cell.

    Args:
        folder: folder of the cell.
        cell: the cell.
        grid: grid of the study.
        scored: counts (C, Q, N, K) and ids of the utterances.
        took_s: seconds that the cell took.

    Raises:
        SprachbundError: for counts that are not those of the grid.
    """
    wanted = (len(grid.tiers), len(grid.bits), len(scored.ids))
    if scored.counts.shape[:3] != wanted or not scored.ids:
        raise SprachbundError(
            f"{cell}: counts are {scored.counts.shape[:3]}, the grid has {wanted} tiers, bit widths and utterances"
        )
    how = metric(scored.metric, cell.language)
    indices = [(c, q) for c in range(len(grid.tiers)) for q in range(len(grid.bits))]
    scores = tuple(
        CellScore(tier=grid.tiers[c], bits=grid.bits[q], value=float(how.score(scored.counts[c, q].sum(0))))
        for c, q in indices
    )
    manifest = CellManifest(
        cell=cell,
        metric=how.name,
        better="higher" if how.higher_is_better else "lower",
        signature=f"{how.signature}|text:{scored.text}",
        scores=scores,
        parts=dict(scored.parts),
        training=dict(scored.training),
        utterances=len(scored.ids),
        took_s=round(took_s, 1),
    )
    counts = {"counts": scored.counts, "ids": np.array(scored.ids)}
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
    arrays = load_arrays(path, advice=advice)
    if arrays.keys() != {"counts", "ids"} or arrays["counts"].ndim != 4 or arrays["ids"].ndim != 1:
        raise SprachbundError(f"{path} does not hold counts and ids; {advice}")
    if arrays["counts"].shape[2] != len(arrays["ids"]) or arrays["counts"].dtype.kind not in "fiu":
        raise SprachbundError(
            f"{path} has counts {arrays['counts'].shape} of {len(arrays['ids'])} utterances; {advice}"
        )
    return arrays["counts"], arrays["ids"].tolist()


def finished_cells(grid: StudyGrid, out: Path) -> list[CellManifest]:
    """Manifests of the grid's cells that are finished and scored at all its tiers and bits, in the grid's order."""
    manifests = (read_cell(cell.folder(out)) for cell in grid.cells())
    return [one for one in manifests if one is not None and is_whole(one, grid)]


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
