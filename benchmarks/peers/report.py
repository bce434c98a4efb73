"""The tables and the figure of a file of peers_by_processor/, which may hold any part of the measurement.

Run: python benchmarks/peers/report.py benchmarks/peers_by_processor/NAME.json docs/images/peers_NAME.svg. It writes
`rows` of times into the file; ratios and the machine into files beside it; the figure; and peers_by_processor.json, in
which the processors are compared.
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
FASTEST, OTHERS = "sprachbund native int8", ("OpenVINO GenAI int8", "whisper.cpp q8_0")
PARTS = ("features", "encode", "decode")
COLOURS = ("#b8b8b8", "#4477aa", "#ee7733")
DRAWN = ("30 s", "5 s")
NONE = "-"
RESULTS = Path(__file__).resolve().parents[1] / "peers_by_processor"


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
                    spread([c["total"] / 1000 for c in calls]) if calls else NONE
                )
            row["first_text_s"] = f"{entry['start'][system]['first_text_s']:.2f}"
            rows.append(row | {"peak_mib": f"{entry['start'][system]['peak_mib']:.0f}"})
    return rows


Measure = Callable[[dict[str, float]], float]
MEASURES: dict[str, Measure] = {
    "whole_call": lambda call: call["total"],
    "encoder": lambda call: call["encode"],
    "decoder": decode_ms,
}


def ratio_rows(result: dict[str, Any]) -> list[dict[str, str]]:
    """How many times as fast as the baseline each of our precisions is, from calls of the same round.

    Of the other systems in 8 bits, whole calls alone.
    """
    rows = []
    measured = [name for name in OTHERS if any(name in e["systems"] for e in result["shapes"].values())]
    for shape, system, case in _ours(result):
        systems = result["shapes"][shape]["systems"]
        row = {name: ratios(systems, system, BASELINE, case, of) for name, of in MEASURES.items()}
        row |= {f"than {n}": ratios(systems, system, n, case, MEASURES["whole_call"]) for n in measured}
        if set(row.values()) != {NONE}:
            rows.append({"shape": shape, "case": case, "system": system, **row})
    return rows


def ratios(systems: dict[str, Any], ours: str, theirs: str, case: str, of: Measure) -> str:
    """Their times over ours, of the rounds that both took part in."""
    mine, other = ({c["round"]: c for c in systems.get(name, {}).get(case, [])} for name in (ours, theirs))
    shared = sorted(mine.keys() & other.keys())
    return spread([of(other[i]) / of(mine[i]) for i in shared], 1) if shared else NONE


def machine_row(result: dict[str, Any]) -> dict[str, str]:
    """What every table of speed has to name."""
    machine = result["machine"]
    return {
        "processor": machine["processor"],
        "instruction_set": machine["instruction_set"],
        "threads": str(result["options"]["threads"]),
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }


def processor_rows(folder: Path) -> list[dict[str, str]]:
    """How many times as fast as each peer in 8 bits our fastest is, by processor and shape: whole calls."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for shape, entry in result.get("shapes", {}).items():
            row = {**machine_row(result), "shape": shape}
            del row["versions"]
            for case in DRAWN:
                for peer in (BASELINE, *OTHERS):
                    named = f"{case}: than {peer}"
                    row[named] = ratios(entry["systems"], FASTEST, peer, case, MEASURES["whole_call"])
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
    _write(source.with_name(f"{source.stem}_ratios.json"), ratio_rows(result))
    _write(source.with_name(f"{source.stem}_machine.json"), [machine_row(result)])
    if source.parent.resolve() == RESULTS:
        _write(RESULTS.with_suffix(".json"), processor_rows(RESULTS))
    draw(result, figure)
    show("machine", [machine_row(result)])
    show("median (smallest to largest)", result["rows"])
    show(f"times as fast as {BASELINE}", ratio_rows(result))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
