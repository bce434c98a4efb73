"""Figures of a report, drawn by matplotlib as SVG that stands inside the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.evaluation import router
from sprachbund.evaluation.code_switch import MEASURES
from sprachbund.evaluation.failures import WRONG_LANGUAGE
from sprachbund.evaluation.manifest import ResultManifest
from sprachbund.evaluation.metrics import Counts, Metric
from sprachbund.evaluation.quality import ALL, CODE_SWITCHED, SWITCHING, TRANSCRIPTION, TRANSLATION
from sprachbund.evaluation.significance import bootstrap_weights, percentiles
from sprachbund.evaluation.tables import has_guard, members
from sprachbund.util.files import atomic_path
from sprachbund.util.plotting import ACCENT, GRID, INK, MUTED, as_svg, new_figure, plain_axes

SECOND = "#c9ced4"
_CARD = "#fefefe"
_IN_PAGE = {INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", SECOND: "second", _CARD: "card"}
"""Colours that the page decides, light or dark: name of its CSS variable. Cells of maps keep their own."""

_ON_LIGHT, _ON_DARK = "#1d2734", "#ffffff"
_RAMP = ("#f4f7f8", "#cfe3e6", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_DRAWS, _SEED = 200, 1
DURATION_EDGES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, float("inf"))
LENGTH_EDGES = (1.0, 3.0, 6.0, 11.0, 21.0, float("inf"))


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Lines of like length: a label, how many, the pooled score and its 95% interval."""

    label: str
    num_lines: int
    score: float
    interval: tuple[float, float]


def heat_map(manifest: ResultManifest, metric: str = "chrF") -> str:
    """A metric by source and target; transcription, on the diagonal, is framed."""
    sources, targets = members(manifest, "source"), members(manifest, "target")
    numbers = {
        n.member: n
        for n in reversed(manifest.numbers)
        if (n.metric, n.group, n.text) == (metric, "pair", "raw")
    }
    numbers |= {
        n.member: n
        for n in manifest.numbers
        if (n.metric, n.group, n.text) == (metric, "pair", "raw") and n.guard
    }
    values = np.full((len(sources), len(targets)), np.nan)
    figure, axes = _figure(0.72 * len(targets) + 1.6, 0.52 * len(sources) + 1.0)
    from matplotlib.patches import Rectangle

    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            number = numbers.get(f"{source}-{target}")
            if number is None:
                axes.text(column, row, "–", ha="center", va="center", color=MUTED)
                continue
            values[row, column] = number.value
            colour = _ON_DARK if number.value > 55 else _ON_LIGHT
            axes.text(column, row, f"{number.value:.1f}", ha="center", va="center", color=colour)
            if number.task == TRANSCRIPTION:
                corner = (column - 0.44, row - 0.44)
                axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=colour, linewidth=0.8))
    image = axes.imshow(values, cmap=_colours(), vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(targets)), targets)
    axes.set_yticks(range(len(sources)), sources)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    _white_gaps(axes, len(targets), len(sources))
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.03)
    bar.outline.set_visible(False)
    return svg(figure, f"{metric} by pair")


def failure_bars(manifest: ResultManifest) -> str:
    """Rates of failures over all lines, before the guard and behind it."""
    rates = {(r.failure, r.guard): r for r in manifest.failures if r.member == "all"}
    names = list(dict.fromkeys(name for name, _ in rates))[::-1]
    has_guard = any(guard for _, guard in rates)
    figure, axes = _figure(5.2, 0.5 * len(names) + 1.1)
    height = 0.38 if has_guard else 0.6
    for guard, colour, shift in ((False, SECOND, height / 2), (True, ACCENT, -height / 2)):
        if guard and not has_guard:
            continue
        shown = [rates.get((name, guard)) for name in names]
        positions = np.arange(len(names)) + (shift if has_guard else 0)
        widths = [r.percent if r else 0.0 for r in shown]
        label = "behind the guard" if guard else "before the guard"
        axes.barh(positions, widths, height=height * 0.92, color=colour, label=label)
        for position, width, rate in zip(positions, widths, shown, strict=True):
            text = f"{width:.1f}%" if rate else "not evaluated"
            axes.text(width + 0.8, position, text, va="center", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, max(10.0, 1.15 * max(r.percent for r in rates.values())))
    axes.set_xlabel("% of the lines evaluated")
    _plain_axes(axes, "x")
    if has_guard:
        figure.legend(frameon=False, loc="outside upper right", ncols=2, fontsize=8)
    return svg(figure, "failures")


def has_switching(manifest: ResultManifest) -> bool:
    """Whether any speech was code-switched, or sent anywhere by a router."""
    return any(n.group == SWITCHING for n in manifest.numbers)


def switching_bars(manifest: ResultManifest) -> str:
    """Draw the recall of embedded spans, errors near their ends and elsewhere, and the router's accuracy; of
    translation, else transcription; of code-switched speech, else of all."""
    guard = has_guard(manifest)
    of = [n for n in manifest.numbers if (n.group, n.guard) == (SWITCHING, guard)]
    member = CODE_SWITCHED if any(n.member == CODE_SWITCHED for n in of) else ALL
    of = [n for n in of if n.member == member]
    tasks = {n.task for n in of}
    task = TRANSLATION if TRANSLATION in tasks else TRANSCRIPTION
    rates = {n.metric: n.value for n in of if n.task == task}
    names = [n for n in (*MEASURES.values(), WRONG_LANGUAGE, *router.NAMES) if n in rates][::-1]
    figure, axes = _figure(6.4, 0.36 * max(1, len(names)) + 0.9)
    good = (MEASURES["recalled"], *router.NAMES)
    colours = [ACCENT if name in good else SECOND for name in names]
    axes.barh(range(len(names)), [rates[name] for name in names], height=0.62, color=colours)
    for position, name in enumerate(names):
        axes.text(rates[name] + 1.5, position, f"{rates[name]:.1f}%", va="center", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel(f"%, {task}; recall and accuracy are better high, all others low")
    _plain_axes(axes, "x")
    return svg(figure, "code-switched speech")


def bins_by(counts: Counts, metric: Metric, values: Sequence[float], edges: Sequence[float]) -> list[Bin]:
    """Pooled scores of lines whose value lies between two edges; counts are (N, K).

    Args:
        counts: statistics of N lines, shape (N, K).
        metric: scores sums of the counts.
        values: one per line, N in all.
        edges: borders of the bins, ascending; B + 1 of them make B bins.
    """
    indices = np.digitize(np.array(values), edges) - 1
    bins = []
    for index in range(len(edges) - 1):
        rows = counts[indices == index]
        if not len(rows):
            continue
        drawn = [
            metric.score(sums) for _, w in bootstrap_weights(len(rows), _DRAWS, _SEED) for sums in w @ rows
        ]
        bins.append(
            Bin(
                label=_bin_label(edges[index], edges[index + 1]),
                num_lines=len(rows),
                score=float(metric.score(rows.sum(0))),
                interval=percentiles(np.array(drawn)),
            )
        )
    return bins


def bin_bars(bins: Sequence[Bin], title: str, unit: str) -> str:
    """Scores of bins with their intervals and the number of lines.

    Args:
        bins: scores with intervals.
        title: title of the figure.
        unit: label of the axis of bins.
    """
    figure, axes = _figure(4.6, 2.8)
    positions = range(len(bins))
    axes.bar(positions, [b.score for b in bins], width=0.66, color=ACCENT)
    for position, scores in zip(positions, bins, strict=True):
        axes.plot([position, position], scores.interval, color=INK, linewidth=1.2)
        axes.text(position, 2, f"n={scores.num_lines}", ha="center", va="bottom", fontsize=7, color=_CARD)
    axes.set_xticks(positions, [b.label for b in bins])
    axes.set_ylim(0, 100)
    axes.set_xlabel(unit)
    axes.set_ylabel(title)
    _plain_axes(axes, "y")
    return svg(figure, f"{title} by {unit}")


def group_bars(scores: Mapping[str, tuple[float, int]], title: str) -> str:
    """One bar for each member of a group, the best on top: name to (score, number of lines)."""
    ordered = sorted(scores.items(), key=lambda item: item[1][0])
    figure, axes = _figure(6.4, 0.27 * len(ordered) + 0.9)
    axes.barh(range(len(ordered)), [value for _, (value, _) in ordered], height=0.7, color=ACCENT)
    for position, (_, (value, count)) in enumerate(ordered):
        axes.text(value + 1, position, f"{value:.1f}  (n={count})", va="center", fontsize=7, color=MUTED)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=8)
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(title)
    _plain_axes(axes, "x")
    return svg(figure, title)


def svg(figure: Any, title: str) -> str:
    """A figure as an SVG element in the page's colours, without what differs from run to run."""
    text = as_svg(figure, title)
    for colour, name in _IN_PAGE.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure(width, height)
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.set_facecolor("none")  # the page behind it is light or dark
    return figure, axes


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("sprachbund", _RAMP)


def _white_gaps(axes: Any, columns: int, rows: int) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_CARD, linewidth=2)
    axes.tick_params(which="minor", length=0)


def _plain_axes(axes: Any, grid: str) -> None:
    plain_axes(axes, grid)
    axes.spines["left"].set_visible(grid != "x")


def _bin_label(low: float, high: float) -> str:
    if high == float("inf"):
        return f"{low:g}+"
    return f"{low:g}–{high:g}"


# A picture of a router over time: groups by frames, what was heard where, and the words under it.

_GROUP_COLOURS = ("#f4f7f8", "#cfe3e6", "#8fc1c9", "#4391a3", "#1f6f8b", "#12455c")
_COLOURS = (ACCENT, "#c4703c", "#6a8f3f", "#8a5ea8", "#b03a52", "#4f6d8f")
_DOTS_PER_INCH = 150
_WIDTH = 10.0


@dataclass(frozen=True, kw_only=True)
class LabelledSpan:
    """A stretch of time, its language, and the words in it."""

    start_s: float
    end_s: float
    language: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class RouterPicture:
    """The data of a picture of a router's choices.

    Attributes:
        mass: (P, G) of each group at each speech token.
        groups: their names.
        frame_s: seconds of a token.
        duration_s: seconds of the speech.
        heard: spans that the model makes of it.
        texts: spans of the transcript, or of the model's output where there is none.
        title: title above the picture.
    """

    mass: np.ndarray
    groups: Sequence[str]
    frame_s: float
    duration_s: float
    heard: Sequence[LabelledSpan]
    texts: Sequence[LabelledSpan]
    title: str = ""


def draw_router(picture: RouterPicture, path: Path) -> None:
    """Write a picture, in the format that the name ends with."""
    figure = new_figure(_WIDTH, 1.9 + 0.42 * len(picture.groups))
    rows = figure.subplots(3, 1, sharex=True, height_ratios=[0.42 * len(picture.groups), 0.35, 0.35])
    figure.set_facecolor("white")
    _mass(rows[0], picture)
    colours = dict(
        zip(dict.fromkeys([*picture.groups, *(t.language for t in picture.texts)]), _endless(), strict=False)
    )
    _strip(rows[1], picture.heard, "heard", colours)
    _strip(rows[2], picture.texts, "said", colours)
    rows[2].set_xlabel("seconds", color=MUTED)
    rows[2].set_xlim(0, picture.duration_s)
    figure.suptitle(picture.title, color=INK, fontsize=11)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=_DOTS_PER_INCH, format=path.suffix[1:].lower())


def _endless() -> Sequence[str]:
    return _COLOURS * 20


def _mass(axes: Any, picture: RouterPicture) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("router", _GROUP_COLOURS)
    end_s = len(picture.mass) * picture.frame_s
    image = axes.imshow(
        picture.mass.T,
        aspect="auto",
        cmap=colours,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0, end_s, len(picture.groups) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(picture.groups)), picture.groups)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for span in picture.texts[1:]:
        axes.axvline(span.start_s, color=INK, linewidth=0.8, linestyle=":")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, colors=MUTED)


def _strip(axes: Any, spans: Sequence[LabelledSpan], name: str, colours: dict[str, str]) -> None:
    """Bars in the language's colour, with its tag inside and the words below."""
    for span in spans:
        axes.broken_barh(
            [(span.start_s, span.end_s - span.start_s)], (0.5, 0.5), color=colours.get(span.language, MUTED)
        )
        middle = (span.start_s + span.end_s) / 2
        axes.text(
            middle, 0.75, span.language, ha="center", va="center", color="white", fontsize=7, clip_on=True
        )
        axes.text(middle, 0.25, span.text, ha="center", va="center", color=INK, fontsize=8, clip_on=False)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.75], [name])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
