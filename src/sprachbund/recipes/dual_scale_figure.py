"""The figure of the comparison: how much faster than its own base a draft makes a model, over how often it is right."""

from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.recipes.dual_scale_options import MAIN
from sprachbund.sharing.drawing import ACCENT, INK, MUTED, new_figure, plain_axes
from sprachbund.util.files import atomic_path, read_object

_EXACT = (MAIN, "token map", "draft model", "medusa")


def draw_speed(table: Path, path: Path) -> Path:
    """Draw `table.json` of a run: every pair of the main system, the other drafts, and what is expected of them.

    The upper line counts layers, (1 + p) N_l / (N_l + N_g) at acceptance p (arXiv 2508.11189, section 3); the lower one
    goes by what rounds cost on this machine.
    """
    values = read_object(table, advice="run the recipe again")
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    plain_axes(axes, "y")
    _expected(axes, values)
    pairs = values["pairs"]
    axes.scatter(
        [p["acceptance"] for p in pairs],
        [p["gain"] for p in pairs],
        s=14,
        color=ACCENT,
        label=f"{MAIN}, by pair",
    )
    for row in _drafts(values["rows"]):
        axes.scatter(row["acceptance"], row["over base"], s=45, color=INK, marker="D", zorder=3)
        axes.annotate(
            row["system"],
            (row["acceptance"], row["over base"]),
            (8, -14),
            textcoords="offset points",
            fontsize=9,
        )
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set(xlabel="guesses accepted", ylabel="tokens per second over those without a draft", xlim=(0, 1))
    axes.legend(loc="upper left", frameon=False)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:].lower())
    return path


def _drafts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["system"] in _EXACT and row["acceptance"] != ""]


def _expected(axes: Any, values: dict[str, Any]) -> None:
    share = np.linspace(0, 1, 50)
    options = values["recipe"]["dual_scale"]
    layers, blocks = options["decoder_layers"], options["blocks"]
    if layers:
        counted = (1 + share) * layers / (layers + blocks)
        axes.plot(share, counted, "--", color=MUTED, label=f"by layers, {layers} and {blocks}")
    costs = [
        p["predicted"] / (1 + p["acceptance"])
        for p in values["pairs"]
        if p["predicted"] and p["acceptance"] != ""
    ]
    if costs:
        axes.plot(
            share,
            (1 + share) * float(np.mean(costs)),
            ":",
            color=ACCENT,
            label="by rounds timed before",
        )
