"""A study as a picture: the law on logarithmic axes, the tiers, and what bits cost."""

from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.sharing.drawing import ACCENT, GRID, INK, MUTED, new_figure, plain_axes
from sprachbund.studies.analysis import Analysis
from sprachbund.studies.power_law import PowerLaw
from sprachbund.studies.report import span
from sprachbund.util.files import atomic_path

KINDS = (".png", ".svg", ".pdf")
_WIDTH, _HEIGHT, _POINTS_PER_INCH = 4.4, 3.5, 160
_SECOND = "#c46a2b"


def check_name(path: Path) -> None:
    """See that a figure can be written there. Raises SprachbundError where not."""
    if path.suffix.lower() not in KINDS:
        raise SprachbundError(f"{path}: figures are written as {', '.join(KINDS)}; change the name's end")


def draw(analysis: Analysis, path: Path) -> None:
    """Write the figure; its kind is the ending of its name.

    Raises:
        SprachbundError: for a kind that cannot be written.
    """
    check_name(path)
    panels = [_law, *([_tiers] if analysis.by_tier else []), *([_bits] if analysis.bit_costs else [])]
    figure = new_figure(_WIDTH * len(panels), _HEIGHT)
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        panel(axes, analysis)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_POINTS_PER_INCH, format=path.suffix[1:].lower())


def _law(axes: Any, analysis: Analysis) -> None:
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
    lost = int((fitted.gaps <= 0).sum())
    _hours_axis(axes, analysis)
    shown = np.concatenate([fitted.gaps[fitted.gaps > 0], means[means > 0]])
    if len(shown):  # a logarithm needs something above nought
        axes.set_yscale("log")
        axes.set_ylim(shown.min() / 1.6, shown.max() * 1.6)
        _plain_numbers(axes)
    elif np.isfinite(hours).all():
        axes.set_xlim(hours.min() / 1.2, hours.max() * 1.2)
    axes.set_title(
        "gap and law" + (f" ({lost} of {fitted.gaps.size} not positive)" if lost else ""), fontsize=9
    )
    axes.legend(frameon=False, fontsize=7.5)


def _band(axes: Any, law: PowerLaw) -> None:
    grid = np.geomspace(min(law.hours) / 1.15, max(law.hours) * 1.15, 60)
    found = [law.gap(h) for h in grid]
    low, high = np.array([each.interval for each in found]).T
    if np.isfinite(high).all():
        axes.fill_between(grid, low, high, color=ACCENT, alpha=0.15, lw=0)
    word = "" if law.trusted else ", not to be trusted"
    name = f"{law.scale.value:.2f} (h/100)$^{{{-law.exponent.value:.2f}}}${word}"
    style = "-" if law.trusted else "--"
    axes.plot(grid, [each.value for each in found], style, color=ACCENT, lw=1.6, label=name)


def _tiers(axes: Any, analysis: Analysis) -> None:
    """Mean gap by hours, one line for each tier."""
    shades = np.linspace(0.35, 1.0, len(analysis.by_tier))
    for fitted, shade in zip(analysis.by_tier, shades, strict=True):
        means = [mean.value for mean in fitted.means]
        axes.plot(analysis.grid.hours, means, "o-", color=ACCENT, alpha=shade, ms=3.5, label=fitted.tiers[0])
    axes.axhline(0, color=GRID, lw=1)
    _hours_axis(axes, analysis)
    latency = analysis.latency
    told = f": range {latency.mean.value:.2f} ({span(latency.mean.interval)})" if latency else ""
    axes.set_title(f"by tier{told}", fontsize=9)
    axes.legend(frameon=False, fontsize=7.5)


def _bits(axes: Any, analysis: Analysis) -> None:
    """Cost of bits for both arms, one dot for each cell, the mean beside."""
    places = np.arange(len(analysis.bit_costs))
    rng = np.random.default_rng(0)
    for arm, (name, colour) in enumerate(zip(analysis.grid.arms, (ACCENT, _SECOND), strict=True)):
        for place, cost in zip(places, analysis.bit_costs, strict=True):
            cells = cost.cells[arm].ravel()
            x = place + 0.36 * (arm - 0.5)
            axes.plot(
                x + rng.uniform(-0.09, 0.09, len(cells)), cells, "o", color=colour, alpha=0.3, ms=2.5, mew=0
            )
            label = name if place == 0 else None
            axes.plot([x - 0.13, x + 0.13], [cells.mean()] * 2, color=colour, lw=2.2, label=label)
    axes.axhline(0, color=GRID, lw=1)
    axes.set_xticks(places, [f"{cost.bits:g} bits" for cost in analysis.bit_costs])
    axes.set_xlim(-0.5, len(places) - 0.5)
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


def _hours_axis(axes: Any, analysis: Analysis) -> None:
    grid = analysis.grid
    axes.set_xscale("log")
    axes.set_xticks(grid.hours, [f"{h:g}" for h in grid.hours])
    axes.minorticks_off()
    axes.set_xlabel("hours of data")
    axes.set_ylabel(f"{grid.arms[0]} better by, {grid.unit}")
    plain_axes(axes, "y")
