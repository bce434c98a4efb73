"""The report of a study as text, JSON, tables and figure, with a recommended start.

A report can be made before all cells are finished. It then uses the complete scales and lists the missing ones.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.research.encoder_transfer.analysis import (
    CellGap,
    Fitted,
    Sooner,
    StudyAnalysis,
    analyse,
    cell_gaps,
    convergence,
)
from sprachbund.research.encoder_transfer.grid import StudyGrid
from sprachbund.research.encoder_transfer.power_law import Estimate, Interval, PowerLaw
from sprachbund.research.encoder_transfer.results import (
    CELL_FILE,
    LEARNING_RATE,
    CellManifest,
    finished_cells,
    read_results,
)
from sprachbund.research.encoder_transfer.study import write_results
from sprachbund.research.encoder_transfer.study_options import AnalysisOptions, Better, ReadOptions
from sprachbund.util.files import atomic_path, write_json
from sprachbund.util.plotting import ACCENT, GRID, INK, MUTED, new_figure, plain_axes

# The recommended start: expected gain, seed noise, cost of bits.


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The start to choose at an amount of data.

    Attributes:
        hours: hours of data.
        gain: expected of the first arm over the second.
        measured: whether the hours lie within those measured.
        sentence: for people.
    """

    hours: float
    gain: Estimate
    measured: bool
    sentence: str


def decide(analysis: StudyAnalysis, hours: float) -> Decision | None:
    """The decision at so many hours of data; None without a law."""
    law = analysis.fitted.law
    if law is None:
        return None
    gain = law.gap(hours)
    measured = min(law.hours) <= hours <= max(law.hours)
    parts = [_gain(analysis, law, hours, gain, measured=measured)]
    parts += _noise(analysis, law, gain)
    parts += _bits(analysis, gain)
    return Decision(hours=hours, gain=gain, measured=measured, sentence=" ".join(parts))


def _gain(analysis: StudyAnalysis, law: PowerLaw, hours: float, gain: Estimate, *, measured: bool) -> str:
    first, second = analysis.grid.arms
    outside = f", beyond the {min(law.hours):g} to {max(law.hours):g} h measured" if not measured else ""
    caution = "" if analysis.fitted.trusted else " by a law that is not to be trusted"
    return (
        f"At {hours:g} h{outside}, starting from {first} rather than {second} is expected{caution} to gain "
        f"{_points(gain.value)} {analysis.grid.unit} ({_between(gain)})."
    )


def _noise(analysis: StudyAnalysis, law: PowerLaw, gain: Estimate) -> list[str]:
    """The gain beside the noise of seeds, and where it drowns in it."""
    noise, first = analysis.grid.seed_noise, analysis.grid.arms[0]
    if noise is None:
        return ["Each cell has one seed, so how much of this another seed would change is not known."]
    if noise == 0:
        return ["Seeds do not differ."]
    low, high = gain.interval
    if low > noise:
        verdict = f"take {first}"
    elif high < noise:
        verdict = "another seed matters as much as the start: take either"
    else:
        verdict = f"{first} is the better bet, but one run may not show it"
    drowned = law.hours_at(noise)
    until = f"; it comes down to that at about {drowned:.2g} h" if drowned < 1e6 else ""
    until = until.replace(f"{drowned:.2g}", f"{float(f'{drowned:.2g}'):g}")
    return [f"Seeds differ by {_points(noise)} (one standard deviation){until}: {verdict}."]


def _bits(analysis: StudyAnalysis, gain: Estimate) -> list[str]:
    """The gain beside what fewer bits cost."""
    sentences = []
    for cost in analysis.bit_costs:
        relation = "more" if cost.mean.value > gain.value else "less"
        sentences.append(
            f"{cost.bits:g} bits cost {_points(cost.mean.value)} ({_between(cost.mean)}), "
            f"{relation} than the start gains{_same_for_both(analysis, cost.difference)}."
        )
    return sentences


def _same_for_both(analysis: StudyAnalysis, difference: Estimate) -> str:
    first, second = analysis.grid.arms
    low, high = difference.interval
    if low <= 0 <= high:
        return ", and no more from one start than from the other as far as can be seen"
    dearer = second if difference.value > 0 else first
    return f", and {_points(abs(difference.value))} more from {dearer}"


def _between(estimate: Estimate) -> str:
    """The interval in words; one language has none."""
    low, high = estimate.interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return "one language, so no interval"
    return f"95%: {_points(low)} to {_points(high)}"


def _points(value: float) -> str:
    """Two digits after the point, or two that count."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


_NAMED = 5
Table = tuple[list[str], list[list[str]]]
"""Head and rows."""


def decisions(analysis: StudyAnalysis, hours: Sequence[float] = ()) -> list[Decision]:
    """Decisions at these hours, or at the least and the most that the law is fitted to."""
    law = analysis.fitted.law
    if law is None:
        return []
    wanted = hours or (min(law.hours), max(law.hours))
    return [decision for at in wanted if (decision := decide(analysis, at)) is not None]


def as_values(analysis: StudyAnalysis, hours: Sequence[float] = ()) -> dict[str, Any]:
    """The report as a JSON value; what is not known is null.

    Args:
        analysis: analysis that is reported.
        hours: hours at which to decide.
    """
    grid, latency = analysis.grid, analysis.latency
    values = {
        "metric": grid.metric,
        "better": grid.better,
        "arms": list(grid.arms),
        "languages": list(grid.languages),
        "hours": list(grid.hours),
        "tiers": list(grid.tiers),
        "distinct_tiers": list(analysis.fitted.tiers),
        "bits": list(grid.bits),
        "seeds": list(grid.seeds),
        "seed_noise": grid.seed_noise,
        "holes": list(grid.holes),
        "gaps": _gap_values(analysis),
        "fit": _fit_values(analysis.fitted),
        "fit_by_tier": [{"tier": f.tiers[0], **_fit_values(f)} for f in analysis.by_tier],
        "latency_sensitivity": latency
        and {
            "tiers": list(latency.tiers),
            **_estimate("mean", latency.mean),
            "by_noise": latency.by_noise,
            "cells": [
                {"language": name, "hours": h, "value": float(latency.cells[index, at])}
                for index, name in enumerate(grid.languages)
                for at, h in enumerate(grid.hours)
            ],
        },
        "quantization": [
            {
                "bits": cost.bits,
                **_estimate("mean", cost.mean),
                "median": cost.median,
                **_estimate("difference", cost.difference),
            }
            for cost in analysis.bit_costs
        ],
        "decision": [
            {"hours": d.hours, **_estimate("gain", d.gain), "measured": d.measured, "sentence": d.sentence}
            for d in decisions(analysis, hours)
        ],
    }
    return _finite(values)


def _gap_values(analysis: StudyAnalysis) -> list[dict[str, Any]]:
    grid, fitted = analysis.grid, analysis.fitted
    return [
        {
            "hours": hours,
            **_estimate("mean", mean),
            "by_language": dict(zip(grid.languages, fitted.gaps[:, at].tolist(), strict=True)),
        }
        for at, (hours, mean) in enumerate(zip(grid.hours, fitted.means, strict=True))
    ]


def _fit_values(fitted: Fitted) -> dict[str, Any]:
    law = fitted.law
    values: dict[str, Any] = {"A": None, "b": None}
    if law is not None:
        values = _estimate("A", law.scale) | _estimate("b", law.exponent)
        values |= {"by": law.by, "r_squared": law.r_squared, "hours": list(law.hours)}
    return values | {"trusted": fitted.trusted, "why": list(fitted.doubts)}


def _estimate(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        name: estimate.value,
        f"{name}_interval": list(estimate.interval),
        f"{name}_percentile": list(estimate.percentile),
    }


def _finite(value: Any) -> Any:
    """JSON has no numbers that are none; an interval without an end is none at all."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        pair = len(value) == 2 and all(isinstance(each, float) for each in value)
        return None if pair and math.inf in map(abs, value) else [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def heading(analysis: StudyAnalysis) -> str:
    """Return the heading: the two starts, and the size of the grid."""
    grid = analysis.grid
    first, second = grid.arms
    counts = (
        (grid.languages, "language"),
        (grid.hours, "scale"),
        (grid.tiers, "tier"),
        (grid.bits, "bit width"),
        (grid.seeds, "seed"),
    )
    sizes = ", ".join(f"{len(axis)} {name}{'s' * (len(axis) > 1)}" for axis, name in counts)
    return f"gap: by how many {grid.unit} {first} is better than {second}; {sizes}"


def gap_table(analysis: StudyAnalysis) -> Table:
    """Gaps by hours, one column more for each tier where there are several."""
    tiers = [fitted.tiers[0] for fitted in analysis.by_tier]
    head = ["hours", "gap", "95%", "percentiles", "languages", *tiers]
    rows = []
    for at, (hours, mean) in enumerate(zip(analysis.grid.hours, analysis.fitted.means, strict=True)):
        own = [f"{fitted.means[at].value:z.2f}" for fitted in analysis.by_tier]
        shown = "-" if math.isnan(hours) else f"{hours:g}"
        count = int((~np.isnan(analysis.fitted.gaps[:, at])).sum())
        rows.append(
            [shown, f"{mean.value:z.2f}", span(mean.interval), span(mean.percentile), f"{count}", *own]
        )
    return head, rows


def hole_lines(analysis: StudyAnalysis) -> list[str]:
    """Return lines about missing cells, and the languages that means are then over; empty for a whole grid."""
    holes = analysis.grid.holes
    if not holes:
        return []
    more = f" and {len(holes) - _NAMED} more" if len(holes) > _NAMED else ""
    plural = "s are" if len(holes) > 1 else " is"
    return [
        f"{len(holes)} cell{plural} missing: {'; '.join(holes[:_NAMED])}{more}; means are over the languages that "
        "have both starts"
    ]


def tier_lines(analysis: StudyAnalysis) -> list[str]:
    """Return a line about tiers that repeat others, and count once in means; empty where none does."""
    counted = analysis.fitted.tiers
    again = [tier for tier in analysis.grid.tiers if tier not in counted]
    if not again:
        return []
    verb = "repeat" if len(again) > 1 else "repeats"
    return [f"{', '.join(again)} {verb} the scores of another tier; means are over {', '.join(counted)}"]


def law_lines(fitted: Fitted) -> list[str]:
    """The law in words, and what speaks against it."""
    lines = [_law(fitted.law)] if fitted.law else []
    if fitted.law and not fitted.trusted:
        lines += [f"not to be trusted: {doubt}" for doubt in fitted.doubts]
        lines += ["least squares of the gaps themselves bear more noise: --by gaps"] * (
            fitted.law.by == "log"
        )
    return lines


def _law(law: PowerLaw) -> str:
    a, b = law.scale, law.exponent
    published = " as published" if law.by == "log" else ""
    return (
        f"gap(h) = {a.value:z.2f} (h / 100)^{-b.value:z.2f}; "
        f"A {span(a.interval)} and b {span(b.interval)}, both at once with 95%; "
        f"percentiles{published}: A {span(a.percentile)}, b {span(b.percentile)}; R² {law.r_squared:.3f}"
    )


def tier_table(analysis: StudyAnalysis) -> Table:
    """The law of each tier by itself."""
    rows = []
    for fitted in analysis.by_tier:
        law = fitted.law
        numbers = ["-"] * 4
        if law:
            a, b = law.scale, law.exponent
            numbers = [f"{a.value:z.2f}", span(a.interval), f"{b.value:z.2f}", span(b.interval)]
        rows.append([fitted.tiers[0], *numbers, "yes" if fitted.trusted else "no"])
    return ["tier", "A", "95%", "b", "95%", "trusted"], rows


def latency_line(analysis: StudyAnalysis) -> str:
    """The range over streaming tiers beside what noise makes."""
    latency = analysis.latency
    if latency is None:
        return ""
    noise = f"; seed noise alone makes {latency.by_noise:z.2f}" if latency.by_noise is not None else ""
    return (
        f"latency: the gap differs by {latency.mean.value:z.2f} ({span(latency.mean.interval)}) between "
        f"{len(latency.tiers)} streaming tiers, mean over languages and hours{noise}"
    )


def bit_table(analysis: StudyAnalysis) -> Table:
    """Return a table of the cost of fewer bits."""
    first, second = analysis.grid.arms
    head = ["bits", "cost", "95%", "median", f"{second} less {first}", "95%"]
    rows = [
        [
            f"{cost.bits:g}",
            f"{cost.mean.value:z.2f}",
            span(cost.mean.interval),
            f"{cost.median:z.2f}",
            f"{cost.difference.value:z.2f}",
            span(cost.difference.interval),
        ]
        for cost in analysis.bit_costs
    ]
    return head, rows


def span(interval: Interval) -> str:
    """An interval in words."""
    low, high = interval
    return f"{low:z.2f} to {high:z.2f}" if math.isfinite(low) and math.isfinite(high) else "not known"


# The figure: the law on logarithmic axes, the tiers, the cost of bits.

KINDS = (".png", ".svg", ".pdf")
_WIDTH, _HEIGHT, _POINTS_PER_INCH = 4.4, 3.5, 160
_SECOND = "#c46a2b"


def check_name(path: Path) -> None:
    """Check that a figure can be written there. Raises SprachbundError where not."""
    if path.suffix.lower() not in KINDS:
        raise SprachbundError(f"{path}: figures are written as {', '.join(KINDS)}; change the name's end")


def draw(analysis: StudyAnalysis, path: Path) -> None:
    """Write the figure; its kind is the ending of its name.

    Raises:
        SprachbundError: for a kind that cannot be written.
    """
    check_name(path)
    panels = [
        _draw_law,
        *([_tiers] if analysis.by_tier else []),
        *([_draw_bits] if analysis.bit_costs else []),
    ]
    figure = new_figure(_WIDTH * len(panels), _HEIGHT)
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        panel(axes, analysis)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_POINTS_PER_INCH, format=path.suffix[1:].lower())


def _draw_law(axes: Any, analysis: StudyAnalysis) -> None:
    """Gaps of languages, their means, and the law with its band."""
    fitted, hours = analysis.fitted, np.array(analysis.grid.hours)
    label: str | None = "one language"
    for gaps in fitted.gaps:
        axes.plot(
            hours, np.where(gaps > 0, gaps, np.nan), "o", color=MUTED, alpha=0.35, ms=3, mew=0, label=label
        )
        label = None
    if fitted.law is not None:
        _band(axes, fitted.law)
    for h, mean in zip(hours, fitted.means, strict=True):
        low, high = mean.interval
        if mean.value > 0 and np.isfinite(high):
            axes.plot([h, h], [max(low, mean.value / 100), high], color=INK, lw=1.2, zorder=4)
    means = np.array([mean.value for mean in fitted.means])
    axes.plot(hours, np.where(means > 0, means, np.nan), "s", color=INK, ms=5, zorder=5, label="mean, 95%")
    lost, known = int((fitted.gaps <= 0).sum()), int((~np.isnan(fitted.gaps)).sum())
    _hours_axis(axes, analysis)
    shown = np.concatenate([fitted.gaps[fitted.gaps > 0], means[means > 0]])
    if len(shown):  # a logarithm needs something above nought
        axes.set_yscale("log")
        axes.set_ylim(shown.min() / 1.6, shown.max() * 1.6)
        _plain_numbers(axes)
    elif np.isfinite(hours).all():
        axes.set_xlim(hours.min() / 1.2, hours.max() * 1.2)
    axes.set_title("gap and law" + (f" ({lost} of {known} not positive)" if lost else ""), fontsize=9)
    axes.legend(frameon=False, fontsize=7.5)


def _band(axes: Any, law: PowerLaw) -> None:
    grid = np.geomspace(min(law.hours) / 1.15, max(law.hours) * 1.15, 60)
    gaps = [law.gap(h) for h in grid]
    low, high = np.array([each.interval for each in gaps]).T
    if np.isfinite(high).all():
        axes.fill_between(grid, low, high, color=ACCENT, alpha=0.15, lw=0)
    word = "" if law.trusted else ", not to be trusted"
    name = f"{law.scale.value:.2f} (h/100)$^{{{-law.exponent.value:.2f}}}${word}"
    style = "-" if law.trusted else "--"
    axes.plot(grid, [each.value for each in gaps], style, color=ACCENT, lw=1.6, label=name)


def _tiers(axes: Any, analysis: StudyAnalysis) -> None:
    """Mean gap by hours, one line for each tier."""
    shades = np.linspace(0.35, 1.0, len(analysis.by_tier))
    for fitted, shade in zip(analysis.by_tier, shades, strict=True):
        means = [mean.value for mean in fitted.means]
        axes.plot(analysis.grid.hours, means, "o-", color=ACCENT, alpha=shade, ms=3.5, label=fitted.tiers[0])
    axes.axhline(0, color=GRID, lw=1)
    _hours_axis(axes, analysis)
    latency = analysis.latency
    summary = f": range {latency.mean.value:.2f} ({span(latency.mean.interval)})" if latency else ""
    axes.set_title(f"by tier{summary}", fontsize=9)
    axes.legend(frameon=False, fontsize=7.5)


def _draw_bits(axes: Any, analysis: StudyAnalysis) -> None:
    """Cost of bits for both arms, one dot for each cell, the mean beside."""
    positions = np.arange(len(analysis.bit_costs))
    rng = np.random.default_rng(0)
    for arm, (name, colour) in enumerate(zip(analysis.grid.arms, (ACCENT, _SECOND), strict=True)):
        for index, cost in zip(positions, analysis.bit_costs, strict=True):
            cells = cost.cells[arm].ravel()
            x = index + 0.36 * (arm - 0.5)
            axes.plot(
                x + rng.uniform(-0.09, 0.09, len(cells)), cells, "o", color=colour, alpha=0.3, ms=2.5, mew=0
            )
            label = name if index == 0 else None
            axes.plot([x - 0.13, x + 0.13], [np.nanmean(cells)] * 2, color=colour, lw=2.2, label=label)
    axes.axhline(0, color=GRID, lw=1)
    axes.set_xticks(positions, [f"{cost.bits:g} bits" for cost in analysis.bit_costs])
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.set_ylabel(f"cost, {analysis.grid.unit}")
    axes.set_title(f"against {analysis.grid.bits[0]:g} bits", fontsize=9)
    plain_axes(axes, "y")
    axes.legend(frameon=False, fontsize=7.5)


def _plain_numbers(axes: Any) -> None:
    """1, 2, 5, 10 rather than powers of ten."""
    from matplotlib.ticker import LogLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _hours_axis(axes: Any, analysis: StudyAnalysis) -> None:
    grid = analysis.grid
    axes.set_xscale("log")
    axes.set_xticks(grid.hours, [f"{h:g}" for h in grid.hours])
    axes.minorticks_off()
    axes.set_xlabel("hours of data")
    axes.set_ylabel(f"{grid.arms[0]} better by, {grid.unit}")
    plain_axes(axes, "y")


# The report of a study that was run, from its table and its cells.

REPORT_FILE, FIGURE_FILE, TABLES = "report.json", "study.png", "tables"


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Results of a study.

    Attributes:
        grid: as it was asked for.
        manifests: manifests of the cells that are finished.
        analysis: analysis of the scales that are whole.
        left_out: scales that are not.
        cells: the gap of every language and scale with its interval.
        sooner: comparison of the epochs at which the two starts converged.
    """

    grid: StudyGrid
    manifests: tuple[CellManifest, ...]
    analysis: StudyAnalysis
    left_out: tuple[float, ...]
    cells: tuple[CellGap, ...]
    sooner: tuple[Sooner, ...]

    @property
    def missing(self) -> str:
        """A sentence about unfinished cells; empty when all are finished."""
        total = len(self.grid.cells())
        if len(self.manifests) == total:
            return ""
        scales = ", ".join(f"{h:g} h" for h in self.left_out)
        unfinished = f"; not whole yet and left out: {scales}" if scales else ""
        return f"{len(self.manifests)} of {total} cells are finished{unfinished}"

    @property
    def mixed(self) -> str:
        """A sentence about cells that were scored differently from most; empty where there are none.

        A study that goes on with another version of a metric's library may have them.
        """
        counts = Counter(one.signature for one in self.manifests)
        if len(counts) == 1:
            return ""
        usual = counts.most_common(1)[0][0]
        others = [one for one in self.manifests if one.signature != usual]
        named = ", ".join(str(one.cell) for one in others[:_NAMED])
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return (
            f"scores are not of one kind: {others[0].signature} in {named}{more}, {usual} in the others; delete "
            f"{CELL_FILE} of those cells, and `sprachbund study resume` scores them again"
        )


def make_report(grid: StudyGrid, out: Path, options: AnalysisOptions | None = None) -> StudyReport:
    """The report of what is finished.

    Args:
        grid: grid of the study.
        out: its folder.
        options: options of the analysis; the defaults if None.

    Raises:
        SprachbundError: when no scale is whole, or the table is not one that can be compared.
    """
    results, manifests = write_results(grid, out), finished_cells(grid, out)
    there = [one.cell for one in manifests]
    arms = (grid.starts[0], grid.starts[1])
    whole = [
        h
        for h in grid.hours
        if {(start, language) for start in arms for language in grid.languages if grid.has(language, h)}
        <= {(cell.start, cell.language) for cell in there if cell.hours == h}
    ]
    if not whole:
        raise SprachbundError(
            f"{out}: {len(manifests)} of {len(grid.cells())} cells are finished, and no scale has both {arms[0]} and "
            f"{arms[1]} in all {len(grid.languages)} languages; go on with `sprachbund study resume {out}`"
        )
    better: Better = "higher" if manifests[0].better == "higher" else "lower"
    reading = ReadOptions(
        arms=arms, better=better, where=tuple(f"hours={h!r}" for h in whole), uneven_seeds=True
    )
    table = replace(read_results(results, reading), metric=manifests[0].metric)
    analysis = analyse(table, options)
    return StudyReport(
        grid=grid,
        manifests=tuple(manifests),
        analysis=analysis,
        left_out=tuple(h for h in grid.hours if h not in whole),
        cells=tuple(cell_gaps(grid, manifests, out, bits=max(grid.bits), tiers=analysis.fitted.tiers)),
        sooner=tuple(convergence(grid, manifests)),
    )


def write_report(report: StudyReport, out: Path, hours: Sequence[float] = ()) -> Path:
    """Write report, tables and figure into the study's folder; the path of the report.

    Args:
        report: the report.
        out: folder of the study.
        hours: amounts of data to recommend a start for.
    """
    tables = {
        "gaps": gap_rows(report.analysis),
        "starts": start_rows(report),
        "cells": cell_rows(report),
        "bits": bit_rows(report.analysis),
        "convergence": sooner_rows(report),
        "learning_rates": learning_rate_rows(report),
    }
    for name, rows in tables.items():
        path = out / TABLES / f"{name}.json"
        if rows:
            write_json(path, {"study": str(out.name), "rows": rows})
        else:  # or that of an earlier grid, with more bit widths or learning rates, would stand beside this report
            path.unlink(missing_ok=True)
    values = as_values(report.analysis, hours) | {
        "missing": report.missing,
        "mixed": report.mixed,
        **{name: tables[name] for name in ("starts", "cells", "convergence", "learning_rates")},
        "signature": report.manifests[0].signature,
        "machines": _distinct(one.machine for one in report.manifests),
        "commits": _distinct(one.commit for one in report.manifests),
        "took_h": round(sum(one.took_s for one in report.manifests) / 3600, 2),
    }
    write_json(out / REPORT_FILE, values)
    draw(report.analysis, out / FIGURE_FILE)
    return out / REPORT_FILE


def gap_rows(analysis: StudyAnalysis) -> list[dict[str, Any]]:
    """Gap of every scale, over languages, and at each tier."""
    return [
        {
            "hours": hours,
            "gap": round(mean.value, 2),
            "95%": span(mean.interval),
            **{tier.tiers[0]: round(tier.means[at].value, 2) for tier in analysis.by_tier},
        }
        for at, (hours, mean) in enumerate(zip(analysis.grid.hours, analysis.fitted.means, strict=True))
    ]


def start_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Mean score of every start by hours, over languages, of means over seeds and distinct tiers, at the most bits.

    A dash stands for a start that is not finished in all languages that have the scale.
    """
    grid, rows = report.grid, []
    for hours in grid.hours:
        row: dict[str, Any] = {"hours": hours}
        wanted = {language for language in grid.languages if grid.has(language, hours)}
        for start in grid.starts:
            own = defaultdict[str, list[float]](list)
            for one in report.manifests:
                if (one.cell.start, one.cell.hours) == (start, hours):
                    own[one.cell.language].append(_over_tiers(report, one))
            # First over seeds: a language of which more are finished must not weigh more.
            by_language = [np.mean(values) for values in own.values()]
            row[start] = round(float(np.mean(by_language)), 2) if own and own.keys() == wanted else "-"
        rows.append(row)
    return rows


def learning_rate_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Learning rates of every start by hours, where starts or scales have different ones; see `rates`."""
    grid = report.grid
    used = defaultdict[tuple[str, float], set[float]](set)
    for one in report.manifests:
        if (rate := one.training.get(LEARNING_RATE)) is not None:
            used[one.cell.start, one.cell.hours].add(rate)
    if len(set(chain(*used.values()))) < 2:
        return []
    return [
        {"hours": hours} | {start: _listed(used[start, hours]) for start in grid.starts}
        for hours in grid.hours
    ]


def _listed(rates: set[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(rates)) or "-"


def cell_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Gap of every cell with its interval, over seeds too where there are several."""
    first, second = report.grid.starts[:2]
    return [
        {
            "language": cell.language,
            "hours": cell.hours,
            first: round(cell.values[0], 2),
            second: round(cell.values[1], 2),
            "gap": round(cell.gap, 2),
            "95%": span(cell.interval),
            "seeds": len(cell.seeds),
            "utterances": cell.utterances,
        }
        for cell in report.cells
    ]


def bit_rows(analysis: StudyAnalysis) -> list[dict[str, Any]]:
    """Return rows of the cost of fewer bits: pooled mean and median over all cells and both starts."""
    first, second = analysis.grid.arms
    return [
        {
            "bits": cost.bits,
            "cost": _rounded(cost.mean.value),
            "95%": span(cost.mean.interval),
            "median": _rounded(cost.median),
            f"{second} less {first}": _rounded(cost.difference.value),
            "95% of it": span(cost.difference.interval),
        }
        for cost in analysis.bit_costs
    ]


def _rounded(points: float) -> float:
    return round(points, 2) + 0.0  # never -0


def sooner_rows(report: StudyReport) -> list[dict[str, Any]]:
    """Return rows of the convergence of runs, by scale."""
    first, second = report.grid.starts[:2]
    return [
        {
            "hours": one.hours,
            f"best epoch of {first}": round(one.epochs[0], 1),
            f"best epoch of {second}": round(one.epochs[1], 1),
            f"{first} as good as {second}'s best": f"{one.reached} of {one.runs}",
            "at epoch": "-" if one.at_epoch is None else round(one.at_epoch, 1),
            "epochs sooner": "-" if one.sooner is None else round(one.sooner, 1),
        }
        for one in report.sooner
    ]


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows as text."""
    return list(rows[0]), [[_shown(*item) for item in row.items()] for row in rows]


def _shown(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if name == "hours" else f"{value:z.2f}"


def _over_tiers(report: StudyReport, one: CellManifest) -> float:
    values = [one.value(tier, max(report.grid.bits)) for tier in report.analysis.fitted.tiers]
    return float(np.mean([value for value in values if value is not None]))


def _distinct(values: Any) -> list[Any]:
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct
