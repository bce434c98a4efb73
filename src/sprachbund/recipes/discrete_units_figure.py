"""The figure of the comparison of discrete units: what text adds, over how much speech there is."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from sprachbund.sharing.drawing import ACCENT, INK, MUTED, new_figure, plain_axes
from sprachbund.util.files import atomic_path, read_object

_COUNTED = {"all": "as many steps", "speech": "as much speech"}
_LINES = ((INK, "o-"), (MUTED, "s--"), (ACCENT, "D-"))


def draw_curve(tables: Sequence[Path], path: Path) -> Path:
    """Draw `curve.json` of runs that have the same speech: chrF with and without text, for each amount of it.

    Args:
        tables: of runs that differ in what their steps are counted by; the line without text is that of the first.
        path: of the picture.
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
    found = []
    for data in dict.fromkeys(row["data"] for row in values["rows"]):
        rows = [row for row in values["rows"] if row["data"] == data]
        name = f"{data}, {counted}" if data.startswith("+") else data
        found.append((name, [row["hours"] for row in rows], [row["chrF"] for row in rows]))
    return found
