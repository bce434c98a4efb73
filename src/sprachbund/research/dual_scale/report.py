"""The table of the comparison: quality, acceptance, and speed over base and over teacher.

The base of a draft is the same model without one. Of a system without a draft, it is the main arm's model without one.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sprachbund.decoding.options import NONE
from sprachbund.evaluation.compare import RunFile
from sprachbund.evaluation.compare import System as Scored
from sprachbund.evaluation.options import TEST_SEED
from sprachbund.evaluation.significance import DRAWS, bootstrap_weights, over_seeds, percentiles
from sprachbund.models.io import load
from sprachbund.research.arms import compare_arms
from sprachbund.research.dual_scale.options import MAIN, TEACHER, DualScaleRecipe, run_folder
from sprachbund.research.dual_scale.rates import rate_of, tried_rates
from sprachbund.research.dual_scale.speed import (
    BASE,
    SystemSpeed,
    TimedSystem,
    mean_ms,
    read_speeds,
    systems_of,
)
from sprachbund.research.table_file import keep_table
from sprachbund.research.tuning import as_json
from sprachbund.util.files import atomic_path, read_object
from sprachbund.util.plotting import ACCENT, INK, MUTED, new_figure, plain_axes

METRIC = "chrF"


def write_table(recipe: DualScaleRecipe, directory: Path) -> Path:
    """One row for each system but the bases of single arms, and one for each pair of the main one."""
    systems, speeds = systems_of(recipe, directory), read_speeds(directory)
    bases = {system.base for system in systems} - {BASE}
    shown = [system for system in systems if system.name not in bases]
    quality = _quality(shown)
    rows = []
    for name in dict.fromkeys(system.name for system in shown):
        own = [system for system in shown if system.name == name]
        row: dict[str, Any] = {
            "system": name,
            "M parameters": _millions(own[0].model),
            "seeds": len(own),
            **_rate_cell(recipe, directory, own[0]),
            **(quality.get(name) or quality[own[0].base]),
        }
        rows.append(row | _speed_cells(own[0], speeds, recipe.timing.batches))
    values: dict[str, Any] = {"rows": rows, "pairs": _pairs(speeds, recipe.timing.batches[0])}
    if recipe.learning_rates:
        values["rates"] = {name: as_json(tried_rates(directory, name)) for name in recipe.trained_arms}
    return keep_table(directory / "table.json", recipe, values)


def _rate_cell(recipe: DualScaleRecipe, directory: Path, system: TimedSystem) -> dict[str, Any]:
    """Learning rate of a system's arm, where rates were tried; the teacher has that of its own options."""
    if not recipe.learning_rates:
        return {}
    folder = system.model.parent
    of_arms = {run_folder(directory, name, system.seed): name for name in recipe.trained_arms}
    rate = rate_of(recipe, directory, of_arms[folder]) if folder in of_arms else recipe.teacher.learning_rate
    return {"learning rate": rate}


def _quality(systems: Sequence[TimedSystem]) -> dict[str, dict[str, Any]]:
    """Mean over pairs and seeds, with the differences from the teacher and from the pruned model without a draft.

    What drafts exactly on the pruned model writes the same and is not compared. Of several seeds the intervals are over
    these too; the p-values are those of the difference from the pruned model.
    """
    runs: dict[str, list[RunFile]] = {}
    for system in systems:
        if system.base != BASE or system.accept != "exact" or system.draft == NONE:
            scores = system.model.parent / system.scores
            # Not every arm is trained on transcription.
            runs.setdefault(system.name, []).append(RunFile(scores, task="translation"))
    names = [BASE, *(name for name in runs if name != BASE)]
    scored = {name: Scored(name=name, runs=runs[name]) for name in names}
    pruned = compare_arms([scored[name] for name in names], [METRIC]).cells
    teacher = compare_arms([scored[TEACHER], *(s for n, s in scored.items() if n != TEACHER)], [METRIC]).cells
    return {
        name: {
            METRIC: pruned[METRIC, name].score,
            "from teacher": teacher[METRIC, name].difference,
            "from pruned": pruned[METRIC, name].difference,
            "p": pruned[METRIC, name].p,
            "Holm's p": pruned[METRIC, name].holm,
        }
        for name in names
    }


def _millions(model: Path) -> float:
    """Parameters of the translator, without the draft network and without fixed positions."""
    family: Any = load(model)
    return sum(p.numel() for p in family.parameters() if p.requires_grad) / 1e6


def _speed_cells(
    system: TimedSystem, speeds: Sequence[SystemSpeed], batches: Sequence[int]
) -> dict[str, Any]:
    """Speed of a system over base and teacher, and what was predicted of its draft."""
    name, cells = system.name, dict[str, Any]()
    for batch in batches:
        own = [s for s in speeds if s.name == name and s.batch == batch]
        at = "" if len(batches) == 1 or batch == batches[0] else f" at {batch}"
        over_base = _ratio(speeds, system.base, own)
        if batch == batches[0]:
            checked, accepted = (sum(s.draft_tokens[i] for s in own) for i in (0, 1))
            cells["acceptance"] = accepted / checked if checked else ""
            gains = [s.predicted_gain for s in own if s.predicted_gain is not None]
            cells["predicted"] = predicted = float(np.mean(gains)) if gains else ""
            cells["prediction off by"] = (
                f"{100 * (predicted / over_base - 1):+.1f} %" if isinstance(predicted, float) else ""
            )
        cells[f"tokens/s{at}"] = 1000 / mean_ms(own)
        cells[f"over base{at}"] = over_base
        if batch == batches[0]:
            interval = None if name == BASE else gain_interval(_paired(speeds, system.base, own))
            cells["over base, 95 %"] = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
            cells["over base at least"] = "" if interval is None else interval[0]
        cells[f"over teacher{at}"] = _ratio(speeds, TEACHER, own)
    changed, rows = (sum(getattr(s, key) for s in speeds if s.name == name) for key in ("changed", "rows"))
    cells["texts changed"] = f"{changed} of {rows}"
    return cells


def _ratio(speeds: Sequence[SystemSpeed], other: str, own: Sequence[SystemSpeed]) -> float:
    """Times as fast as another system: the median over repeats of the mean over pairs, taken within each repeat."""
    pairs = _paired(speeds, other, own)
    repeats = range(len(own[0].ms_per_token))
    return median(
        sum(a.ms_per_token[i] for a, _ in pairs) / sum(b.ms_per_token[i] for _, b in pairs) for i in repeats
    )


def _paired(
    speeds: Sequence[SystemSpeed], other: str, own: Sequence[SystemSpeed]
) -> list[tuple[SystemSpeed, SystemSpeed]]:
    """Each run and pair of a system behind the one of another system that it is compared with.

    Runs of the same seed are compared; a system that was trained once is compared with every run of the other.
    """
    there, here = (
        {(s.seed, s.pair): s for s in side if s.batch == own[0].batch} for side in (_of(speeds, other), own)
    )
    seeds = {seed for seed, _ in (*there, *here)}
    first, own_first = (min(seed for seed, _ in side) for side in (there, here))
    pairs = dict.fromkeys(pair for _, pair in here)
    return [
        (there.get((seed, pair)) or there[first, pair], here.get((seed, pair)) or here[own_first, pair])
        for seed in sorted(seeds)
        for pair in pairs
    ]


def _of(speeds: Sequence[SystemSpeed], name: str) -> list[SystemSpeed]:
    return [speed for speed in speeds if speed.name == name]


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
    seeds = sorted({(other.seed, own.seed) for other, own in compared})
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
                sums[side, seeds.index((both[0].seed, both[1].seed))] += (
                    weights @ np.array(one.piece_s) / tokens[:, None]
                )
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
    for n, row in enumerate(sorted(_drafts(values["rows"]), key=lambda row: row["acceptance"])):
        axes.scatter(row["acceptance"], row["over base"], s=45, color=INK, marker="D", zorder=3)
        axes.annotate(
            row["system"],
            (row["acceptance"], row["over base"]),
            (8, 8 if n % 2 else -14),  # names of neighbours would lie on each other
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
