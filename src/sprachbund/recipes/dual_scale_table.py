"""The table of the comparison: quality beside the teacher, acceptance, and speed over base and over teacher."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sprachbund.evaluation.compare import RunFile, compare
from sprachbund.evaluation.compare import System as Scored
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.significance import MeanComparison
from sprachbund.models.directory import load
from sprachbund.recipes.dual_scale_options import MAIN, TEACHER, DualScaleRecipe
from sprachbund.recipes.dual_scale_speed import Speed, mean_ms, read_speeds
from sprachbund.recipes.dual_scale_systems import BASE, System, systems_of
from sprachbund.util.files import write_text

METRIC = "chrF"


@dataclass(frozen=True)
class _Translated:
    """The lines of a run that are no transcription: not every arm is taught that."""

    run: RunFile

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.source != line.target)


def write_table(recipe: DualScaleRecipe, directory: Path) -> Path:
    """One row for each system, and one for each pair of the main one."""
    systems, speeds = systems_of(recipe, directory), read_speeds(directory)
    quality = _quality(systems)
    rows = []
    for name in dict.fromkeys(system.name for system in systems):
        own = [system for system in systems if system.name == name]
        row: dict[str, Any] = {
            "system": name,
            "M parameters": _millions(own[0].model),
            "seeds": len(own),
            **quality[name],
        }
        rows.append(row | _speed_cells(name, speeds, recipe.timing.batches))
    path = directory / "table.json"
    values = {
        "recipe": recipe.model_dump(mode="json"),
        "rows": rows,
        "pairs": _pairs(speeds, recipe.timing.batches[0]),
    }
    write_text(path, json.dumps(values, indent=1) + "\n")
    return path


def _quality(systems: Sequence[System]) -> dict[str, dict[str, Any]]:
    """Mean over pairs and seeds, and difference from the teacher.

    Every run is compared with the teacher's by paired bootstrap over texts; of several runs the outermost ends of their
    intervals are told.
    """
    numbered = {f"{system.name} {system.seed}": system for system in systems}
    runs = [
        Scored(name=name, runs=[_Translated(RunFile(system.model.parent / system.scores))])
        for name, system in numbered.items()
    ]
    found: dict[str, list[MeanComparison]] = {}
    for (_, name), mean in compare(runs, [METRIC]).means.items():
        found.setdefault(numbered[name].name, []).append(mean)
    cells: dict[str, dict[str, Any]] = {
        name: {
            METRIC: float(np.mean([one.system for one in means])),
            "difference": f"{np.mean([one.difference for one in means]):+.2f} "
            f"({min(one.interval[0] for one in means):+.2f} to {max(one.interval[1] for one in means):+.2f})",
        }
        for name, means in found.items()
    }
    teacher = next(iter(found.values()))[0].baseline
    return {TEACHER: {METRIC: teacher, "difference": ""}, **cells}


def _millions(model: Path) -> float:
    """Parameters of the translator, without what guesses for it and without fixed positions."""
    family: Any = load(model)
    return sum(p.numel() for p in family.parameters() if p.requires_grad) / 1e6


def _speed_cells(name: str, speeds: Sequence[Speed], batches: Sequence[int]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for batch in batches:
        own = [s for s in speeds if s.name == name and s.batch == batch]
        at = "" if len(batches) == 1 or batch == batches[0] else f" at {batch}"
        if batch == batches[0]:
            checked, accepted = (sum(s.guesses[i] for s in own) for i in (0, 1))
            cells["acceptance"] = accepted / checked if checked else ""
            predicted = [s.predicted_gain for s in own if s.predicted_gain is not None]
            cells["predicted"] = float(np.mean(predicted)) if predicted else ""
        cells[f"tokens/s{at}"] = 1000 / mean_ms(own)
        cells[f"over base{at}"] = _ratio(speeds, BASE, own)
        cells[f"over teacher{at}"] = _ratio(speeds, TEACHER, own)
    changed, rows = (sum(getattr(s, key) for s in speeds if s.name == name) for key in ("changed", "rows"))
    cells["texts changed"] = f"{changed} of {rows}"
    return cells


def _ratio(speeds: Sequence[Speed], other: str, own: Sequence[Speed]) -> float:
    """Times as fast as another system: the median over repeats of the mean over pairs, taken within each repeat.

    Of another system that has the same seeds, each run is compared with its own.
    """
    there = {(s.seed, s.pair): s for s in speeds if s.name == other and s.batch == own[0].batch}
    first = min(seed for seed, _ in there)
    pairs = [(there.get((s.seed, s.pair)) or there[first, s.pair], s) for s in own]
    repeats = range(len(own[0].ms_per_token))
    return median(
        sum(a.ms_per_token[i] for a, _ in pairs) / sum(b.ms_per_token[i] for _, b in pairs) for i in repeats
    )


def _pairs(speeds: Sequence[Speed], batch: int) -> list[dict[str, Any]]:
    """The main system pair by pair, all seeds together."""
    rows = []
    for pair in sorted({speed.pair for speed in speeds}):
        base, own = (
            [s for s in speeds if (s.name, s.batch, s.pair) == (name, batch, pair)] for name in (BASE, MAIN)
        )
        checked, accepted = (sum(s.guesses[i] for s in own) for i in (0, 1))
        rows.append(
            {
                "pair": pair,
                "acceptance": accepted / checked if checked else "",
                "tokens/s": 1000 / mean_ms(own),
                "base tokens/s": 1000 / mean_ms(base),
                "gain": mean_ms(base) / mean_ms(own),
                "predicted": float(np.mean([s.predicted_gain for s in own if s.predicted_gain] or [0.0])),
            }
        )
    return rows
