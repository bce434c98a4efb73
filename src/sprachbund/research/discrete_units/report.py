"""The tables of the comparison of discrete units: heads, ablations, the curve over hours, and log-mel beside it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sprachbund.evaluation.compare import RunFile, System
from sprachbund.evaluation.lines import Line
from sprachbund.research.arms import compare_arms
from sprachbund.research.discrete_units.data import encoded_directory, halves
from sprachbund.research.discrete_units.options import (
    BASE,
    LOG_MEL,
    NAMES,
    DiscreteUnitsRecipe,
    UnitsArm,
    run_folder,
)
from sprachbund.research.discrete_units.rates import losses_of
from sprachbund.research.table_file import keep_table
from sprachbund.research.texts import TEXTS_FILE, write_texts
from sprachbund.research.tuning import as_json, best_rate
from sprachbund.units.encoded import EncodedCorpus
from sprachbund.util.files import atomic_path, read_model, read_object, write_text
from sprachbund.util.plotting import ACCENT, INK, MUTED, new_figure, plain_axes

# The figure: quality by hours of speech, with and without text.

_COUNTED = {"all": "as many steps", "speech": "as much speech"}
_LINES = ((INK, "o-"), (MUTED, "s--"), (ACCENT, "D-"))


def draw_curve(tables: Sequence[Path], path: Path) -> Path:
    """Draw `curve.json` of runs that have the same speech: chrF with and without text, for each amount of it.

    Args:
        tables: tables of runs that differ in what their steps are counted by; the line without text is that of the
            first.
        path: path of the picture.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    plain_axes(axes, "y")
    lines = [line for number, table in enumerate(tables) for line in _lines(table)[number > 0 :]]
    for (name, hours, scores), (color, form) in zip(lines, cycle(_LINES), strict=False):
        axes.plot(hours, scores, form, color=color, markersize=5, label=name)
    hours = lines[0][1]
    axes.set_xscale("log", base=2)
    axes.set_xticks(hours, [f"{h:g}" for h in hours])
    axes.minorticks_off()
    axes.set(xlabel="hours of speech", ylabel="chrF")
    axes.legend(loc="lower right", frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:].lower())
    return path


def _lines(table: Path) -> list[tuple[str, list[float], list[float]]]:
    """Name, hours and chrF of each kind of data, in the order of the table."""
    values: dict[str, Any] = read_object(table, advice="run the recipe again")
    counted = _COUNTED[values["recipe"]["steps_of"]]
    lines = []
    for data in dict.fromkeys(row["data"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["data"] == data]
        name = f"{data}, {counted}" if data.startswith("+") else data
        lines.append((name, [row["hours"] for row in rows], [row["chrF"] for row in rows]))
    return lines


# Costs: processor time over all resumed runs, and stored data.

COST_FILE = "cost.json"


@contextmanager
def counted(folder: Path, stored_bytes: int) -> Iterator[None]:
    """Add this process's time inside to what was written down in a folder before.

    Args:
        folder: folder of what is made.
        stored_bytes: bytes of the data that it is made of.
    """
    before = read_cost(folder)["cpu_s"] if (folder / COST_FILE).exists() else 0.0
    began = time.process_time()
    try:
        yield
    finally:
        cost = {"cpu_s": before + time.process_time() - began, "stored_bytes": stored_bytes}
        write_text(folder / COST_FILE, json.dumps(cost) + "\n")


class _Cost(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(allow_inf_nan=False)

    cpu_s: float = Field(ge=0)
    stored_bytes: float = Field(ge=0)


def read_cost(folder: Path) -> Mapping[str, float]:
    """`cpu_s` and `stored_bytes`."""
    advice = "delete it, and the work is counted from here on"
    cost = read_model(folder / COST_FILE, _Cost, advice=advice)
    return {"cpu_s": cost.cpu_s, "stored_bytes": cost.stored_bytes}


METRICS = ("BLEU", "chrF")

Row = dict[str, Any]


@dataclass(frozen=True)
class _Among:
    """The lines of a run that are of some utterances."""

    run: RunFile
    ids: frozenset[str]

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.id in self.ids)


def write_tables(recipe: DiscreteUnitsRecipe, directory: Path) -> Path:
    """Write `table.json`, and beside it `ablations.json`, `curve.json`, `control.json`, `shuffled.json`, `log-mel.json`
    and `rates.json` where they were asked for.

    The curve is drawn too, into `curve.png`, and the texts that all tables are made of are in `texts.jsonl.gz`.
    """
    models = [(name, seed) for name, seed, _ in recipe.models()]
    runs = [(name, seed, RunFile(run_folder(directory, seed, name) / "scores")) for name, seed in models]
    write_texts(directory / TEXTS_FILE, runs)
    tables = {
        "ablations": _ablations,
        "curve": _curve,
        "control": _control,
        "shuffled": _shuffled,
        LOG_MEL: _log_mel,
        "rates": _rates,
    }
    for name, rows_of in tables.items():
        if rows := rows_of(recipe, directory):
            table = keep_table(directory / f"{name}.json", recipe, {"rows": list(rows)})
            if rows_of is _curve:
                draw_curve([table], table.with_suffix(".png"))
    return keep_table(directory / "table.json", recipe, {"rows": _heads(recipe, directory)})


def _heads(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Every head with every text, each compared with the same head on speech only."""
    rows = []
    for head in recipe.heads:
        names = [f"{head}, {NAMES[text]}" for text in recipe.texts]
        for text, row in zip(recipe.texts, _compared(recipe, directory, names), strict=True):
            rows.append({"head": head, "data": NAMES[text], **row})
    return rows


def _ablations(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """The base with one thing changed, compared with the base."""
    names = list(recipe.ablation_arms())
    compared = _compared(recipe, directory, names, recipe.seeds_of_ablations) if names else []
    return [
        {"arm": name if name != BASE else _said(recipe), **row}
        for name, row in zip(names, compared, strict=True)
    ]


def _curve(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Scores with and without text for each amount of speech."""
    return _by_hours(recipe, directory, recipe.curve_arms())


def _shuffled(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Text from outside, and the same with other translations, for each amount of speech."""
    return _by_hours(recipe, directory, recipe.shuffled_arms())


def _by_hours(recipe: DiscreteUnitsRecipe, directory: Path, arms: Mapping[str, UnitsArm]) -> list[Row]:
    """For each amount of speech, its arms, compared with the first of them."""
    rows = []
    for hours in dict.fromkeys(arm.hours for arm in arms.values()):
        names = [name for name, arm in arms.items() if arm.hours == hours]
        for name, row in zip(names, _compared(recipe, directory, names), strict=True):
            rows.append({"hours": hours or _all_hours(directory), "data": name.partition(", ")[2], **row})
    return rows


def _control(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Text from outside, and the same with half of the test sentences in it, on both halves of the test."""
    rows = []
    arms = recipe.control_arms()
    for hours in recipe.control_hours:
        names = [name for name, arm in arms.items() if arm.hours == hours]
        for half, ids in halves(recipe).items():
            compared = _compared(recipe, directory, names, among=ids)
            for name, row in zip(names, compared, strict=True):
                rows.append({"hours": hours, "test": half, "data": name.partition(", ")[2], **row})
    return rows


def _rates(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Loss on dev of every arm with every learning rate, and the one that counts."""
    tried = {name: losses_of(recipe, directory, arm) for arm, name in recipe.tuned().items()}
    rates = sorted({rate for losses in tried.values() for rate in losses})
    return [
        {
            "arm": name,
            **dict.fromkeys(f"{rate:g}" for rate in rates),
            **as_json(losses),
            "best": best_rate(losses),
        }
        for name, losses in tried.items()
    ]


def _all_hours(directory: Path) -> float:
    """Of the whole corpus."""
    return round(EncodedCorpus(encoded_directory("train", directory)).info.hours, 2)


def _log_mel(recipe: DiscreteUnitsRecipe, directory: Path) -> list[Row]:
    """Log-mel, and each head on units: quality, and cost as ratios to log-mel."""
    if recipe.log_mel is None:
        return []
    names = [LOG_MEL, *(f"{head}, {NAMES[recipe.texts[0]]}" for head in recipe.heads)]
    costs = {name: _cost(recipe, directory, name) for name in names}
    first = costs[LOG_MEL]
    return [
        {
            "input": name if name == LOG_MEL else f"units, {name}",
            **row,
            "stored data": costs[name]["stored_bytes"] / first["stored_bytes"],
            "training time": costs[name]["cpu_s"] / first["cpu_s"],
        }
        for name, row in zip(names, _compared(recipe, directory, names), strict=True)
    ]


def _cost(recipe: DiscreteUnitsRecipe, directory: Path, name: str) -> Mapping[str, float]:
    """Mean over the seeds."""
    costs = [read_cost(run_folder(directory, seed, name)) for seed in recipe.seeds]
    return {key: sum(one[key] for one in costs) / len(costs) for key in costs[0]}


def _compared(
    recipe: DiscreteUnitsRecipe,
    directory: Path,
    names: Sequence[str],
    seeds: Sequence[int] = (),
    among: Set[str] | None = None,
) -> list[Row]:
    """Scores of arms, over seeds, and what they differ from the first one by, with intervals and p-values.

    With `among`, only utterances of these ids count.
    """
    runs = {
        name: [RunFile(run_folder(directory, seed, name) / "scores") for seed in seeds or recipe.seeds]
        for name in names
    }
    # A model on log-mel hears the language that it writes too, so it was asked for more.
    ids = frozenset(line.id for line in runs[names[-1]][0] if among is None or line.id in among)
    return rows_of(
        [System(name=name, runs=[_Among(run, ids) for run in group]) for name, group in runs.items()]
    )


def rows_of(systems: Sequence[System]) -> list[Row]:
    """The cells of arms beside the first one's.

    Args:
        systems: the arms with their runs.
    """
    compared = compare_arms(systems, METRICS)
    rows: list[Row] = []
    for name in compared.seeds:
        row: Row = {"seeds": compared.seeds[name]}
        for metric in METRICS:
            cells = compared.cells[metric, name]
            row |= {
                metric: cells.score,
                f"{metric} difference": cells.difference,
                f"{metric} p": cells.p,
                f"{metric} Holm's p": cells.holm,
            }
        rows.append(row)
    return rows


def _said(recipe: DiscreteUnitsRecipe) -> str:
    return f"{recipe.base.head}, {NAMES[recipe.base.text]}"
