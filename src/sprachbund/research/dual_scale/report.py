"""The table of the comparison: quality beside the teacher, acceptance, and speed over base and over teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sprachbund.decoding.options import NONE
from sprachbund.evaluation.compare import RunFile
from sprachbund.evaluation.compare import System as Scored
from sprachbund.evaluation.lines import Line
from sprachbund.evaluation.options import TEST_SEED
from sprachbund.evaluation.significance import DRAWS, bootstrap_weights, over_seeds, percentiles
from sprachbund.models.io import load
from sprachbund.research.arms import compare_arms
from sprachbund.research.dual_scale.options import MAIN, TEACHER, DualScaleRecipe
from sprachbund.research.dual_scale.speed import (
    BASE,
    SystemSpeed,
    TimedSystem,
    mean_ms,
    read_speeds,
    systems_of,
)
from sprachbund.research.table_file import keep_table
from sprachbund.util.files import atomic_path, read_object
from sprachbund.util.plotting import ACCENT, INK, MUTED, new_figure, plain_axes

METRIC = "chrF"


@dataclass(frozen=True)
class _Translated:
    """The lines of a run that are no transcription: not every arm is trained on that."""

    run: RunFile

    def __iter__(self) -> Iterator[Line]:
        return (line for line in self.run if line.source != line.target)


def write_table(recipe: DualScaleRecipe, directory: Path) -> Path:
    """One row for each system, and one for each pair of the main one."""
    systems, speeds = systems_of(recipe, directory), read_speeds(directory)
    quality = _quality(systems)
    base = next(system.model for system in systems if system.name == BASE)
    rows = []
    for name in dict.fromkeys(system.name for system in systems):
        own = [system for system in systems if system.name == name]
        row: dict[str, Any] = {
            "system": name,
            "M parameters": _millions(own[0].model),
            "seeds": len(own),
            **quality[name],
        }
        on_base = own[0].model == base and own[0].draft != NONE
        rows.append(row | _speed_cells(name, speeds, recipe.timing.batches, drafts_for_base=on_base))
    values = {"rows": rows, "pairs": _pairs(speeds, recipe.timing.batches[0])}
    return keep_table(directory / "table.json", recipe, values)


def _quality(systems: Sequence[TimedSystem]) -> dict[str, dict[str, Any]]:
    """Mean over pairs and seeds, and difference from the teacher; of several seeds the interval is over these too."""
    runs: dict[str, list[_Translated]] = {}
    for system in systems:
        runs.setdefault(system.name, []).append(_Translated(RunFile(system.model.parent / system.scores)))
    compared = compare_arms([Scored(name=name, runs=of_arm) for name, of_arm in runs.items()], [METRIC])
    return {
        name: {METRIC: cells.score, "difference": cells.difference, "p": cells.p, "Holm's p": cells.holm}
        for (_, name), cells in compared.cells.items()
    }


def _millions(model: Path) -> float:
    """Parameters of the translator, without the draft network and without fixed positions."""
    family: Any = load(model)
    return sum(p.numel() for p in family.parameters() if p.requires_grad) / 1e6


def _speed_cells(
    name: str, speeds: Sequence[SystemSpeed], batches: Sequence[int], drafts_for_base: bool
) -> dict[str, Any]:
    """Speed of a system over base and teacher, and what was predicted of its draft.

    What is measured of a draft for the base itself is its speed over the base; the drafts of other models are predicted
    alone, since those models are not timed without one.
    """
    cells: dict[str, Any] = {}
    for batch in batches:
        own = [s for s in speeds if s.name == name and s.batch == batch]
        at = "" if len(batches) == 1 or batch == batches[0] else f" at {batch}"
        if batch == batches[0]:
            checked, accepted = (sum(s.draft_tokens[i] for s in own) for i in (0, 1))
            cells["acceptance"] = accepted / checked if checked else ""
            predicted = [s.predicted_gain for s in own if s.predicted_gain is not None]
            cells["predicted"] = float(np.mean(predicted)) if predicted else ""
            compared = bool(predicted) and drafts_for_base
            cells["measured"] = measured = _ratio(speeds, BASE, own) if compared else ""
            cells["prediction off by"] = (
                f"{100 * (cells['predicted'] / measured - 1):+.1f} %" if isinstance(measured, float) else ""
            )
        cells[f"tokens/s{at}"] = 1000 / mean_ms(own)
        cells[f"over base{at}"] = _ratio(speeds, BASE, own)
        if batch == batches[0]:
            interval = None if name == BASE else gain_interval(_paired(speeds, BASE, own))
            cells["over base, 95 %"] = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
            cells["over base at least"] = "" if interval is None else interval[0]
        cells[f"over teacher{at}"] = _ratio(speeds, TEACHER, own)
    changed, rows = (sum(getattr(s, key) for s in speeds if s.name == name) for key in ("changed", "rows"))
    cells["texts changed"] = f"{changed} of {rows}"
    return cells


def _ratio(speeds: Sequence[SystemSpeed], other: str, own: Sequence[SystemSpeed]) -> float:
    """Times as fast as another system: the median over repeats of the mean over pairs, taken within each repeat.

    Of another system that has the same seeds, each run is compared with its own.
    """
    pairs = _paired(speeds, other, own)
    repeats = range(len(own[0].ms_per_token))
    return median(
        sum(a.ms_per_token[i] for a, _ in pairs) / sum(b.ms_per_token[i] for _, b in pairs) for i in repeats
    )


def _paired(
    speeds: Sequence[SystemSpeed], other: str, own: Sequence[SystemSpeed]
) -> list[tuple[SystemSpeed, SystemSpeed]]:
    """Each run and pair of a system behind the one of another system that it is compared with."""
    there = {(s.seed, s.pair): s for s in speeds if s.name == other and s.batch == own[0].batch}
    first = min(seed for seed, _ in there)
    return [(there.get((s.seed, s.pair)) or there[first, s.pair], s) for s in own]


def gain_interval(
    compared: Sequence[tuple[SystemSpeed, SystemSpeed]],
    *,
    draws: int = DRAWS["bootstrap"],
    seed: int = TEST_SEED,
) -> tuple[float, float] | None:
    """95 % interval of `_ratio` over utterances, drawn with replacement, and seeds; None where there are too few.

    Utterances of each source language are drawn together for both systems, all target languages and all seeds: what
    makes an utterance slow in both is no difference. Of several seeds, `over_seeds` adds the spread of their own
    ratios, which are paired too. Repeats are not drawn, as the same work done again has nothing new but the noise of
    the machine, of which the median is taken as ever.

    Args:
        compared: for every seed and pair, the other system and the own one.
        draws: S.
        seed: seed of the draws.
    """
    if min((len(one.piece_tokens) for both in compared for one in both), default=0) < 2:
        return None
    seeds = sorted({own.seed for _, own in compared})
    # Time per token, the sum over pairs, of each side, seed, draw and repeat; the last draw has every utterance once.
    sums = np.zeros((2, len(seeds), draws + 1, len(compared[0][1].ms_per_token)))
    for number, source in enumerate(sorted({_source(own) for _, own in compared})):
        of_source = [both for both in compared if _source(both[1]) == source]
        count = len(of_source[0][1].piece_tokens)
        chunks = [chunk for _, chunk in bootstrap_weights(count, draws, seed + number)]
        weights = np.concatenate([*chunks, np.ones((1, count))])
        for both in of_source:
            for side, one in enumerate(both):
                tokens = weights @ np.array(one.piece_tokens)
                sums[side, seeds.index(both[1].seed)] += weights @ np.array(one.piece_s) / tokens[:, None]
    totals = sums.sum(1)
    ratios = np.median(totals[0] / totals[1], axis=1)
    if len(seeds) == 1:
        return percentiles(ratios[:-1])
    of_seeds = np.median(sums[0, :, -1] / sums[1, :, -1], axis=1)
    return over_seeds(float(ratios[-1]), ratios[:-1], [of_seeds.tolist()])[0]


def _source(speed: SystemSpeed) -> str:
    return speed.pair.split(">")[0]


def _pairs(speeds: Sequence[SystemSpeed], batch: int) -> list[dict[str, Any]]:
    """The main system pair by pair, all seeds together."""
    rows = []
    for pair in sorted({speed.pair for speed in speeds}):
        base, own = (
            [s for s in speeds if (s.name, s.batch, s.pair) == (name, batch, pair)] for name in (BASE, MAIN)
        )
        checked, accepted = (sum(s.draft_tokens[i] for s in own) for i in (0, 1))
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


# The figure: speed against acceptance.

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
    axes.set(
        xlabel="draft tokens accepted", ylabel="tokens per second over those without a draft", xlim=(0, 1)
    )
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
