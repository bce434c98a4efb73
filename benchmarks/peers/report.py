"""The tables and the figure of peers.json, which may hold any part of the measurement.

Run: python benchmarks/peers/report.py benchmarks/peers.json docs/images/peers.svg. It writes `rows` of times into the
file, those of ratios into a file beside it, and the figure.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

OURS, BASELINE = "sprachbund", "faster-whisper int8"
PARTS = ("features", "encode", "decode")
COLOURS = ("#b8b8b8", "#4477aa", "#ee7733")
DRAWN = ("30 s", "5 s")


def decode_ms(call: dict[str, float]) -> float:
    """What is neither features nor encoder: prompt, tokens, text."""
    return call["total"] - call["encode"] - call.get("features", 0.0)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, smallest and largest."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def time_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """One row for every shape and system."""
    rows = []
    for shape, entry in result["shapes"].items():
        for system, cases in entry["systems"].items():
            row = {"shape": shape, "system": system}
            calls, tokens = cases["30 s"], result["cases"]["30 s"]["tokens"]
            row["encoder_ms"] = spread([call["encode"] for call in calls], 0)
            row["token_ms"] = spread([decode_ms(call) / tokens for call in calls])
            for case in result["cases"]:
                calls = cases.get(case)
                row[f"{case.replace(' ', '_')},_s"] = (
                    spread([c["total"] / 1000 for c in calls]) if calls else "-"
                )
            row["first_text_s"] = f"{entry['start'][system]['first_text_s']:.2f}"
            rows.append(row | {"peak_mib": f"{entry['start'][system]['peak_mib']:.0f}"})
    return rows


def ratio_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """How many times as fast as the baseline each of our precisions is, from calls of the same round."""
    rows = []
    for shape, system, case in _ours(result):
        pair = [result["shapes"][shape]["systems"].get(name, {}).get(case, []) for name in (system, BASELINE)]
        ours, theirs = ({call["round"]: call for call in calls} for calls in pair)
        rounds = sorted(ours.keys() & theirs.keys())
        if not rounds:
            continue
        row = {"shape": shape, "case": case, "system": system}
        measures: dict[str, Callable[[dict[str, float]], float]] = {
            "whole_call": lambda call: call["total"],
            "encoder": lambda call: call["encode"],
            "decoder": decode_ms,
        }
        for name, of in measures.items():
            row[name] = spread([of(theirs[i]) / of(ours[i]) for i in rounds], 1)
        rows.append(row)
    return rows


def _ours(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for shape, entry in result["shapes"].items():
        for case in result["cases"]:
            for system in entry["systems"]:
                if system.startswith(OURS):
                    yield shape, system, case


def draw(result: dict[str, Any], path: Path) -> None:
    """Whole calls of one stream, split into their parts; a column for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = OURS
    from matplotlib import pyplot

    shapes = list(result["shapes"])
    figure, grid = pyplot.subplots(
        len(DRAWN), len(shapes), figsize=(1.5 + 3.2 * len(shapes), 5.2), squeeze=False, layout="constrained"
    )
    for row, case in zip(grid, DRAWN, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            _bars(axes, result["shapes"][shape]["systems"], case)
            axes.set_title(f"{shape}, {case}", fontsize=9, loc="left")
            if axes is not row[0]:
                axes.set_yticklabels([])
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _bars(axes: Any, systems: dict[str, Any], case: str) -> None:
    names = [name for name in systems if case in systems[name]]
    left = [0.0] * len(names)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [median(_part_s(call, part) for call in systems[name][case]) for name in names]
        axes.barh(names, widths, left=left, color=colour, label=part, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _part_s(call: dict[str, float], part: str) -> float:
    return (decode_ms(call) if part == "decode" else call.get(part, 0.0)) / 1000


def show(title: str, rows: list[dict[str, str]]) -> None:
    table = Table(title=title)
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def main() -> None:
    source, figure = map(Path, sys.argv[1:])
    result = json.loads(source.read_text(encoding="utf-8"))
    result["rows"] = time_rows(result)
    source.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    ratios = source.with_name(f"{source.stem}_ratios.json")
    ratios.write_text(json.dumps({"rows": ratio_rows(result)}, indent=1) + "\n", encoding="utf-8")
    draw(result, figure)
    show("median (smallest to largest)", result["rows"])
    show(f"times as fast as {BASELINE}", ratio_rows(result))


if __name__ == "__main__":
    main()
