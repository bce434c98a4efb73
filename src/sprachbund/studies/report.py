"""What a study says, as text for people and as JSON for programs."""

import math
from collections.abc import Sequence
from typing import Any

from sprachbund.studies.analysis import Analysis, Fitted
from sprachbund.studies.bootstrap import Estimate, Interval
from sprachbund.studies.decision import Decision, decide
from sprachbund.studies.power_law import PowerLaw

Table = tuple[list[str], list[list[str]]]
"""Head and rows."""


def decisions(analysis: Analysis, hours: Sequence[float] = ()) -> list[Decision]:
    """Decisions at these hours, or at the least and the most that the law is fitted to."""
    law = analysis.fitted.law
    if law is None:
        return []
    wanted = hours or (min(law.hours), max(law.hours))
    return [found for at in wanted if (found := decide(analysis, at)) is not None]


def as_values(analysis: Analysis, hours: Sequence[float] = ()) -> dict[str, Any]:
    """The report as a JSON value; what is not known is null.

    Args:
        analysis: what to report.
        hours: at which to decide.
    """
    grid, latency = analysis.grid, analysis.latency
    values = {
        "metric": grid.metric,
        "better": grid.better,
        "arms": list(grid.arms),
        "languages": list(grid.languages),
        "hours": list(grid.hours),
        "tiers": list(grid.tiers),
        "bits": list(grid.bits),
        "seeds": list(grid.seeds),
        "seed_noise": grid.seed_noise,
        "gaps": _gap_values(analysis),
        "fit": _fit_values(analysis.fitted),
        "fit_by_tier": [{"tier": f.tiers[0], **_fit_values(f)} for f in analysis.by_tier],
        "latency_sensitivity": latency
        and {
            "tiers": list(latency.tiers),
            **_estimate("mean", latency.mean),
            "by_noise": latency.by_noise,
            "cells": [
                {"language": name, "hours": h, "value": float(latency.cells[place, at])}
                for place, name in enumerate(grid.languages)
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


def _gap_values(analysis: Analysis) -> list[dict[str, Any]]:
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
    found: dict[str, Any] = {"A": None, "b": None}
    if law is not None:
        found = _estimate("A", law.scale) | _estimate("b", law.exponent)
        found |= {"by": law.by, "r_squared": law.r_squared, "hours": list(law.hours)}
    return found | {"trusted": fitted.trusted, "why": list(fitted.doubts)}


def _estimate(name: str, found: Estimate) -> dict[str, Any]:
    return {
        name: found.value,
        f"{name}_interval": list(found.interval),
        f"{name}_percentile": list(found.percentile),
    }


def _finite(value: Any) -> Any:
    """JSON has no numbers that are none; an interval without an end is none at all."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        pair = len(value) == 2 and all(isinstance(each, float) for each in value)
        return None if pair and math.inf in map(abs, value) else [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def heading(analysis: Analysis) -> str:
    """What is compared, on how much."""
    grid = analysis.grid
    first, second = grid.arms
    counts = (
        (grid.languages, "language"),
        (grid.hours, "scale"),
        (grid.tiers, "tier"),
        (grid.bits, "bit width"),
        (grid.seeds, "seed"),
    )
    told = ", ".join(f"{len(axis)} {name}{'s' * (len(axis) > 1)}" for axis, name in counts)
    return f"gap: by how many {grid.unit} {first} is better than {second}; {told}"


def gap_table(analysis: Analysis) -> Table:
    """Gaps by hours, one column more for each tier where there are several."""
    tiers = [fitted.tiers[0] for fitted in analysis.by_tier]
    head = ["hours", "gap", "95%", "percentiles", *tiers]
    rows = []
    for at, (hours, mean) in enumerate(zip(analysis.grid.hours, analysis.fitted.means, strict=True)):
        own = [f"{fitted.means[at].value:z.2f}" for fitted in analysis.by_tier]
        shown = "-" if math.isnan(hours) else f"{hours:g}"
        rows.append([shown, f"{mean.value:z.2f}", span(mean.interval), span(mean.percentile), *own])
    return head, rows


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


def tier_table(analysis: Analysis) -> Table:
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


def latency_line(analysis: Analysis) -> str:
    """The range over streaming tiers beside what noise makes."""
    found = analysis.latency
    if found is None:
        return ""
    noise = f"; seed noise alone makes {found.by_noise:z.2f}" if found.by_noise is not None else ""
    return (
        f"latency: the gap differs by {found.mean.value:z.2f} ({span(found.mean.interval)}) between "
        f"{len(found.tiers)} streaming tiers, mean over languages and hours{noise}"
    )


def bit_table(analysis: Analysis) -> Table:
    """What fewer bits cost."""
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
